//! What becomes of a plugin configuration that the filter cannot use: it is
//! refused, or it leaves the filter idle.
//!
//! Envoy first tries a configuration in a VM of its own, then gives it to a VM on
//! its main thread and on each worker. A refusal keeps the configuration before,
//! where there is one; where there is none, Envoy has no filter: a listener whose
//! plugin is discovered then answers every request with 500, any other listener
//! is not there. So only an update is refused. A first configuration is accepted
//! and leaves the filter *idle*: requests pass untouched.
//!
//! No VM is told whether a configuration is the first. All VMs with the same
//! `vm_id` share data, though, and the filter keeps two facts there:
//!
//! - *In force*: when a usable configuration of this plugin was last at work.
//!   Each root context writes it with its first request and with its ticks, and
//!   withdraws it when it ends. It lapses by itself, for a VM that dies withdraws
//!   nothing. `on_configure` does not write it: a bootstrap with a good and a bad
//!   listener would not start.
//! - *Idle texts*: hashes of the configurations that were accepted as idle. Envoy
//!   tries a text once and remembers the outcome; when the text comes again it
//!   goes straight to the VMs that serve, and a refusal there ends those for every
//!   later configuration. So what was once idle stays idle.
//!
//! Whatever fails on the way, requests are served: the filter is idle.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use crate::host::HostResult;

/// For how long a mark says that a configuration is in force, in nanoseconds.
/// Ticks renew it once a second, on every worker.
const LAPSE: u64 = 5_000_000_000;

/// How many idle texts are kept. Where there are more, no text is refused.
const MAX_IDLE_TEXTS: usize = 64;

/// How often a write is tried anew that another VM got ahead of.
const ATTEMPTS: usize = 8;

/// Before every key, for without a `vm_id` all plugins of a proxy share one space.
const FILTER: &str = "metadata_exchange";

/// The data that the VMs with one `vm_id` share, and the proxy's clock.
pub trait SharedData {
    /// What was last written under `key`, with the number of that write.
    fn read(&self, key: &str) -> HostResult<Option<(Vec<u8>, u32)>>;

    /// Writes `value`. Fails if the last write under `key` is not `number`; 0
    /// writes always.
    fn write(&self, key: &str, value: &[u8], number: u32) -> HostResult<()>;

    /// Nanoseconds on a clock that all VMs share and that never goes back.
    fn now(&self) -> HostResult<u64>;
}

/// What is done with a configuration that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Refused: the configuration before stays in force.
    Refused,
    /// Accepted, and the filter does nothing.
    Idle,
}

/// A plugin by its names in the proxy's configuration, and what its VMs know of
/// it together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plugin {
    in_force: String,
    idle_texts: String,
}

impl Plugin {
    /// The plugin of this `name` and `root_id`.
    #[must_use]
    pub fn new(name: &str, root_id: &str) -> Self {
        // No name holds a NUL, so no two plugins have one key.
        Self {
            in_force: [FILTER, name, root_id, "in_force"].join("\0"),
            // Not by name: older Envoys remember trials by root id and text alone.
            idle_texts: [FILTER, root_id, "idle_texts"].join("\0"),
        }
    }

    /// Decides on a configuration that cannot be used, and remembers it if the
    /// filter is idle from now on.
    pub fn admit(&self, shared: &impl SharedData, configuration: &[u8]) -> Verdict {
        // The same in every VM of this module.
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
            // Read anew even where the write went well: of two first writes, the
            // later one takes the earlier one's place.
            let _ = shared.write(&self.idle_texts, &texts, number);
        }
        Verdict::Idle
    }

    /// Says that a usable configuration of this plugin is at work.
    pub fn mark_in_force(&self, shared: &impl SharedData) -> HostResult<()> {
        let now = shared.now()?;
        shared.write(&self.in_force, &now.to_le_bytes(), 0)
    }

    /// Says that this VM has no usable configuration of this plugin any more. VMs
    /// that have one say so again with their next tick.
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
