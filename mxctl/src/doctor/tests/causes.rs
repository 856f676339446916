//! Problems that can be tested without an Envoy.

#![allow(clippy::too_many_lines)] // The tests are tables.

use super::*;

const WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";

/// The filter with this configuration.
fn ours(configuration: &Value) -> Value {
    let text = message("StringValue", &configuration.to_string().into());
    json!({ "name": FILTER, "typed_config": wasm(&text) })
}

/// A correct inbound listener whose only filter chain is changed.
fn sidecar(configuration: &Value, change: impl FnOnce(&mut Value)) -> Value {
    let mut dump = dump(&json!([ours(configuration), router()]), &json!([]));
    let listener = &mut dump["configs"][1]["dynamic_listeners"][0]["active_state"]["listener"];
    listener["default_filter_chain"] = json!({});
    change(listener);
    dump
}

fn router() -> Value {
    let kind = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    json!({ "name": "envoy.filters.http.router", "typed_config": { "@type": kind } })
}

fn manager(listener: &mut Value) -> &mut Value {
    &mut listener["filter_chains"][0]["filters"][0]["typed_config"]
}

/// Routes to this cluster.
fn routes_to(cluster: &str) -> Value {
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": cluster } });
    json!({ "virtual_hosts": [{ "routes": [route] }] })
}

fn codes(dump: &Value) -> Vec<Code> {
    found(dump).into_iter().map(|(code, _)| code).collect()
}

#[test]
fn istios_exchange_in_the_null_runtime_is_not_this_filter() {
    let null = |name: &str, root: &str, code: &str| {
        json!({ "name": name, "typed_config": { "@type": WASM, "config": {
            "root_id": root,
            "vm_config": {
                "runtime": "envoy.wasm.runtime.null",
                "code": { "local": { "inline_string": code } },
            },
        } } })
    };
    let native = null(
        "istio.metadata_exchange",
        "",
        "envoy.wasm.metadata_exchange",
    );
    let renamed = null("other", "metadata_exchange", "envoy.wasm.metadata_exchange");
    let stats = null("istio.stats", "stats_outbound", "envoy.wasm.stats");
    for (filters, expected) in [
        (json!([native]), vec![Code::FilterMissing]),
        (json!([renamed]), vec![Code::FilterMissing]),
        (
            json!([native, ours(&json!({}))]),
            vec![Code::NativeExchange],
        ),
        (
            json!([ours(&json!({})), renamed]),
            vec![Code::NativeExchange],
        ),
        (json!([ours(&json!({})), stats]), vec![]),
    ] {
        let mut filters = filters;
        filters.as_array_mut().unwrap().push(router());
        assert_eq!(
            codes(&sidecar(&json!({}), |listener| {
                manager(listener)["http_filters"] = filters.clone();
            })),
            expected,
            "{filters}"
        );
    }
}

#[test]
fn the_filter_twice_in_one_chain_is_found() {
    let filters = json!([ours(&json!({})), ours(&json!({})), router()]);
    for direction in ["INBOUND", "OUTBOUND"] {
        let dump = sidecar(&json!({}), |listener| {
            listener["name"] = "any".into();
            listener["traffic_direction"] = direction.into();
            manager(listener)["http_filters"] = filters.clone();
        });
        assert_eq!(codes(&dump), [Code::FilterTwice], "{direction}");
    }
}

#[test]
fn the_direction_is_derived_from_cluster_names() {
    use Code::{NoDirection, WrongDirection};
    for (marked, cluster, configured, expected) in [
        ("INBOUND", "inbound|8080||", "auto", None),
        ("OUTBOUND", "inbound|8080||", "auto", Some(WrongDirection)),
        (
            "OUTBOUND",
            "InboundPassthroughCluster",
            "auto",
            Some(WrongDirection),
        ),
        ("OUTBOUND", "localhost:8080", "auto", Some(WrongDirection)),
        (
            "OUTBOUND",
            "self_inbound_dp_http",
            "auto",
            Some(WrongDirection),
        ),
        (
            "INBOUND",
            "outbound|9080||a.b.svc.cluster.local",
            "auto",
            Some(WrongDirection),
        ),
        ("INBOUND", "kri_msvc_a", "auto", Some(WrongDirection)),
        (
            "OUTBOUND",
            "outbound|9080||a.b.svc.cluster.local",
            "auto",
            None,
        ),
        // The plugin's configuration takes precedence over the listener.
        ("OUTBOUND", "inbound|8080||", "inbound", None),
        (
            "INBOUND",
            "inbound|8080||",
            "outbound",
            Some(WrongDirection),
        ),
        ("INBOUND", "inbound|8080||", "gateway", Some(WrongDirection)),
        ("INBOUND", "outbound|9080||a", "gateway", None),
        ("UNSPECIFIED", "inbound|8080||", "auto", Some(NoDirection)),
        ("UNSPECIFIED", "outbound|9080||a", "auto", Some(NoDirection)),
    ] {
        let dump = sidecar(&json!({ "direction": configured }), |listener| {
            listener["name"] = "any".into();
            listener["traffic_direction"] = marked.into();
            manager(listener)["route_config"] = routes_to(cluster);
        });
        let expected: Vec<_> = expected.into_iter().collect();
        assert_eq!(codes(&dump), expected, "{marked} {cluster} {configured}");
    }
}

#[test]
fn the_direction_is_derived_from_the_listener_name_without_cluster_names() {
    for (name, marked, is_wrong) in [
        ("inbound", "OUTBOUND", true),
        ("virtualInbound", "OUTBOUND", true),
        ("outbound:127.0.0.1:21101", "INBOUND", true),
        ("inbound", "INBOUND", false),
        ("http", "INBOUND", false),
        ("http", "OUTBOUND", false),
    ] {
        let dump = sidecar(&json!({}), |listener| {
            listener["name"] = name.into();
            listener["traffic_direction"] = marked.into();
            manager(listener)["route_config"] = routes_to("any");
        });
        let found = codes(&dump).contains(&Code::WrongDirection);
        assert_eq!(found, is_wrong, "{name} {marked}");
    }
}

#[test]
fn a_gateway_that_believes_strangers_is_found() {
    let tls = |is_required: bool| {
        json!({ "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": is_required,
        } })
    };
    for (address, trust, socket, is_found) in [
        ("0.0.0.0", "any", json!(null), true),
        ("::", "any", json!(null), true),
        ("10.0.0.1", "any", tls(false), true),
        ("10.0.0.1", "any", tls(true), false),
        ("127.0.0.1", "any", json!(null), false),
        ("0.0.0.0", "mtls", json!(null), false),
        ("0.0.0.0", "none", json!(null), false),
    ] {
        let configuration = json!({ "direction": "gateway", "trust": trust });
        let dump = sidecar(&configuration, |listener| {
            listener["name"] = "gateway".into();
            listener["address"] = json!({ "socket_address": { "address": address } });
            listener["filter_chains"][0]["transport_socket"] = socket.clone();
        });
        let found = codes(&dump).contains(&Code::StrangersBelieved);
        assert_eq!(found, is_found, "{address} {trust} {socket}");
    }
}

#[test]
fn a_bypassed_filter_is_found() {
    let disabled = |listener: &mut Value| {
        let mut routes = routes_to("inbound|80||");
        routes["virtual_hosts"][0]["routes"][0]["typed_per_filter_config"] = json!({ FILTER: {
            "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
            "disabled": true,
        } });
        manager(listener)["route_config"] = routes;
    };
    let upgraded = |filters: Value| {
        move |listener: &mut Value| {
            manager(listener)["upgrade_configs"] =
                json!([{ "upgrade_type": "websocket", "filters": filters }]);
        }
    };
    let bypassed = [Code::FilterBypassed];
    assert_eq!(codes(&sidecar(&json!({}), disabled)), bypassed);
    assert_eq!(
        codes(&sidecar(&json!({}), upgraded(json!([router()])))),
        bypassed
    );
    let with = json!([ours(&json!({})), router()]);
    assert_eq!(codes(&sidecar(&json!({}), upgraded(with))), []);
    assert_eq!(codes(&sidecar(&json!({}), upgraded(json!([])))), []);
}

#[test]
fn headers_that_are_not_removed_are_found() {
    let names = json!(["X-Envoy-Peer-Metadata", "x-envoy-peer-metadata-id"]);
    let keys = ["request_headers_to_remove", "response_headers_to_remove"];
    let is_found = |routes: &Value, direction: &str| {
        let dump = sidecar(&json!({}), |listener| {
            listener["traffic_direction"] = direction.into();
            manager(listener)["route_config"] = routes.clone();
        });
        let findings = examine(&running(&dump, &stats(), &Value::Null), FILTER).unwrap();
        findings
            .iter()
            .any(|one| one.code == Code::HeadersNotRemoved && one.severity == Severity::Info)
    };
    let mut routes = routes_to("app");
    assert!(is_found(&routes, "INBOUND"));
    assert!(!is_found(&routes, "OUTBOUND"));
    routes["virtual_hosts"][0][keys[0]] = names.clone();
    assert!(is_found(&routes, "INBOUND"), "of requests only");
    routes["virtual_hosts"][0][keys[1]] = json!(["x-envoy-peer-metadata"]);
    assert!(is_found(&routes, "INBOUND"), "the id");
    // Also for the whole route configuration.
    routes[keys[1]] = names;
    assert!(!is_found(&routes, "INBOUND"));
}

#[test]
fn a_filter_that_does_not_fail_open_is_found() {
    for (policy, is_found) in [
        (json!({ "failure_policy": "FAIL_OPEN" }), false),
        (json!({ "fail_open": true }), false),
        (json!({ "failure_policy": "FAIL_CLOSED" }), true),
        (json!({ "failure_policy": "FAIL_RELOAD" }), true),
        (json!({}), true),
    ] {
        let mut config = policy.clone();
        config["name"] = "any".into();
        let filter = json!({ "name": FILTER, "typed_config": { "@type": WASM, "config": config } });
        let dump = sidecar(&json!({}), |listener| {
            manager(listener)["http_filters"] = json!([filter, router()]);
        });
        assert_eq!(
            codes(&dump).contains(&Code::NotFailOpen),
            is_found,
            "{policy}"
        );
    }
}

#[test]
fn policies_on_peers_are_examined() {
    let rbac = |action: &str, principal: &Value| {
        json!({ "name": "envoy.filters.http.rbac", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": { "action": action, "policies": { "any": {
                "permissions": [{ "any": true }],
                "principals": [principal],
            } } },
        } })
    };
    let by_peer = json!({ "filter_state": {
        "key": "wasm.downstream_peer_id", "string_match": { "exact": "a" },
    } });
    let anybody = json!({ "any": true });
    let with = |configuration: &Value, policy: &Value| {
        codes(&sidecar(configuration, |listener| {
            manager(listener)["http_filters"] = json!([ours(configuration), policy, router()]);
        }))
    };
    let (any, mtls) = (json!({}), json!({ "trust": "mtls" }));
    let allow = rbac("ALLOW", &by_peer);
    assert_eq!(with(&any, &allow), [Code::PolicyWithoutTrust]);
    assert_eq!(with(&mtls, &allow), []);
    assert_eq!(with(&any, &rbac("ALLOW", &anybody)), []);
    assert_eq!(with(&mtls, &rbac("DENY", &by_peer)), [Code::DenyByPeer]);
    assert_eq!(
        with(&any, &rbac("DENY", &by_peer)),
        [Code::PolicyWithoutTrust, Code::DenyByPeer]
    );
    // Envoy writes a CEL expression as a tree.
    let tree = json!({ "call_expr": { "function": "_[_]", "args": [
        { "ident_expr": { "name": "filter_state" } },
        { "const_expr": { "string_value": "wasm.downstream_peer" } },
    ] } });
    let mut conditional = rbac("ALLOW", &anybody);
    conditional["typed_config"]["rules"]["policies"]["any"]["condition"] = tree;
    assert_eq!(with(&any, &conditional), [Code::PolicyWithoutTrust]);
    // A route may have a policy of its own.
    let of_route = sidecar(&any, |listener| {
        let kind = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
        let mut routes = routes_to("inbound|80||");
        routes["virtual_hosts"][0]["typed_per_filter_config"] = json!({
            "envoy.filters.http.rbac": { "@type": kind, "rbac": conditional["typed_config"] },
        });
        manager(listener)["route_config"] = routes;
    });
    assert_eq!(codes(&of_route), [Code::PolicyWithoutTrust]);
}

#[test]
fn the_configuration_names_the_node() {
    let stated = json!({ "node": { "NAME": "${env:POD_NAME}", "NAMESPACE": "${env:NAMESPACE}",
        "LABELS": { "app": "${node:/cluster}" } } });
    let equal = json!({ "node": { "id": "web", "NAME": "web", "NAMESPACE": "shop",
        "LABELS": { "app": "web" } } });
    let passed = json!({ "host_env_keys": ["POD_NAME"], "key_values": { "NAMESPACE": "shop" } });
    for (configuration, environment, expected) in [
        (&stated, passed, vec![Code::NodeNotInBootstrap]),
        (
            &stated,
            json!({ "key_values": { "NAMESPACE": "shop" } }),
            vec![
                Code::NoNodeMetadata,
                Code::AbsentSource,
                Code::SameIdentity,
                Code::NodeNotInBootstrap,
            ],
        ),
        (
            &equal,
            Value::Null,
            vec![Code::SameIdentity, Code::NodeNotInBootstrap],
        ),
    ] {
        let mut dump = sidecar(&json!({}), |listener| {
            let mut filter = ours(configuration);
            filter["typed_config"]["config"]["vm_config"] =
                json!({ "environment_variables": environment });
            manager(listener)["http_filters"] = json!([filter, router()]);
        });
        dump["configs"][0]["bootstrap"]["node"] = json!({ "id": "test-id", "cluster": "web" });
        let mut found = codes(&dump);
        let mut expected = expected;
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "{configuration} {environment}");
    }
}

/// `SkyWalking` reads the bootstrap and the gRPC access log.
#[test]
fn a_node_that_only_the_configuration_names_is_found_where_skywalking_reads() {
    let stated = json!({ "node": { "NAME": "${node:/id}", "NAMESPACE": "shop",
        "LABELS": { "app": "web" } } });
    let names = json!({ "NAME": "web-1", "NAMESPACE": "shop", "LABELS": { "app": "web" } });
    let without = |key: &str| {
        let mut names = names.clone();
        names.as_object_mut().unwrap().remove(key);
        names
    };
    for (bootstrap, has_log, drawn) in [
        (json!({}), true, Some("service -.-, instance -")),
        (without("NAME"), true, Some("service web.shop, instance -")),
        (
            without("LABELS"),
            true,
            Some("service -.shop, instance web-1"),
        ),
        (names.clone(), true, None),
        (json!({}), false, None),
    ] {
        let mut dump = sidecar(&stated, |listener| {
            if !has_log {
                manager(listener)["access_log"] = json!([{ "typed_config": {
                    "log_format": "%CEL(filter_state['wasm.downstream_peer'].name)%" } }]);
            }
        });
        dump["configs"][0]["bootstrap"]["node"] = json!({ "id": "web-1", "metadata": bootstrap });
        let findings = faults(&dump, &stats(), &Value::Null, FILTER).unwrap();
        match (findings.as_slice(), drawn) {
            ([], None) => {}
            ([finding], Some(drawn)) => {
                assert_eq!(finding.code, Code::NodeNotInBootstrap);
                let message = format!(
                    "SkyWalking draws this proxy as {drawn}, for its peers it is service \
                     web.shop, instance web-1"
                );
                assert!(finding.message.starts_with(&message), "{finding:?}");
            }
            _ => panic!("{bootstrap}: {findings:?}"),
        }
    }
}

#[test]
fn one_vm_has_one_environment() {
    let filter = |name: &str, vm: &str, app: &str| {
        let mut filter = ours(&json!({}));
        filter["typed_config"]["config"]["name"] = name.into();
        filter["typed_config"]["config"]["vm_config"] =
            json!({ "vm_id": vm, "environment_variables": { "key_values": { "APP": app } } });
        filter
    };
    for (second, expected) in [
        (filter("b", "vm", "b"), vec![Code::SharedEnvironment]),
        (filter("b", "vm", "a"), vec![]),
        (filter("b", "other", "b"), vec![]),
    ] {
        let dump = sidecar(&json!({}), |listener| {
            manager(listener)["http_filters"] = json!([filter("a", "vm", "a"), router()]);
            let mut chain = listener["filter_chains"][0].clone();
            chain["filters"][0]["typed_config"]["http_filters"] = json!([second, router()]);
            listener["default_filter_chain"] = chain;
        });
        assert_eq!(codes(&dump), expected, "{second}");
    }
}

#[test]
fn different_configurations_with_one_name_are_found() {
    let filter = |name: &str, vm: &str, configuration: &Value| {
        let mut filter = ours(configuration);
        filter["typed_config"]["config"]["name"] = name.into();
        filter["typed_config"]["config"]["vm_config"] = json!({ "vm_id": vm });
        filter
    };
    let other = json!({ "max_labels": 9 });
    let same = json!({});
    for (second, is_found) in [
        (filter("a", "vm", &other), true),
        (filter("a", "vm", &same), false),
        (filter("b", "vm", &other), false),
        (filter("a", "other", &other), false),
    ] {
        let dump = sidecar(&json!({}), |listener| {
            manager(listener)["http_filters"] = json!([filter("a", "vm", &same), router()]);
            let mut chain = listener["filter_chains"][0].clone();
            chain["filters"][0]["typed_config"]["http_filters"] = json!([second, router()]);
            listener["default_filter_chain"] = chain;
        });
        assert_eq!(
            codes(&dump).contains(&Code::SharedPluginName),
            is_found,
            "{second}"
        );
    }
}

#[test]
fn a_late_first_wasm_filter_is_found() {
    let is_found = |version: &str, change: &dyn Fn(&mut Evidence)| {
        let dump = sidecar(&json!({}), |_| {});
        let mut evidence = running(&dump, &stats(), &Value::Null);
        evidence.server_info = Some(json!({ "version": format!("abc/{version}/Clean/RELEASE") }));
        change(&mut evidence);
        let findings = examine(&evidence, FILTER).unwrap();
        findings.iter().any(|one| one.code == Code::LateWasm)
    };
    let as_it_is = |_: &mut Evidence| {};
    assert!(is_found("1.36.2", &as_it_is));
    assert!(is_found("1.37.0", &as_it_is));
    assert!(is_found("1.37.1-dev", &as_it_is));
    assert!(!is_found("1.38.0", &as_it_is));
    assert!(!is_found("1.40.0", &as_it_is));
    let extended = |evidence: &mut Evidence| {
        evidence.documents[0]["configs"][0]["bootstrap"]["bootstrap_extensions"] = json!([{
            "name": "envoy.bootstrap.wasm",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.wasm.v3.WasmService" },
        }]);
    };
    assert!(!is_found("1.36.2", &extended));
    let with_the_start = |evidence: &mut Evidence| {
        evidence.documents[0]["configs"][0]["bootstrap"]["static_resources"] =
            json!({ "listeners": [ours(&json!({}))] });
    };
    assert!(!is_found("1.36.2", &with_the_start));
    let loaded = |evidence: &mut Evidence| {
        let created = json!({ "name": "wasm.envoy.wasm.runtime.v8.created", "value": 3 });
        evidence.stats = Some(json!({ "stats": [created] }));
    };
    assert!(!is_found("1.36.2", &loaded));
    // A file has no statistics, but shows what was loaded.
    let in_a_file = |evidence: &mut Evidence| evidence.stats = None;
    assert!(!is_found("1.36.2", &in_a_file));
}

/// A correct sidecar's node, changed.
fn with_node(change: impl FnOnce(&mut Value)) -> Vec<Finding> {
    let mut dump = sidecar(&json!({}), |_| {});
    change(&mut dump["configs"][0]["bootstrap"]["node"]);
    faults(&dump, &stats(), &Value::Null, FILTER).unwrap()
}

#[test]
fn names_too_long_for_skywalking_are_found() {
    let count = |key: &str, value: Value| {
        let findings = with_node(|node| match key {
            "app" => node["metadata"]["LABELS"] = json!({ "app": value }),
            key => node["metadata"][key] = value,
        });
        let findings = findings.iter();
        findings.filter(|one| one.code == Code::NameTooLong).count()
    };
    let name = |length: usize| json!("x".repeat(length));
    assert_eq!(count("NAME", name(70)), 0);
    assert_eq!(count("NAME", name(71)), 1);
    // The namespace is part of the service's name.
    assert_eq!(count("app", name(40)), 0);
    assert_eq!(count("app", name(70)), 1);
}

#[test]
fn nameless_nodes_are_found() {
    for (metadata, expected) in [
        (
            json!({ "NAME": "a", "NAMESPACE": "b", "LABELS": { "app": "a" } }),
            vec![],
        ),
        (json!({}), vec![Code::NamelessNode]),
        (
            json!({ "NAMESPACE": "b", "LABELS": { "version": "v1" } }),
            vec![Code::NamelessNode, Code::NoNamingLabel],
        ),
        (
            json!({ "NAME": "", "dataplane.resource": "{}" }),
            vec![Code::NamelessNode],
        ),
        (json!({ "NAME": "a" }), vec![Code::NoNodeMetadata]),
        (
            json!({ "NAME": "a", "NAMESPACE": "b", "LABELS": {} }),
            vec![Code::NoNodeMetadata],
        ),
        (
            json!({ "NAME": "a", "NAMESPACE": "b", "LABELS": { "version": "v1" } }),
            vec![Code::NoNamingLabel],
        ),
        // As SkyWalking reads them.
        (
            json!({ "NAME": "a", "NAMESPACE": "b", "LABELS": { "App": "a" } }),
            vec![],
        ),
        (
            json!({ "NAME": "a", "NAMESPACE": "b", "LABELS": { "x": "a" }, "SERVICE": "a" }),
            vec![],
        ),
        // As YAML reads `NAME: y` and `app: 010`.
        (
            json!({ "NAME": true, "NAMESPACE": "b", "LABELS": { "app": "a" } }),
            vec![Code::NodeValueType],
        ),
        (
            json!({ "NAME": "a", "NAMESPACE": "b", "LABELS": { "app": 8 } }),
            vec![Code::NodeValueType],
        ),
        (
            json!({ "NAME": "a", "NAMESPACE": "b", "WORKLOAD_NAME": 5, "LABELS": { "app": "a" } }),
            vec![Code::NodeValueType],
        ),
        (
            json!({ "NAME": "a", "NAMESPACE": "b", "LABELS": { "app": "a" }, "INSTANCE_IPS": ["1"],
                 "ENVOY_STATUS_PORT": 15021 }),
            vec![],
        ),
    ] {
        let findings = with_node(|node| node["metadata"] = metadata.clone());
        let codes: Vec<_> = findings.iter().map(|one| one.code).collect();
        assert_eq!(codes, expected, "{metadata}: {findings:?}");
    }
}

#[test]
fn a_value_that_is_not_a_string_is_found_with_what_is_sent() {
    let findings = with_node(|node| node["metadata"]["NAME"] = true.into());
    let [finding] = findings.as_slice() else {
        panic!("{findings:?}");
    };
    assert!(
        finding.message.contains("NAME is true, a bool"),
        "{finding:?}"
    );
    assert!(finding.remedy.contains("quote it"), "{finding:?}");
}

#[test]
fn a_share_that_leaves_nothing_to_send_is_found() {
    let dump = sidecar(&json!({ "max_sent_bytes": 0 }), |_| {});
    assert_eq!(codes(&dump), [Code::NamelessNode]);
}

#[test]
fn a_gateways_id_without_its_role_is_found() {
    for (id, is_found) in [
        ("router~10.0.0.1~a.b~c", false),
        ("sidecar~10.0.0.1~a.b~c", true),
        ("edge", true),
        // It may come from the command line.
        ("", false),
    ] {
        let mut dump = sidecar(&json!({ "direction": "gateway" }), |listener| {
            listener["name"] = "any".into();
        });
        dump["configs"][0]["bootstrap"]["node"]["id"] = id.into();
        assert_eq!(codes(&dump).contains(&Code::NodeIdRole), is_found, "{id}");
    }
    // SkyWalking needs no role on other nodes.
    assert_eq!(with_node(|node| node["id"] = "ratings-1".into()), []);
}

/// A gRPC log that names these keys and goes to this cluster.
fn log(cluster: &str, keys: &[&str]) -> Value {
    json!({ "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        "common_config": {
            "grpc_service": { "envoy_grpc": { "cluster_name": cluster } },
            "filter_state_objects_to_log": keys,
        },
    } })
}

const KEYS: [&str; 2] = ["wasm.downstream_peer", "wasm.downstream_peer_id"];

fn logged(configuration: &Value, logs: &[Value]) -> Vec<Code> {
    codes(&sidecar(configuration, |listener| {
        manager(listener)["access_log"] = json!(logs);
    }))
}

#[test]
fn logs_with_too_many_keys_are_found() {
    let [peer, id] = KEYS;
    let default = json!({});
    let logged = |logs: &[Value]| logged(&default, logs);
    assert_eq!(logged(&[log("a", &KEYS)]), []);
    let both = log("a", &[peer, id, "downstream_peer"]);
    assert_eq!(logged(&[both]), [Code::BothKeysLogged]);
    // Keys of different sides are in different entries.
    assert_eq!(logged(&[log("a", &[peer, id, "upstream_peer"])]), []);
    let twice = [log("a", &KEYS), log("a", &["downstream_peer"])];
    assert_eq!(logged(&twice), [Code::LoggedTwice]);
    assert_eq!(logged(&[log("a", &KEYS), log("b", &KEYS)]), []);
    // Istio puts a log for TCP beside that for HTTP.
    let mut tcp = log("a", &KEYS);
    tcp["typed_config"]["@type"] =
        json!("type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig");
    let both = [log("a", &KEYS), tcp.clone()];
    assert_eq!(logged(&both), [Code::LoggedTwice]);
    tcp["filter"] = json!({ "extension_filter": {} });
    assert_eq!(logged(&[log("a", &KEYS), tcp]), []);
    // SkyWalking ignores a log without peers.
    assert_eq!(logged(&[log("a", &KEYS), log("a", &[])]), []);
}

#[test]
fn two_logs_to_one_collector_are_found() {
    let cluster = |name: &str, port: u16| {
        let address = json!({ "socket_address": { "address": "a", "port_value": port } });
        let endpoint = json!({ "lb_endpoints": [{ "endpoint": { "address": address } }] });
        json!({ "name": name, "http2_protocol_options": {},
                "load_assignment": { "endpoints": [endpoint] } })
    };
    for (port, is_found) in [(11800, true), (11801, false)] {
        let mut dump = sidecar(&json!({}), |listener| {
            manager(listener)["access_log"] = json!([log("a", &KEYS), log("b", &KEYS)]);
        });
        dump["configs"].as_array_mut().unwrap().push(json!({
            "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
            "static_clusters": [
                { "cluster": cluster("a", 11800) }, { "cluster": cluster("b", port) },
            ],
        }));
        assert_eq!(
            codes(&dump).contains(&Code::LoggedTwice),
            is_found,
            "{port}"
        );
    }
}

#[test]
fn intermediate_log_entries_are_found() {
    let with = |settings: Value, keys: &[&str]| {
        let dump = sidecar(&json!({}), |listener| {
            let manager = manager(listener);
            manager["access_log"] = json!([log("a", keys)]);
            let settings = settings.as_object().unwrap().clone();
            manager.as_object_mut().unwrap().extend(settings);
        });
        codes(&dump).contains(&Code::LoggedInProgress)
    };
    let options = |options: Value| json!({ "access_log_options": options });
    for settings in [
        options(json!({ "access_log_flush_interval": "5s" })),
        options(json!({ "flush_access_log_on_new_request": true })),
        options(json!({ "flush_log_on_tunnel_successfully_established": true })),
        json!({ "access_log_flush_interval": "5s" }),
        json!({ "flush_access_log_on_new_request": true }),
    ] {
        assert!(with(settings.clone(), &KEYS), "{settings}");
        assert!(!with(settings, &["other"]));
    }
    assert!(!with(
        options(json!({ "flush_access_log_on_new_request": false })),
        &KEYS
    ));
    assert!(!with(json!({}), &KEYS));
}

#[test]
fn a_logged_local_node_is_found() {
    let recording = json!({ "record_local_node": true });
    let all = [
        "wasm.downstream_peer",
        "wasm.downstream_peer_id",
        "wasm.upstream_peer",
        "wasm.upstream_peer_id",
    ];
    assert_eq!(
        logged(&recording, &[log("a", &all)]),
        [Code::LocalNodeLogged]
    );
    assert_eq!(logged(&recording, &[log("a", &KEYS)]), []);
}

#[test]
fn collector_problems_are_found() {
    use Code::{CollectorNotHttp2, CollectorUnreachable, EntriesLost};
    use Severity::{Error, Warning};
    let http2 = json!({ "explicit_http_config": { "http2_protocol_options": {} } });
    let http1 = json!({ "explicit_http_config": { "http_protocol_options": {} } });
    let options = |options: &Value| {
        let key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        json!({ "name": "a", "typed_extension_protocol_options": { key: options } })
    };
    let host = |stats: &[(&str, &str)]| {
        let stats = stats
            .iter()
            .map(|(name, value)| json!({ "name": name, "value": value }));
        json!([{ "stats": stats.collect::<Vec<_>>() }])
    };
    let found = |clusters: Value, hosts: Value, more: Value| {
        let mut dump = sidecar(&json!({}), |listener| {
            manager(listener)["access_log"] = json!([log("a", &KEYS)]);
        });
        dump["configs"].as_array_mut().unwrap().push(json!({
            "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
            "static_clusters": [{ "cluster": clusters }],
        }));
        let mut evidence = running(&dump, &stats(), &Value::Null);
        let counted = evidence.stats.as_mut().unwrap()["stats"].as_array_mut();
        counted.unwrap().push(more);
        evidence.clusters =
            Some(json!({ "cluster_statuses": [{ "name": "a", "host_statuses": hosts }] }));
        let findings = examine(&evidence, FILTER).unwrap();
        let found = findings.into_iter().map(|one| (one.severity, one.code));
        found.collect::<Vec<_>>()
    };
    let connected = host(&[("cx_active", "1"), ("cx_total", "1"), ("rq_active", "1")]);
    let nothing = json!({});
    let stat = |name: &str| json!({ "name": name, "value": 2 });
    let grpc = "access_logs.grpc_access_log.";
    for (cluster, hosts, more, expected) in [
        (options(&http2), connected.clone(), nothing.clone(), None),
        (
            json!({ "name": "a", "http2_protocol_options": {} }),
            connected.clone(),
            nothing.clone(),
            None,
        ),
        (
            options(&http1),
            connected.clone(),
            nothing.clone(),
            Some((Error, CollectorNotHttp2)),
        ),
        (
            json!({ "name": "a" }),
            connected.clone(),
            nothing.clone(),
            Some((Error, CollectorNotHttp2)),
        ),
        (
            json!({ "name": "b" }),
            connected.clone(),
            nothing.clone(),
            Some((Error, CollectorUnreachable)),
        ),
        (
            options(&http2),
            json!([]),
            nothing.clone(),
            Some((Error, CollectorUnreachable)),
        ),
        (
            options(&http2),
            host(&[("cx_connect_fail", "3")]),
            nothing.clone(),
            Some((Error, CollectorUnreachable)),
        ),
        // The collector was away and is back.
        (
            options(&http2),
            host(&[("cx_connect_fail", "3"), ("cx_active", "1")]),
            nothing.clone(),
            Some((Warning, CollectorUnreachable)),
        ),
        (
            options(&http2),
            host(&[("rq_error", "3")]),
            nothing.clone(),
            Some((Warning, CollectorUnreachable)),
        ),
        (
            options(&http2),
            host(&[("cx_total", "2"), ("rq_error", "2")]),
            stat("cluster.a.upstream_cx_protocol_error"),
            Some((Error, CollectorNotHttp2)),
        ),
        // The collector ended in the middle of a stream, and is away or back.
        (
            options(&http2),
            host(&[("cx_connect_fail", "1")]),
            stat("cluster.a.upstream_cx_protocol_error"),
            Some((Error, CollectorUnreachable)),
        ),
        (
            options(&http2),
            connected.clone(),
            stat("cluster.a.upstream_cx_protocol_error"),
            None,
        ),
        (
            options(&http2),
            connected.clone(),
            stat(&format!("{grpc}logs_dropped")),
            Some((Warning, EntriesLost)),
        ),
        (
            options(&http2),
            connected.clone(),
            stat(&format!("{grpc}grpc_entries_flush_failed")),
            Some((Warning, EntriesLost)),
        ),
        (
            options(&http2),
            connected.clone(),
            stat(&format!("{grpc}logs_written")),
            None,
        ),
    ] {
        let expected: Vec<_> = expected.into_iter().collect();
        assert_eq!(
            found(cluster.clone(), hosts.clone(), more.clone()),
            expected,
            "{cluster} {hosts} {more}"
        );
    }
}

#[test]
fn problems_are_found_in_statistics() {
    use Severity::{Error, Info, Warning};
    let found = |name: &str, is_discovered: bool| {
        let mut filter = ours(&json!({}));
        let mut extensions = json!([]);
        if is_discovered {
            extensions = json!([{ "ecds_filter": filter.clone() }]);
            filter = json!({ "name": FILTER, "config_discovery": {} });
        }
        let mut dump = dump(&json!([filter, router()]), &extensions);
        let listener = &mut dump["configs"][1]["dynamic_listeners"][0]["active_state"]["listener"];
        listener["default_filter_chain"] = json!({});
        let mut counted = stats();
        let list = counted["stats"].as_array_mut().unwrap();
        list.push(json!({ "name": name, "value": 2 }));
        let findings = examine(&running(&dump, &counted, &Value::Null), FILTER).unwrap();
        let found = findings.into_iter().map(|one| (one.severity, one.code));
        found.collect::<Vec<_>>()
    };
    let ours = "wasmcustom.metadata_exchange.";
    let discovery = "extension_config_discovery.http_filter.metadata_exchange.";
    for (name, is_discovered, expected) in [
        (
            format!("{ours}refused_base64"),
            false,
            Some((Warning, Code::PeersRefused)),
        ),
        (
            format!("{ours}host_error"),
            false,
            Some((Warning, Code::HostErrors)),
        ),
        (
            format!("{ours}configuration_idle"),
            false,
            Some((Error, Code::FilterIdle)),
        ),
        (
            "wasm.remote_load_fetch_failures".to_owned(),
            false,
            Some((Warning, Code::VmFailed)),
        ),
        (
            format!("{ours}configuration_errors"),
            false,
            Some((Warning, Code::ConfigurationRefused)),
        ),
        (
            format!("{ours}too_large_to_send"),
            false,
            Some((Warning, Code::HeaderLimit)),
        ),
        (format!("{ours}downstream_peer_stored"), false, None),
        (
            "cluster.a.upstream_rq_431".to_owned(),
            false,
            Some((Warning, Code::HeaderLimit)),
        ),
        ("cluster.a.internal.upstream_rq_431".to_owned(), false, None),
        (
            "http2.header_overflow".to_owned(),
            false,
            Some((Warning, Code::HeaderLimit)),
        ),
        (
            "cluster.a.http2.header_list_size_too_large".to_owned(),
            false,
            Some((Warning, Code::HeaderLimit)),
        ),
        (
            format!("{discovery}update_rejected"),
            true,
            Some((Warning, Code::ConfigurationRefused)),
        ),
        (format!("{discovery}config_reload"), true, None),
        // Istio's matcher keeps none of these.
        ("other".to_owned(), true, Some((Info, Code::StatsDropped))),
        ("other".to_owned(), false, None),
    ] {
        let expected: Vec<_> = expected.into_iter().collect();
        assert_eq!(found(&name, is_discovered), expected, "{name}");
    }
}

#[test]
fn a_dump_that_is_not_json_is_found() {
    let mut evidence = running(&sidecar(&json!({}), |_| {}), &stats(), &Value::Null);
    evidence.unreadable = Some("could not find @type".to_owned());
    let findings = examine(&evidence, FILTER).unwrap();
    let [finding] = findings.as_slice() else {
        panic!("{findings:?}");
    };
    assert_eq!(finding.code, Code::ConfigurationRefused);
    assert!(finding.message.contains("could not find @type"));
}

/// Documents may be whole or partial; nothing is claimed about what they lack.
#[test]
fn partial_documents_are_examined() {
    let examine_file = |content: &str| {
        let evidence = gather::of_file("a.yaml", content)?;
        let findings = examine(&evidence, FILTER)?;
        let codes = findings.iter().map(|one| one.code.name());
        Ok::<_, anyhow::Error>(codes.collect::<Vec<_>>().join(" "))
    };
    let listener = sidecar(&json!({}), |_| {})["configs"][1]["dynamic_listeners"][0].clone();
    let active = listener["active_state"]["listener"].clone();
    let bootstrap = json!({
        "node": { "id": "a", "metadata": { "NAME": "a" } },
        "static_resources": { "listeners": [active] },
    });
    let without = json!({ "node": {}, "dynamic_resources": { "lds_config": {} } });
    let typed = |kind: &str, mut value: Value| {
        value["@type"] = format!("type.googleapis.com/envoy.admin.v3.{kind}").into();
        value
    };
    for (document, expected) in [
        (bootstrap.clone(), "no_node_metadata"),
        (
            json!({ "static_resources": { "listeners": [] } }),
            "filter_missing nameless_node",
        ),
        (without.clone(), "nameless_node"),
        (active.clone(), ""),
        (json!([active.clone(), active.clone()]), ""),
        (json!({ "resources": [active.clone()] }), ""),
        (
            json!({ "configs": [typed("ListenersConfigDump.DynamicListener", listener.clone())] }),
            "",
        ),
        (
            json!({ "configs": [
            typed("BootstrapConfigDump", json!({ "bootstrap": without })),
            typed("ListenersConfigDump.DynamicListener", listener.clone()),
        ] }),
            "nameless_node",
        ),
        (
            typed("BootstrapConfigDump", json!({ "bootstrap": bootstrap })),
            "no_node_metadata",
        ),
        (
            json!({ "configs": [typed("ListenersConfigDump", json!({}))] }),
            "filter_missing",
        ),
    ] {
        let found = examine_file(&document.to_string()).unwrap();
        let found = found.replace("headers_not_removed", "");
        assert_eq!(found.trim(), expected, "{document}");
    }
    for (document, expected) in [
        ("", "it is empty"),
        ("{}", "not the config_dump or bootstrap"),
        ("stats: [{ name: a, value: 1 }]", "these are statistics"),
        (
            "{ version: a/1.36.2/b, command_line_options: {} }",
            "this is /server_info",
        ),
        ("{ apiVersion: v1, kind: Pod }", "a resource of Kubernetes"),
        ("a: [", "not YAML"),
    ] {
        let error = format!("{:#}", examine_file(document).unwrap_err());
        assert!(error.contains(expected), "{document}: {error}");
    }
}

#[test]
fn a_rate_limit_and_a_header_by_peer_need_trust() {
    let (any, spiffe) = (json!({}), json!({ "trust": "spiffe" }));
    let caller = "%CEL(filter_state['wasm.downstream_peer'].workload_name)%";
    let limit = |text: &str| {
        json!({ "name": "limit", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "rate_limits": [{ "actions": [{ "extension": { "typed_config": { "text": text } } }] }],
        } })
    };
    let limited = |configuration: &Value, text: &str| {
        codes(&sidecar(configuration, |listener| {
            manager(listener)["http_filters"] = json!([ours(configuration), limit(text), router()]);
        }))
    };
    assert_eq!(limited(&any, caller), [Code::PolicyWithoutTrust]);
    assert_eq!(limited(&spiffe, caller), []);
    assert_eq!(limited(&any, "request.path"), []);

    let routed = |configuration: &Value, host: &Value| {
        codes(&sidecar(configuration, |listener| {
            let mut routes = routes_to("inbound|80||");
            for (key, value) in host.as_object().unwrap() {
                routes["virtual_hosts"][0][key] = value.clone();
            }
            manager(listener)["route_config"] = routes;
        }))
    };
    let by_route = json!({ "rate_limits": [{ "actions": [{ "extension": {
        "typed_config": { "text": caller } } }] }] });
    assert_eq!(routed(&any, &by_route), [Code::PolicyWithoutTrust]);
    assert_eq!(routed(&spiffe, &by_route), []);

    let add = json!([{ "header": { "key": "x-caller", "value": caller } }]);
    let alone = json!({ "request_headers_to_add": add });
    let both = json!({ "request_headers_to_add": add, "request_headers_to_remove": ["X-Caller"] });
    let other = json!({ "request_headers_to_add": add, "request_headers_to_remove": ["x-call"] });
    assert_eq!(
        routed(&any, &alone),
        [Code::PolicyWithoutTrust, Code::ForgeableHeader]
    );
    assert_eq!(routed(&spiffe, &alone), [Code::ForgeableHeader]);
    assert_eq!(routed(&spiffe, &other), [Code::ForgeableHeader]);
    assert_eq!(routed(&spiffe, &both), []);
    // Removed at another level, it is removed after it was added, or not at all.
    let elsewhere = json!({
        "request_headers_to_remove": ["x-caller"],
        "routes": [{ "request_headers_to_add": add, "route": { "cluster": "inbound|80||" } }],
    });
    assert_eq!(routed(&spiffe, &elsewhere), [Code::ForgeableHeader]);
    let of_no_peer = json!({ "request_headers_to_add": [
        { "header": { "key": "x-path", "value": "%REQ(:PATH)%" } },
    ] });
    assert_eq!(routed(&any, &of_no_peer), []);
}

#[test]
fn metrics_by_caller_need_trust_or_a_bound() {
    let found = |configuration: &Value, text: &str, scope: &Value| {
        codes(&sidecar(configuration, |listener| {
            let logs = manager(listener)["access_log"].as_array_mut().unwrap();
            logs.push(json!({ "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.stats.v3.Config",
                "stats_scope": scope,
                "counters": [{ "stat": { "tags": [{ "name": "a", "value_format": text }] } }],
            } }));
        }))
    };
    let (any, spiffe) = (json!({}), json!({ "trust": "spiffe" }));
    let caller = "%CEL(filter_state['wasm.downstream_peer'].workload_name)%";
    let callee = "%CEL(filter_state['wasm.upstream_peer'].workload_name)%";
    let bounded = json!({ "max_counters": 10, "max_histograms": 30 });
    let half = json!({ "max_counters": 10 });
    assert_eq!(found(&any, caller, &Value::Null), [Code::UnboundedMetrics]);
    assert_eq!(found(&any, caller, &half), [Code::UnboundedMetrics]);
    assert_eq!(found(&any, caller, &bounded), []);
    assert_eq!(found(&spiffe, caller, &Value::Null), []);
    // This proxy chooses whom it calls.
    assert_eq!(found(&any, callee, &Value::Null), []);
}

#[test]
fn missing_features_depend_on_the_version() {
    let on = |version: Option<&str>, change: &dyn Fn(&mut Value)| {
        let dump = sidecar(&json!({}), |listener| change(manager(listener)));
        let evidence = Evidence {
            server_info: version.map(|version| json!({ "version": format!("a/{version}/b") })),
            ..running(&dump, &stats(), &Value::Null)
        };
        let findings = examine(&evidence, FILTER).unwrap();
        let ours = findings
            .into_iter()
            .filter(|one| one.code == Code::NeedsNewerEnvoy);
        ours.map(|one| one.severity).collect::<Vec<_>>()
    };
    let with_tag = |manager: &mut Value| {
        manager["tracing"]["custom_tags"] = json!([{ "tag": "a", "value": "%CEL(a)%" }]);
    };
    let with_other_tag = |manager: &mut Value| {
        manager["tracing"]["custom_tags"] = json!([{ "tag": "a", "literal": { "value": "b" } }]);
    };
    let with_stats = |manager: &mut Value| {
        let kind = "type.googleapis.com/envoy.extensions.access_loggers.stats.v3.Config";
        let logs = manager["access_log"].as_array_mut().unwrap();
        logs.push(json!({ "typed_config": { "@type": kind } }));
    };
    let with_scope = |manager: &mut Value| {
        with_stats(manager);
        let logs = manager["access_log"].as_array_mut().unwrap();
        logs.last_mut().unwrap()["typed_config"]["stats_scope"] = json!({ "prefix": "a" });
    };
    assert_eq!(on(Some("1.38.2"), &with_scope), [Severity::Error]);
    assert_eq!(on(Some("1.39.0"), &with_scope), []);
    for change in [&with_tag as &dyn Fn(&mut Value), &with_stats] {
        assert_eq!(on(Some("1.36.4"), change), [Severity::Error]);
        assert_eq!(on(Some("1.37.0"), change), []);
        assert_eq!(on(None, change), [Severity::Info]);
    }
    assert_eq!(on(Some("1.36.4"), &with_other_tag), []);
}

/// Envoy says the type of what it refuses.
#[test]
fn a_listener_refused_for_a_missing_feature() {
    let mut dump = sidecar(&json!({}), |_| ());
    let listeners = dump["configs"][1]["dynamic_listeners"]
        .as_array_mut()
        .unwrap();
    let details = "Didn't find a registered implementation for 'envoy.access_loggers.stats' with \
                   type URL: 'envoy.extensions.access_loggers.stats.v3.Config'";
    listeners.push(json!({ "name": "outbound", "error_state": { "details": details } }));
    let evidence = Evidence {
        server_info: Some(json!({ "version": "a/1.36.4/b" })),
        ..running(&dump, &stats(), &Value::Null)
    };
    let findings = examine(&evidence, FILTER).unwrap();
    let finding = findings
        .iter()
        .find(|one| one.code == Code::NeedsNewerEnvoy)
        .unwrap();
    assert_eq!(
        (finding.severity, finding.place.as_str()),
        (Severity::Error, "outbound")
    );
}

/// A policy reads the peer, and so does what makes a header or tags of it: no log is missed.
#[test]
fn readers_other_than_logs_count() {
    let found = |change: &dyn Fn(&mut Value)| {
        codes(&sidecar(&json!({ "trust": "mtls" }), |listener| {
            manager(listener)["access_log"] = json!([]);
            change(manager(listener));
        }))
    };
    assert_eq!(found(&|_| ()), [Code::KeysNotLogged]);
    let tag = "%CEL(filter_state['wasm.downstream_peer'].namespace)%";
    assert_eq!(
        found(&|manager| {
            manager["tracing"]["custom_tags"] = json!([{ "tag": "a", "value": tag }]);
        }),
        []
    );
}

#[test]
fn the_filters_metrics_read_the_peer_and_need_tags() {
    let without_log = |configuration: Value| {
        sidecar(&configuration, |listener| {
            manager(listener)["access_log"] = json!([]);
        })
    };
    let mut dump = without_log(json!({ "trust": "mtls", "standard_metrics": true }));
    assert_eq!(codes(&dump), [Code::MetricsWithoutTags]);
    let bootstrap = &mut dump["configs"][0]["bootstrap"];
    bootstrap["stats_config"]["stats_tags"] =
        json!([{ "tag_name": "reporter", "regex": "(reporter=\\.=(.*?);\\.;)" }]);
    assert_eq!(codes(&dump), []);
}
