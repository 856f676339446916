//! A host that returns any status from any call: the request continues, and the failure is counted.

use crate::support::{
    DOWNSTREAM, Proxy, Workload, assert_sent_by, assert_stored, assert_stripped, module, peer,
};
use serde_json::{Value as Json, json};
use wasm_host::{Direction, Error, Headers, HostCall, Properties, Settings, Status, Stream, Vm};

fn everything_on() -> Json {
    json!({ "local_peer": true, "record_local_node": true, "trust": "mtls" })
}

fn run(proxy: &mut Proxy, direction: Direction) -> Stream {
    let properties = Properties::new()
        .direction(direction)
        .flag(&["connection", "mtls"], true)
        .bytes(&["xds", "cluster_name"], "outbound|80||shop");
    let stream = proxy.vm.open(&proxy.root, properties);
    proxy.request(&stream, &Workload::new("caller").headers());
    proxy.response(&stream, &Workload::new("callee").headers());
    proxy.vm.finish(&stream).expect("no trap");
    stream
}

fn calls_of(proxy: &mut Proxy, direction: Direction) -> Vec<String> {
    proxy.vm.take_calls();
    run(proxy, direction);
    let calls = proxy.vm.take_calls();
    calls
        .into_iter()
        .map(|recorded| recorded.call.to_string())
        .collect()
}

/// Whether a status is a regular result: `NotFound` for something absent.
fn is_an_answer(call: &str, status: Status) -> bool {
    // Headers that are accessible always have a size.
    let is_lookup = call.starts_with("get_") && !call.starts_with("get_headers_size");
    is_lookup && status == Status::NotFound
}

#[test]
fn no_failing_call_of_a_stream_stops_the_request() {
    for direction in [
        Direction::Inbound,
        Direction::Outbound,
        Direction::Unspecified,
    ] {
        let mut proxy = Proxy::of(&Workload::new("local"), &everything_on());
        run(&mut proxy, direction);
        let calls = calls_of(&mut proxy, direction);
        assert!(calls.len() >= 5, "{calls:?}");
        for call in calls {
            for status in Status::FAILURES {
                let before = proxy.counter("host_error");
                let failing = call.clone();
                proxy
                    .vm
                    .fail(move |call| (call.to_string() == failing).then_some(status));
                run(&mut proxy, direction);
                proxy.vm.heal();
                let counted = proxy.counter("host_error") - before;
                if is_an_answer(&call, status) {
                    assert_eq!(counted, 0, "{direction:?}: {call} = {status}");
                } else {
                    assert!(
                        counted > 0,
                        "{direction:?}: {call} = {status} is not counted"
                    );
                }
            }
        }
    }
}

/// Another filter owns the key and made it read-only: then this filter does not store the id either.
#[test]
fn a_peer_that_the_host_rejects_is_not_counted() {
    for (direction, key, counter) in [
        (
            Direction::Inbound,
            "downstream_peer",
            "downstream_peer_stored",
        ),
        (Direction::Outbound, "upstream_peer", "upstream_peer_stored"),
    ] {
        let mut proxy = Proxy::plain("local");
        let taken = format!("set_property {key}");
        proxy
            .vm
            .fail(move |call| (call.to_string() == taken).then_some(Status::BadArgument));
        let stream = run(&mut proxy, direction);
        assert_stored(&stream, None, None);
        assert_eq!(proxy.counter(counter), 0);
        proxy.vm.heal();
        run(&mut proxy, direction);
        assert_eq!(proxy.counter(counter), 1);
    }
}

#[test]
fn a_failure_has_no_lasting_effect() {
    let (caller, local) = (Workload::new("caller"), Workload::new("local"));
    let mut proxy = Proxy::plain("local");
    for status in Status::FAILURES {
        proxy.vm.fail(move |_| Some(status));
        run(&mut proxy, Direction::Inbound);
        run(&mut proxy, Direction::Outbound);
        proxy.vm.heal();
        let stream = run(&mut proxy, Direction::Inbound);
        assert_stored(&stream, Some(&caller), None);
        assert_stripped(&stream.request_headers());
        assert_sent_by(&stream.response_headers(), &local);
    }
}

fn start_vm() -> Vm {
    let settings = Settings {
        properties: Properties::new().xds_node(&Workload::new("local").node()),
        ..Settings::default()
    };
    Vm::start(module(), settings).expect("the VM starts")
}

/// Configures a plugin while one host call, given by name, fails; then the host works again.
fn configure_failing(call: &str, status: Status) -> Result<Proxy, Error> {
    let mut vm = start_vm();
    let failing = call.to_owned();
    vm.fail(move |call| (call.to_string() == failing).then_some(status));
    let root = vm.configure("{}")?;
    vm.heal();
    Ok(Proxy { vm, root })
}

/// Every call of the ABI from the start of a plugin to the end of its configuration.
fn calls_at_configure() -> Vec<String> {
    let mut vm = start_vm();
    assert!(vm.configure("{}").expect("no trap").accepted());
    let calls = vm.take_calls().into_iter().map(|recorded| recorded.call);
    let calls = calls.filter(|call| !matches!(call, HostCall::Other { .. }));
    let names: Vec<String> = calls.map(|call| call.to_string()).collect();
    assert!(names.len() > 20, "{names:?}");
    names
}

const READS_CONFIGURATION: &str = "get_buffer plugin_configuration";

#[test]
fn no_failing_call_at_configure_traps_or_refuses() {
    let mut failures = Vec::new();
    for call in calls_at_configure() {
        for status in Status::FAILURES {
            match configure_failing(&call, status) {
                Err(error) => failures.push(format!("{call} = {status}: {error}")),
                // An absent configuration gives the defaults; one that cannot be read leaves the filter idle.
                Ok(mut proxy) if call == READS_CONFIGURATION && status != Status::NotFound => {
                    assert!(proxy.root.accepted(), "{call} = {status}");
                    let stream = run(&mut proxy, Direction::Inbound);
                    assert_eq!(stream.filter_state_keys(), [""; 0], "{call} = {status}");
                }
                Ok(mut proxy) if proxy.root.accepted() => {
                    let stream = run(&mut proxy, Direction::Inbound);
                    assert_stripped(&stream.request_headers());
                    let caller = Workload::new("caller").metadata;
                    assert_eq!(peer(&stream, DOWNSTREAM), Some(caller), "{call} = {status}");
                }
                Ok(_) => failures.push(format!("{call} = {status} refuses the configuration")),
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Before the configuration is read there are no counters, and a failing log cannot be logged.
#[test]
fn failures_at_configure_are_counted() {
    let calls = calls_at_configure();
    let configured = calls
        .iter()
        .skip_while(|call| *call != READS_CONFIGURATION)
        .skip(1);
    let mut failures = Vec::new();
    for call in
        configured.filter(|call| !call.starts_with("log ") && !call.ends_with(".host_error"))
    {
        for status in [Status::BadArgument, Status::InternalFailure] {
            let mut proxy = configure_failing(call, status).expect("no trap");
            if proxy.counter("host_error") == 0 {
                failures.push(format!("{call} = {status}"));
            }
        }
    }
    assert!(failures.is_empty(), "not counted: {failures:#?}");
}

#[test]
fn no_failing_call_of_a_tick_traps() {
    let mut proxy = Proxy::plain("local");
    for status in Status::FAILURES {
        run(&mut proxy, Direction::Inbound);
        proxy.vm.fail(move |_| Some(status));
        proxy.vm.tick(&proxy.root).expect("no trap");
        proxy.vm.heal();
    }
    let before = proxy.counter("downstream_peer_stored");
    run(&mut proxy, Direction::Inbound);
    assert_eq!(proxy.counter("downstream_peer_stored"), before + 1);
}

fn reads_direction(call: &HostCall) -> bool {
    let HostCall::GetProperty { path } = call else {
        return false;
    };
    path.last().is_some_and(|name| name == "listener_direction")
}

#[test]
fn an_unreadable_direction_counts_as_none() {
    for status in Status::FAILURES {
        let mut proxy = Proxy::plain("local");
        proxy
            .vm
            .fail(move |call| reads_direction(call).then_some(status));
        let stream = run(&mut proxy, Direction::Inbound);
        assert_sent_by(&stream.request_headers(), &Workload::new("local"));
    }
}

#[test]
fn a_key_of_another_filter_is_left_alone() {
    use wasm_host::{Declaration, StateObject};
    let declaration = Declaration {
        read_only: true,
        ..Declaration::default()
    };
    let native = StateObject {
        value: b"native".to_vec(),
        declaration,
    };
    let mut proxy = Proxy::plain("local");
    let stream = proxy.open(Direction::Inbound);
    stream.set_filter_state(DOWNSTREAM, native.clone());
    proxy.request(&stream, &Workload::new("caller").headers());
    proxy.response(&stream, &Headers::new());
    proxy.vm.finish(&stream).expect("no trap");
    assert_eq!(stream.filter_state(DOWNSTREAM), Some(native));
    assert_stripped(&stream.request_headers());
    assert_sent_by(&stream.response_headers(), &Workload::new("local"));
    assert_eq!(proxy.counter("host_error"), 1);
}

#[test]
fn a_property_that_was_declared_before_is_counted() {
    let mut proxy = Proxy::plain("local");
    assert_eq!(proxy.counter("host_error"), 0);
    proxy.vm.fail(|call| {
        matches!(call, HostCall::CallForeignFunction { .. }).then_some(Status::BadArgument)
    });
    proxy.root = proxy.vm.configure("{}").expect("no trap");
    assert!(proxy.root.accepted());
    assert_eq!(proxy.counter("host_error"), 4);
    let caller = Workload::new("caller");
    assert_stored(&proxy.inbound(&caller.headers()), Some(&caller), None);
}

#[test]
fn undefined_metrics_are_skipped() {
    let mut vm = Vm::start(module(), Settings::default()).expect("the VM starts");
    vm.fail(|call| {
        matches!(call, HostCall::DefineMetric { .. }).then_some(Status::InternalFailure)
    });
    let root = vm.configure("{}").expect("no trap");
    vm.heal();
    let mut proxy = Proxy { vm, root };
    run(&mut proxy, Direction::Inbound);
    proxy.vm.take_calls();
    proxy.vm.tick(&proxy.root).expect("no trap");
    let calls = proxy.vm.take_calls();
    let published = calls
        .iter()
        .any(|recorded| matches!(recorded.call, HostCall::IncrementMetric { .. }));
    assert!(!published, "{calls:?}");
}
