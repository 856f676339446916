//! Configurations that are refused, so that Envoy keeps the old one.

use crate::support::{Proxy, Workload, assert_stored, module};
use wasm_host::{LogLevel, Settings, Vm};

/// The error lines of a configuration that must be refused.
#[track_caller]
fn refusal(configuration: &str) -> String {
    let mut vm = Vm::start(module(), Settings::default()).expect("the VM starts");
    let root = vm.configure(configuration).expect("no trap");
    assert!(!root.accepted(), "accepted: {configuration}");
    let errors: Vec<_> = vm
        .logs()
        .iter()
        .filter(|line| line.level >= LogLevel::Error)
        .collect();
    assert_eq!(errors.len(), 1, "{configuration}: {errors:?}");
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
fn what_is_no_object_is_refused() {
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
fn a_key_is_named_with_its_value_and_what_is_allowed() {
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
fn bytes_that_are_no_text_are_refused() {
    let mut vm = Vm::start(module(), Settings::default()).expect("the VM starts");
    assert!(
        !vm.configure(b"{\"direction\": \"\xff\"}")
            .expect("no trap")
            .accepted()
    );
}

#[test]
fn a_refused_update_leaves_the_old_plugin_working() {
    let mut proxy = Proxy::plain("local");
    let refused = proxy.vm.configure("nonsense").expect("no trap");
    assert!(!refused.accepted());
    proxy.vm.remove(&refused).expect("no trap");
    let caller = Workload::new("caller");
    assert_stored(&proxy.inbound(&caller.headers()), Some(&caller), None);
}

#[test]
fn streams_of_a_refused_plugin_do_not_trap() {
    let mut proxy = Proxy::plain("local");
    proxy.root = proxy.vm.configure("nonsense").expect("no trap");
    let stream = proxy.inbound(&Workload::new("caller").headers());
    assert_eq!(stream.filter_state_keys(), [""; 0]);
    proxy.vm.tick(&proxy.root).expect("no trap");
}
