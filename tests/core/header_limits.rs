//! The local node's headers are sent and answered only if they leave room
//! within the header limits.

use std::rc::Rc;

use metadata_exchange::config::Config;
use metadata_exchange::counters::{Counter, Counters};
use metadata_exchange::exchange::{Exchange, Stream};
use metadata_exchange::host::HeaderMap::{self, Request, Response};
use metadata_exchange::local::LocalNode;
use metadata_exchange::peer::header::{PEER_METADATA as METADATA, PEER_METADATA_ID as ID};
use serde_json::json;

use crate::support::{FakeHost, local};

const OWN_ID: &str = "own-id";

fn own() -> LocalNode {
    local(OWN_ID, &json!({"NAME": "own", "NAMESPACE": "shop"}))
}

fn own_metadata() -> String {
    own().header.unwrap()
}

/// What the local node's headers add to a message, with 32 bytes of overhead
/// each.
fn added(metadata: bool) -> usize {
    let id = ID.len() + OWN_ID.len() + 32;
    let of_metadata = METADATA.len() + own_metadata().len() + 32;
    id + if metadata { of_metadata } else { 0 }
}

/// Limits that leave room for 8 of 10 headers, and 3584 of 4096 bytes.
const LIMITS: &str = r#"{
    "max_request_headers_count": 10, "max_request_headers_kb": 4,
    "max_response_headers_count": 10, "max_response_headers_kb": 4}"#;
const COUNT: usize = 8;
const BYTES: usize = 3584;

struct Proxy {
    exchange: Exchange,
    counters: Rc<Counters>,
}

impl Proxy {
    fn new(config: &str, local: LocalNode) -> Self {
        let config = Config::parse(config.as_bytes()).unwrap();
        let counters = Rc::<Counters>::default();
        let exchange = Exchange::new(config, local, Rc::clone(&counters));
        Self { exchange, counters }
    }

    fn limited() -> Self {
        Self::new(LIMITS, own())
    }

    fn request(&self, host: &FakeHost) -> Stream {
        let mut stream = Stream::default();
        let count = host.count(Request);
        self.exchange.on_request_headers(&mut stream, host, count);
        stream
    }

    fn response(&self, stream: &mut Stream, host: &FakeHost) {
        let count = host.count(Response);
        self.exchange.on_response_headers(stream, host, count);
    }

    fn assert_counted(&self, too_large: u64) {
        assert_eq!(self.counters.take(Counter::TooLargeToSend), too_large);
        assert_eq!(self.counters.take(Counter::HostError), 0);
    }
}

/// `count` headers that take `bytes` in total, including 32 bytes of overhead each.
fn fill(host: &FakeHost, map: HeaderMap, count: usize, bytes: usize) {
    let headers = match map {
        Request => &host.request,
        Response => &host.response,
    };
    let mut left = bytes - 33 * count;
    for _ in 0..count {
        let value = vec![b'v'; std::mem::take(&mut left)];
        headers.borrow_mut().push(("x".to_owned(), value));
    }
}

fn outbound(count: usize, bytes: usize) -> FakeHost {
    let host = FakeHost::outbound();
    fill(&host, Request, count, bytes);
    host
}

fn calls(host: &FakeHost, what: &str) -> usize {
    let calls = host.calls.borrow();
    calls.iter().filter(|call| call.starts_with(what)).count()
}

fn assert_has(host: &FakeHost, map: HeaderMap, metadata: bool, id: bool) {
    let expected: Vec<_> = metadata.then(own_metadata).into_iter().collect();
    assert_eq!(texts(host, map, METADATA), expected);
    let expected: Vec<_> = id.then_some(OWN_ID).into_iter().collect();
    assert_eq!(texts(host, map, ID), expected);
}

fn texts(host: &FakeHost, map: HeaderMap, name: &str) -> Vec<String> {
    let values = host.values(map, name).into_iter();
    values
        .map(|value| String::from_utf8(value).unwrap())
        .collect()
}

#[test]
fn by_bytes_all_is_sent_or_the_id_alone_or_nothing() {
    for (free, metadata, id, too_large) in [
        (added(true), true, true, 0),
        (added(true) - 1, false, true, 1),
        (added(false), false, true, 1),
        (added(false) - 1, false, false, 1),
    ] {
        let (proxy, host) = (Proxy::limited(), outbound(1, BYTES - free));
        proxy.request(&host);
        assert_has(&host, Request, metadata, id);
        proxy.assert_counted(too_large);
    }
}

#[test]
fn by_count_all_is_sent_or_the_id_alone_or_nothing() {
    for (count, metadata, id, too_large) in [
        (COUNT - 2, true, true, 0),
        (COUNT - 1, false, true, 1),
        (COUNT, false, false, 1),
        (COUNT + 10, false, false, 1),
    ] {
        let (proxy, host) = (Proxy::limited(), outbound(count, 33 * count));
        proxy.request(&host);
        assert_has(&host, Request, metadata, id);
        proxy.assert_counted(too_large);
    }
}

#[test]
fn an_answer_has_the_limits_of_responses() {
    for (free, metadata, id) in [
        (added(true), true, true),
        (added(true) - 1, false, true),
        (added(false) - 1, false, false),
    ] {
        let proxy = Proxy::limited();
        let caller = local("", &json!({"NAME": "caller"})).header.unwrap();
        let host = FakeHost::inbound()
            .request_header(METADATA, caller)
            .request_header(ID, "caller-id");
        let mut stream = proxy.request(&host);
        fill(&host, Response, 1, BYTES - free);
        proxy.response(&mut stream, &host);
        assert_has(&host, Response, metadata, id);
        proxy.assert_counted(u64::from(!metadata));
    }
}

#[test]
fn an_answer_to_metadata_alone_has_no_id() {
    let proxy = Proxy::limited();
    let caller = local("", &json!({"NAME": "caller"})).header.unwrap();
    let host = FakeHost::inbound().request_header(METADATA, caller);
    let mut stream = proxy.request(&host);
    fill(&host, Response, 1, BYTES - added(false));
    proxy.response(&mut stream, &host);
    assert_has(&host, Response, false, false);
    proxy.assert_counted(1);
}

/// Headers set by another filter of this kind, or by an app, are still removed.
#[test]
fn foreign_headers_are_removed_when_nothing_fits() {
    let (proxy, host) = (Proxy::limited(), outbound(COUNT, 33 * COUNT));
    let host = host
        .request_header(METADATA, "forged")
        .request_header(ID, "forged");
    let mut stream = proxy.request(&host);
    assert_has(&host, Request, false, false);
    proxy.assert_counted(1);

    // If nothing was sent, no answer is believed.
    host.response_header(METADATA, own_metadata());
    proxy.response(&mut stream, &host);
    assert_eq!(host.state("upstream_peer"), None);
    assert_has(&host, Response, false, false);
}

#[test]
fn headers_that_are_replaced_need_no_room() {
    // Another filter in the chain has already set the same headers.
    let host = outbound(COUNT - 2, BYTES - added(true));
    let host = host
        .request_header(METADATA, own_metadata())
        .request_header(ID, OWN_ID);
    let proxy = Proxy::limited();
    proxy.request(&host);
    assert_has(&host, Request, true, true);
    proxy.assert_counted(0);
}

#[test]
fn a_gateway_that_replaces_longer_headers_does_not_query_the_size() {
    let long = local(
        "",
        &json!({"NAME": "caller-of-a-longer-name", "NAMESPACE": "shop"}),
    );
    for (id, asked) in [("a-longer-id", 0), ("id", 1)] {
        let host = FakeHost::with_direction(0)
            .request_header(METADATA, long.header.clone().unwrap())
            .request_header(ID, id);
        fill(&host, Request, 3, 1000);
        Proxy::limited().request(&host);
        assert_has(&host, Request, true, true);
        assert_eq!(calls(&host, "bytes"), asked, "{id}");
    }
}

#[test]
fn the_size_is_queried_only_if_it_decides() {
    for (count, asked) in [(1, 1), (COUNT + 2, 0), (100, 0)] {
        let host = outbound(count, 33 * count);
        Proxy::limited().request(&host);
        assert_eq!(calls(&host, "bytes"), asked, "{count}");
        assert_eq!(calls(&host, "get"), 0, "{count}");
    }
    let stranger = FakeHost::inbound();
    let proxy = Proxy::limited();
    let mut stream = proxy.request(&stranger);
    proxy.response(&mut stream, &stranger);
    assert_eq!(calls(&stranger, "bytes"), 0);
}

#[test]
fn without_a_size_nothing_is_sent() {
    let mut host = outbound(1, 100);
    host.failing = Some("bytes");
    let proxy = Proxy::limited();
    proxy.request(&host);
    assert_has(&host, Request, false, false);
    assert_eq!(proxy.counters.take(Counter::HostError), 1);
}

/// HTTP/2 rejects a header of 64 KiB, whatever the limits are.
#[test]
fn a_header_that_no_codec_takes_is_not_sent() {
    let limits = r#"{"max_request_headers_kb": 8192}"#;
    for (length, metadata) in [(61_440 - METADATA.len(), true), (61_441, false)] {
        let mut own = own();
        own.header = Some("x".repeat(length));
        let (proxy, host) = (Proxy::new(limits, own), outbound(1, 100));
        proxy.request(&host);
        assert_eq!(host.values(Request, METADATA).len(), usize::from(metadata));
        assert_eq!(host.values(Request, ID), [OWN_ID.as_bytes()]);
        proxy.assert_counted(u64::from(!metadata));
    }
}

/// The defaults are Envoy's: 60 KiB and 100 headers.
#[test]
fn the_defaults_leave_room_for_twenty_headers_and_7_5_kib() {
    for (count, bytes, metadata) in [
        (78, 78 * 33, true),
        (79, 79 * 33, false),
        (10, 53_760 - added(true), true),
        (10, 53_761 - added(true), false),
    ] {
        let (proxy, host) = (Proxy::new("", own()), outbound(count, bytes));
        proxy.request(&host);
        assert_has(&host, Request, metadata, true);
        proxy.assert_counted(u64::from(!metadata));
    }
}

#[test]
fn observe_mode_sends_nothing_and_queries_no_size() {
    let host = outbound(COUNT + 2, 33 * (COUNT + 2));
    let proxy = Proxy::new(
        r#"{"mode": "observe", "max_request_headers_count": 10}"#,
        own(),
    );
    proxy.request(&host);
    assert_eq!(calls(&host, "bytes"), 0);
    proxy.assert_counted(0);
}
