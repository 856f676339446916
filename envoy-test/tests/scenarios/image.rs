//! The output of `make image`: the image, unpacked as Istio does, and the files
//! beside it.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use envoy_test::{Lab, Node, Side, Workload};
use flate2::read::GzDecoder;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::assert_peer;

envoy_test::stories!(the_module_in_the_image_exchanges_metadata);

async fn the_module_in_the_image_exchanges_metadata(lab: &Lab) -> Result<()> {
    let module = lab.dir().join("plugin.wasm");
    std::fs::write(&module, Image::built()?.plugin()?)?;
    let (client, server) = (Node::pod_client()?, Node::vm_server()?);
    let sidecar = |name: &str, node: &Node| {
        ["inbound", "outbound"].iter().fold(
            Workload::sidecar(name, node.clone()),
            |workload, listener| {
                workload.listener(listener, |listener| {
                    listener.plugin.module = Some(module.clone());
                })
            },
        )
    };
    let mesh = lab
        .start([sidecar("productpage", &client), sidecar("ratings", &server)])
        .await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;

    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_peer(&outbound, Side::Upstream, &server)?;
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&inbound, Side::Downstream, &client)?;
    Ok(())
}

#[test]
fn it_is_the_compat_variant_of_the_module_that_was_built() -> Result<()> {
    let image = Image::built()?;

    let manifest = image.manifest()?;
    assert_eq!(
        manifest["annotations"]["module.wasm.image/variant"],
        "compat"
    );
    assert_eq!(
        manifest["annotations"]["org.opencontainers.image.version"],
        env!("CARGO_PKG_VERSION")
    );
    let layer = image.layer()?;
    let names: Vec<_> = files(layer.as_slice())?.into_keys().collect();
    assert_eq!(names, ["plugin.wasm"]);
    assert!(
        image.plugin()? == std::fs::read(dist("metadata_exchange.wasm"))?,
        "the image holds another module: run `make image`"
    );
    let config: Value = serde_json::from_slice(image.blob(&manifest["config"])?)?;
    assert_eq!(
        config["rootfs"],
        json!({ "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))] })
    );
    Ok(())
}

#[test]
fn old_docker_engines_find_the_same_image() -> Result<()> {
    let image = Image::built()?;
    let manifest = image.manifest()?;
    let path = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str()?.strip_prefix("sha256:")?;
        Some(format!("blobs/sha256/{digest}"))
    };

    let images = image.json("manifest.json")?;

    assert_eq!(
        images,
        json!([{
            "Config": path(&manifest["config"]),
            "RepoTags": [concat!("metadata-exchange:", env!("CARGO_PKG_VERSION"))],
            "Layers": [path(&manifest["layers"][0])],
        }])
    );
    Ok(())
}

#[test]
fn the_checksums_are_those_of_the_files() -> Result<()> {
    let mut names = Vec::new();
    for line in read("SHA256SUMS")?.lines() {
        let (sum, name) = line.split_once("  ").context("no checksum and name")?;
        assert_eq!(sum, sha256(&std::fs::read(dist(name))?), "{name}");
        names.push(name.to_owned());
    }
    names.sort();
    assert_eq!(
        names,
        [
            "LICENSES.txt",
            "metadata_exchange.cdx.json",
            "metadata_exchange.oci.tar",
            "metadata_exchange.wasm"
        ]
    );
    Ok(())
}

#[test]
fn every_linked_library_has_its_licence() -> Result<()> {
    let bill: Value = serde_json::from_str(&read("metadata_exchange.cdx.json")?)?;
    let module = sha256(&std::fs::read(dist("metadata_exchange.wasm"))?);
    assert_eq!(
        bill["metadata"]["component"]["hashes"],
        json!([{ "alg": "SHA-256", "content": module }])
    );
    let texts = read("LICENSES.txt")?;
    let libraries = bill["components"].as_array().context("no components")?;
    // Some that are certainly linked in, and one that only this harness uses.
    let names: Vec<_> = libraries.iter().map(|one| &one["name"]).collect();
    for name in ["flatbuffers", "serde_json", "rust-std", "wasi-libc"] {
        assert!(names.contains(&&json!(name)), "{name} in {names:?}");
    }
    assert!(!names.contains(&&json!("tokio")), "{names:?}");
    for library in libraries {
        let [name, version] = ["name", "version"].map(|key| library[key].as_str());
        let named = format!(
            "{} {}",
            name.unwrap_or_default(),
            version.unwrap_or_default()
        );
        let covered = |line: &str| {
            let users = line.strip_suffix(':');
            users.is_some_and(|users| users.split(", ").any(|user| user == named))
        };
        assert!(texts.lines().any(covered), "no licence's text of {named}");
    }
    Ok(())
}

/// The files of the image's archive.
struct Image(BTreeMap<String, Vec<u8>>);

impl Image {
    fn built() -> Result<Self> {
        let path = dist("metadata_exchange.oci.tar");
        let archive = std::fs::File::open(&path)
            .with_context(|| format!("no {}: run `make image`", path.display()))?;
        Ok(Self(files(archive)?))
    }

    fn json(&self, name: &str) -> Result<Value> {
        let content = self.0.get(name).with_context(|| format!("no {name}"))?;
        Ok(serde_json::from_slice(content)?)
    }

    /// The content that `descriptor` describes.
    fn blob(&self, descriptor: &Value) -> Result<&[u8]> {
        let digest = descriptor["digest"].as_str().context("no digest")?;
        let sum = digest.strip_prefix("sha256:").context("not SHA-256")?;
        let content = self.0.get(&format!("blobs/sha256/{sum}"));
        let content = content.with_context(|| format!("no blob {digest}"))?;
        ensure!(sha256(content) == sum, "{digest} has another digest");
        ensure!(
            descriptor["size"] == content.len(),
            "{digest} has another size"
        );
        Ok(content)
    }

    fn manifest(&self) -> Result<Value> {
        let index = self.json("index.json")?;
        let [descriptor] = index["manifests"]
            .as_array()
            .context("no manifests")?
            .as_slice()
        else {
            anyhow::bail!("not one image: {index}");
        };
        let manifest: Value = serde_json::from_slice(self.blob(descriptor)?)?;
        for described in [descriptor, &manifest] {
            assert_eq!(
                described["mediaType"],
                "application/vnd.oci.image.manifest.v1+json"
            );
        }
        Ok(manifest)
    }

    /// The only layer, unpacked: a tar archive.
    fn layer(&self) -> Result<Vec<u8>> {
        let manifest = self.manifest()?;
        let [layer] = manifest["layers"]
            .as_array()
            .context("no layers")?
            .as_slice()
        else {
            anyhow::bail!("not one layer: {manifest}");
        };
        assert_eq!(
            layer["mediaType"],
            "application/vnd.oci.image.layer.v1.tar+gzip"
        );
        let mut unpacked = Vec::new();
        GzDecoder::new(self.blob(layer)?).read_to_end(&mut unpacked)?;
        Ok(unpacked)
    }

    fn plugin(&self) -> Result<Vec<u8>> {
        let plugin = files(Cursor::new(self.layer()?))?.remove("plugin.wasm");
        plugin.context("no plugin.wasm at the root of the layer")
    }
}

/// The files of a tar archive, by name.
fn files(archive: impl Read) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        files.insert(name, content);
    }
    Ok(files)
}

fn sha256(content: &[u8]) -> String {
    let bytes = digest(&SHA256, content);
    let hex = bytes.as_ref().iter().map(|byte| format!("{byte:02x}"));
    hex.collect::<Vec<_>>().concat()
}

fn dist(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../dist")
        .join(name)
}

fn read(name: &str) -> Result<String> {
    std::fs::read_to_string(dist(name)).with_context(|| format!("no dist/{name}: run `make image`"))
}
