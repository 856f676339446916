//! Invalid configurations and their error messages. [`crate::idle`] tests their effect.

use crate::support::{Proxy, Workload, assert_stored, module};
use wasm_host::{Direction, LogLevel, Properties, Settings, Vm};

/// The log line of an invalid first configuration, which leaves the filter idle.
#[track_caller]
fn refusal(configuration: impl AsRef<[u8]>) -> String {
    let configuration = configuration.as_ref();
    let text = String::from_utf8_lossy(configuration);
    let mut vm = Vm::start(module(), Settings::default()).expect("the VM starts");
    let root = vm.configure(configuration).expect("no trap");
    assert!(root.accepted(), "refused: {text}");
    let stream = vm.open(&root, Properties::new().direction(Direction::Inbound));
    let request = vm.request_headers(&stream, Workload::new("caller").headers());
    request.expect("no trap");
    let keys = stream.filter_state_keys();
    assert!(keys.is_empty(), "not idle: {text}");
    let errors: Vec<_> = vm
        .logs()
        .iter()
        .filter(|line| line.level >= LogLevel::Error)
        .collect();
    assert_eq!(errors.len(), 1, "{text}: {errors:?}");
    let message = errors[0].message.clone();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn an_empty_configuration_means_defaults() {
    for configuration in ["", "{}", "  {  } \n"] {
        let mut vm = Vm::start(module(), Settings::default()).expect("the VM starts");
        let root = vm.configure(configuration).expect("no trap");
        assert!(root.accepted(), "{configuration:?}: {:?}", vm.logs());
        assert_eq!(root.tick_period(), 1000);
    }
}

#[test]
fn only_objects_are_accepted() {
    for configuration in [
        "nonsense",
        "[]",
        "7",
        "null",
        "\"text\"",
        "{",
        "{} {}",
        "\u{feff}{}",
    ] {
        refusal(configuration);
    }
}

#[test]
fn an_error_has_the_key_its_value_and_what_is_allowed() {
    for (configuration, parts) in [
        (r#"{"directon": "inbound"}"#, &["directon"][..]),
        (
            r#"{"direction": "sideways"}"#,
            &["direction", "sideways", "inbound", "outbound", "gateway"],
        ),
        (r#"{"direction": 1}"#, &["direction", "1"]),
        (r#"{"max_sent_bytes": "16k"}"#, &["max_sent_bytes", "16k"]),
        (r#"{"max_sent_bytes": -1}"#, &["max_sent_bytes", "-1"]),
        (r#"{"max_sent_bytes": 1.5}"#, &["max_sent_bytes", "1.5"]),
        (
            r#"{"max_peer_cache_size": true}"#,
            &["max_peer_cache_size", "true"],
        ),
        (
            r#"{"max_peer_cache_size": 99999999999999999999}"#,
            &["max_peer_cache_size"],
        ),
        (
            r#"{"record_local_node": "yes"}"#,
            &["record_local_node", "yes", "true", "false"],
        ),
        (r#"{"accept_own": null}"#, &["accept_own", "null"]),
        (
            r#"{"accept_own": true, "accept_own": false}"#,
            &["accept_own"],
        ),
    ] {
        let message = refusal(configuration);
        for part in parts {
            assert!(
                message.contains(part),
                "{configuration}: {message:?} lacks {part:?}"
            );
        }
    }
}

#[test]
fn bytes_that_are_not_utf8_are_refused() {
    refusal(b"{\"direction\": \"\xff\"}");
}

#[test]
fn a_refused_update_leaves_the_old_plugin_working() {
    let mut proxy = Proxy::plain("local");
    proxy.vm.tick(&proxy.root).expect("no trap");
    let refused = proxy.vm.configure("nonsense").expect("no trap");
    assert!(!refused.accepted());
    proxy.vm.remove(&refused).expect("no trap");
    let caller = Workload::new("caller");
    assert_stored(&proxy.inbound(&caller.headers()), Some(&caller), None);
}

#[test]
fn streams_of_an_idle_plugin_do_not_trap() {
    let mut proxy = Proxy::plain("local");
    proxy.root = proxy.vm.configure("nonsense").expect("no trap");
    let stream = proxy.inbound(&Workload::new("caller").headers());
    assert_eq!(stream.filter_state_keys(), [""; 0]);
    proxy.vm.tick(&proxy.root).expect("no trap");
}
