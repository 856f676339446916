//! Tests of `deploy/` and `examples/`: the manifests are valid against Istio's
//! CRDs, every bootstrap and every plugin configuration is accepted, and real
//! Envoys run the exchange with them.

// Caller and callee are the terms of the field.
#![allow(clippy::similar_names)]

mod compose;
mod control_planes;
mod crds;
mod istio;
mod manifests;
mod plain;
mod skywalking;
mod tcp;
mod vm;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use envoy_test::repository;
use serde_json::Value;

/// The files under `dir` whose name ends in `.yaml`, sorted.
fn yaml_files(dir: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![repository(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in dir.read_dir().with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "yaml")
            {
                files.push(path);
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// The documents of a YAML file.
fn read(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(yaml: &str) -> Result<Vec<Value>> {
    Ok(serde_saphyr::from_multiple(yaml)?)
}

/// The only document of a YAML file.
fn read_one(path: &Path) -> Result<Value> {
    let [document] = <[Value; 1]>::try_from(read(path)?)
        .map_err(|all| anyhow::anyhow!("{}: {} documents", path.display(), all.len()))?;
    Ok(document)
}

/// The plugin configuration in an Envoy Wasm filter's `typed_config`.
fn plugin_configuration(typed_config: &Value) -> Option<&str> {
    typed_config["config"]["configuration"]["value"].as_str()
}
