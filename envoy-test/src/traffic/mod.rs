//! Bulk traffic: hundreds of callers, honest and hostile. Every reply and every
//! access-log entry is checked against its request.
//!
//! Requests are numbered, and the number alone determines the caller and its
//! message (see [`Plan`]). So the checker need not remember what was sent: an
//! entry carries its request's number, which determines the expected content.

pub mod callers;
pub mod hostile;
mod ledger;
mod sender;

pub use ledger::{Ledger, Summary};
pub use sender::{Shape, abandon, send};

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use metadata_exchange::counters::Counter;
use rand::SeedableRng as _;
use rand::rngs::Xoshiro256PlusPlus;
use serde_json::Value;

use crate::peer;

/// The random number generator, deterministic for a seed.
pub type Random = Xoshiro256PlusPlus;

/// The exchange headers of a request, and the expected outcome.
#[derive(Clone, Debug)]
pub struct Message {
    /// The kind of message.
    pub kind: &'static str,
    /// The values of `x-envoy-peer-metadata`, in order.
    pub metadata: Vec<Vec<u8>>,
    /// The values of `x-envoy-peer-metadata-id`, in order.
    pub ids: Vec<Vec<u8>>,
    /// The expected outcome.
    pub expected: Expected,
}

/// The expected outcome of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The caller's metadata in the entry, if any; the reply then carries the
    /// callee's metadata.
    pub peer: Option<Value>,
    /// The received id, if any: the entry has it if there is a peer, and the
    /// reply carries the callee's id.
    pub id: Option<Vec<u8>>,
    /// The counter of the refusal, if any.
    pub refused: Option<Counter>,
}

impl Message {
    /// A request of a caller without the exchange.
    #[must_use]
    pub fn silent() -> Self {
        Self {
            kind: "nothing",
            metadata: Vec::new(),
            ids: Vec::new(),
            expected: Expected::default(),
        }
    }

    /// A request of a peer with this metadata, and its id if it has one.
    #[must_use]
    pub fn of(kind: &'static str, metadata: &Value, id: Option<&str>) -> Self {
        let id = id.map(|id| id.as_bytes().to_vec());
        Self {
            kind,
            metadata: vec![peer::header(metadata).into_bytes()],
            ids: id.iter().cloned().collect(),
            expected: Expected {
                peer: Some(metadata.clone()),
                id,
                refused: None,
            },
        }
    }

    /// A request whose metadata is refused, but not its id.
    #[must_use]
    pub fn refused(kind: &'static str, metadata: Vec<u8>, id: &str, why: Counter) -> Self {
        let id = id.as_bytes().to_vec();
        Self {
            kind,
            metadata: vec![metadata],
            ids: vec![id.clone()],
            expected: Expected {
                peer: None,
                id: Some(id),
                refused: Some(why),
            },
        }
    }

    /// Whether the filter looks it up in its cache, which it does not for
    /// headers that are too long.
    fn is_looked_up(&self) -> bool {
        let too_long = [Counter::RefusedTooLong, Counter::RefusedIdTooLong];
        let is_too_long = self
            .expected
            .refused
            .is_some_and(|why| too_long.contains(&why));
        let has_metadata = self.metadata.first().is_some_and(|value| !value.is_empty());
        has_metadata && !is_too_long
    }
}

/// Which caller sends which request.
#[derive(Debug)]
pub struct Plan {
    seed: u64,
    /// The messages of each caller, in turn.
    callers: Vec<Vec<Message>>,
}

impl Plan {
    /// `peers` callers of every kind, every tenth of them hostile.
    #[must_use]
    pub fn of_peers(seed: u64, peers: NonZeroUsize) -> Self {
        const HOSTILE_MESSAGES: usize = 64;
        let mut random = Random::seed_from_u64(seed);
        let caller = |number| match number % 10 {
            9 => hostile::messages(&mut random, HOSTILE_MESSAGES),
            _ => callers::honest(number),
        };
        let callers = (0..peers.get()).map(caller).collect();
        Self { seed, callers }
    }

    /// Honest callers and as many hostile ones, which do not repeat a message
    /// within `requests` requests.
    #[must_use]
    pub fn of_hostility(seed: u64, requests: usize) -> Self {
        const PAIRS: usize = 20;
        let mut random = Random::seed_from_u64(seed);
        let each = requests.div_ceil(2 * PAIRS).max(1);
        let pair = |number| {
            let hostile = hostile::messages(&mut random, each);
            [callers::honest(number), hostile]
        };
        let callers = (0..PAIRS).flat_map(pair).collect();
        Self { seed, callers }
    }

    /// The message of request `number`. In every round each caller has one
    /// turn, beginning with a random caller.
    #[must_use]
    pub fn message(&self, number: u64) -> &Message {
        let callers = self.callers.len();
        let (round, turn) = (number / callers as u64, index(number, callers));
        let first = index(mix(self.seed ^ round), callers);
        let caller = &self.callers[(first + turn) % callers];
        &caller[index(round, caller.len())]
    }

    /// The counters that the filter must have after the first `requests`
    /// requests, with hits and misses together as [`LOOKED_UP`]. The counter of
    /// ticks depends on time and is not included.
    #[must_use]
    pub fn counts(&self, requests: u64) -> BTreeMap<&'static str, u64> {
        let planned = |counter: Counter| {
            let of_lookups = [Counter::CacheHit, Counter::CacheMiss];
            !of_lookups.contains(&counter) && counter != Counter::Tick
        };
        let all = Counter::ALL.into_iter();
        let names = all.filter_map(|(counter, name)| planned(counter).then_some(name));
        let mut counts: BTreeMap<_, _> = names.map(|name| (name, 0)).collect();
        let mut count = |name| *counts.entry(name).or_default() += 1;
        for message in (0..requests).map(|number| self.message(number)) {
            if message.expected.peer.is_some() {
                count(name_of(Counter::DownstreamPeerStored));
            }
            if let Some(counter) = message.expected.refused {
                count(name_of(counter));
            }
            if message.is_looked_up() {
                count(LOOKED_UP);
            }
        }
        counts
    }

    /// The seed of everything random in it.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The number of callers.
    #[must_use]
    pub fn callers(&self) -> usize {
        self.callers.len()
    }

    /// The number of distinct messages.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.callers.iter().map(Vec::len).sum()
    }
}

/// The name under which [`Plan::counts`] sums cache hits and misses.
pub const LOOKED_UP: &str = "cache_hit + cache_miss";

fn name_of(counter: Counter) -> &'static str {
    let (_, name) = Counter::ALL[counter as usize];
    name
}

fn index(number: u64, len: usize) -> usize {
    // The remainder is less than a `usize`.
    usize::try_from(number % len as u64).unwrap_or_default()
}

/// `SplitMix64`'s finaliser, which decorrelates consecutive numbers.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const SEED: u64 = 1;

    #[test]
    fn no_hostile_message_comes_twice() {
        let plan = Plan::of_hostility(SEED, 1000);
        let messages: Vec<&Message> = (0..1000).map(|number| plan.message(number)).collect();
        let too_long = Some(Counter::RefusedTooLong);
        let too_long: Vec<_> = messages
            .iter()
            .filter(|message| message.expected.refused == too_long)
            .map(|message| &message.metadata)
            .collect();
        assert_eq!(
            too_long.iter().collect::<HashSet<_>>().len(),
            too_long.len()
        );
        assert_eq!(too_long.len(), 500 / hostile::FLAWS.len());
    }

    #[test]
    fn every_caller_has_its_turn_in_every_round() {
        let plan = Plan::of_peers(SEED, NonZeroUsize::new(30).unwrap());
        for round in 0..10 {
            let turns = (round * 30..(round + 1) * 30).map(|number| {
                let message: *const Message = plan.message(number);
                message
            });
            assert_eq!(turns.collect::<HashSet<_>>().len(), 30);
        }
    }

    #[test]
    fn the_counts_add_up() {
        let plan = Plan::of_peers(SEED, NonZeroUsize::new(300).unwrap());
        let counts = plan.counts(3000);
        let sum_of = |wanted: fn(&str) -> bool| -> u64 {
            let counts = counts.iter().filter(|(name, _)| wanted(name));
            counts.map(|(_, count)| count).sum()
        };
        // A tenth of the callers sends nothing, a tenth an id alone, and a
        // tenth is hostile.
        let stored = sum_of(|name| name == "downstream_peer_stored");
        let refused = sum_of(|name| name.starts_with("refused_"));
        assert!((2100..2250).contains(&stored), "{counts:?}");
        assert!((150..300).contains(&refused), "{counts:?}");
        assert!(sum_of(|name| name == LOOKED_UP) <= stored + refused);
    }
}
