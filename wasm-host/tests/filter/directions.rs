//! What the filter does in each direction, and how it learns the direction.

use crate::support::{
    Proxy, Workload, assert_sent_by, assert_stored, assert_stripped, assert_values,
};
use serde_json::json;
use wasm_host::{Direction, Headers, Properties, Stream};

/// Headers that the app or a client sends in addition.
fn with_others(headers: &Headers) -> Headers {
    let mut others = Headers::from([(":path", "/pay"), ("x-request-id", "7")]);
    for (name, value) in headers.iter() {
        others = others.with(name, value);
    }
    others
}

fn assert_others_kept(headers: &Headers) {
    assert_values(headers, ":path", &["/pay"]);
    assert_values(headers, "x-request-id", &["7"]);
}

/// Runs a stream between a caller and a callee that both send everything.
fn between(proxy: &mut Proxy, properties: Properties) -> Stream {
    let stream = proxy.vm.open(&proxy.root, properties);
    proxy.request(&stream, &with_others(&Workload::new("caller").headers()));
    proxy.response(&stream, &with_others(&Workload::new("callee").headers()));
    proxy.vm.finish(&stream).expect("no trap");
    assert_others_kept(&stream.request_headers());
    assert_others_kept(&stream.response_headers());
    stream
}

fn assert_inbound(stream: &Stream) {
    assert_stripped(&stream.request_headers());
    assert_sent_by(&stream.response_headers(), &Workload::new("local"));
    assert_stored(stream, Some(&Workload::new("caller")), None);
}

fn assert_outbound(stream: &Stream) {
    assert_sent_by(&stream.request_headers(), &Workload::new("local"));
    assert_stripped(&stream.response_headers());
    assert_stored(stream, None, Some(&Workload::new("callee")));
}

fn assert_gateway(stream: &Stream) {
    let local = Workload::new("local");
    assert_sent_by(&stream.request_headers(), &local);
    assert_sent_by(&stream.response_headers(), &local);
    let (caller, callee) = (Workload::new("caller"), Workload::new("callee"));
    assert_stored(stream, Some(&caller), Some(&callee));
}

#[test]
fn inbound_stores_the_caller_and_removes_its_headers() {
    let properties = Properties::new().direction(Direction::Inbound);
    assert_inbound(&between(&mut Proxy::plain("local"), properties));
}

#[test]
fn outbound_sends_the_local_node_and_stores_the_callee() {
    let properties = Properties::new().direction(Direction::Outbound);
    assert_outbound(&between(&mut Proxy::plain("local"), properties));
}

/// The properties of a listener without direction, in each form.
fn undirected() -> [Properties; 3] {
    [
        Properties::new().direction(Direction::Unspecified),
        Properties::new(),
        Properties::new().bytes(&["xds", "listener_direction"], ""),
    ]
}

#[test]
fn a_listener_without_direction_is_a_gateway_for_callers_with_a_certificate() {
    for properties in undirected() {
        let properties = properties.flag(&["connection", "mtls"], true);
        assert_gateway(&between(&mut Proxy::plain("local"), properties));
    }
}

#[test]
fn a_listener_without_direction_believes_and_answers_no_stranger() {
    for mtls in [None, Some(false)] {
        for properties in undirected() {
            let properties = match mtls {
                Some(mtls) => properties.flag(&["connection", "mtls"], mtls),
                None => properties,
            };
            let mut proxy = Proxy::plain("local");
            let stream = between(&mut proxy, properties);
            assert_stored(&stream, None, Some(&Workload::new("callee")));
            assert_sent_by(&stream.request_headers(), &Workload::new("local"));
            assert_stripped(&stream.response_headers());
            assert_eq!(proxy.counter("refused_no_direction"), 1);
        }
    }
}

#[test]
fn a_stated_gateway_and_a_waypoint_need_no_certificate() {
    let gateway = json!({ "direction": "gateway" });
    let mut proxy = Proxy::of(&Workload::new("local"), &gateway);
    assert_gateway(&between(&mut proxy, Properties::new()));
    let mut waypoint = Workload::new("local");
    waypoint.id = "waypoint~10.0.0.1~w.shop~shop.svc.cluster.local".into();
    let mut proxy = Proxy::of(&waypoint, &json!({}));
    let stream = between(&mut proxy, Properties::new());
    assert_stored(
        &stream,
        Some(&Workload::new("caller")),
        Some(&Workload::new("callee")),
    );
}

#[test]
fn the_configuration_overrides_the_listener() {
    let run = |configured: &str, listener| {
        let configuration = json!({ "direction": configured });
        let mut proxy = Proxy::of(&Workload::new("local"), &configuration);
        between(&mut proxy, Properties::new().direction(listener))
    };
    assert_inbound(&run("inbound", Direction::Outbound));
    assert_outbound(&run("outbound", Direction::Inbound));
    assert_gateway(&run("gateway", Direction::Outbound));
    assert_inbound(&run("auto", Direction::Inbound));
    assert_outbound(&run("auto", Direction::Outbound));
}

#[test]
fn one_root_context_serves_every_direction() {
    let mut proxy = Proxy::plain("local");
    for _ in 0..2 {
        for (direction, check) in [
            (Direction::Inbound, assert_inbound as fn(&Stream)),
            (Direction::Outbound, assert_outbound),
            (Direction::Unspecified, assert_gateway),
        ] {
            let properties = Properties::new().direction(direction);
            let properties = properties.flag(&["connection", "mtls"], true);
            check(&between(&mut proxy, properties));
        }
    }
}

#[test]
fn a_caller_that_sent_nothing_is_not_answered() {
    for direction in [Direction::Inbound, Direction::Unspecified] {
        let mut proxy = Proxy::plain("local");
        let stream = proxy.exchange(direction, &Headers::new(), &Headers::new());
        assert_stripped(&stream.response_headers());
        assert_stored(&stream, None, None);
    }
}

#[test]
fn an_outbound_listener_answers_nobody() {
    let mut proxy = Proxy::plain("local");
    let caller = Workload::new("caller").headers();
    let stream = proxy.exchange(Direction::Outbound, &caller, &Headers::new());
    assert_stripped(&stream.response_headers());
    assert_stored(&stream, None, None);
}

#[test]
fn an_app_cannot_impersonate_its_proxy() {
    let mut proxy = Proxy::plain("local");
    let app = Workload::new("app").headers();
    let stream = proxy.exchange(Direction::Inbound, &Headers::new(), &app);
    assert_stripped(&stream.response_headers());
    assert_stored(&stream, None, None);
}

#[test]
fn streams_that_interleave_keep_their_peers() {
    let mut proxy = Proxy::plain("local");
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let callers = names.map(Workload::new);
    let direction = |index: usize| [Direction::Inbound, Direction::Unspecified][index % 2];
    let streams: Vec<Stream> = (0..callers.len())
        .map(|index| proxy.open(direction(index)))
        .collect();
    for (stream, caller) in streams.iter().zip(&callers) {
        proxy.request(stream, &caller.headers());
    }
    let silent = proxy.inbound(&Headers::new());
    assert_stripped(&silent.response_headers());
    for (stream, callee) in streams.iter().zip(callers.iter().rev()).rev() {
        proxy.response(stream, &callee.headers());
    }
    for (index, stream) in streams.iter().enumerate() {
        proxy.vm.finish(stream).expect("no trap");
        let callee = &callers[callers.len() - 1 - index];
        let upstream = (index % 2 == 1).then_some(callee);
        assert_stored(stream, Some(&callers[index]), upstream);
        assert_sent_by(&stream.response_headers(), &Workload::new("local"));
    }
}

#[test]
fn a_stream_may_end_early() {
    let mut proxy = Proxy::plain("local");
    let request_only = proxy.open(Direction::Inbound);
    proxy.request(&request_only, &Workload::new("caller").headers());
    proxy.vm.finish(&request_only).expect("no trap");
    assert_stored(&request_only, Some(&Workload::new("caller")), None);
    let never_started = proxy.open(Direction::Inbound);
    proxy.response(&never_started, &Headers::new());
    proxy.vm.finish(&never_started).expect("no trap");
}

/// Callers that asked are answered, and no others, in any order of streams.
#[test]
fn thousands_of_concurrent_streams_keep_their_peers() {
    const STREAMS: usize = 3_000;
    let mut proxy = Proxy::plain("local");
    let asks = |number: usize| number.is_multiple_of(3);
    let open = |proxy: &mut Proxy, number: usize| {
        let stream = proxy.open(Direction::Inbound);
        let headers = if asks(number) {
            Workload::new("caller").headers()
        } else {
            Headers::new()
        };
        proxy.request(&stream, &headers);
        stream
    };
    let mut streams: Vec<_> = (0..STREAMS)
        .map(|number| open(&mut proxy, number))
        .collect();
    for round in 0..STREAMS {
        // A stride that visits new and old streams, some of them repeatedly.
        let number = round * 1_009 % STREAMS;
        let stream = &streams[number];
        proxy.response(stream, &Headers::new());
        if asks(number) {
            assert_sent_by(&stream.response_headers(), &Workload::new("local"));
        } else {
            assert_stripped(&stream.response_headers());
        }
        proxy.vm.finish(stream).expect("no trap");
        streams[number] = open(&mut proxy, number);
    }
    proxy.vm.take_calls();
    assert_eq!(proxy.counter("host_error"), 0);
}

#[test]
fn a_local_reply_is_answered_like_any_response() {
    let mut proxy = Proxy::plain("local");
    let caller = Workload::new("caller").headers();
    let reply = Headers::from([(":status", "503")]);
    let stream = proxy.exchange(Direction::Inbound, &caller, &reply);
    assert_sent_by(&stream.response_headers(), &Workload::new("local"));
    assert_values(&stream.response_headers(), ":status", &["503"]);
}

mod record_local_node {
    use super::*;

    fn run(direction: Direction, request: &Headers, response: &Headers) -> Stream {
        let configuration = json!({ "record_local_node": true });
        Proxy::of(&Workload::new("local"), &configuration).exchange(direction, request, response)
    }

    #[test]
    fn inbound_names_itself_upstream() {
        let stream = run(
            Direction::Inbound,
            &Workload::new("caller").headers(),
            &Headers::new(),
        );
        assert_stored(
            &stream,
            Some(&Workload::new("caller")),
            Some(&Workload::new("local")),
        );
        let stream = run(Direction::Inbound, &Headers::new(), &Headers::new());
        assert_stored(&stream, None, Some(&Workload::new("local")));
    }

    #[test]
    fn outbound_names_itself_downstream() {
        let stream = run(
            Direction::Outbound,
            &Headers::new(),
            &Workload::new("callee").headers(),
        );
        assert_stored(
            &stream,
            Some(&Workload::new("local")),
            Some(&Workload::new("callee")),
        );
    }

    #[test]
    fn it_is_there_as_soon_as_the_request() {
        let configuration = json!({ "record_local_node": true });
        let mut proxy = Proxy::of(&Workload::new("local"), &configuration);
        let stream = proxy.open(Direction::Outbound);
        proxy.request(&stream, &Headers::new());
        assert_stored(&stream, Some(&Workload::new("local")), None);
    }

    #[test]
    fn a_gateway_stores_no_local_node() {
        let stream = run(Direction::Unspecified, &Headers::new(), &Headers::new());
        assert_stored(&stream, None, None);
    }
}

#[test]
fn properties_are_declared_as_their_readers_want_them() {
    use wasm_host::{LifeSpan, StateType};
    let proxy = Proxy::plain("local");
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../schema/node_info.bfbs");
    let schema = std::fs::read(schema).expect("the binary schema");
    for name in ["downstream_peer", "upstream_peer"] {
        let declaration = proxy.root.declaration(name).expect("declared");
        assert_eq!(declaration.state_type(), StateType::FlatBuffers, "{name}");
        assert_eq!(declaration.schema, schema, "{name}");
        let id = proxy
            .root
            .declaration(&format!("{name}_id"))
            .expect("declared");
        assert!(
            matches!(id.state_type(), StateType::Bytes | StateType::String),
            "{name}_id"
        );
        for declaration in [declaration, id] {
            assert_eq!(declaration.life_span(), LifeSpan::DownstreamRequest);
            assert!(!declaration.read_only);
        }
    }
}
