//! Hostile headers: the work is proportional to their length, memory stays bounded, and nothing traps.

use crate::support::{
    DOWNSTREAM, ID, METADATA, Proxy, Workload, assert_stored, assert_stripped, state, struct_value,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use wasm_host::Headers;

/// The default limit on a header's length.
const LONGEST: usize = 16_384;

/// Instructions for a caller's first request, per byte of its header.
fn work_per_byte(headers: &Headers) -> f64 {
    // The first stream also pays for growing memory.
    work_per_byte_after(&Workload::new("warm").headers(), headers)
}

/// The same, after another peer has called.
fn work_per_byte_after(before: &Headers, headers: &Headers) -> f64 {
    let mut proxy = Proxy::plain("local");
    proxy.inbound(before);
    let stream = proxy.open(wasm_host::Direction::Inbound);
    let (action, instructions) = proxy
        .vm
        .measure(|vm| vm.request_headers(&stream, headers.clone()));
    action.expect("no trap");
    assert_stripped(&stream.request_headers());
    let bytes: usize = headers.iter().map(|(_, value)| value.len()).sum();
    #[allow(clippy::cast_precision_loss, reason = "both are far below 2^52")]
    let ratio = instructions as f64 / bytes as f64;
    ratio
}

fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    let mut length = bytes.len();
    while length >= 0x80 {
        message.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
        length >>= 7;
    }
    message.push(u8::try_from(length).expect("seven bits"));
    message.extend(bytes);
    message
}

/// An entry of a Struct.
fn entry(key: &str, value: &[u8]) -> Vec<u8> {
    let pair = [field(0x0a, key.as_bytes()), field(0x12, value)].concat();
    field(0x0a, &pair)
}

/// As many copies of a message as fit into the longest header, including their wrapping.
fn filled_with(message: &[u8]) -> Vec<u8> {
    let room = LONGEST / 4 * 3 - 64;
    message.repeat(room / message.len())
}

/// A number as a `Value`.
fn number(number: f64) -> Vec<u8> {
    [&[0x11], number.to_le_bytes().as_slice()].concat()
}

/// A number for which shortest-digit algorithms take their slow path.
const SLOW_TO_WRITE: f64 = 1.803_705_985_095_678_3e-308;

/// The number with the longest text that the filter writes.
const LONGEST_WRITTEN: f64 = -999_999_999.999_999;

/// Lists that repeat a number as often as possible.
fn numbers(one: f64) -> Vec<u8> {
    let list = field(0x0a, &number(one)).repeat(250);
    filled_with(&entry("INSTANCE_IPS", &field(0x32, &list)))
}

fn nested(depth: usize, wrap: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    (0..depth).fold(field(0x1a, b"x"), |inner, _| wrap(&inner))
}

/// Labels in random order whose keys differ in few bytes.
fn shuffled(count: usize, key_bytes: usize) -> Vec<u8> {
    let mut random = Random(0x5eed);
    let mut order: Vec<_> = (0..count).map(|index| (random.next(), index)).collect();
    order.sort_unstable();
    let entries = order.into_iter().flat_map(|(_, index)| {
        let key = format!("{index:0>key_bytes$}");
        entry(&key, &field(0x1a, b"v"))
    });
    entry("LABELS", &field(0x2a, &entries.collect::<Vec<_>>()))
}

/// Messages of maximum length, each bad in its own way.
fn worst_cases() -> Vec<(&'static str, Vec<u8>)> {
    let label = |index: usize| entry(&format!("{index:04}"), &field(0x1a, b"v"));
    let labels = |range: &mut dyn Iterator<Item = usize>| {
        let entries: Vec<u8> = range.flat_map(label).collect();
        entry("LABELS", &field(0x2a, &entries))
    };
    let list = |inner: &[u8]| field(0x32, &field(0x0a, inner));
    let record = |inner: &[u8]| field(0x2a, &entry("k", inner));
    vec![
        (
            "the same key again and again",
            filled_with(&entry("NAME", &field(0x1a, b"n"))),
        ),
        (
            "unknown keys",
            filled_with(&entry("UNKNOWN", &field(0x1a, b"n"))),
        ),
        ("labels in order", labels(&mut (0..250))),
        ("labels in reverse", labels(&mut (0..250).rev())),
        ("64 shuffled labels", shuffled(64, 160)),
        ("128 shuffled labels", shuffled(128, 76)),
        ("255 shuffled labels", shuffled(255, 34)),
        (
            "maps of shuffled labels again and again",
            filled_with(&shuffled(255, 3)),
        ),
        ("too many labels", labels(&mut (0..800))),
        (
            "the same label again and again",
            entry("LABELS", &field(0x2a, &label(1).repeat(256))),
        ),
        ("maps again and again", filled_with(&labels(&mut (0..20)))),
        ("empty fields", filled_with(b"\x0a\x00")),
        ("unknown varints", filled_with(b"\x10\x00")),
        (
            "long varints",
            filled_with(b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        ),
        ("groups", filled_with(b"\x0b\x0c")),
        ("open groups", filled_with(b"\x0b")),
        ("deep lists", entry("NAME", &nested(1000, list))),
        ("deep structs", entry("LABELS", &nested(800, record))),
        ("deep unknown structs", entry("OTHER", &nested(800, record))),
        (
            "one long text",
            entry("NAME", &field(0x1a, &[b'x'; 12_000])),
        ),
        (
            "a list of nothing",
            filled_with(&entry(
                "APP_CONTAINERS",
                &field(0x32, &b"\x0a\x00".repeat(256)),
            )),
        ),
        (
            "numbers that are slow to write",
            filled_with(&entry("NAME", &number(SLOW_TO_WRITE))),
        ),
        (
            "lists of numbers that are slow to write",
            numbers(SLOW_TO_WRITE),
        ),
        ("lists of the longest numbers", numbers(LONGEST_WRITTEN)),
        ("lists of integers", numbers(-999_999_999_999_999.0)),
        ("maps of numbers without names", {
            let label = field(0x0a, &field(0x12, &number(LONGEST_WRITTEN)));
            filled_with(&entry("LABELS", &field(0x2a, &label.repeat(200))))
        }),
        (
            "commas",
            filled_with(&entry("APP_CONTAINERS", &field(0x1a, &[b','; 255]))),
        ),
        (
            "a long text beyond ASCII",
            entry("NAME", &field(0x1a, "\u{e9}".repeat(6_000).as_bytes())),
        ),
        (
            "a long text that is bad at its very end",
            entry(
                "NAME",
                &field(0x1a, &[&[b'x'; 12_000][..], b"\xff"].concat()),
            ),
        ),
        ("all collections at their limit", {
            let names = field(0x1a, ",".repeat(255).as_bytes());
            let entries = (0..256).flat_map(label).collect::<Vec<_>>();
            let map = field(0x2a, &entries);
            [
                entry("APP_CONTAINERS", &names),
                entry("INSTANCE_IPS", &names),
                entry("LABELS", &map),
                entry("PLATFORM_METADATA", &map),
            ]
            .concat()
        }),
        ("zeros", vec![0; 12_000]),
        ("ones", vec![0xff; 12_000]),
    ]
}

/// How many times the work per byte of an ordinary header a hostile one may cause.
const FACTOR: f64 = 5.0;

/// A caller with a header of over 10 KB.
fn talkative() -> Workload {
    let mut honest = Workload::new("caller");
    for index in 0..100 {
        honest.metadata["LABELS"][format!("label-{index:03}.example.com/name")] =
            json!("x".repeat(60));
    }
    let length = honest.value().len();
    assert!(length > 10_000 && length < LONGEST, "{length}");
    honest
}

fn assert_in_proportion(name: &str, ratio: f64, of_honest: f64) {
    println!("{name}: {ratio:.1} instructions per byte, {of_honest:.1} for an ordinary header");
    assert!(
        ratio < FACTOR * of_honest,
        "{name}: {ratio:.1} instructions per byte, {of_honest:.1} for an ordinary header"
    );
}

#[test]
fn the_worst_header_costs_a_small_factor_of_a_usual_one() {
    let of_honest = work_per_byte(&talkative().headers());
    for (name, message) in worst_cases() {
        let value = STANDARD.encode(message);
        assert!(value.len() <= LONGEST, "{name} is not decoded at all");
        let ratio = work_per_byte(&Headers::from([(METADATA, value), (ID, "evil".to_owned())]));
        assert_in_proportion(name, ratio, of_honest);
    }
}

/// How many times its length a header may take of memory while it is decoded, with the peer that is made of it.
/// A map takes a node with room for eleven entries, however few it has.
const MEMORY_FACTOR: f64 = 55.0;

/// The memory that one header makes the VM grow by, as a multiple of its length. The limit on received metadata is raised
/// so that 64 KiB, the unit of memory, is little.
fn memory_factor(message: &[u8]) -> f64 {
    const LIMIT: usize = 1 << 20;
    let settings =
        json!({ "max_received_bytes": LIMIT, "max_labels": 65_536, "max_peer_cache_size": 0 });
    let mut proxy = Proxy::of(&Workload::new("local"), &settings);
    let value = STANDARD.encode(message);
    assert!(
        (LIMIT / 2..=LIMIT).contains(&value.len()),
        "{} bytes",
        value.len()
    );
    // The bytes of the header itself, and the stream's first allocations.
    let refused = Headers::from([(METADATA, "!".repeat(value.len()))]);
    proxy.inbound(&refused);
    let before = proxy.vm.memory_pages();
    proxy.inbound(&Headers::from([(METADATA, &value)]));
    let grown = (proxy.vm.memory_pages() - before) * 65_536;
    #[allow(clippy::cast_precision_loss, reason = "both are far below 2^52")]
    let factor = grown as f64 / value.len() as f64;
    factor
}

#[test]
fn decoding_takes_memory_in_proportion_to_the_header() {
    const ROOM: usize = (1 << 18) * 3 - 128;
    let filled = |message: &[u8]| message.repeat(ROOM / message.len());
    let numbered = |range: std::ops::Range<usize>, value: &[u8]| -> Vec<u8> {
        range
            .flat_map(|number| entry(&format!("{number:x}"), value))
            .collect()
    };
    let list = |one: &[u8]| entry("A", &field(0x32, &filled(&field(0x0a, one))));
    let cases = [
        (
            "one long text",
            entry("NAME", &field(0x1a, &vec![b'x'; ROOM - 16])),
        ),
        (
            "unknown keys with texts",
            numbered(0..40_000, &field(0x1a, b"n")),
        ),
        ("unknown keys without values", numbered(0..58_000, b"")),
        (
            "labels",
            entry(
                "LABELS",
                &field(0x2a, &numbered(0..58_000, &field(0x1a, b""))),
            ),
        ),
        ("a list of nothing", list(b"")),
        ("a list of texts", list(&field(0x1a, b""))),
        ("a list of lists", list(&field(0x32, b""))),
        ("a list of maps", list(&field(0x2a, &field(0x0a, b"")))),
        (
            "the same label again and again",
            entry("LABELS", &field(0x2a, &filled(&entry("1", b"")))),
        ),
    ];
    for (name, message) in cases {
        let factor = memory_factor(&message);
        println!("{name}: {factor:.1} times its length");
        assert!(factor < MEMORY_FACTOR, "{name}: {factor:.1}");
    }
}

#[test]
fn ids_and_known_values_do_not_raise_the_cost() {
    let honest = talkative();
    let of_honest = work_per_byte(&honest.headers());
    let value = honest.value();
    let with_id = |value: &str, id: &str| Headers::from([(METADATA, value), (ID, id)]);
    let first_but = |bytes: usize| value[..value.len() - bytes].to_owned();

    let long_id = with_id(&value, &"i".repeat(1_024));
    assert_in_proportion("a long id", work_per_byte(&long_id), of_honest);

    let broken = with_id(&format!("{}-", first_but(1)), "id");
    assert_in_proportion(
        "base64 bad at its very end",
        work_per_byte(&broken),
        of_honest,
    );

    // Other values under a known id, which differ only in the last characters.
    let known = with_id(&value, "id");
    let like_known = with_id(&first_but(4), "id");
    let ratio = work_per_byte_after(&known, &like_known);
    assert_in_proportion("nearly the value of a known id", ratio, of_honest);
    let same_length = with_id(&format!("{}AAA=", first_but(4)), "id");
    let ratio = work_per_byte_after(&known, &same_length);
    assert_in_proportion("a value as long as that of a known id", ratio, of_honest);
}

#[test]
fn a_header_beyond_the_limit_is_not_decoded() {
    let long = "A".repeat(60 * 1024);
    let ratio = work_per_byte(&Headers::from([(METADATA, long.clone()), (ID, long)]));
    println!("beyond the limit: {ratio:.2} instructions per byte");
    assert!(ratio < 10.0, "{ratio}");
}

/// Raised limits hold as well.
#[test]
fn long_headers_that_are_allowed_are_read() {
    let raised = json!({ "max_received_bytes": 1_048_576, "max_labels": 65_536 });
    let mut proxy = Proxy::of(&Workload::new("local"), &raised);
    for labels in [10, 1_000, 10_000] {
        let mut caller = Workload::new("caller");
        for index in 0..labels {
            caller.metadata["LABELS"][format!("label-{index:05}")] = json!("x".repeat(50));
        }
        let stream = proxy.inbound(&caller.headers());
        assert_stored(&stream, Some(&caller), None);
    }
}

#[test]
fn stored_bytes_are_proportional_to_sent_bytes() {
    for (name, message) in worst_cases() {
        let value = STANDARD.encode(message);
        let stream = Proxy::plain("local").inbound(&Headers::from([(METADATA, &value)]));
        let stored = state(&stream, DOWNSTREAM).unwrap_or_default().len();
        println!("{name}: {stored} bytes stored of {} sent", value.len());
        assert!(
            stored < 10 * value.len(),
            "{name}: {stored} of {}",
            value.len()
        );
    }
}

/// A generator with a fixed seed, so that every run has the same headers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// A message with some bytes changed, cut off, or repeated.
    fn mutate(&mut self, message: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(message.len());
            match self.below(4) {
                0 => message.truncate(at),
                1 => message.insert(at, self.byte()),
                2 => {
                    let tail = message[at..].to_vec();
                    message.extend(tail);
                }
                _ => {
                    let byte = self.byte();
                    if let Some(changed) = message.get_mut(at) {
                        *changed = byte;
                    }
                }
            }
        }
    }
}

#[test]
fn mangled_headers_neither_trap_nor_affect_others() {
    let mut random = Random(0x5eed);
    let mut proxy = Proxy::plain("local");
    let honest = Workload::new("honest");
    let seeds: Vec<Vec<u8>> = worst_cases()
        .into_iter()
        .map(|(_, message)| message[..message.len().min(600)].to_vec())
        .chain([STANDARD.decode(honest.value()).expect("base64")])
        .collect();
    let mut pages = 0;
    for round in 0..8_000 {
        let mut message = seeds[random.below(seeds.len())].clone();
        random.mutate(&mut message);
        let mut value = STANDARD.encode(message).into_bytes();
        if round % 10 == 0 {
            random.mutate(&mut value);
        }
        let mut id = b"evil".to_vec();
        random.mutate(&mut id);
        let headers = Headers::new().with(METADATA, value).with(ID, id);
        let stream = proxy.inbound(&headers);
        assert_stripped(&stream.request_headers());
        proxy.outbound(&headers);
        if round % 50 == 0 {
            assert_stored(&proxy.inbound(&honest.headers()), Some(&honest), None);
            proxy.vm.take_calls();
        }
        // The cache is full.
        if round == 5_000 {
            pages = proxy.vm.memory_pages();
        }
    }
    assert_eq!(proxy.vm.memory_pages(), pages, "memory does not grow");
    assert_eq!(proxy.counter("host_error"), 0);
    assert_eq!(proxy.log(wasm_host::LogLevel::Warn), [""; 0]);
}

#[test]
fn depth_beyond_the_limit_is_counted() {
    let mut value = json!("x");
    for _ in 0..20 {
        value = json!([value]);
    }
    let mut proxy = Proxy::plain("local");
    let headers = Headers::from([(
        METADATA,
        struct_value(&json!({"NAME": "n", "OTHER": value})),
    )]);
    let stream = proxy.inbound(&headers);
    assert_eq!(stream.filter_state_keys(), [""; 0]);
    assert_eq!(proxy.counter("refused_too_deep"), 1);
}
