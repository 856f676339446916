//! The overlays as Envoy gets them: their patches and plugins, applied to a
//! bootstrap as Istio's control plane applies them, and real Envoys that run
//! the exchange so.
//!
//! Only what the overlays use is translated; anything else fails the test.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use envoy_test::bootstrap::lua_filter;
use envoy_test::client::{METADATA_OF_NAME_X, PEER_HEADERS};
use envoy_test::scenario::assert_peer;
use envoy_test::tls::{self, Authority, Callers};
use envoy_test::{Lab, Node, Side, Workload};
use serde_json::{Value, json};

use crate::manifests::{of_kind, patches, render};
use crate::vm::{
    Called, INBOUND_LOG, OUTBOUND_LOG, PRODUCTPAGE, Vm, connection_manager, filter_chain,
    http_filters,
};

envoy_test::stories!(
    sidecars_exchange_by_wasm_plugin,
    sidecars_exchange_by_envoy_filter,
    gateways_exchange_with_the_mesh_only,
    inner_gateways_exchange_with_certified_callers,
    a_refused_configuration_costs_no_request,
    an_observer_stores_what_the_native_exchange_receives,
);

const NATIVE: &str = "istio.metadata_exchange";
const ROUTER: &str = "envoy.filters.http.router";
const CORS: &str = "envoy.filters.http.cors";

/// A listener of the bootstrap and the context it stands for in patches.
type Context = (&'static str, &'static str);

const SIDECAR: [Context; 2] = [
    ("INBOUND", "SIDECAR_INBOUND"),
    ("OUTBOUND", "SIDECAR_OUTBOUND"),
];
const GATEWAY: [Context; 1] = [("OUTBOUND", "GATEWAY")];

async fn sidecars_exchange_by_wasm_plugin(lab: &Lab) -> Result<()> {
    sidecars_exchange(lab, "wasmplugin").await
}

async fn sidecars_exchange_by_envoy_filter(lab: &Lab) -> Result<()> {
    sidecars_exchange(lab, "envoyfilter").await
}

async fn sidecars_exchange(lab: &Lab, overlay: &str) -> Result<()> {
    let objects = render(overlay)?;
    let vm = Vm::start(lab, |bootstrap| applied(lab, bootstrap, &objects, &SIDECAR)).await?;
    vm.assert_exchanges(lab).await
}

/// A stranger's forged headers are not stored, the callee is.
async fn gateways_exchange_with_the_mesh_only(lab: &Lab) -> Result<()> {
    for overlay in [
        "wasmplugin-edge-gateway",
        "wasmplugin-inner-gateway",
        "envoyfilter",
        "envoyfilter-inner-gateway",
    ] {
        let objects = render(overlay)?;
        let gateway =
            Vm::start(lab, |bootstrap| applied(lab, bootstrap, &objects, &GATEWAY)).await?;
        let reply = gateway.calls(PRODUCTPAGE).await?;
        gateway.assert_clean("productpage", &reply)?;
        let entry = lab.entry(OUTBOUND_LOG, &reply.call).await?;
        assert_peer(&entry, Side::Upstream, &gateway.productpage).context(overlay)?;
        assert_eq!(entry.peer(Side::Downstream)?, None, "{overlay}");
        let theirs = lab.entry("productpage/inbound", &reply.call).await?;
        assert_peer(&theirs, Side::Downstream, &gateway.node).context(overlay)?;
    }
    Ok(())
}

/// An edge gateway believes and answers not even them.
async fn inner_gateways_exchange_with_certified_callers(lab: &Lab) -> Result<()> {
    let authority = Authority::new()?;
    let validation = authority.validation();
    let identity = authority.certify(&["spiffe://cluster.local/ns/istio-system/sa/gateway"])?;
    let socket = tls::listener(&identity, Callers::Certified, Some(&validation));
    let identity = authority.certify(&["spiffe://cluster.local/ns/default/sa/shop"])?;
    let presents = json!({ "transport_socket": tls::cluster(Some(&identity), Some(&validation)) });
    for (overlay, is_inner) in [
        ("wasmplugin-inner-gateway", true),
        ("envoyfilter-inner-gateway", true),
        ("wasmplugin-edge-gateway", false),
        ("envoyfilter", false),
    ] {
        let objects = render(overlay)?;
        let gateway = Vm::start(lab, |bootstrap| {
            filter_chain(bootstrap, "OUTBOUND")?["transport_socket"] = socket.clone();
            applied(lab, bootstrap, &objects, &GATEWAY)
        })
        .await?;
        let node = Node::pod_client()?;
        let entrance = gateway.envoy.listener("outbound").await?;
        let pods = lab
            .start([
                Workload::sidecar("pod", node.clone()).cluster(PRODUCTPAGE, presents.clone()),
                Workload::bare(PRODUCTPAGE).served_at(entrance),
            ])
            .await?;

        let reply = pods.call("pod", PRODUCTPAGE)?.send().await?;

        gateway.assert_clean("productpage", &reply)?;
        let ours = lab.entry(OUTBOUND_LOG, &reply.call).await?;
        assert_peer(&ours, Side::Upstream, &gateway.productpage).context(overlay)?;
        let theirs = lab.entry("pod/outbound", &reply.call).await?;
        if is_inner {
            assert_peer(&ours, Side::Downstream, &node).context(overlay)?;
            assert_peer(&theirs, Side::Upstream, &gateway.node).context(overlay)?;
        } else {
            assert_eq!(ours.peer(Side::Downstream)?, None, "{overlay}");
            assert_eq!(theirs.peer(Side::Upstream)?, None, "{overlay}");
        }
    }
    Ok(())
}

/// Thanks to `default_config`: without it requests fail.
async fn a_refused_configuration_costs_no_request(lab: &Lab) -> Result<()> {
    let mut objects = render("envoyfilter")?;
    for object in &mut objects {
        let patches = object["spec"]["configPatches"]
            .as_array_mut()
            .into_iter()
            .flatten();
        for patch in patches.filter(|patch| patch["applyTo"] == "EXTENSION_CONFIG") {
            patch["patch"]["value"]["typed_config"]["config"]["configuration"]["value"] =
                r#"{"no": "such key"}"#.into();
        }
    }
    let vm = Vm::start(lab, |bootstrap| applied(lab, bootstrap, &objects, &SIDECAR)).await?;
    let called = vm.is_called(lab).await?;
    vm.assert_clean("own-app", &called.reply)?;
    let entry = lab.entry(INBOUND_LOG, &called.reply.call).await?;
    assert_eq!(entry.peer(Side::Downstream)?, None);
    Ok(())
}

async fn an_observer_stores_what_the_native_exchange_receives(lab: &Lab) -> Result<()> {
    let objects = render("observe")?;
    let vm = Vm::start(lab, |bootstrap| applied(lab, bootstrap, &objects, &SIDECAR)).await?;

    let Called { node, reply, .. } = &vm.is_called(lab).await?;
    vm.assert_clean("own-app", reply)?;
    let entry = lab.entry(INBOUND_LOG, &reply.call).await?;
    assert_peer(&entry, Side::Downstream, node)?;

    let called = vm.calls(PRODUCTPAGE).await?;
    vm.assert_clean("productpage", &called)?;
    let entry = lab.entry(OUTBOUND_LOG, &called.call).await?;
    assert_peer(&entry, Side::Upstream, &vm.productpage)?;
    // The native exchange has sent, and only it.
    let theirs = lab.entry("productpage/inbound", &called.call).await?;
    assert_eq!(theirs.id(Side::Downstream)?, Some("native"));
    Ok(())
}

#[test]
fn an_observer_is_placed_where_it_sees_the_headers() -> Result<()> {
    let objects = render("observe")?;
    let module = Path::new("/module");
    let dir = tempfile::tempdir()?;
    for (contexts, direction, expected) in [
        (
            &SIDECAR[..],
            "INBOUND",
            ["metadata-exchange", NATIVE, CORS, ROUTER],
        ),
        (
            &SIDECAR[..],
            "OUTBOUND",
            [NATIVE, CORS, "metadata-exchange", ROUTER],
        ),
        (
            &GATEWAY[..],
            "OUTBOUND",
            [NATIVE, CORS, "metadata-exchange", ROUTER],
        ),
    ] {
        let mut bootstrap = crate::vm::bootstrap()?;
        apply(&mut bootstrap, &objects, contexts, dir.path(), module)?;
        let filters = http_filters(&mut bootstrap, direction)?;
        let names: Vec<&Value> = filters.iter().map(|filter| &filter["name"]).collect();
        assert_eq!(names, expected, "{direction}");
    }
    Ok(())
}

/// Applies `objects`, with the lab's module.
fn applied(
    lab: &Lab,
    bootstrap: &mut Value,
    objects: &[Value],
    contexts: &[Context],
) -> Result<()> {
    let dir = tempfile::TempDir::with_prefix_in("ecds-", lab.dir())?.keep();
    apply(bootstrap, objects, contexts, &dir, lab.module())
}

/// Gives the listeners of `contexts` the filters that Istio gives them, and
/// applies `objects` to them. Extension configurations are files in `dir`, with
/// `module` where the agent would put the one it has fetched.
fn apply(
    bootstrap: &mut Value,
    objects: &[Value],
    contexts: &[Context],
    dir: &Path,
    module: &Path,
) -> Result<()> {
    let plugins = of_kind(objects, "WasmPlugin");
    for (direction, _) in contexts {
        let native = native(direction);
        let filters = http_filters(bootstrap, direction)?;
        let router = filters.pop().context("no router")?;
        *filters = vec![native];
        // In this order in Istio's listener_builder.go; plugins count for every mode here.
        for plugin in &plugins {
            filters.push(discovered(&resource_name(plugin)));
        }
        filters.extend([envoy_test::bootstrap::route_finding_filter(), router]);
    }
    for plugin in plugins {
        write_extension(dir, module, extension_of(plugin))?;
    }
    for patch in of_kind(objects, "EnvoyFilter")
        .into_iter()
        .flat_map(patches)
    {
        if patch["applyTo"] == "EXTENSION_CONFIG" {
            ensure!(
                patch["patch"]["operation"] == "ADD",
                "not translated: {patch}"
            );
            write_extension(dir, module, patch["patch"]["value"].clone())?;
            continue;
        }
        for (direction, context) in contexts {
            let of = patch["match"]["context"].as_str().context("no context")?;
            if of == *context || of == "ANY" {
                apply_patch(connection_manager(bootstrap, direction)?, patch)?;
            }
        }
    }
    for (direction, _) in contexts {
        for filter in http_filters(bootstrap, direction)? {
            let file = file(dir, &filter["name"])?;
            if let Some(source) = filter.pointer_mut("/config_discovery/config_source") {
                let ads = source
                    .as_object_mut()
                    .and_then(|source| source.remove("ads"));
                ensure!(ads.is_some(), "the filter is not discovered by ADS");
                source["path_config_source"] = json!({ "path": file });
            }
        }
    }
    Ok(())
}

/// Stands for Istio's own exchange: inbound it leaves nothing to filters behind
/// it, outbound it sends and leaves no answer to filters ahead of it.
fn native(direction: &str) -> Value {
    let on_request = match direction {
        "INBOUND" => "strip",
        _ => "send",
    };
    let [value, id] = PEER_HEADERS;
    let mut filter = lua_filter(&format!(
        r#"
local function strip(handle)
  handle:headers():remove("{value}")
  handle:headers():remove("{id}")
end
local function send(handle)
  handle:headers():replace("{value}", "{METADATA_OF_NAME_X}")
  handle:headers():replace("{id}", "native")
end
envoy_on_request = {on_request}
envoy_on_response = strip
"#
    ));
    filter["name"] = NATIVE.into();
    filter
}

fn apply_patch(manager: &mut Value, patch: &Value) -> Result<()> {
    let (operation, value) = (&patch["patch"]["operation"], &patch["patch"]["value"]);
    let named = &patch["match"]["listener"]["filterChain"]["filter"]["subFilter"]["name"];
    if patch["applyTo"] == "VIRTUAL_HOST" && operation == "MERGE" {
        let hosts = manager["route_config"]["virtual_hosts"].as_array_mut();
        for host in hosts.context("no virtual hosts")? {
            for (key, value) in value.as_object().context("no object")? {
                host[key] = value.clone();
            }
        }
        return Ok(());
    }
    ensure!(patch["applyTo"] == "HTTP_FILTER", "not translated: {patch}");
    let filters = manager["http_filters"]
        .as_array_mut()
        .context("no filters")?;
    let position = filters.iter().position(|filter| filter["name"] == *named);
    match (operation.as_str().unwrap_or_default(), position) {
        ("REMOVE", Some(position)) => drop(filters.remove(position)),
        ("INSERT_FIRST", None) => filters.insert(0, value.clone()),
        ("INSERT_BEFORE", Some(position)) => filters.insert(position, value.clone()),
        _ => bail!("not translated: {patch}"),
    }
    Ok(())
}

/// How Istio names the extension configuration of a `WasmPlugin`, before 1.30.
fn resource_name(plugin: &Value) -> String {
    format!("extensions.istio.io/wasmplugin/{}", qualified_name(plugin))
}

fn qualified_name(plugin: &Value) -> String {
    let [namespace, name] = ["namespace", "name"].map(|key| plugin["metadata"][key].as_str());
    format!(
        "{}.{}",
        namespace.unwrap_or_default(),
        name.unwrap_or_default()
    )
}

/// The HTTP filter that Istio adds for a `WasmPlugin`.
fn discovered(name: &str) -> Value {
    let types = ["wasm.v3.Wasm", "rbac.v3.RBAC"];
    json!({
        "name": name,
        "config_discovery": {
            "config_source": { "ads": {}, "initial_fetch_timeout": "0s" },
            "type_urls": types.map(|one| format!("type.googleapis.com/envoy.extensions.filters.http.{one}")),
        },
    })
}

/// The extension configuration that Istio makes of a `WasmPlugin`: no VM id, and
/// the plugin configuration as text.
fn extension_of(plugin: &Value) -> Value {
    let spec = &plugin["spec"];
    json!({
        "name": resource_name(plugin),
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": {
                "name": qualified_name(plugin),
                "root_id": spec["pluginName"],
                "failure_policy": spec["failStrategy"],
                "vm_config": {
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": { "remote": { "http_uri": { "uri": spec["url"] } } },
                },
                "configuration": {
                    "@type": "type.googleapis.com/google.protobuf.StringValue",
                    "value": spec["pluginConfig"].to_string(),
                },
            },
        },
    })
}

/// Writes an extension configuration as Istio's agent passes it on: with a local
/// file for the remote code.
fn write_extension(dir: &Path, module: &Path, mut extension: Value) -> Result<()> {
    let code = &mut extension["typed_config"]["config"]["vm_config"]["code"];
    let uri = code["remote"]["http_uri"]["uri"]
        .as_str()
        .context("no remote code")?;
    ensure!(uri.starts_with("oci://"), "{uri} is no image reference");
    *code = json!({ "local": { "filename": module } });
    extension["@type"] = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig".into();
    let path = file(dir, &extension["name"])?;
    std::fs::write(path, json!({ "resources": [extension] }).to_string())?;
    Ok(())
}

fn file(dir: &Path, name: &Value) -> Result<std::path::PathBuf> {
    let name = name.as_str().context("a filter without name")?;
    Ok(dir.join(format!("{}.json", name.replace('/', "~"))))
}
