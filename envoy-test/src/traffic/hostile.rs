//! Hostile callers. Each flaw is handmade, with its expected verdict; only for
//! random mutations does the decoder itself, run natively, decide.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use metadata_exchange::config::Config;
use metadata_exchange::counters::Counter;
use metadata_exchange::peer::{header, wire};
use rand::RngExt as _;
use serde_json::json;

use access_log::state::json_of_peer as peer_json;

use super::{Message, Random, callers};
use crate::peer::encode;

/// A function that creates a message with a flaw.
type Flaw = fn(&mut Random) -> Message;

/// Every flaw.
pub const FLAWS: [Flaw; 25] = [
    bytes_that_are_not_text,
    url_safe_base64,
    lone_last_character,
    trailing_bits,
    empty_headers,
    empty_header_before_another,
    truncated,
    group,
    unknown_wire_type,
    field_zero,
    overlong_varint,
    length_beyond_the_end,
    deep_nesting,
    repeated_key,
    repeated_label,
    unknown_fields,
    control_character,
    text_that_is_not_utf8,
    too_many_labels,
    says_nothing,
    over_the_length,
    valid_before_invalid,
    invalid_before_valid,
    bad_id,
    mutated,
];

/// `count` messages with every flaw in turn.
#[must_use]
pub fn messages(random: &mut Random, count: usize) -> Vec<Message> {
    let flaws = FLAWS.iter().cycle().take(count);
    flaws.map(|flaw| flaw(random)).collect()
}

fn bytes_that_are_not_text(random: &mut Random) -> Message {
    let mut value = random_bytes(random, 1..=2000);
    // Bytes that HTTP forbids do not reach the filter.
    for byte in &mut value {
        *byte |= 0x80;
    }
    refused(
        "bytes that are not text",
        value,
        random,
        Counter::RefusedBase64,
    )
}

fn url_safe_base64(random: &mut Random) -> Message {
    let mut value = encoded(random);
    let place = random.random_range(0..value.len() - 4);
    value[place] = *pick(random, b"-_");
    refused("URL-safe base64", value, random, Counter::RefusedBase64)
}

fn lone_last_character(random: &mut Random) -> Message {
    let mut value = encoded(random);
    value.truncate(4 * random.random_range(1..value.len() / 4) + 1);
    refused(
        "a lone last character",
        value,
        random,
        Counter::RefusedBase64,
    )
}

fn trailing_bits(random: &mut Random) -> Message {
    // Two characters for one byte: the last four bits are unused.
    let value = vec![b'C', *pick(random, b"hv/")];
    refused("trailing bits", value, random, Counter::RefusedBase64)
}

fn empty_headers(random: &mut Random) -> Message {
    let mut message = Message::silent();
    message.kind = "empty headers";
    message.metadata = vec![Vec::new(); random.random_range(1..4)];
    message.ids = vec![Vec::new(); random.random_range(0..4)];
    message
}

fn empty_header_before_another(random: &mut Random) -> Message {
    let mut message = Message::silent();
    message.kind = "an empty header before another";
    message.metadata = vec![Vec::new(), encoded(random)];
    message.ids = vec![Vec::new(), caller_id(random).into_bytes()];
    message
}

fn truncated(random: &mut Random) -> Message {
    let mut message = honest(random);
    // The last entry is longer than what is cut off.
    message.truncate(message.len() - random.random_range(1..10));
    malformed("truncated", &message, random)
}

fn group(random: &mut Random) -> Message {
    let field = random.random_range(1..16_u8) << 3;
    malformed_by("a group without end", &[field | 3], random)
}

fn unknown_wire_type(random: &mut Random) -> Message {
    let field = random.random_range(1..16_u8) << 3;
    let inserted = vec![field | pick(random, &[6, 7]), 0];
    malformed_by("an unknown wire type", &inserted, random)
}

fn field_zero(random: &mut Random) -> Message {
    let inserted = vec![*pick(random, &[0, 1, 2, 5]), 0];
    malformed_by("field 0", &inserted, random)
}

fn overlong_varint(random: &mut Random) -> Message {
    let mut inserted = vec![*pick(random, &[0x0a, 0x10])];
    inserted.extend(vec![0xff; random.random_range(10..200)]);
    malformed_by("an overlong varint", &inserted, random)
}

fn length_beyond_the_end(random: &mut Random) -> Message {
    let length = random.random_range(0x1_0000..=u64::MAX);
    let mut inserted = vec![0x0a];
    inserted.extend(varint(length));
    malformed_by("a length beyond the end", &inserted, random)
}

fn deep_nesting(random: &mut Random) -> Message {
    // From 100 nested messages on, the decoder reports a malformed message.
    let depth = random.random_range(wire::MAX_DEPTH + 2..30);
    let mut value = string("leaf");
    for _ in 0..depth {
        // A list with one value, or a struct with one entry.
        value = if random.random() {
            field(6, &field(1, &value))
        } else {
            field(5, &entry("k", &value))
        };
    }
    let key = *pick(random, &["LABELS", "NAME", "UNKNOWN"]);
    let message = [honest(random), entry(key, &value)].concat();
    // Values of labels are checked like any other value.
    refused(
        "deep nesting",
        base64(&message),
        random,
        Counter::RefusedTooDeep,
    )
}

fn repeated_key(random: &mut Random) -> Message {
    let number = random.random_range(0..CALLERS);
    let mut peer = callers::peer(number, 0);
    let repeated = [encode(&peer), entry("NAME", &string("the-last-wins"))].concat();
    peer["NAME"] = "the-last-wins".into();
    let mut message = Message::of("a repeated key", &peer, Some(&callers::id(number)));
    message.metadata = vec![base64(&repeated)];
    message
}

fn repeated_label(random: &mut Random) -> Message {
    let number = random.random_range(0..CALLERS);
    let mut peer = callers::peer(number, 0);
    let labels = ["first", "last"].map(|value| entry("app", &string(value)));
    let message = [encode(&peer), entry("LABELS", &field(5, &labels.concat()))].concat();
    peer["LABELS"] = json!({ "app": "last" });
    let mut hostile = Message::of("a repeated label", &peer, Some(&callers::id(number)));
    hostile.metadata = vec![base64(&message)];
    hostile
}

fn unknown_fields(random: &mut Random) -> Message {
    let number = random.random_range(0..CALLERS);
    let peer = callers::peer(number, 0);
    let unknown = [
        // One of each wire type, the first with the highest field number.
        [varint(0x1FFF_FFFF << 3), varint(u64::MAX)].concat(),
        [varint(9 << 3 | 1), vec![0xff; 8]].concat(),
        [varint(10 << 3 | 5), vec![0xff; 4]].concat(),
        field(11, &random_bytes(random, 0..=100)),
        entry("UNKNOWN", &field(20, b"")),
    ];
    let mut message = Message::of("unknown fields", &peer, Some(&callers::id(number)));
    message.metadata = vec![base64(&[unknown.concat(), encode(&peer)].concat())];
    message
}

fn control_character(random: &mut Random) -> Message {
    let bad = *pick(
        random,
        &[
            "\n", "\r\n", "\0", "\x1b[2J", "\t", "\x7f", "\u{85}", "\u{9b}",
        ],
    );
    let text = format!("forged{bad}line");
    let message = bad_text(text.as_bytes(), random);
    refused(
        "a control character",
        base64(&message),
        random,
        Counter::RefusedControlCharacter,
    )
}

fn text_that_is_not_utf8(random: &mut Random) -> Message {
    // An invalid byte, half a character, a surrogate, an overlong newline.
    let bad: [&[u8]; 4] = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x8a"];
    let text = [b"a", *pick(random, &bad)].concat();
    let message = bad_text(&text, random);
    refused(
        "a text that is not UTF-8",
        base64(&message),
        random,
        Counter::RefusedProtobuf,
    )
}

/// An honest message with `text` at one of the positions of a text.
fn bad_text(text: &[u8], random: &mut Random) -> Vec<u8> {
    let value = field(3, text);
    let bad = match random.random_range(0..4) {
        0 => entry("NAME", &value),
        1 => entry("APP_CONTAINERS", &field(6, &field(1, &value))),
        2 => entry("LABELS", &field(5, &entry("app", &value))),
        _ => {
            let label = [field(1, text), field(2, &string("value"))].concat();
            entry("LABELS", &field(5, &field(1, &label)))
        }
    };
    [honest(random), bad].concat()
}

fn too_many_labels(random: &mut Random) -> Message {
    let count = random.random_range(257..600);
    // Each label has its own key, because of repeated keys only the last
    // counts.
    let labels: Vec<u8> = (0..count)
        .flat_map(|label| entry(&label.to_string(), &string("")))
        .collect();
    let message = entry("LABELS", &field(5, &labels));
    refused(
        "too many labels",
        base64(&message),
        random,
        Counter::RefusedTooManyLabels,
    )
}

fn says_nothing(random: &mut Random) -> Message {
    let nothing = [
        entry("NAME", &string("")),
        entry("LABELS", &field(5, b"")),
        entry("NAME", b""),
        entry("UNKNOWN", &string("text")),
    ];
    let message = pick(random, &nothing).clone();
    refused(
        "says nothing",
        base64(&message),
        random,
        Counter::RefusedEmpty,
    )
}

/// Up to nearly 60 KiB, beyond which Envoy itself rejects requests.
fn over_the_length(random: &mut Random) -> Message {
    let length = random.random_range(16_385..58_000);
    let value = encoded(random).into_iter().cycle().take(length).collect();
    refused("over the length", value, random, Counter::RefusedTooLong)
}

fn valid_before_invalid(random: &mut Random) -> Message {
    let number = random.random_range(0..CALLERS);
    let peer = callers::peer(number, 0);
    let mut message = Message::of("valid before invalid", &peer, Some(&callers::id(number)));
    message
        .metadata
        .extend([b"!".to_vec(), Vec::new(), encoded(random)]);
    message.ids.extend([b"\xff".to_vec(), Vec::new()]);
    message
}

fn invalid_before_valid(random: &mut Random) -> Message {
    let mut message = refused(
        "invalid before valid",
        b"!".to_vec(),
        random,
        Counter::RefusedBase64,
    );
    message.metadata.push(encoded(random));
    message
}

/// A refused id also makes the filter refuse valid metadata.
fn bad_id(random: &mut Random) -> Message {
    let (id, why) = match random.random_range(0..4) {
        0 => (
            vec![b'x'; random.random_range(1025..50_000)],
            Counter::RefusedIdTooLong,
        ),
        1 => ("forged\u{85}line".into(), Counter::RefusedControlCharacter),
        2 => (b"forged\tline".to_vec(), Counter::RefusedControlCharacter),
        _ => (b"\xff\xfe".to_vec(), Counter::RefusedUtf8),
    };
    let mut message = refused("a bad id", Vec::new(), random, why);
    message.metadata.clear();
    if random.random() {
        message.metadata.push(encoded(random));
    }
    message.ids = vec![id];
    message.expected.id = None;
    message
}

fn mutated(random: &mut Random) -> Message {
    let mut message = honest(random);
    for _ in 0..random.random_range(1..8) {
        let place = random.random_range(0..message.len());
        message[place] ^= 1 << random.random_range(0..8);
    }
    judged("mutated", &message, &caller_id(random))
}

/// A message whose verdict comes from the native decoder.
fn judged(kind: &'static str, bytes: &[u8], id: &str) -> Message {
    match header::decode(base64(bytes).as_slice(), Config::default().limits) {
        Ok(peer) => {
            let mut message = Message::of(kind, &peer_json(&peer), Some(id));
            message.metadata = vec![base64(bytes)];
            message
        }
        Err(reason) => Message::refused(kind, base64(bytes), id, reason.into()),
    }
}

fn malformed_by(kind: &'static str, inserted: &[u8], random: &mut Random) -> Message {
    malformed(kind, &[&honest(random), inserted].concat(), random)
}

fn malformed(kind: &'static str, message: &[u8], random: &mut Random) -> Message {
    refused(kind, base64(message), random, Counter::RefusedProtobuf)
}

fn refused(kind: &'static str, value: Vec<u8>, random: &mut Random, why: Counter) -> Message {
    Message::refused(kind, value, &caller_id(random), why)
}

/// Hostile callers use the ids of honest ones.
const CALLERS: usize = 300;

fn caller_id(random: &mut Random) -> String {
    callers::id(random.random_range(0..CALLERS))
}

/// A valid message.
fn honest(random: &mut Random) -> Vec<u8> {
    encode(&callers::peer(random.random_range(0..CALLERS), 0))
}

/// A valid value of the header.
fn encoded(random: &mut Random) -> Vec<u8> {
    base64(&honest(random))
}

fn base64(message: &[u8]) -> Vec<u8> {
    STANDARD.encode(message).into_bytes()
}

/// An entry of `google.protobuf.Struct`.
fn entry(key: &str, value: &[u8]) -> Vec<u8> {
    field(1, &[field(1, key.as_bytes()), field(2, value)].concat())
}

/// A `google.protobuf.Value` with a string.
fn string(text: &str) -> Vec<u8> {
    field(3, text.as_bytes())
}

/// A length-delimited field.
fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [
        varint(number << 3 | 2),
        varint(bytes.len() as u64),
        bytes.to_vec(),
    ]
    .concat()
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
    bytes
}

fn random_bytes(random: &mut Random, length: std::ops::RangeInclusive<usize>) -> Vec<u8> {
    let length = random.random_range(length);
    (0..length).map(|_| random.random()).collect()
}

fn pick<'t, T>(random: &mut Random, things: &'t [T]) -> &'t T {
    &things[random.random_range(0..things.len())]
}

#[cfg(test)]
mod tests {
    use metadata_exchange::peer::RejectReason;
    use rand::SeedableRng as _;

    use serde_json::Value;

    use super::*;

    /// The verdict of the native decoder.
    fn verdict(message: &Message) -> Result<Option<Value>, RejectReason> {
        let limits = Config::default().limits;
        let first = |values: &[Vec<u8>]| values.first().cloned().unwrap_or_default();
        let (value, id) = (first(&message.metadata), first(&message.ids));
        header::id(&id, limits)?;
        if value.is_empty() {
            return Ok(None);
        }
        Ok(Some(peer_json(&header::decode(&value, limits)?)))
    }

    #[test]
    fn every_flaw_matches_its_description() {
        let mut random = Random::seed_from_u64(1);
        for message in messages(&mut random, 100 * FLAWS.len()) {
            let expected = message
                .expected
                .refused
                .map_or(Ok(message.expected.peer.clone()), Err);
            let verdict = verdict(&message).map_err(Counter::from);
            assert_eq!(verdict, expected, "{message:?}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_messages() {
        let of = |seed| {
            format!(
                "{:?}",
                messages(&mut Random::seed_from_u64(seed), FLAWS.len())
            )
        };
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }
}
