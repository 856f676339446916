//! An OCI registry that serves images of the filter.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use super::network::CONTROL_PLANE;
use crate::repository;

const PORT: u16 = 5000;
/// As Istio's second variant of an image names the module's layer.
const MODULE: &str = "application/vnd.module.wasm.content.layer.v1+wasm";
const CONFIG: &str = "application/vnd.module.wasm.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The version that `make image` has built.
pub(super) const RELEASED: &str = "0.1.0";
/// The same module with a section more, so that its digest is another.
pub(super) const NEXT: &str = "0.1.1";
/// A version that there is not.
pub(super) const MISSING: &str = "9.9.9";

/// The registry. It stops with its value.
#[derive(Debug)]
pub(super) struct Registry {
    store: Arc<Store>,
    server: AbortHandle,
}

#[derive(Debug, Default)]
struct Store {
    blobs: BTreeMap<String, Vec<u8>>,
    /// Digests by tag.
    tags: BTreeMap<String, String>,
    /// Whether every request is answered with an error.
    is_away: AtomicBool,
}

impl Registry {
    pub(super) async fn start() -> Result<Self> {
        let mut store = Store::default();
        store.load_archive()?;
        store.add_next()?;
        let store = Arc::new(store);
        let router = Router::new()
            .route("/v2/", get(async || StatusCode::OK))
            .route("/v2/metadata-exchange/manifests/{reference}", get(manifest))
            .route("/v2/metadata-exchange/blobs/{digest}", get(blob))
            .with_state(Arc::clone(&store));
        let listener = TcpListener::bind((CONTROL_PLANE, PORT)).await?;
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            store,
            server: server.abort_handle(),
        })
    }

    /// Its address, for Istio's agent, which else would want TLS.
    pub(super) fn address() -> String {
        format!("{CONTROL_PLANE}:{PORT}")
    }

    /// The reference of an image by its version.
    pub(super) fn image(version: &str) -> String {
        format!("oci://{}/metadata-exchange:{version}", Self::address())
    }

    /// The reference of the released image by its digest.
    pub(super) fn image_by_digest(&self, version: &str) -> Result<String> {
        let digest = self.store.tags.get(version).context("no such version")?;
        Ok(format!(
            "oci://{}/metadata-exchange@{digest}",
            Self::address()
        ))
    }

    /// The reference of an image that there is not.
    pub(super) fn missing_digest() -> String {
        let digest = sha256(b"nothing");
        format!("oci://{}/metadata-exchange@{digest}", Self::address())
    }

    /// Whether it answers every request with an error from now on.
    pub(super) fn set_away(&self, is_away: bool) {
        self.store.is_away.store(is_away, Ordering::Relaxed);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Store {
    /// The image as it is released, blob for blob.
    fn load_archive(&mut self) -> Result<()> {
        let path = repository("dist/metadata_exchange.oci.tar");
        ensure!(path.is_file(), "{}: run `make image`", path.display());
        let mut archive = tar::Archive::new(std::fs::File::open(&path)?);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let name = entry.path()?.display().to_string();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content)?;
            if let Some(digest) = name.strip_prefix("blobs/sha256/") {
                self.blobs.insert(format!("sha256:{digest}"), content);
            } else if name == "index.json" {
                let index: Value = serde_json::from_slice(&content)?;
                let manifest = &index["manifests"][0]["digest"];
                let manifest = manifest.as_str().unwrap_or_default();
                self.tags.insert(RELEASED.to_owned(), manifest.to_owned());
            }
        }
        Ok(())
    }

    fn add_next(&mut self) -> Result<()> {
        let mut module = std::fs::read(repository("dist/metadata_exchange.wasm"))?;
        // A custom section: its id, its length, and a name that is all of it.
        module.extend(b"\x00\x05\x04next");
        let mut add = |media_type: &str, content: Vec<u8>| {
            let digest = sha256(&content);
            let size = content.len();
            self.blobs.insert(digest.clone(), content);
            json!({ "mediaType": media_type, "digest": digest, "size": size })
        };
        let layer = add(MODULE, module);
        let config = add(CONFIG, b"{}".to_vec());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [layer, add("text/plain", b"The filter's second image.".to_vec())],
        });
        let manifest = add(MANIFEST, manifest.to_string().into_bytes());
        let digest = manifest["digest"].as_str().unwrap_or_default();
        self.tags.insert(NEXT.to_owned(), digest.to_owned());
        Ok(())
    }
}

fn sha256(content: &[u8]) -> String {
    let digest = digest(&SHA256, content);
    let hex = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
    format!("sha256:{}", hex.collect::<String>())
}

async fn manifest(State(store): State<Arc<Store>>, Path(reference): Path<String>) -> Response {
    let digest = store.tags.get(&reference).unwrap_or(&reference);
    reply(&store, digest, MANIFEST)
}

async fn blob(State(store): State<Arc<Store>>, Path(digest): Path<String>) -> Response {
    reply(&store, &digest, "application/octet-stream")
}

fn reply(store: &Store, digest: &str, media_type: &'static str) -> Response {
    if store.is_away.load(Ordering::Relaxed) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let Some(content) = store.blobs.get(digest) else {
        let error = json!({ "errors": [{ "code": "MANIFEST_UNKNOWN", "message": digest }] });
        return (StatusCode::NOT_FOUND, error.to_string()).into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, media_type.to_owned()),
        (
            header::HeaderName::from_static("docker-content-digest"),
            digest.to_owned(),
        ),
    ];
    (headers, content.clone()).into_response()
}
