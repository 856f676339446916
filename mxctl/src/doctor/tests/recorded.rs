//! Configurations recorded from control planes, see `testdata/README.md`.

use super::*;

fn recorded(name: &str) -> Value {
    let path = format!("{}/../testdata/doctor/{name}", env!("CARGO_MANIFEST_DIR"));
    let content = std::fs::read_to_string(&path).unwrap();
    gather::of_file(name, &content).unwrap().documents.remove(0)
}

/// Each finding as `severity code place`.
fn summary(document: Value) -> Vec<String> {
    let evidence = Evidence {
        documents: vec![document],
        ..Evidence::default()
    };
    let findings = examine(&evidence, FILTER).unwrap();
    let line = |one: Finding| format!("{} {} {}", one.severity.name(), one.code.name(), one.place);
    findings.into_iter().map(line).collect()
}

const NAMELESS: &str = "error nameless_node node";

#[test]
fn configurations_of_istio_have_no_findings() {
    for name in [
        "istio-sidecar.json",
        "istio-ingress-gateway.json",
        "istio-egress-gateway.json",
        "istio-interception-none.json",
    ] {
        assert_eq!(summary(recorded(name)), [""; 0], "{name}");
    }
}

/// Without redirection there is no `virtualInbound`: each port has a listener.
#[test]
fn a_listener_without_redirection_needs_the_filter() {
    let mut dump = recorded("istio-interception-none.json");
    let listeners = dump.pointer_mut("/configs/3/dynamic_listeners").unwrap();
    let listeners = listeners.as_array_mut().unwrap();
    let inbound = listeners.iter_mut().find(|one| one["name"] == INBOUND);
    let inbound = inbound.unwrap();
    let other = PLUGIN.replace("metadata-exchange", "other");
    *inbound = serde_json::from_str(&inbound.to_string().replace(PLUGIN, &other)).unwrap();
    assert_eq!(summary(dump), [format!("error filter_missing {INBOUND}")]);
}

const INBOUND: &str = "10.44.0.12_18080";

#[test]
fn a_replaced_module_is_found() {
    let replaced = format!("error module_replaced {PLUGIN}");
    let alone = summary(recorded("istio-module-replaced.json"));
    assert_eq!(alone, std::slice::from_ref(&replaced));
    // In a whole dump the listeners reference the filter, whose configuration
    // is the stand-in.
    let mut dump = recorded("istio-sidecar.json");
    let stand_in = recorded("istio-module-replaced.json");
    let sections = dump["configs"].as_array_mut().unwrap();
    let extensions = sections
        .iter_mut()
        .find(|section| section.get("ecds_filters").is_some());
    extensions.unwrap()["ecds_filters"] = json!([stand_in["configs"][0]]);
    assert_eq!(summary(dump), [replaced]);
}

const PLUGIN: &str =
    "extensions.istio.io/trafficextension/default.metadata-exchange~istio-translated-wasmplugin";

#[test]
fn a_dump_of_istiod_is_read() {
    assert_eq!(
        summary(recorded("istiod-sidecar.json")),
        [
            "error filter_missing 0.0.0.0_9080",
            "error filter_missing virtualInbound"
        ]
    );
    // istiod's dump lacks the plugin's configuration.
    assert_eq!(
        summary(recorded("istiod-sidecar-with-wasmplugin.json")),
        [""; 0]
    );
    assert_eq!(
        summary(recorded("istiod-native-beside.json")),
        [
            "error native_exchange 0.0.0.0_9080",
            "error native_exchange virtualInbound",
            "info headers_not_removed virtualInbound"
        ]
    );
}

#[test]
fn a_waypoint_is_recognised() {
    assert_eq!(
        summary(recorded("istio-waypoint.json")),
        ["warning waypoint node"]
    );
    let mut sidecar = recorded("istio-sidecar.json");
    sidecar["configs"][0]["bootstrap"]["node"]["id"] = "waypoint~10.0.0.1~a.b~c".into();
    assert!(summary(sidecar).contains(&"warning waypoint node".to_owned()));
}

#[test]
fn sidecars_of_kuma_are_nameless() {
    assert_eq!(summary(recorded("kuma-sidecar.json")), [NAMELESS]);
    // A proxy without HTTP listeners is fine.
    assert_eq!(summary(recorded("kuma-tcp-only.json")), [NAMELESS]);
}

#[test]
fn a_gateway_of_kuma_is_inbound() {
    let role = "warning node_id_role node";
    assert_eq!(
        summary(recorded("kuma-gateway.json")),
        ["error wrong_direction edge:HTTP:21200", NAMELESS, role]
    );
    for direction in ["outbound", "gateway"] {
        let content = recorded("kuma-gateway.json").to_string();
        let configured = format!(r#""value":"{{\"direction\":\"{direction}\"}}""#);
        let content = content.replace(r#""value":"{}""#, &configured);
        let dump = serde_json::from_str(&content).unwrap();
        assert_eq!(summary(dump), [NAMELESS, role], "{direction}");
    }
}

#[test]
fn a_gateway_of_envoy_gateway_believes_strangers() {
    let believes = "warning strangers_believed shop/edge/http";
    // Its readiness listener needs no filter.
    assert_eq!(
        summary(recorded("envoy-gateway.json")),
        [NAMELESS, believes]
    );
    let configured = |configuration: &str| {
        let content = recorded("envoy-gateway.json").to_string();
        let before = r#""{\"direction\":\"gateway\",\"max_labels\":255}""#;
        assert!(content.contains(before));
        let content = content.replace(before, &json!(configuration).to_string());
        summary(serde_json::from_str(&content).unwrap())
    };
    let no_direction = "error no_direction shop/edge/http";
    assert_eq!(configured("{}"), [no_direction, NAMELESS]);
    assert_eq!(
        configured(r#"{"direction":"gateway","trust":"mtls"}"#),
        [NAMELESS]
    );
    assert_eq!(configured(r#"{"direction":"outbound"}"#), [NAMELESS]);
}

/// Its id comes from the command line, which only `/server_info` shows.
#[test]
fn the_id_is_taken_from_server_info() {
    let mut evidence = Evidence {
        documents: vec![recorded("envoy-gateway.json")],
        ..Evidence::default()
    };
    let role = |evidence: &Evidence| {
        let findings = examine(evidence, FILTER).unwrap();
        let role = findings
            .into_iter()
            .find(|one| one.code == Code::NodeIdRole);
        role.map(|finding| finding.message)
    };
    assert_eq!(role(&evidence), None);
    evidence.server_info = Some(json!({ "node": { "id": "envoy-shop-edge-1" } }));
    assert!(role(&evidence).unwrap().contains("\"envoy-shop-edge-1\""));
    evidence.server_info = Some(json!({ "node": { "id": "router~1~a.b~c" } }));
    assert_eq!(role(&evidence), None);
}
