//! A bootstrap of `examples/`: what its top says, and how it is run with the addresses of a lab.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

use crate::bootstrap::{any_port, socket_address};
use crate::repository;

/// Where the module is on a VM.
pub(super) const MODULE: &str = "/etc/envoy/metadata_exchange.wasm";
/// Where certificates are.
const TLS: &str = "/etc/envoy/tls/";
/// The folder that the unit of `deploy/envoy` has for logs.
const LOGS: &str = "/var/log/envoy/";

/// A bootstrap with what its top says.
#[derive(Clone, Debug)]
pub struct Example {
    file: &'static str,
    text: String,
    is_named_by_environment: bool,
}

impl Example {
    /// Reads a file of the repository.
    pub fn read(file: &'static str) -> Result<Self> {
        let text = std::fs::read_to_string(repository(file)).context(file)?;
        Ok(Self {
            file,
            text,
            is_named_by_environment: false,
        })
    }

    /// The same for proxies that only the environment names: their bootstrap has nothing of what it says here.
    #[must_use]
    pub fn named_by_environment(self) -> Self {
        Self {
            is_named_by_environment: true,
            ..self
        }
    }

    /// Who the proxy is, moved from the bootstrap into the environment, if only that is to name it.
    pub(super) fn move_node(&self, bootstrap: &mut Value) -> Result<()> {
        if !self.is_named_by_environment {
            return Ok(());
        }
        let mut environment = Map::new();
        let mut stated = json!({
            "id": bootstrap["node"]["id"].take(),
            "metadata": bootstrap["node"]["metadata"].take(),
        });
        refer_to(&mut environment, &mut stated);
        let mut node = stated["metadata"].take();
        node["id"] = stated["id"].take();
        bootstrap["node"]["id"] = "nameless".into();
        bootstrap["node"]["metadata"] = json!({});
        for listener in ["inbound", "outbound"] {
            let filter = &mut manager(bootstrap, listener)?["http_filters"][0];
            let plugin = &mut filter["typed_config"]["config"];
            plugin["vm_config"]["environment_variables"] = json!({ "key_values": environment });
            let configuration = &mut plugin["configuration"]["value"];
            let text = configuration.as_str().context("no configuration")?;
            let mut keys: Value = serde_json::from_str(text)?;
            keys["node"] = node.clone();
            *configuration = keys.to_string().into();
        }
        Ok(())
    }

    /// What the top says under `key`, as in `# Envoy:  1.36 or newer`, up to the next key or an empty line.
    pub fn said(&self, key: &str) -> Result<String> {
        let top = self.text.lines().map_while(|line| line.strip_prefix('#'));
        let mut lines = top.skip_while(|line| !line.trim_start().starts_with(&format!("{key}: ")));
        let first = lines
            .next()
            .with_context(|| format!("{} does not say {key}: at its top", self.file))?;
        let (_, first) = first.split_once(':').unwrap_or_default();
        let more = lines.take_while(|line| line.starts_with("         "));
        let all = [first].into_iter().chain(more).map(str::trim);
        Ok(all.collect::<Vec<_>>().join(" "))
    }

    /// On which Envoy it runs.
    pub fn envoy(&self) -> Result<String> {
        let said = self.said("Envoy")?;
        Ok(said.split(';').next().unwrap_or(&said).to_owned())
    }

    /// Whether it claims to run on the Envoy of that version.
    pub fn runs_on(&self, version: &str) -> Result<bool> {
        let said = self.envoy()?;
        let since = said
            .strip_suffix(" or newer")
            .and_then(minor)
            .with_context(|| format!("{}: not `MAJOR.MINOR or newer`: {said}", self.file))?;
        let version = minor(version).with_context(|| format!("no version: {version}"))?;
        Ok(version >= since)
    }

    /// The bootstrap as it stands in the file.
    pub fn bootstrap(&self) -> Result<Value> {
        serde_saphyr::from_str(&self.text).context(self.file)
    }

    /// The bootstrap with what the top tells users to change: the addresses of its clusters, and ports. The module is at
    /// `module`, and what is under `/etc/envoy/tls` and `/var/log/envoy` is in `files`.
    pub(crate) fn settled(
        &self,
        module: &Path,
        files: &Path,
        addresses: &BTreeMap<&str, SocketAddr>,
    ) -> Result<Value> {
        let path = |path: &Path| path.to_str().map(str::to_owned).context("no UTF-8 path");
        let text = self
            .text
            .replace(MODULE, &path(module)?)
            .replace(TLS, &format!("{}/tls/", path(files)?))
            .replace(LOGS, &format!("{}/", path(files)?));
        let mut bootstrap: Value = serde_saphyr::from_str(&text).context(self.file)?;
        bootstrap["admin"]["address"]["socket_address"]["port_value"] = 0.into();
        let resources = &mut bootstrap["static_resources"];
        for listener in list(&mut resources["listeners"]) {
            listener["address"] = any_port();
        }
        for cluster in list(&mut resources["clusters"]) {
            let name = cluster["name"].as_str().unwrap_or_default();
            let Some(to) = addresses.get(name) else {
                bail!("{}: no address is known for the cluster {name}", self.file);
            };
            cluster["type"] = "STATIC".into();
            let endpoint = &mut cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0];
            endpoint["endpoint"]["address"] = socket_address(*to);
        }
        Ok(bootstrap)
    }
}

/// Moves each text into a variable of the environment, and refers to that in its place.
fn refer_to(environment: &mut Map<String, Value>, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for value in fields.values_mut() {
                refer_to(environment, value);
            }
        }
        text => {
            let name = format!("NODE_{}", environment.len());
            let reference = format!("${{env:{name}}}").into();
            environment.insert(name, std::mem::replace(text, reference));
        }
    }
}

/// The HTTP connection manager of the listener `name`.
pub(crate) fn manager<'a>(bootstrap: &'a mut Value, name: &str) -> Result<&'a mut Value> {
    let mut listeners = list(&mut bootstrap["static_resources"]["listeners"]);
    let listener = listeners.find(|listener| listener["name"] == name);
    let listener = listener.with_context(|| format!("there is no listener {name}"))?;
    Ok(&mut listener["filter_chains"][0]["filters"][0]["typed_config"])
}

pub(crate) fn list(value: &mut Value) -> impl Iterator<Item = &mut Value> {
    value.as_array_mut().into_iter().flatten()
}

/// Major and minor version.
fn minor(version: &str) -> Option<(u64, u64)> {
    let mut numbers = version.split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_is_read() -> Result<()> {
        let example = Example {
            file: "a.yaml",
            text: "# Shows a.\n#\n# Envoy:  1.37 or newer; not 1.36\n# Unsafe: b,\n#         c.\n# Start:  d\n#\n# e\nnode: {}\n"
                .to_owned(),
            is_named_by_environment: false,
        };
        assert_eq!(example.said("Unsafe")?, "b, c.");
        assert_eq!(example.said("Start")?, "d");
        assert_eq!(example.envoy()?, "1.37 or newer");
        assert!(example.runs_on("1.37.0")? && example.runs_on("1.40.0")?);
        assert!(!example.runs_on("1.36.4")? && !example.runs_on("0.99.0")?);
        assert!(example.said("Else").is_err());
        Ok(())
    }
}
