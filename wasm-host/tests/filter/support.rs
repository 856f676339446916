//! A proxy with the filter, and workloads that exchange through it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use metadata_exchange::peer::{Map, Peer, flat};
use prost::Message as _;
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use wasm_host::{
    Action, Direction, Headers, LogLevel, Module, Node, Properties, Root, Settings, Stream, Vm,
};

pub(crate) const METADATA: &str = "x-envoy-peer-metadata";
pub(crate) const ID: &str = "x-envoy-peer-metadata-id";

pub(crate) const DOWNSTREAM: &str = "wasm.downstream_peer";
pub(crate) const DOWNSTREAM_ID: &str = "wasm.downstream_peer_id";
pub(crate) const UPSTREAM: &str = "wasm.upstream_peer";
pub(crate) const UPSTREAM_ID: &str = "wasm.upstream_peer_id";

/// The fields that are exchanged.
const FIELDS: [&str; 11] = [
    "APP_CONTAINERS",
    "CLUSTER_ID",
    "INSTANCE_IPS",
    "ISTIO_VERSION",
    "LABELS",
    "MESH_ID",
    "NAME",
    "NAMESPACE",
    "OWNER",
    "PLATFORM_METADATA",
    "WORKLOAD_NAME",
];

/// The module, compiled once: the file in `MODULE`, or the output of `make wasm`.
pub(crate) fn module() -> &'static Module {
    static MODULE: OnceLock<Module> = OnceLock::new();
    MODULE.get_or_init(|| {
        let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist/metadata_exchange.wasm");
        let path = std::env::var_os("MODULE").map_or_else(built, PathBuf::from);
        assert!(
            path.exists(),
            "{} is missing: run `make wasm` first",
            path.display()
        );
        Module::from_file(&path).expect("the filter is a module that Envoy can load")
    })
}

/// A workload that can send its metadata.
pub(crate) struct Workload {
    pub(crate) id: String,
    pub(crate) metadata: Json,
}

impl Workload {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            id: format!("sidecar~10.0.0.1~{name}-1.shop~shop.svc.cluster.local"),
            metadata: json!({
                "NAME": format!("{name}-1"),
                "NAMESPACE": "shop",
                "WORKLOAD_NAME": name,
                "CLUSTER_ID": "east",
                "LABELS": {"app": name, "version": "v1"},
                "OWNER": format!("kubernetes://apis/apps/v1/namespaces/shop/deployments/{name}"),
            }),
        }
    }

    pub(crate) fn node(&self) -> Node {
        Node::new(&self.id, &self.metadata)
    }

    /// The header value, encoded by a protobuf library and not by the filter.
    pub(crate) fn value(&self) -> String {
        header_value(&self.metadata)
    }

    pub(crate) fn headers(&self) -> Headers {
        Headers::from([(METADATA, self.value()), (ID, self.id.clone())])
    }
}

/// The `x-envoy-peer-metadata` of these fields; others are not sent.
pub(crate) fn header_value(metadata: &Json) -> String {
    let mut fields = metadata.clone();
    if let Some(fields) = fields.as_object_mut() {
        fields.retain(|key, _| FIELDS.contains(&key.as_str()));
    }
    struct_value(&fields)
}

/// The `x-envoy-peer-metadata` of any struct.
pub(crate) fn struct_value(fields: &Json) -> String {
    STANDARD.encode(Node::new("", fields).metadata.encode_to_vec())
}

/// A proxy with one plugin.
pub(crate) struct Proxy {
    pub(crate) vm: Vm,
    pub(crate) root: Root,
}

impl Proxy {
    /// The proxy of `workload` with a plugin of this configuration.
    pub(crate) fn of(workload: &Workload, configuration: &Json) -> Self {
        Self::of_node(&workload.node(), configuration)
    }

    pub(crate) fn of_node(node: &Node, configuration: &Json) -> Self {
        Self::in_host(Properties::new().xds_node(node), configuration)
    }

    pub(crate) fn in_host(properties: Properties, configuration: &Json) -> Self {
        let settings = Settings {
            properties,
            ..Settings::default()
        };
        Self::with(settings, configuration)
    }

    pub(crate) fn with(settings: Settings, configuration: &Json) -> Self {
        let mut vm = Vm::start(module(), settings).expect("the VM starts");
        let root = vm.configure(configuration.to_string()).expect("no trap");
        assert!(root.accepted(), "configuration refused: {:?}", vm.logs());
        Self { vm, root }
    }

    /// The proxy of a workload with the default configuration.
    pub(crate) fn plain(name: &str) -> Self {
        Self::of(&Workload::new(name), &json!({}))
    }

    /// Opens a stream whose downstream has a certificate.
    pub(crate) fn open(&mut self, direction: Direction) -> Stream {
        let properties = Properties::new().direction(direction);
        let properties = properties.flag(&["connection", "mtls"], true);
        self.vm.open(&self.root, properties)
    }

    pub(crate) fn request(&mut self, stream: &Stream, headers: &Headers) {
        let action = self.vm.request_headers(stream, headers.clone());
        assert_eq!(action.expect("no trap"), Action::Continue);
    }

    pub(crate) fn response(&mut self, stream: &Stream, headers: &Headers) {
        let action = self.vm.response_headers(stream, headers.clone());
        assert_eq!(action.expect("no trap"), Action::Continue);
    }

    /// A whole stream.
    pub(crate) fn exchange(
        &mut self,
        direction: Direction,
        request: &Headers,
        response: &Headers,
    ) -> Stream {
        let stream = self.open(direction);
        self.request(&stream, request);
        self.response(&stream, response);
        self.vm.finish(&stream).expect("no trap");
        stream
    }

    /// A caller's request to an app that sends no peer headers.
    pub(crate) fn inbound(&mut self, request: &Headers) -> Stream {
        self.exchange(Direction::Inbound, request, &Headers::new())
    }

    /// A call of the app that receives this response.
    pub(crate) fn outbound(&mut self, response: &Headers) -> Stream {
        self.exchange(Direction::Outbound, &Headers::new(), response)
    }

    /// A counter as published by the next tick.
    pub(crate) fn counter(&mut self, name: &str) -> u64 {
        self.vm.tick(&self.root).expect("no trap");
        let name = format!("metadata_exchange.{name}");
        self.vm
            .metric(&name)
            .unwrap_or_else(|| panic!("{name} is not defined"))
    }

    /// Log lines at or above a level.
    pub(crate) fn log(&self, level: LogLevel) -> Vec<&str> {
        let lines = self.vm.logs().iter();
        lines
            .filter(|line| line.level >= level)
            .map(|line| line.message.as_str())
            .collect()
    }
}

/// The value under a key of the filter state.
pub(crate) fn state(stream: &Stream, key: &str) -> Option<Vec<u8>> {
    stream.filter_state(key).map(|object| object.value)
}

/// A peer in the filter state, as the JSON from which its node was made; absent fields stay absent.
pub(crate) fn peer(stream: &Stream, key: &str) -> Option<Json> {
    let bytes = state(stream, key)?;
    let peer = flat::read(&bytes).expect("a verified FlatNode");
    Some(to_json(&peer))
}

fn to_json(peer: &Peer) -> Json {
    let text = |text: &Option<String>| text.as_deref().map(Json::from);
    let map = |map: &Option<Map>| {
        let map = map.as_ref()?;
        Some(
            map.iter()
                .map(|(key, value)| (key.clone(), Json::from(value.as_str())))
                .collect(),
        )
    };
    let fields = [
        ("APP_CONTAINERS", text(&peer.app_containers)),
        ("CLUSTER_ID", text(&peer.cluster_id)),
        ("INSTANCE_IPS", text(&peer.instance_ips)),
        ("ISTIO_VERSION", text(&peer.istio_version)),
        ("LABELS", map(&peer.labels)),
        ("MESH_ID", text(&peer.mesh_id)),
        ("NAME", text(&peer.name)),
        ("NAMESPACE", text(&peer.namespace)),
        ("OWNER", text(&peer.owner)),
        ("PLATFORM_METADATA", map(&peer.platform_metadata)),
        ("WORKLOAD_NAME", text(&peer.workload_name)),
    ];
    fields
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect()
}

/// Asserts that the headers carry no peer header, not even an empty one.
#[track_caller]
pub(crate) fn assert_stripped(headers: &Headers) {
    assert!(!headers.contains(METADATA), "{headers:?}");
    assert!(!headers.contains(ID), "{headers:?}");
}

/// Asserts that the headers carry exactly one value of each of this workload's headers.
#[track_caller]
pub(crate) fn assert_sent_by(headers: &Headers, sender: &Workload) {
    assert_values(headers, METADATA, &[&sender.value()]);
    assert_values(headers, ID, &[&sender.id]);
}

#[track_caller]
pub(crate) fn assert_values(headers: &Headers, name: &str, expected: &[&str]) {
    let values: Vec<_> = headers.all(name).map(String::from_utf8_lossy).collect();
    assert_eq!(values, expected, "{name}");
}

/// Asserts which peer is stored on either side, with its id.
#[track_caller]
pub(crate) fn assert_stored(
    stream: &Stream,
    downstream: Option<&Workload>,
    upstream: Option<&Workload>,
) {
    for (peer_key, id_key, expected) in [
        (DOWNSTREAM, DOWNSTREAM_ID, downstream),
        (UPSTREAM, UPSTREAM_ID, upstream),
    ] {
        let metadata = expected.map(|workload| workload.metadata.clone());
        assert_eq!(peer(stream, peer_key), metadata, "{peer_key}");
        let id = expected.map(|workload| workload.id.clone().into_bytes());
        assert_eq!(state(stream, id_key), id, "{id_key}");
    }
}
