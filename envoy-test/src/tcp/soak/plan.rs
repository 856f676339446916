//! What happens on a connection, from the seed and its number.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

/// What begins the frame of the exchange.
const MAGIC: [u8; 4] = 0x3D23_0467_u32.to_be_bytes();

/// A connection.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) order: Order,
    /// What the client sends.
    pub(super) client: Direction,
    /// What the server sends.
    pub(super) server: Direction,
    /// When the client goes on, and the server.
    pub(super) gates: [Vec<Gate>; 2],
    /// The end that closes its direction first, if that is the client; the other one does it once it has heard of it.
    ///
    /// If both cross, Envoy itself may lose the end of what the client has sent: it ends the connection to the server
    /// without writing what it still holds.
    pub(super) client_closes_first: bool,
    pub(super) reset: Option<Reset>,
}

/// One direction of it.
#[derive(Clone, Debug)]
pub(super) struct Direction {
    pub(super) seed: u64,
    /// The first bytes; the others are random.
    pub(super) opening: Vec<u8>,
    /// All of its bytes.
    pub(super) length: u64,
    /// The most bytes that are written at once.
    pub(super) largest: usize,
}

/// Who speaks when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The server waits for the client's first byte.
    ClientFirst,
    /// The client waits for the server's first byte.
    ServerFirst,
    /// Neither waits.
    AtOnce,
    /// The server waits until the client has closed its direction.
    ServerAfterEnd,
    /// The client waits until the server has closed its direction.
    ClientAfterEnd,
    /// They take turns, the client first.
    TurnsOfClient,
    /// They take turns, the server first.
    TurnsOfServer,
}

impl Order {
    const ALL: [Self; 7] = [
        Self::ClientFirst,
        Self::ServerFirst,
        Self::AtOnce,
        Self::ServerAfterEnd,
        Self::ClientAfterEnd,
        Self::TurnsOfClient,
        Self::TurnsOfServer,
    ];

    /// Whether the server may speak before it has heard from the client.
    fn may_greet(self) -> bool {
        matches!(
            self,
            Self::ServerFirst | Self::AtOnce | Self::ClientAfterEnd | Self::TurnsOfServer
        )
    }
}

/// A place where an end waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gate {
    /// Ahead of this byte of its own.
    pub(super) at: u64,
    /// Until so many have arrived, or the other end has closed its direction.
    pub(super) until: u64,
}

/// An end resets the connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reset {
    pub(super) by_client: bool,
    /// Once it has sent so many bytes.
    pub(super) after: u64,
}

impl Plan {
    pub(super) fn new(seed: u64, number: u64) -> Self {
        let mut random =
            Xoshiro256PlusPlus::seed_from_u64(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let order = Order::ALL[random.random_range(0..Order::ALL.len())];
        let is_reset = random.random_ratio(1, 8);
        let largest_power = if is_reset { 18 } else { 24 };
        let mut client = Direction::new(&mut random, largest_power);
        let mut server = Direction::new(&mut random, largest_power);
        client.opening = opening(&mut random, true);
        // What looks like a whole frame in a greeting cannot be told from one.
        server.opening = opening(&mut random, !order.may_greet());
        let gates = match order {
            Order::ClientFirst => [vec![], vec![Gate::FIRST]],
            Order::ServerFirst => [vec![Gate::FIRST], vec![]],
            Order::AtOnce => [vec![], vec![]],
            Order::ServerAfterEnd => [vec![], vec![Gate::END]],
            Order::ClientAfterEnd => [vec![Gate::END], vec![]],
            Order::TurnsOfClient => turns(&mut random, &mut client, &mut server),
            Order::TurnsOfServer => {
                // A filter waits for the rest of what may be a frame: whoever waits for an answer to it waits, too.
                server.opening.clear();
                let [second, first] = turns(&mut random, &mut server, &mut client);
                [first, second]
            }
        };
        let client_closes_first = match order {
            Order::ServerAfterEnd => true,
            Order::ClientAfterEnd => false,
            // The other end waits for a byte, or for this.
            Order::ClientFirst if client.length == 0 => true,
            Order::ServerFirst if server.length == 0 => false,
            _ => random.random_bool(0.5),
        };
        let reset = is_reset.then(|| {
            let by_client = random.random_bool(0.5);
            let length = if by_client {
                client.length
            } else {
                server.length
            };
            Reset {
                by_client,
                after: random.random_range(0..=length),
            }
        });
        Self {
            order,
            client,
            server,
            gates,
            client_closes_first,
            reset,
        }
    }
}

impl Gate {
    const FIRST: Self = Self { at: 0, until: 1 };
    const END: Self = Self {
        at: 0,
        until: u64::MAX,
    };
}

impl Direction {
    /// Most are small, and most bytes are in large ones.
    fn new(random: &mut Xoshiro256PlusPlus, largest_power: u32) -> Self {
        let power = random.random_range(0..=largest_power);
        let length = random.random_range(0..=1_u64 << power);
        let largest = 1_usize << random.random_range(0..=16);
        // No million of tiny writes.
        let least = usize::try_from(length / 2000).unwrap_or(usize::MAX);
        Self {
            seed: random.random(),
            opening: Vec::new(),
            length,
            largest: largest.max(least).max(1),
        }
    }
}

/// Nothing special, or what looks like the beginning of a frame, or, for `whole`, like all of it.
fn opening(random: &mut Xoshiro256PlusPlus, whole: bool) -> Vec<u8> {
    let frame = |length: u32, bytes: &[u8]| [&MAGIC, &length.to_be_bytes(), bytes].concat();
    match random.random_range(0..if whole { 14 } else { 13 }) {
        0 => MAGIC[..1].to_vec(),
        1 => MAGIC[..2].to_vec(),
        2 => MAGIC[..3].to_vec(),
        3 => MAGIC.to_vec(),
        // Another byte in the place of each.
        4 => [MAGIC[0], MAGIC[1], MAGIC[2], !MAGIC[3]].to_vec(),
        5 => [&MAGIC[..], &[0, 0]].concat(),
        // Lengths that lie.
        6 => frame(0, b""),
        7 => frame(1, b"\xff\xff"),
        8 => frame(u32::MAX, b"any"),
        9 => frame(random.random_range(2..1000), b"\xff\xff\xff\xff"),
        10 => frame(1 << 20, b"\x0a\x01"),
        11 | 12 => Vec::new(),
        // An `Any` without a value.
        _ => {
            const ANY: &[u8] = b"\x0a\x2atype.googleapis.com/google.protobuf.Struct";
            const LENGTH: u32 = 2 + 0x2a;
            frame(LENGTH, ANY)
        }
    }
}

/// Both take turns, and send little each time. Returns the gates of each.
fn turns(
    random: &mut Xoshiro256PlusPlus,
    first: &mut Direction,
    second: &mut Direction,
) -> [Vec<Gate>; 2] {
    let mut gates = [vec![], vec![]];
    let (mut said, mut answered) = (0, 0);
    for turn in 0..random.random_range(1..60) {
        if turn > 0 {
            gates[0].push(Gate {
                at: said,
                until: answered,
            });
        }
        said += random.random_range(1..2000_u64);
        gates[1].push(Gate {
            at: answered,
            until: said,
        });
        answered += random.random_range(1..2000_u64);
    }
    (first.length, second.length) = (said, answered);
    gates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_plan() {
        let text = |seed, number| format!("{:?}", Plan::new(seed, number));
        assert_eq!(text(4, 7), text(4, 7));
        assert_ne!(text(4, 7), text(4, 8));
        assert_ne!(text(4, 7), text(5, 7));
    }

    #[test]
    fn no_end_waits_for_what_does_not_come() {
        for plan in (0..10_000).map(|number| Plan::new(4, number)) {
            let ends = [
                (&plan.client, &plan.gates[1], plan.client_closes_first),
                (&plan.server, &plan.gates[0], !plan.client_closes_first),
            ];
            for (sender, gates_of_other, closes_first) in ends {
                let comes = |gate: &Gate| gate.until <= sender.length || closes_first;
                assert!(gates_of_other.iter().all(comes), "{plan:?}");
            }
        }
    }

    #[test]
    fn two_hundred_connections_are_of_all_kinds() {
        let plans: Vec<_> = (0..200).map(|number| Plan::new(4, number)).collect();
        for order in Order::ALL {
            let mut of_order = plans.iter().filter(|plan| plan.order == order);
            assert!(
                of_order.clone().any(|plan| plan.reset.is_none()),
                "{order:?}"
            );
            assert!(of_order.any(|plan| plan.reset.is_some()), "{order:?}");
        }
        for opening in [&b"="[..], b"=#", b"=#\x04", &MAGIC] {
            let starts = |direction: &Direction| direction.opening == opening;
            assert!(plans.iter().any(|plan| starts(&plan.client)), "{opening:?}");
            assert!(plans.iter().any(|plan| starts(&plan.server)), "{opening:?}");
        }
    }
}
