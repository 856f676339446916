//! Cases that no standard Envoy can be configured with, and untrusted text.

mod causes;
mod recorded;
mod tcp;

use serde_json::json;

use super::*;
use access_log::Side;

/// A listener with those HTTP filters, in `/config_dump`.
fn dump(filters: &Value, discovered: &Value) -> Value {
    let sides = [Side::Downstream, Side::Upstream];
    let keys = sides.map(|side| [side.peer_key(), side.id_key()]).concat();
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "http_filters": filters,
        "access_log": [{
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
                "common_config": { "filter_state_objects_to_log": keys },
            },
        }],
    });
    let listener = json!({
        "name": "virtualInbound",
        "traffic_direction": "INBOUND",
        "filter_chains": [{ "filters": [{ "typed_config": manager }] }],
        "default_filter_chain": { "filters": [{ "typed_config": manager }] },
    });
    let node = json!({ "metadata": { "NAME": "a", "NAMESPACE": "b", "LABELS": { "app": "a" } } });
    json!({ "configs": [
        { "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump", "bootstrap": { "node": node } },
        {
            "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
            "dynamic_listeners": [{ "name": "virtualInbound", "active_state": { "listener": listener } }],
        },
        { "@type": "type.googleapis.com/envoy.admin.v3.EcdsConfigDump", "ecds_filters": discovered },
    ] })
}

fn wasm(configuration: &Value) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
        "config": {
            "name": "istio-system.metadata-exchange",
            "failure_policy": "FAIL_OPEN",
            "configuration": configuration,
        },
    })
}

/// A running Envoy with these statistics, now and later.
fn running(dump: &Value, stats: &Value, later: &Value) -> Evidence {
    Evidence {
        documents: vec![dump.clone()],
        stats: Some(stats.clone()),
        later: (!later.is_null()).then(|| later.clone()),
        ..Evidence::default()
    }
}

/// The statistics of a filter that runs.
fn stats() -> Value {
    json!({ "stats": [{ "name": "wasmcustom.metadata_exchange.own", "value": 0 }] })
}

/// The findings for such an Envoy, without those of severity info.
fn faults(dump: &Value, stats: &Value, later: &Value, filter: &str) -> Result<Vec<Finding>> {
    let mut findings = examine(&running(dump, stats, later), filter)?;
    findings.retain(|finding| finding.severity != Severity::Info);
    Ok(findings)
}

fn found(dump: &Value) -> Vec<(Code, String)> {
    let findings = faults(dump, &stats(), &Value::Null, FILTER).unwrap();
    let found = findings.into_iter().map(|one| (one.code, one.place));
    found.collect()
}

const NAME: &str = "extensions.istio.io/trafficextension/istio-system.metadata-exchange~istio-translated-wasmplugin";

#[test]
fn a_filter_that_stopped_ticking_has_failed() {
    let filters = json!([{ "name": FILTER, "typed_config": wasm(&json!({})) }]);
    let dump = dump(&filters, &json!([]));
    let ticks = |count: u64| {
        let name = "wasmcustom.metadata_exchange.ticks";
        json!({ "stats": [{ "name": name, "value": count }] })
    };
    let found = |now: &Value, later: &Value| {
        let findings = faults(&dump, now, later, FILTER).unwrap();
        findings.iter().map(|one| one.code).collect::<Vec<_>>()
    };
    assert_eq!(found(&ticks(7), &ticks(10)), []);
    assert_eq!(found(&ticks(7), &ticks(7)), [Code::VmFailed]);
    // It has just started, so there is no need to wait.
    assert!(!has_to_wait(&ticks(0)));
    assert_eq!(found(&ticks(0), &Value::Null), []);
}

#[test]
fn a_plugin_of_istio_is_recognised_by_its_resource() {
    let resource = json!([{ "ecds_filter": { "name": NAME, "typed_config": wasm(&json!({})) } }]);
    let filters = json!([{ "name": NAME, "config_discovery": {} }]);
    assert_eq!(found(&dump(&filters, &resource)), []);
    // Both filter chains have the problem, which is reported once.
    let refused = (Code::ConfigurationRefused, NAME.to_owned());
    assert_eq!(found(&dump(&filters, &json!([]))), [refused]);
}

/// The plugin's configuration as a message of that type.
fn message(kind: &str, value: &Value) -> Value {
    json!({ "@type": format!("type.googleapis.com/google.protobuf.{kind}"), "value": value })
}

#[test]
fn configurations_are_read_from_every_message_type() {
    let json = r#"{ "mode": "observe" }"#;
    let text = message("StringValue", &json!(json));
    // In the standard alphabet and as other tools write it.
    let bytes = ["eyAibW9kZSI6ICJvYnNlcnZlIiB9", "eyJtb2RlIjoib2JzZXJ2ZSJ9"];
    let [first, second] = bytes.map(|base64| message("BytesValue", &json!(base64)));
    let nothing = (Code::NothingToObserve, "virtualInbound".to_owned());
    for configuration in [text, first, second] {
        let plain = wasm(&configuration);
        let wrapped = json!({
            "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
            "type_url": plain["@type"],
            "value": { "config": plain["config"] },
        });
        for config in [plain, wrapped] {
            let filters = json!([{ "name": FILTER, "typed_config": config }]);
            assert_eq!(
                found(&dump(&filters, &json!([]))),
                std::slice::from_ref(&nothing)
            );
        }
    }
}

#[test]
fn other_messages_are_not_json() {
    let sound = [
        message("BytesValue", &json!("e30=")),
        message("BytesValue", &json!("e30")),
        message("BytesValue", &json!("")),
        message("StringValue", &json!("")),
        message("Struct", &json!({})),
        message("Empty", &Value::Null),
        Value::Null,
    ];
    let refused = [
        (message("BytesValue", &json!("e30!")), "not base64"),
        (message("BytesValue", &json!("W10=")), "not a JSON object"),
        (
            message("Struct", &json!({ "mode": "observe" })),
            "google.protobuf.Struct on as JSON",
        ),
        (
            message("Int32Value", &json!(5)),
            "google.protobuf.Int32Value on as JSON",
        ),
    ];
    let findings = |configuration: &Value| {
        let filters = json!([{ "name": FILTER, "typed_config": wasm(configuration) }]);
        let stats =
            json!({ "stats": [{ "name": "wasmcustom.metadata_exchange.own", "value": 0 }] });
        faults(&dump(&filters, &json!([])), &stats, &Value::Null, FILTER).unwrap()
    };
    for configuration in sound {
        assert_eq!(findings(&configuration), [], "{configuration}");
    }
    for (configuration, why) in refused {
        let findings = findings(&configuration);
        let [finding] = findings.as_slice() else {
            panic!("{configuration}: {findings:?}");
        };
        assert_eq!(finding.code, Code::ConfigurationRefused, "{finding:?}");
        assert!(finding.message.contains(why), "{finding:?}");
    }
}

#[test]
fn hyphens_and_underscores_are_equivalent() {
    let plugin = "extensions.istio.io/wasmplugin/istio-system.my-plugin";
    let dotted = "extensions.istio.io/trafficextension/shop.my.plugin~suffix";
    for (name, filter, is_it) in [
        (plugin, "my-plugin", true),
        (plugin, "my_plugin", true),
        (plugin, "istio-system.my-plugin", true),
        (plugin, plugin, true),
        (plugin, "plugin", false),
        (plugin, "my-plugin-2", false),
        (dotted, "my.plugin", true),
        (dotted, "shop.my.plugin", true),
        ("my-plugin", "my-plugin", true),
        ("my-plugin", FILTER, false),
    ] {
        let filters = json!([{ "name": name, "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": { "failure_policy": "FAIL_OPEN" },
        } }]);
        let stats =
            json!({ "stats": [{ "name": "wasmcustom.metadata_exchange.own", "value": 0 }] });
        let findings = faults(&dump(&filters, &json!([])), &stats, &Value::Null, filter).unwrap();
        assert_eq!(
            findings.is_empty(),
            is_it,
            "{name} as {filter}: {findings:?}"
        );
    }
}

/// The routes of a listener may have been discovered.
#[test]
fn routes_enable_a_filter() {
    let filters = json!([{ "name": FILTER, "disabled": true, "typed_config": wasm(&Value::Null) }]);
    let mut dump = dump(&filters, &json!([]));
    let listener = &mut dump["configs"][1]["dynamic_listeners"][0]["active_state"]["listener"];
    listener["default_filter_chain"] = json!({});
    let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
    manager["rds"] = json!({ "route_config_name": "ours" });
    let with = |name: &str, key: &str, config: &Value| {
        let mut dump = dump.clone();
        let given = json!({ FILTER: config });
        let mut routes = json!({ "name": name, "virtual_hosts": [
            { "routes": [{ "route": { "weighted_clusters": { "clusters": [{}] } } }] }, {},
        ] });
        routes.pointer_mut(key).unwrap()["typed_per_filter_config"] = given;
        dump["configs"].as_array_mut().unwrap().push(json!({
            "@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
            "dynamic_route_configs": [{ "route_config": routes }],
        }));
        let stats =
            json!({ "stats": [{ "name": "wasmcustom.metadata_exchange.own", "value": 0 }] });
        let findings = faults(&dump, &stats, &Value::Null, FILTER).unwrap();
        let found = findings.into_iter().map(|one| (one.severity, one.code));
        found.collect::<Vec<_>>()
    };
    let on = json!({ "config": {} });
    let off = json!({ "disabled": true });
    let missing = [(Severity::Error, Code::FilterMissing)];
    let partly = [(Severity::Warning, Code::FilterMissing)];
    let cluster = "/virtual_hosts/0/routes/0/route/weighted_clusters/clusters/0";
    assert_eq!(with("ours", "", &on), []);
    assert_eq!(with("ours", "", &off), missing);
    assert_eq!(with("other", "", &on), missing);
    for place in ["/virtual_hosts/0", "/virtual_hosts/0/routes/0", cluster] {
        assert_eq!(with("ours", place, &on), partly, "{place}");
        assert_eq!(with("ours", place, &off), missing, "{place}");
    }
}

#[test]
fn the_native_exchange_is_recognised_by_type() {
    for kind in filter::NATIVE_TYPES {
        let native = json!({ "name": "any", "typed_config": { "@type": format!("type.googleapis.com/{kind}") } });
        let filters = json!([{ "name": FILTER, "typed_config": wasm(&json!({})) }, native]);
        let expected = (Code::NativeExchange, "virtualInbound".to_owned());
        assert_eq!(found(&dump(&filters, &json!([]))), [expected], "{kind}");
    }
}

#[test]
fn host_errors_and_refused_listeners_are_found() {
    let filters = json!([{ "name": FILTER, "typed_config": wasm(&json!({})) }]);
    let mut dump = dump(&filters, &json!([]));
    dump["configs"][1]["dynamic_listeners"][0]["error_state"] = json!({ "details": "no" });
    let again = json!({ "failed_configuration": { "name": "virtualInbound" }, "details": "no" });
    let listeners = dump["configs"][1]["dynamic_listeners"]
        .as_array_mut()
        .unwrap();
    listeners.push(json!({ "error_state": again }));
    let stats =
        json!({ "stats": [{ "name": "wasmcustom.metadata_exchange.host_error", "value": 3 }] });
    let findings = faults(&dump, &stats, &Value::Null, FILTER).unwrap();
    let codes: Vec<_> = findings.iter().map(|one| one.code).collect();
    assert_eq!(codes, [Code::ConfigurationRefused, Code::HostErrors]);
}

#[test]
fn internal_listeners_of_control_planes_need_no_filter() {
    let mut dump = dump(&json!([]), &json!([]));
    let missing = (Code::FilterMissing, "virtualInbound".to_owned());
    assert_eq!(found(&dump), [missing]);
    dump["configs"][0]["bootstrap"]["admin"] =
        json!({ "address": { "pipe": { "path": "/run/admin.sock", "mode": 384 } } });
    let endpoint = json!({ "endpoint": { "address": { "pipe": { "path": "/run/admin.sock" } } } });
    dump["configs"].as_array_mut().unwrap().push(json!({
        "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
        "static_clusters": [{ "cluster": {
            "name": "self_admin",
            "load_assignment": { "endpoints": [{ "lb_endpoints": [endpoint] }] },
        } }],
    }));
    for (route, is_own) in [
        (json!({ "route": { "cluster": "prometheus_stats" } }), true),
        (json!({ "route": { "cluster": "self_admin" } }), true),
        (json!({ "direct_response": { "status": 200 } }), true),
        (json!({ "redirect": { "https_redirect": true } }), true),
        (json!({ "route": { "cluster": "other" } }), false),
    ] {
        let listener = &mut dump["configs"][1]["dynamic_listeners"][0]["active_state"]["listener"];
        let routes = json!({ "virtual_hosts": [{ "routes": [route] }] });
        listener["default_filter_chain"] = json!({});
        listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"] = routes;
        assert_eq!(found(&dump).is_empty(), is_own, "{route}");
    }
}

#[test]
fn only_available_evidence_is_examined() {
    let bootstrap = "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump";
    let least = json!({ "configs": [
        1, {}, { "@type": 5 }, { "@type": bootstrap, "bootstrap": { "node": {} } },
    ] });
    let no_stats = json!({ "stats": [] });
    let nothing = Value::Null;
    let findings = faults(&least, &no_stats, &nothing, FILTER).unwrap();
    let codes: Vec<_> = findings.iter().map(|one| one.code).collect();
    assert_eq!(codes, [Code::FilterMissing, Code::NamelessNode]);

    for other in [
        json!([]),
        json!({ "status": "ok" }),
        json!({ "configs": [1, {}, { "@type": 5 }], "stats": {} }),
    ] {
        for (dump, stats, later, expected) in [
            (
                &other,
                &no_stats,
                &no_stats,
                "not the config_dump or bootstrap",
            ),
            (&least, &other, &no_stats, "/stats?format=json has no"),
            (&least, &no_stats, &other, "/stats?format=json has no"),
        ] {
            let error = faults(dump, stats, later, FILTER).unwrap_err().to_string();
            assert!(error.contains(expected), "{other}: {error}");
        }
    }
    assert!(faults(&nothing, &no_stats, &nothing, FILTER).is_err());
    assert!(faults(&least, &nothing, &nothing, FILTER).is_err());
}

/// `docs/doctor.md` has a row for each code, and no other row.
#[test]
fn every_code_is_documented() {
    let document = include_str!("../../../../docs/doctor.md");
    let rows = document.lines().filter_map(|line| {
        let (code, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        let (severity, _) = rest.split_once(" | ")?;
        let is_one = ["error", "warning", "info"].contains(&severity);
        is_one.then_some(code)
    });
    let names: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
    assert_eq!(rows.collect::<Vec<_>>(), names);
}

/// Each cause in `docs/troubleshooting.md` names the code that finds it, or
/// says that there is none.
#[test]
fn every_cause_in_troubleshooting_names_its_code() {
    let document = include_str!("../../../../docs/troubleshooting.md");
    let causes: Vec<&str> = document.split("\n### ").skip(1).collect();
    assert!(causes.len() > 10);
    for cause in causes {
        let (heading, text) = cause.split_once('\n').unwrap();
        let (_, verdict) = text.split_once("`mxctl doctor`: ").expect(heading);
        let verdict = verdict.split("\n\n").next().unwrap();
        let names = verdict.split('`').skip(1).step_by(2);
        let mut codes = names.filter(|name| !name.starts_with('-')).peekable();
        assert!(
            codes.peek().is_some() || verdict.starts_with("cannot see"),
            "{heading}"
        );
        for name in codes {
            let is_one = Code::ALL.iter().any(|code| code.name() == name);
            assert!(is_one, "{heading}: {name}");
        }
    }
}

#[test]
fn missing_sections_are_not_examined() {
    let whole = running(&dump(&json!([]), &json!([])), &stats(), &Value::Null);
    assert_eq!(unexamined(&whole), ["clusters"]);
    let part = Evidence {
        documents: vec![json!({ "filter_chains": [{ "config_discovery": {} }] })],
        ..Evidence::default()
    };
    let expected = [
        "the node",
        "configurations of discovered filters",
        "clusters",
        "statistics",
    ];
    assert_eq!(unexamined(&part), expected);
}

#[test]
fn codes_are_named_as_in_json() {
    for code in Code::ALL {
        assert_eq!(json!(code), code.name());
    }
}
