//! Decides whether an invalid plugin configuration is refused, or accepted with
//! the filter idle.
//!
//! Envoy first validates a configuration in a separate VM, then passes it to
//! VMs on its main thread and on each worker. After a refusal, the previous
//! configuration stays in force. If there is none, Envoy has no filter: a
//! listener whose plugin is discovered then answers every request with 500, and
//! any other listener does not exist. So only an update is refused. An invalid
//! first configuration is accepted and leaves the filter *idle*: requests pass
//! unchanged.
//!
//! A VM does not know whether a configuration is the first. But all VMs with
//! the same `vm_id` share data, in which the filter keeps two facts:
//!
//! - *In force*: the time when a valid configuration of this plugin was last
//!   active. Each root context writes it with its first request and with its
//!   ticks, and withdraws it when it ends. The mark expires, because a VM that
//!   dies withdraws nothing. `on_configure` does not write it: a bootstrap with
//!   a valid and an invalid listener would not start.
//! - *Idle texts*: hashes of the configurations that were accepted as idle.
//!   Envoy validates a text once and remembers the outcome; the same text later
//!   goes directly to the serving VMs, where a refusal would end them for every
//!   later configuration. So a text that was once accepted as idle always is.
//!
//! If anything fails in this module, the filter is idle and requests are
//! served.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use crate::host::HostResult;

/// How long a mark is valid, in nanoseconds. Ticks renew it once a second, on
/// every worker.
const LAPSE: u64 = 5_000_000_000;

/// The most idle texts that are kept. If there are more, no text is refused.
const MAX_IDLE_TEXTS: usize = 64;

/// How often a write is retried after another VM wrote first.
const ATTEMPTS: usize = 8;

/// The prefix of every key, because without a `vm_id` all plugins of a proxy
/// share one key space.
const FILTER: &str = "metadata_exchange";

/// The data that VMs with the same `vm_id` share, and the proxy's clock.
pub trait SharedData {
    /// The value under `key`, with the number of its write.
    fn read(&self, key: &str) -> HostResult<Option<(Vec<u8>, u32)>>;

    /// Writes `value`. Fails if the last write under `key` is not `number`; 0
    /// writes unconditionally.
    fn write(&self, key: &str, value: &[u8], number: u32) -> HostResult<()>;

    /// Nanoseconds on a monotonic clock that all VMs share.
    fn now(&self) -> HostResult<u64>;
}

/// The verdict on an invalid configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Refused: the previous configuration stays in force.
    Refused,
    /// Accepted, and the filter does nothing.
    Idle,
}

/// A plugin, identified by its names in the proxy's configuration, and the
/// state that its VMs share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plugin {
    in_force: String,
    idle_texts: String,
}

impl Plugin {
    /// The plugin with this `name` and `root_id`.
    #[must_use]
    pub fn new(name: &str, root_id: &str) -> Self {
        // Names contain no NUL, so different plugins have different keys.
        Self {
            in_force: [FILTER, name, root_id, "in_force"].join("\0"),
            // Without the name: older Envoys remember validations by root id
            // and text alone.
            idle_texts: [FILTER, root_id, "idle_texts"].join("\0"),
        }
    }

    /// Decides on an invalid configuration, and remembers it if the filter
    /// becomes idle.
    pub fn admit(&self, shared: &impl SharedData, configuration: &[u8]) -> Verdict {
        // The hash must be the same in every VM of this module.
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let hash = hasher.hash_one(configuration).to_le_bytes();
        for _ in 0..ATTEMPTS {
            let Ok(known) = shared.read(&self.idle_texts) else {
                break;
            };
            let (mut texts, number) = known.unwrap_or_default();
            let (known, _) = texts.as_chunks::<8>();
            if known.contains(&hash) || known.len() >= MAX_IDLE_TEXTS {
                break;
            }
            if self.is_in_force(shared) {
                return Verdict::Refused;
            }
            texts.extend(hash);
            // Read again even after a successful write: of two first writes,
            // the later one overwrites the earlier one.
            let _ = shared.write(&self.idle_texts, &texts, number);
        }
        Verdict::Idle
    }

    /// Marks a valid configuration of this plugin as in force.
    pub fn mark_in_force(&self, shared: &impl SharedData) -> HostResult<()> {
        let now = shared.now()?;
        shared.write(&self.in_force, &now.to_le_bytes(), 0)
    }

    /// Withdraws the mark, because this VM no longer has a valid configuration
    /// of this plugin. VMs that have one renew it with their next tick.
    pub fn withdraw(&self, shared: &impl SharedData) -> HostResult<()> {
        shared.write(&self.in_force, &[], 0)
    }

    fn is_in_force(&self, shared: &impl SharedData) -> bool {
        let mark = shared.read(&self.in_force).ok().flatten();
        let Some(marked) = mark.and_then(|(mark, _)| mark.try_into().ok()) else {
            return false;
        };
        let age = |now: u64| now.saturating_sub(u64::from_le_bytes(marked));
        shared.now().is_ok_and(|now| age(now) < LAPSE)
    }
}
