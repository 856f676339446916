//! `deploy/istio`: every file and every overlay.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use envoy_test::istio::kustomize;
use envoy_test::{Side, repository};
use metadata_exchange::config::Config;
use serde_json::{Value, json};

use crate::crds::Crds;
use crate::{plugin_configuration, read, read_one, yaml_files};

const OVERLAYS: &str = "deploy/istio/overlays";

/// The names of all overlays, sorted.
fn overlays() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in repository(OVERLAYS).read_dir()? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    ensure!(!names.is_empty(), "there are no overlays");
    Ok(names)
}

/// The objects that `kubectl apply -k` would apply.
pub(crate) fn render(overlay: &str) -> Result<Vec<Value>> {
    kustomize(&repository(OVERLAYS).join(overlay))
}

pub(crate) fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects
        .iter()
        .filter(|object| object["kind"] == kind)
        .collect()
}

/// The patches of an `EnvoyFilter`.
pub(crate) fn patches(envoy_filter: &Value) -> impl Iterator<Item = &Value> {
    envoy_filter["spec"]["configPatches"]
        .as_array()
        .into_iter()
        .flatten()
}

/// The values of the patches of `objects` that apply to `target`.
fn patched<'a>(objects: &'a [Value], target: &str) -> impl Iterator<Item = &'a Value> {
    objects
        .iter()
        .flat_map(patches)
        .filter(move |patch| patch["applyTo"] == target)
        .map(|patch| &patch["patch"]["value"])
}

/// The plugin configurations in `objects`, as the filter receives them.
fn configurations(objects: &[Value]) -> Vec<String> {
    let of_plugins = of_kind(objects, "WasmPlugin")
        .into_iter()
        .map(|plugin| plugin["spec"]["pluginConfig"].to_string());
    let of_filters = patched(objects, "EXTENSION_CONFIG")
        .map(|extension| plugin_configuration(&extension["typed_config"]))
        .map(|configuration| configuration.unwrap_or("there is none").to_owned());
    of_plugins.chain(of_filters).collect()
}

/// The one of `examples/`.
#[test]
fn the_metrics_of_the_examples_are_valid() -> Result<()> {
    let filter = read_one(&repository("examples/metrics/envoyfilter.yaml"))?;
    Crds::load()?.check(&filter)
}

#[test]
fn every_file_and_every_overlay_is_valid() -> Result<()> {
    let crds = Crds::load()?;
    let mut objects = 0;
    for path in yaml_files("deploy/istio")? {
        // Kustomize's own files and Helm values have no CRD.
        let documents = read(&path)?;
        for object in documents.iter().filter(|document| {
            let local = &document["metadata"]["annotations"]["config.kubernetes.io/local-config"];
            document["kind"].is_string()
                && local != "true"
                && !document["apiVersion"]
                    .as_str()
                    .is_some_and(|version| version.starts_with("kustomize."))
        }) {
            crds.check(object)
                .with_context(|| path.display().to_string())?;
            objects += 1;
        }
    }
    assert!(objects > 8, "only {objects} objects were found");
    for overlay in overlays()? {
        let rendered = render(&overlay)?;
        assert!(!rendered.is_empty(), "{overlay} is empty");
        for object in rendered {
            crds.check(&object).with_context(|| overlay.clone())?;
            assert!(
                object["metadata"]["namespace"].is_string(),
                "{overlay}: {object}"
            );
        }
    }
    Ok(())
}

#[test]
fn every_overlay_applies_each_of_its_files() -> Result<()> {
    for overlay in overlays()? {
        let kustomization = read_one(
            &repository(OVERLAYS)
                .join(&overlay)
                .join("kustomization.yaml"),
        )?;
        for path in yaml_files(&format!("{OVERLAYS}/{overlay}"))? {
            let name = path.file_name().context("no name")?.to_string_lossy();
            // Helm values, which Kustomize cannot apply.
            if ["kustomization.yaml", "mesh-config.yaml"].contains(&&*name) {
                continue;
            }
            let resources = kustomization["resources"]
                .as_array()
                .context("no resources")?;
            assert!(resources.contains(&json!(name)), "{overlay} omits {name}");
        }
    }
    Ok(())
}

#[test]
fn every_plugin_configuration_is_accepted() -> Result<()> {
    let mut checked = 0;
    for overlay in overlays()? {
        for configuration in configurations(&render(&overlay)?) {
            if let Err(error) = Config::parse(configuration.as_bytes()) {
                panic!("{overlay}: {configuration}: {error}");
            }
            checked += 1;
        }
    }
    assert!(checked > 6, "only {checked} configurations were found");
    Ok(())
}

/// Sidecars use the defaults, an edge gateway believes nobody, an inner gateway
/// exchanges on both sides, and an observer only observes.
#[test]
fn every_overlay_has_its_plugin_configuration() -> Result<()> {
    const INNER: &str = r#"{"direction": "gateway", "trust": "mtls"}"#;
    const EDGE: &str = r#"{"trust": "none"}"#;
    // The default, spelt out: istiod's debug page cannot print an empty one.
    const SIDECAR: &str = r#"{"mode": "exchange"}"#;
    // Nobody is sent a frame until the user says who expects one.
    const TCP: &str = r#"{"protocol": "tcp", "tcp_clusters": []}"#;
    for (overlay, expected) in [
        ("wasmplugin", &[SIDECAR][..]),
        ("wasmplugin-canary", &[SIDECAR]),
        ("wasmplugin-edge-gateway", &[EDGE]),
        ("wasmplugin-inner-gateway", &[INNER]),
        ("envoyfilter", &["{}", EDGE]),
        ("envoyfilter-inner-gateway", &["{}", INNER]),
        ("observe", &[r#"{"mode": "observe"}"#]),
        ("tcp-wasmplugin", &[TCP]),
        ("tcp-envoyfilter", &[TCP]),
        ("headers", &[]),
        ("skywalking", &[]),
        ("vm", &[]),
    ] {
        let json = |text: &str| serde_json::from_str::<Value>(text);
        let configurations = configurations(&render(overlay)?);
        let configurations = configurations.iter().map(|text| json(text));
        let expected = expected.iter().map(|text| json(text));
        assert_eq!(
            configurations.collect::<Result<Vec<_>, _>>()?,
            expected.collect::<Result<Vec<_>, _>>()?,
            "{overlay}"
        );
    }
    Ok(())
}

/// The image reference is set in one file and applies everywhere.
#[test]
fn the_image_reference_is_set_once() -> Result<()> {
    const SET: &str = "oci://registry.test:5000/some/where@sha256:0f";
    let copy = tempfile::tempdir()?;
    let copied = Command::new("cp")
        .arg("-r")
        .arg(repository("deploy/istio"))
        .arg(copy.path())
        .status()?;
    ensure!(copied.success(), "cp failed");
    let reference = copy.path().join("istio/image/reference.yaml");
    let before = read_one(&reference)?["data"]["image"].clone();
    let text = std::fs::read_to_string(&reference)?;
    std::fs::write(
        &reference,
        text.replace(before.as_str().context("no image")?, SET),
    )?;
    let mut references = 0;
    for overlay in overlays()? {
        let rendered = kustomize(&copy.path().join("istio/overlays").join(&overlay))?;
        assert!(
            of_kind(&rendered, "ConfigMap").is_empty(),
            "{overlay} applies the reference"
        );
        let of_plugins = of_kind(&rendered, "WasmPlugin")
            .into_iter()
            .map(|plugin| &plugin["spec"]["url"]);
        let of_filters = patched(&rendered, "EXTENSION_CONFIG").map(|extension| {
            &extension["typed_config"]["config"]["vm_config"]["code"]["remote"]["http_uri"]["uri"]
        });
        for url in of_plugins.chain(of_filters) {
            assert_eq!(url, SET, "{overlay}");
            references += 1;
        }
    }
    assert!(references > 6, "only {references} references were found");
    Ok(())
}

/// The native exchange is removed where the plugin runs, and nowhere else.
#[test]
fn the_native_exchange_is_removed_where_the_plugin_runs() -> Result<()> {
    for overlay in overlays()?
        .iter()
        .filter(|name| name.starts_with("wasmplugin"))
    {
        let rendered = render(overlay)?;
        let (plugins, filters) = (
            of_kind(&rendered, "WasmPlugin"),
            of_kind(&rendered, "EnvoyFilter"),
        );
        let ([plugin], [filter]) = (&plugins[..], &filters[..]) else {
            panic!("{overlay}: not one plugin and one EnvoyFilter");
        };
        assert_eq!(
            plugin["spec"]["selector"]["matchLabels"], filter["spec"]["workloadSelector"]["labels"],
            "{overlay}"
        );
        assert_eq!(
            plugin["metadata"]["namespace"],
            filter["metadata"]["namespace"]
        );
        assert_eq!(plugin["spec"]["failStrategy"], "FAIL_OPEN");
    }
    Ok(())
}

/// Of patches without a priority, which `istioctl analyze` warns of (IST0151),
/// those that are applied later land ahead of the filter, or behind it.
#[test]
fn every_envoy_filter_has_a_priority() -> Result<()> {
    let mut filters = 0;
    for overlay in overlays()? {
        for filter in of_kind(&render(&overlay)?, "EnvoyFilter") {
            assert_eq!(filter["spec"]["priority"], 100, "{overlay}: {filter}");
            filters += 1;
        }
    }
    assert!(filters > 6, "only {filters} EnvoyFilters were found");
    Ok(())
}

/// The overlay of the namespace takes the canary's objects over.
#[test]
fn a_canary_is_the_namespaces_overlay_with_a_selector() -> Result<()> {
    let mut canary = render("wasmplugin-canary")?;
    for object in &mut canary {
        let spec = object["spec"].as_object_mut().context("no spec")?;
        let selector = ["selector", "workloadSelector"].map(|key| spec.remove(key));
        assert!(selector.iter().any(Option::is_some), "{object}");
    }
    assert_eq!(canary, render("wasmplugin")?);
    Ok(())
}

/// No overlay replaces an object of another overlay that may be applied as
/// well.
#[test]
fn overlays_can_be_applied_together() -> Result<()> {
    for family in ["wasmplugin", "envoyfilter", "observe"] {
        let mut applied = std::collections::BTreeSet::new();
        let beside = |name: &String| {
            // It is not beside another, which takes its place.
            if name == "wasmplugin-canary" {
                return false;
            }
            let is_filter = !["headers", "skywalking", "vm"].contains(&name.as_str());
            let http = name.strip_prefix("tcp-").unwrap_or(name);
            !is_filter || http.starts_with(family)
        };
        for overlay in overlays()?.into_iter().filter(beside) {
            for object in render(&overlay)? {
                // Regardless of namespaces, which users may change to the same
                // one.
                let identity = [&object["kind"], &object["metadata"]["name"]].map(Value::to_string);
                assert!(
                    applied.insert(identity.clone()),
                    "{overlay} has another {identity:?}"
                );
            }
        }
    }
    Ok(())
}

/// Observe mode keeps the native exchange.
#[test]
fn observe_mode_removes_nothing() -> Result<()> {
    let rendered = render("observe")?;
    for patch in rendered.iter().flat_map(patches) {
        let operation = &patch["patch"]["operation"];
        assert!(operation != "REMOVE" && operation != "MERGE", "{patch}");
    }
    Ok(())
}

/// The provider that Telemetry names exists, and logs only the filter's keys.
#[test]
fn access_logs_carry_the_keys_of_the_filter() -> Result<()> {
    let values = read_one(&repository(OVERLAYS).join("skywalking/mesh-config.yaml"))?;
    let rendered = render("skywalking")?;
    let [telemetry] = of_kind(&rendered, "Telemetry")[..] else {
        panic!("not one Telemetry");
    };
    let logging = &telemetry["spec"]["accessLogging"];
    let provider = |number: usize| logging[number]["providers"][0]["name"].clone();
    // Istio puts the provider for TCP on HTTP listeners, too.
    assert_eq!(logging[1]["filter"]["expression"], "!has(request.method)");
    let keys = [Side::Downstream, Side::Upstream].map(|side| [side.peer_key(), side.id_key()]);
    let log = json!({
        "service": "skywalking-oap.skywalking.svc.cluster.local",
        "port": 11800,
        "filterStateObjectsToLog": keys.concat(),
    });
    let expected = json!({
        "meshConfig": {
            "defaultConfig": {
                "proxyStatsMatcher": { "inclusionPrefixes": ["extension_config_discovery"] },
            },
            "extensionProviders": [
                { "name": provider(0), "envoyHttpAls": log },
                { "name": provider(1), "envoyTcpAls": log },
            ],
        },
    });
    assert_eq!(values, expected);
    Ok(())
}
