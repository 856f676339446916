//! The filter as a network filter.

#![allow(clippy::too_many_lines)] // The tests are tables.

use super::*;

const WASM: &str = "type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm";

/// The network filter with this configuration.
fn ours(configuration: &Value) -> Value {
    let text = message("StringValue", &configuration.to_string().into());
    json!({ "name": FILTER, "typed_config": { "@type": WASM, "config": {
        "name": "metadata_exchange_tcp",
        "failure_policy": "FAIL_OPEN",
        "configuration": text,
    } } })
}

fn other(kind: &str) -> Value {
    let name = kind.split('.').next().unwrap();
    json!({ "name": name, "typed_config": {
        "@type": format!("type.googleapis.com/envoy.extensions.filters.network.{kind}"),
    } })
}

fn native() -> Value {
    json!({ "name": "istio.metadata_exchange", "typed_config": {
        "@type": "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange",
    } })
}

/// `tcp_proxy`, which leads to `cluster` and logs these keys.
fn proxy(cluster: &str, keys: &[&str]) -> Value {
    json!({ "name": "envoy.filters.network.tcp_proxy", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "cluster": cluster,
        "access_log": [{ "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig",
            "common_config": { "filter_state_objects_to_log": keys },
        } }],
    } })
}

const KEYS: [&str; 4] = [
    "wasm.downstream_peer",
    "wasm.downstream_peer_id",
    "wasm.upstream_peer",
    "wasm.upstream_peer_id",
];

/// An Envoy with these network filters and clusters.
fn dump(direction: &str, filters: &[Value], clusters: &[Value]) -> Value {
    let mut dump = super::dump(&json!([]), &json!([]));
    let listener = json!({
        "name": "tcp",
        "address": { "socket_address": { "address": "127.0.0.1" } },
        "traffic_direction": direction,
        "filter_chains": [{ "filters": filters }],
    });
    dump["configs"][1]["dynamic_listeners"][0]["active_state"]["listener"] = listener;
    let clusters = clusters.iter().map(|cluster| json!({ "cluster": cluster }));
    dump["configs"].as_array_mut().unwrap().push(json!({
        "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
        "static_clusters": clusters.collect::<Value>(),
    }));
    dump
}

/// Each finding as `severity code place`.
fn summary(dump: &Value) -> Vec<String> {
    let findings = examine(&running(dump, &stats(), &Value::Null), FILTER).unwrap();
    let line = |one: Finding| format!("{} {} {}", one.severity.name(), one.code.name(), one.place);
    findings.into_iter().map(line).collect()
}

/// Findings for a listener to the cluster `db`, which exists.
fn found(direction: &str, filters: &[Value]) -> Vec<String> {
    summary(&dump(direction, filters, &[json!({ "name": "db" })]))
}

#[test]
fn a_correct_tcp_listener_has_no_findings() {
    let config = json!({ "protocol": "tcp" });
    let named = json!({ "protocol": "tcp", "tcp_clusters": ["d*", "db"] });
    let limit = other("connection_limit.v3.ConnectionLimit");
    let rbac = other("rbac.v3.RBAC");
    for (direction, filters) in [
        ("INBOUND", vec![ours(&config), proxy("db", &KEYS)]),
        (
            "INBOUND",
            vec![limit, rbac, ours(&config), proxy("db", &KEYS[..2])],
        ),
        // It reads the bytes without the frames.
        (
            "INBOUND",
            vec![
                ours(&config),
                other("postgres_proxy.v3alpha.PostgresProxy"),
                proxy("db", &KEYS),
            ],
        ),
        ("OUTBOUND", vec![ours(&named), proxy("db", &KEYS[2..])]),
        (
            "OUTBOUND",
            vec![
                other("mysql_proxy.v3.MySQLProxy"),
                ours(&named),
                proxy("db", &KEYS),
            ],
        ),
        // Without the filter, there is nothing to say.
        ("OUTBOUND", vec![proxy("db", &[])]),
        ("OUTBOUND", vec![native(), proxy("db", &[])]),
    ] {
        assert_eq!(found(direction, &filters), [""; 0], "{filters:?}");
    }
}

#[test]
fn the_position_of_the_network_filter_is_checked() {
    let ours = || ours(&json!({ "protocol": "tcp" }));
    let (proxy, postgres) = (
        proxy("db", &KEYS),
        other("postgres_proxy.v3alpha.PostgresProxy"),
    );
    for (direction, filters, expected) in [
        (
            "INBOUND",
            vec![proxy.clone(), ours()],
            "error wrong_order tcp",
        ),
        (
            "INBOUND",
            vec![postgres.clone(), ours(), proxy.clone()],
            "warning wrong_order tcp",
        ),
        (
            "OUTBOUND",
            vec![ours(), postgres.clone(), proxy.clone()],
            "warning wrong_order tcp",
        ),
        (
            "INBOUND",
            vec![ours(), ours(), proxy.clone()],
            "error filter_twice tcp",
        ),
    ] {
        assert_eq!(found(direction, &filters), [expected], "{filters:?}");
    }
    let redis = other("redis_proxy.v3.RedisProxy");
    let alone = found("INBOUND", &[ours(), redis]);
    assert_eq!(
        alone,
        ["error keys_not_logged tcp", "warning wrong_order tcp"]
    );
}

#[test]
fn a_configuration_for_the_other_protocol_is_idle() {
    for configuration in [json!({}), json!({ "protocol": "http" })] {
        let filters = [ours(&configuration), proxy("db", &KEYS)];
        assert_eq!(found("INBOUND", &filters), ["error filter_idle tcp"]);
    }
    let text = message("StringValue", &json!(r#"{"protocol": "tcp"}"#));
    let http = json!([{ "name": FILTER, "typed_config": wasm(&text) }]);
    assert_eq!(
        summary(&super::dump(&http, &json!([]))),
        ["error filter_idle virtualInbound"]
    );
    let filters = [ours(&json!({ "protocol": "udp" })), proxy("db", &KEYS)];
    assert_eq!(
        found("INBOUND", &filters),
        ["error configuration_refused metadata_exchange"]
    );
    // The configuration is not in the document.
    let discovered = json!({ "name": FILTER, "config_discovery": {} });
    let listener = json!({ "name": "tcp", "traffic_direction": "INBOUND",
        "filter_chains": [{ "filters": [discovered, proxy("db", &KEYS)] }] });
    let part = Evidence {
        documents: vec![listener],
        ..Evidence::default()
    };
    assert_eq!(examine(&part, FILTER).unwrap(), []);
}

#[test]
fn the_keys_of_tcp_logs_are_checked() {
    let ours = || ours(&json!({ "protocol": "tcp" }));
    let error = "error keys_not_logged tcp";
    for (direction, keys, expected) in [
        ("INBOUND", &KEYS[2..], Some(error)),
        ("OUTBOUND", &KEYS[..2], Some(error)),
        ("INBOUND", &KEYS[..1], Some("warning keys_not_logged tcp")),
        ("INBOUND", &KEYS[..2], None),
    ] {
        let filters = [ours(), proxy("db", keys)];
        let expected: Vec<_> = expected.into_iter().collect();
        assert_eq!(found(direction, &filters), expected, "{direction} {keys:?}");
    }
    let mut proxy = proxy("db", &KEYS);
    let mut logged = |key: &str, value: Value| {
        proxy["typed_config"][key] = value;
        found("INBOUND", &[ours(), proxy.clone()])
    };
    let options = json!({ "access_log_flush_interval": "5s" });
    assert_eq!(
        logged("access_log_options", options),
        ["warning logged_in_progress tcp"]
    );
    // One entry of no bytes more.
    let options = json!({ "flush_access_log_on_connected": true });
    assert_eq!(logged("access_log_options", options), [""; 0]);
    let text = json!({ "log_format": "%FILTER_STATE(wasm.downstream_peer_id:PLAIN)%" });
    let log = json!([{ "typed_config": text }]);
    assert_eq!(logged("access_log", log), [""; 0]);
    assert_eq!(logged("access_log", json!([])), [error]);
    // The log of the listener has the same filter state.
    let mut dump = dump("INBOUND", &[ours(), proxy], &[]);
    let listener = &mut dump["configs"][1]["dynamic_listeners"][0]["active_state"]["listener"];
    listener["access_log"] = json!([{ "typed_config": text }]);
    assert_eq!(summary(&dump), [""; 0]);
}

#[test]
fn clusters_that_are_sent_no_frame_are_found() {
    let named = |names: &[&str]| json!({ "protocol": "tcp", "tcp_clusters": names });
    let none = named(&[]);
    let of = |metadata: Value| json!({ "name": "db", "metadata": { "filter_metadata": metadata } });
    let mark = json!({ "tcp": true });
    let external = json!({ "external": true });
    let not_sent = "warning frame_not_sent db";
    let sends = json!({ "protocol": "tcp", "tcp_clusters": ["db"], "external_clusters": "send" });
    let outside =
        json!({ "protocol": "tcp", "tcp_clusters": ["db"], "external_cluster_names": ["d*"] });
    for (configuration, cluster, expected) in [
        (named(&["db"]), of(json!({})), None),
        (
            named(&["dc", "db"]),
            of(json!({})),
            Some("warning unknown_cluster tcp"),
        ),
        (
            named(&["dc*"]),
            of(json!({})),
            Some("warning unknown_cluster tcp"),
        ),
        (
            named(&["db"]),
            of(json!({ "istio": external })),
            Some(not_sent),
        ),
        (
            named(&["db"]),
            of(json!({ "istio": { "disable_mx": true } })),
            Some(not_sent),
        ),
        (sends, of(json!({ "istio": external })), None),
        (outside, of(json!({})), Some(not_sent)),
        (
            none.clone(),
            of(json!({ "metadata_exchange": mark, "istio": external })),
            Some(not_sent),
        ),
        (none.clone(), of(json!({ "metadata_exchange": mark })), None),
        (none, of(json!({ "istio": external })), None),
    ] {
        let filters = [ours(&configuration), proxy("db", &KEYS)];
        let found = summary(&dump("OUTBOUND", &filters, std::slice::from_ref(&cluster)));
        let expected: Vec<_> = expected.into_iter().collect();
        assert_eq!(found, expected, "{configuration} {cluster}");
        // Inbound, no frame is sent.
        let found = summary(&dump("INBOUND", &filters, &[cluster]));
        assert_eq!(found, [""; 0], "{configuration}");
    }
    // Without a list of clusters none is unknown.
    let listener = json!({ "name": "tcp", "traffic_direction": "OUTBOUND", "filter_chains": [
        { "filters": [ours(&named(&["dc"])), proxy("db", &KEYS)] }] });
    let part = Evidence {
        documents: vec![listener],
        ..Evidence::default()
    };
    assert_eq!(examine(&part, FILTER).unwrap(), []);
}

#[test]
fn istios_tcp_exchange_beside_this_one_is_found() {
    let exchange = json!({ "protocol": "tcp" });
    let observe = json!({ "protocol": "tcp", "mode": "observe" });
    let both = "error native_exchange tcp";
    for (direction, filters, expected) in [
        ("INBOUND", vec![ours(&exchange), native()], Some(both)),
        ("INBOUND", vec![native(), ours(&exchange)], Some(both)),
        ("INBOUND", vec![ours(&observe), native()], None),
        (
            "INBOUND",
            vec![native(), ours(&observe)],
            Some("error wrong_order tcp"),
        ),
        (
            "INBOUND",
            vec![ours(&observe)],
            Some("error nothing_to_observe tcp"),
        ),
        ("OUTBOUND", vec![ours(&observe)], None),
    ] {
        let mut filters = filters;
        filters.push(proxy("db", &KEYS));
        let expected: Vec<_> = expected.into_iter().collect();
        assert_eq!(found(direction, &filters), expected, "{filters:?}");
    }
    let named = json!({ "protocol": "tcp", "tcp_clusters": ["db"] });
    for (configuration, expected) in [(named, 1), (exchange, 0)] {
        let cluster = json!({ "name": "db", "filters": [native()] });
        let filters = [ours(&configuration), proxy("db", &KEYS)];
        let found = summary(&dump("OUTBOUND", &filters, &[cluster]));
        let expected = vec!["error native_exchange db"; expected];
        assert_eq!(found, expected, "{configuration}");
    }
}

#[test]
fn the_direction_of_a_tcp_listener_is_checked() {
    let of = |direction: &str, configuration: &Value, cluster: &str| {
        found(direction, &[ours(configuration), proxy(cluster, &KEYS)])
    };
    let config = json!({ "protocol": "tcp" });
    let gateway = json!({ "protocol": "tcp", "direction": "gateway", "trust": "mtls" });
    let wrong = ["error wrong_direction tcp"];
    assert_eq!(of("UNSPECIFIED", &config, "db"), ["error no_direction tcp"]);
    assert_eq!(of("UNSPECIFIED", &gateway, "db").len(), 0);
    assert_eq!(of("OUTBOUND", &config, "inbound|5432||"), wrong);
    assert_eq!(of("INBOUND", &config, "outbound|5432||db.n.svc"), wrong);
    assert_eq!(of("INBOUND", &config, "inbound|5432||").len(), 0);
}

#[test]
fn the_vm_of_the_network_filter_is_checked() {
    let mut filter = ours(&json!({ "protocol": "tcp" }));
    filter["typed_config"]["config"]["failure_policy"] = "FAIL_CLOSED".into();
    let filters = [filter, proxy("db", &KEYS)];
    assert_eq!(
        found("INBOUND", &filters),
        ["warning not_fail_open metadata_exchange"]
    );
    // Its counters are those of the HTTP filter.
    let filters = [ours(&json!({ "protocol": "tcp" })), proxy("db", &KEYS)];
    let dump = dump("INBOUND", &filters, &[]);
    let codes = |stats: &Value| -> Vec<Code> {
        let findings = faults(&dump, stats, &Value::Null, FILTER).unwrap();
        findings.into_iter().map(|one| one.code).collect()
    };
    assert_eq!(codes(&json!({ "stats": [] })), [Code::VmFailed]);
    let held = |count: u64| {
        let name = "wasmcustom.metadata_exchange.frame_timed_out";
        json!({ "stats": [{ "name": name, "value": count }] })
    };
    assert_eq!(codes(&held(0)), []);
    assert_eq!(codes(&held(2)), [Code::FrameTimedOut]);
}

#[test]
fn a_network_policy_on_peers_needs_trust() {
    let mut rbac = other("rbac.v3.RBAC");
    rbac["typed_config"]["rules"] = json!({ "action": "ALLOW", "policies": { "any": {
        "principals": [{ "filter_state": { "key": "wasm.downstream_peer_id" } }],
    } } });
    let of = |configuration: Value| {
        let filters = [ours(&configuration), rbac.clone(), proxy("db", &KEYS)];
        found("INBOUND", &filters)
    };
    assert_eq!(
        of(json!({ "protocol": "tcp" })),
        ["error policy_without_trust tcp"]
    );
    let mtls = json!({ "protocol": "tcp", "trust": "mtls" });
    assert_eq!(of(mtls), [""; 0]);
}
