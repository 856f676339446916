//! `deploy/kuma`, `deploy/envoy-gateway`, `deploy/consul` and the configurations in `deploy/README.md`: the filter accepts
//! each, and it names the proxies whose nodes were recorded, or read in a control plane's source code.

use anyhow::{Context as _, Result};
use envoy_test::repository;
use metadata_exchange::config::Config;
use metadata_exchange::direction::Direction;
use metadata_exchange::local::Node;
use metadata_exchange::trust::Trust;
use prost::Message as _;
use serde_json::{Value, json};

use crate::{parse, plugin_configuration, read_one};

/// A recorded node.
fn recorded(name: &str) -> Result<Node> {
    let path = repository("testdata/control-planes").join(name);
    let node: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let text = |key: &str| node[key].as_str().unwrap_or_default().into();
    Ok(Node {
        id: text("id"),
        cluster: text("cluster"),
        metadata: struct_json::struct_of_json(&node["metadata"])?.encode_to_vec(),
        locality: None,
    })
}

/// What the configuration says of a recorded proxy with that environment, as JSON.
fn named(config: &Config, node: &Node, environment: &[(&str, &str)]) -> Result<Value> {
    let env = |name: &str| {
        let mut variables = environment.iter();
        let variable = variables.find(|(variable, _)| *variable == name);
        variable.map(|(_, value)| (*value).to_owned())
    };
    let mut notes = Vec::new();
    let node = config.node.over(node, &env, &mut notes);
    assert_eq!(notes, []);
    let metadata = prost_types::Struct::decode(node.metadata.as_slice())?;
    let mut metadata = struct_json::json_of_struct(metadata);
    let fields = metadata.as_object_mut().context("no object")?;
    fields.retain(|key, _| !key.starts_with("dataplane."));
    Ok(metadata)
}

#[test]
fn kumas_proxies_are_named_by_their_dataplane() -> Result<()> {
    let policy = read_one(&repository("deploy/kuma/metadata-exchange.yaml"))?;
    let modifications = policy["spec"]["default"]["appendModifications"].as_array();
    let filters = modifications.into_iter().flatten();
    let filters = filters.filter_map(|modification| modification["httpFilter"]["value"].as_str());
    let mut configs = Vec::new();
    for filter in filters {
        let [filter] = parse(filter)?.try_into().ok().context("not one filter")?;
        let filter: Value = filter;
        let json = plugin_configuration(&filter["typedConfig"]).context("no configuration")?;
        configs.push(Config::parse(json.as_bytes())?);
    }
    let [inbound, outbound, gateway] = configs.try_into().ok().context("not three filters")?;
    assert_eq!(inbound, outbound);
    assert_eq!(
        (gateway.direction, gateway.trust),
        (Some(Direction::Gateway), Trust::None)
    );
    assert!(!gateway.callee.is_empty());
    let name = |name: &str| json!({ "app": name, "service.istio.io/canonical-name": name });
    let mut labels = name("web");
    labels["version"] = json!("v1");
    assert_eq!(
        named(&inbound, &recorded("kuma-sidecar.json")?, &[])?,
        json!({"NAME": "web-1", "WORKLOAD_NAME": "web", "MESH_ID": "default", "LABELS": labels})
    );
    assert_eq!(
        named(
            &gateway,
            &recorded("kuma-gateway.json")?,
            &[("POD_NAMESPACE", "edges")]
        )?,
        json!({"NAME": "edge-1", "NAMESPACE": "edges", "WORKLOAD_NAME": "edge", "MESH_ID": "default", "LABELS": name("edge")})
    );
    Ok(())
}

#[test]
fn envoy_gateways_proxies_are_named_by_their_pod() -> Result<()> {
    let policy = read_one(&repository("deploy/envoy-gateway/extension-policy.yaml"))?;
    let config = Config::parse(policy["spec"]["wasm"][0]["config"].to_string().as_bytes())?;
    let node = recorded("envoy-gateway.json")?;
    let pod = [
        ("ENVOY_POD_NAME", "envoy-shop-edge-1"),
        ("ENVOY_POD_NAMESPACE", "gateways"),
    ];
    assert_eq!(
        named(&config, &node, &pod)?,
        json!({"NAME": "envoy-shop-edge-1", "NAMESPACE": "gateways", "WORKLOAD_NAME": "shop/edge", "LABELS": {"app": "shop/edge"}})
    );
    assert_eq!(named(&config, &node, &[])?["NAME"], "edge-pod");
    Ok(())
}

#[test]
fn consuls_services_are_believed_by_their_certificate() -> Result<()> {
    let file = std::fs::read(repository("deploy/consul/service-defaults.json"))?;
    let defaults: Value = serde_json::from_slice(&file)?;
    let extensions = defaults["EnvoyExtensions"].as_array().context("none")?;
    let config = |extension: &Value| {
        let json = extension["Arguments"]["PluginConfig"]["Configuration"].as_str();
        Ok(Config::parse(json.context("no configuration")?.as_bytes())?)
    };
    let configs = extensions.iter().map(config).collect::<Result<Vec<_>>>()?;
    let [inbound, outbound] = configs.try_into().ok().context("not two filters")?;
    assert_eq!(
        (inbound.trust, outbound.upstream_trust),
        (Trust::Spiffe, Trust::Spiffe)
    );
    assert!(inbound.name_from_certificate && outbound.name_from_certificate);
    let node = Node {
        id: "web-sidecar-proxy".into(),
        cluster: "web".into(),
        ..Node::default()
    };
    assert_eq!(
        named(&inbound, &node, &[])?,
        json!({"NAME": "web-sidecar-proxy", "NAMESPACE": "default", "WORKLOAD_NAME": "web", "LABELS": {"app": "web"}})
    );
    Ok(())
}

/// With nodes as those control planes' source code has them.
#[test]
fn gateways_without_a_folder_are_named_by_the_configurations_of_the_page() -> Result<()> {
    let page = std::fs::read_to_string(repository("deploy/README.md"))?;
    let blocks = page.split("```json\n").skip(1);
    let configs = blocks.map(|block| {
        let (json, _) = block.split_once("\n```").context("no end")?;
        Ok(Config::parse(json.as_bytes())?)
    });
    let configs = configs.collect::<Result<Vec<_>>>()?;
    let [kgateway, contour, emissary] = configs.try_into().ok().context("not three")?;
    let node = |id: &str, cluster: &str| Node {
        id: id.into(),
        cluster: cluster.into(),
        ..Node::default()
    };
    let of_pod = [("POD_NAME", "edge-1"), ("POD_NAMESPACE", "shop")];
    let edge = |name: &str, namespace: &str, workload: &str| json!({"NAME": name, "NAMESPACE": namespace, "WORKLOAD_NAME": workload, "LABELS": {"app": workload}});
    assert_eq!(
        named(&kgateway, &node("edge-1.shop", "edge.shop"), &of_pod)?,
        edge("edge-1", "shop", "edge.shop")
    );
    assert_eq!(
        named(&contour, &node("envoy-x7k2p", "projectcontour"), &[])?,
        edge("envoy-x7k2p", "projectcontour", "ingress")
    );
    let hostname = [("HOSTNAME", "emissary-1")];
    let mut expected = edge("emissary-1", "", "ingress");
    expected
        .as_object_mut()
        .context("none")?
        .remove("NAMESPACE");
    assert_eq!(
        named(&emissary, &node("test-id", "node-1"), &hostname)?,
        expected
    );
    Ok(())
}
