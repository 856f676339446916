//! Shared by the tests of the pure core: an independent encoder (prost), the
//! vectors of the C++ plugin, and a fake proxy.

use std::cell::RefCell;
use std::collections::BTreeMap;

use metadata_exchange::host::{
    Data, HeaderMap, Host, HostError, HostResult, MetricKind, Property, StateKey, TcpHost,
};
use metadata_exchange::local::share::Share;
use metadata_exchange::local::{LocalNode, Node};
use prost::Message as _;
use serde_json::Value as Json;
use struct_json::struct_of_json;

/// `json`, an object, as a serialised `google.protobuf.Struct`.
pub(crate) fn message_of(json: &Json) -> Vec<u8> {
    struct_of_json(json).unwrap().encode_to_vec()
}

/// A node with this id and metadata, as Envoy reports it.
pub(crate) fn node(id: &str, metadata: &Json) -> Node {
    Node {
        id: id.into(),
        metadata: message_of(metadata),
        ..Node::default()
    }
}

/// The local node that shares all of its metadata.
pub(crate) fn local(id: &str, metadata: &Json) -> LocalNode {
    LocalNode::new(&node(id, metadata), &Share::All, 16_384, &mut Vec::new())
}

/// An input and the C++ plugin's outputs, see testdata/README.md.
pub(crate) struct Vector {
    pub(crate) name: String,
    pub(crate) node: Json,
    pub(crate) header: String,
    pub(crate) id: String,
    pub(crate) peer: Json,
    pub(crate) flat: Vec<u8>,
}

/// All vectors.
pub(crate) fn vectors() -> Vec<Vector> {
    use base64::Engine as _;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/vectors");
    let mut vectors: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| {
            let json = std::fs::read(file.unwrap().path()).unwrap();
            let json: Json = serde_json::from_slice(&json).unwrap();
            let text = |json: &Json| json.as_str().unwrap().to_owned();
            let headers = &json["request_headers"];
            Vector {
                name: text(&json["name"]),
                node: json["node"].clone(),
                header: text(&headers["x-envoy-peer-metadata"]),
                id: text(&headers["x-envoy-peer-metadata-id"]),
                peer: json["wasm.downstream_peer"].clone(),
                flat: base64::engine::general_purpose::STANDARD
                    .decode(text(&json["wasm.downstream_peer_b64"]))
                    .unwrap(),
            }
        })
        .collect();
    vectors.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(vectors.len(), 8, "vectors are missing");
    vectors
}

/// A fake proxy with one stream.
#[derive(Default)]
pub(crate) struct FakeHost {
    pub(crate) request: RefCell<Vec<(String, Vec<u8>)>>,
    pub(crate) response: RefCell<Vec<(String, Vec<u8>)>>,
    pub(crate) properties: RefCell<BTreeMap<String, Vec<u8>>>,
    pub(crate) state: RefCell<BTreeMap<&'static str, Vec<u8>>>,
    /// What has arrived from each side of a TCP connection and is held.
    pub(crate) client_bytes: RefCell<Vec<u8>>,
    pub(crate) server_bytes: RefCell<Vec<u8>>,
    /// Each metric with the values that it was given.
    pub(crate) metrics: RefCell<Vec<(String, Vec<u64>)>>,
    /// Each call, in order.
    pub(crate) calls: RefCell<Vec<String>>,
    /// Calls that contain this text fail.
    pub(crate) failing: Option<&'static str>,
}

impl FakeHost {
    pub(crate) fn with_direction(direction: i64) -> Self {
        let host = Self::default();
        host.set_property("xds.listener_direction", &direction.to_le_bytes());
        host
    }

    pub(crate) fn inbound() -> Self {
        Self::with_direction(1)
    }

    pub(crate) fn outbound() -> Self {
        Self::with_direction(2)
    }

    pub(crate) fn set_property(&self, path: &str, value: &[u8]) {
        let path = path.replace('.', "\0");
        self.properties.borrow_mut().insert(path, value.into());
    }

    pub(crate) fn request_header(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let header = (name.to_owned(), value.as_ref().to_vec());
        self.request.borrow_mut().push(header);
        self
    }

    pub(crate) fn response_header(&self, name: &str, value: impl AsRef<[u8]>) {
        let header = (name.to_owned(), value.as_ref().to_vec());
        self.response.borrow_mut().push(header);
    }

    /// All values of a header.
    pub(crate) fn values(&self, map: HeaderMap, name: &str) -> Vec<Vec<u8>> {
        let headers = self.map(map).borrow();
        let of_name = headers.iter().filter(|(header, _)| header == name);
        of_name.map(|(_, value)| value.clone()).collect()
    }

    /// The number of headers.
    pub(crate) fn count(&self, map: HeaderMap) -> usize {
        self.map(map).borrow().len()
    }

    pub(crate) fn state(&self, key: &str) -> Option<Vec<u8>> {
        self.state.borrow().get(key).cloned()
    }

    fn map(&self, map: HeaderMap) -> &RefCell<Vec<(String, Vec<u8>)>> {
        match map {
            HeaderMap::Request => &self.request,
            HeaderMap::Response => &self.response,
        }
    }

    fn call(&self, call: String) -> HostResult<()> {
        let fails = self.failing.is_some_and(|failing| call.contains(failing));
        self.calls.borrow_mut().push(call);
        if fails { Err(HostError(2)) } else { Ok(()) }
    }
}

impl Host for FakeHost {
    fn header(&self, map: HeaderMap, name: &'static str) -> HostResult<Option<Vec<u8>>> {
        self.call(format!("get {map:?} {name}"))?;
        Ok(self.values(map, name).into_iter().next())
    }

    fn set_header(&self, map: HeaderMap, name: &'static str, value: &[u8]) -> HostResult<()> {
        self.call(format!("set {map:?} {name}"))?;
        let mut headers = self.map(map).borrow_mut();
        headers.retain(|(header, _)| header != name);
        headers.push((name.to_owned(), value.to_vec()));
        Ok(())
    }

    fn remove_header(&self, map: HeaderMap, name: &'static str) -> HostResult<()> {
        self.call(format!("remove {map:?} {name}"))?;
        self.map(map)
            .borrow_mut()
            .retain(|(header, _)| header != name);
        Ok(())
    }

    fn header_bytes(&self, map: HeaderMap) -> HostResult<usize> {
        self.call(format!("bytes {map:?}"))?;
        let headers = self.map(map).borrow();
        let sizes = headers.iter().map(|(name, value)| name.len() + value.len());
        Ok(sizes.sum())
    }

    fn property(&self, property: Property) -> HostResult<Option<Vec<u8>>> {
        let path = property.path();
        self.call(format!("property {}", path.replace('\0', ".")))?;
        let stored = self.state.borrow().get(path).cloned();
        Ok(stored.or_else(|| self.properties.borrow().get(path).cloned()))
    }

    fn store(&self, key: StateKey, value: &[u8]) -> HostResult<()> {
        self.call(format!("store {}", key.name()))?;
        self.state.borrow_mut().insert(key.name(), value.to_vec());
        Ok(())
    }

    fn define_metric(&self, kind: MetricKind, name: &str) -> HostResult<u32> {
        self.call(format!("define {kind:?} {name}"))?;
        let mut metrics = self.metrics.borrow_mut();
        let known = metrics.iter().position(|(known, _)| known == name);
        let id = known.unwrap_or_else(|| {
            metrics.push((name.to_owned(), Vec::new()));
            metrics.len() - 1
        });
        Ok(u32::try_from(id).unwrap())
    }

    fn increment_metric(&self, id: u32, offset: i64) -> HostResult<()> {
        self.call(format!("increment {id}"))?;
        let offset = u64::try_from(offset).unwrap();
        self.metrics.borrow_mut()[id as usize].1.push(offset);
        Ok(())
    }

    fn record_metric(&self, id: u32, value: u64) -> HostResult<()> {
        self.call(format!("record {id}"))?;
        self.metrics.borrow_mut()[id as usize].1.push(value);
        Ok(())
    }
}

impl FakeHost {
    pub(crate) fn bytes(&self, data: Data) -> &RefCell<Vec<u8>> {
        match data {
            Data::Downstream => &self.client_bytes,
            Data::Upstream => &self.server_bytes,
        }
    }
}

impl TcpHost for FakeHost {
    fn data(&self, data: Data, max: usize) -> HostResult<Vec<u8>> {
        self.call(format!("data {data:?}"))?;
        let bytes = self.bytes(data).borrow();
        Ok(bytes[..max.min(bytes.len())].to_vec())
    }

    fn replace_data(&self, data: Data, size: usize, bytes: &[u8]) -> HostResult<()> {
        self.call(format!("replace {data:?} {size}"))?;
        let mut held = self.bytes(data).borrow_mut();
        held.splice(..size, bytes.iter().copied());
        Ok(())
    }
}

/// A serialised `envoy.config.core.v3.Metadata` with this `filter_metadata`.
pub(crate) fn metadata_message(filter_metadata: &Json) -> Vec<u8> {
    let mut message = Vec::new();
    for (name, metadata) in filter_metadata.as_object().unwrap() {
        let mut entry = Vec::new();
        prost::encoding::string::encode(1, name, &mut entry);
        prost::encoding::bytes::encode(2, &message_of(metadata), &mut entry);
        prost::encoding::bytes::encode(1, &entry, &mut message);
    }
    message
}
