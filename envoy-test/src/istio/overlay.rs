//! The overlays of `deploy/istio`, as users render and change them.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::kubernetes::kustomize;
use super::registry::{RELEASED, Registry};
use crate::repository;

/// A rendered overlay.
#[derive(Clone, Debug)]
pub(super) struct Overlay {
    pub(super) objects: Vec<Value>,
}

impl Overlay {
    /// As `kubectl kustomize` renders it, with the image that `make image` built.
    pub(super) fn render(name: &str) -> Result<Self> {
        let dir = repository("deploy/istio/overlays").join(name);
        let overlay = Self {
            objects: kustomize(&dir)?,
        };
        Ok(overlay.image(&Registry::image(RELEASED)))
    }

    /// With another namespace in `kustomization.yaml`.
    pub(super) fn namespace(mut self, namespace: &str) -> Self {
        for object in &mut self.objects {
            object["metadata"]["namespace"] = namespace.into();
        }
        self
    }

    /// With another reference in `image/reference.yaml`.
    pub(super) fn image(mut self, image: &str) -> Self {
        self.each_plugin(|plugin| match plugin {
            Plugin::WasmPlugin(spec) => spec["url"] = image.into(),
            Plugin::Extension(config) => {
                config["vm_config"]["code"]["remote"]["http_uri"]["uri"] = image.into();
            }
        });
        self
    }

    /// With another configuration of the filter.
    pub(super) fn configured(mut self, configuration: &Value) -> Self {
        self.each_plugin(|plugin| match plugin {
            Plugin::WasmPlugin(spec) => spec["pluginConfig"] = configuration.clone(),
            Plugin::Extension(config) => {
                config["configuration"]["value"] = configuration.to_string().into();
            }
        });
        self
    }

    /// With a field of the `WasmPlugin`.
    pub(super) fn with(mut self, key: &str, value: &Value) -> Self {
        self.each_plugin(|plugin| {
            if let Plugin::WasmPlugin(spec) = plugin {
                spec[key] = value.clone();
            }
        });
        self
    }

    /// With another name of the `WasmPlugin` or of the filter's `EnvoyFilter`.
    pub(super) fn named(mut self, name: &str) -> Self {
        for object in &mut self.objects {
            if !is_base(object) {
                object["metadata"]["name"] = name.into();
            }
        }
        self
    }

    fn each_plugin(&mut self, mut change: impl FnMut(Plugin<'_>)) {
        for object in &mut self.objects {
            if object["kind"] == "WasmPlugin" {
                change(Plugin::WasmPlugin(&mut object["spec"]));
                continue;
            }
            let patches = object.pointer_mut("/spec/configPatches");
            let patches = patches.and_then(Value::as_array_mut);
            for patch in patches.into_iter().flatten() {
                if patch["applyTo"] == "EXTENSION_CONFIG" {
                    let config = &mut patch["patch"]["value"]["typed_config"]["config"];
                    change(Plugin::Extension(config));
                }
            }
        }
    }

    /// What removes Istio's own exchange and keeps the headers from apps.
    pub(super) fn base(&self) -> Self {
        self.part(is_base)
    }

    /// The rest: the filter.
    pub(super) fn filter(&self) -> Self {
        self.part(|object| !is_base(object))
    }

    fn part(&self, is_of: impl Fn(&Value) -> bool) -> Self {
        let objects = self.objects.iter().filter(|object| is_of(object));
        Self {
            objects: objects.cloned().collect(),
        }
    }

    pub(super) async fn apply(&self, cluster: &Cluster) -> Result<()> {
        cluster.kubernetes.apply(&self.objects).await
    }

    pub(super) async fn delete(&self, cluster: &Cluster) -> Result<()> {
        cluster.kubernetes.delete(&self.objects).await
    }

    /// All that `istioctl validate` says, if it refuses it or warns.
    pub(super) async fn validate(&self, cluster: &Cluster, name: &str) -> Result<String> {
        let file = cluster.dir.join(format!("{name}.json"));
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": self.objects });
        std::fs::write(&file, list.to_string())?;
        let file = file.to_str().context("a path that is no text")?;
        let done = cluster.istioctl(&["validate", "--filename", file]).await?;
        let text = [done.stdout, done.stderr].concat();
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        let is_clean = done.status.success() && text.ends_with("is valid");
        Ok(if is_clean { String::new() } else { text })
    }
}

enum Plugin<'o> {
    /// Its `spec`.
    WasmPlugin(&'o mut Value),
    /// The `config` of an extension configuration.
    Extension(&'o mut Value),
}

fn is_base(object: &Value) -> bool {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    name.starts_with("replace-native")
}
