//! The interface between the exchange and the proxy.

/// A header map of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderMap {
    /// Request headers.
    Request,
    /// Response headers.
    Response,
}

/// A key of filter state; Envoy shows it with the prefix `wasm.`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateKey {
    /// The caller, as `FlatNode`.
    DownstreamPeer,
    /// The caller's node id.
    DownstreamPeerId,
    /// The callee, as `FlatNode`.
    UpstreamPeer,
    /// The callee's node id.
    UpstreamPeerId,
    /// This proxy itself, as `FlatNode`.
    LocalPeer,
}

impl StateKey {
    /// Every key.
    pub const ALL: [Self; 5] = [
        Self::DownstreamPeer,
        Self::DownstreamPeerId,
        Self::UpstreamPeer,
        Self::UpstreamPeerId,
        Self::LocalPeer,
    ];

    /// The name without Envoy's prefix.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::DownstreamPeer => "downstream_peer",
            Self::DownstreamPeerId => "downstream_peer_id",
            Self::UpstreamPeer => "upstream_peer",
            Self::UpstreamPeerId => "upstream_peer_id",
            Self::LocalPeer => "local_peer",
        }
    }
}

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// A counter.
    Counter,
    /// A histogram.
    Histogram,
}

/// The bytes of a TCP connection, by who sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// The client's.
    Downstream,
    /// The server's.
    Upstream,
}

/// An Envoy attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// `xds.node`: a serialised `envoy.config.core.v3.Node`.
    Node,
    /// `xds.node.id`
    NodeId,
    /// `plugin_name`
    PluginName,
    /// `plugin_root_id`
    PluginRootId,
    /// `xds.listener_direction`: int64, 1 inbound, 2 outbound.
    ListenerDirection,
    /// `xds.cluster_name` of the chosen route.
    ClusterName,
    /// `xds.cluster_metadata`: a serialised `envoy.config.core.v3.Metadata`.
    ClusterMetadata,
    /// `istio.workload` in the metadata of the chosen endpoint:
    /// `workload;namespace;canonical-name;revision;cluster`.
    EndpointWorkload,
    /// `metadata_exchange.tcp` in the metadata of the chosen endpoint: bool.
    EndpointTcp,
    /// `xds.upstream_host_metadata`: the metadata of the chosen endpoint, as that of the cluster.
    EndpointMetadata,
    /// `xds.upstream_host_locality_metadata`: that of its locality.
    EndpointLocalityMetadata,
    /// `xds.route_metadata`
    RouteMetadata,
    /// `xds.listener_metadata`
    ListenerMetadata,
    /// The stored caller, by any filter.
    DownstreamPeer,
    /// The stored callee, by any filter.
    UpstreamPeer,
    /// `response.code_details`: the reason for the response.
    ResponseCodeDetails,
    /// `response.code`: int64.
    ResponseCode,
    /// `response.flags`: int64, a bit for each flag.
    ResponseFlags,
    /// `response.grpc_status`: int64.
    GrpcStatus,
    /// `request.duration`: int64, nanoseconds. Only when the stream has ended, as the two sizes.
    RequestDuration,
    /// `request.total_size`: int64, bytes of headers, body and trailers.
    RequestTotalSize,
    /// `response.total_size`: int64, bytes of headers, body and trailers.
    ResponseTotalSize,
    /// `request.host`
    RequestHost,
    /// `request.protocol`: `HTTP/1.1`. Absent on a TCP connection.
    RequestProtocol,
    /// `source.address`: that of the downstream, which every stream and connection has.
    SourceAddress,
    /// `upstream.address`: that of the chosen endpoint, with its port.
    UpstreamAddress,
    /// `connection.mtls`: whether the downstream presented a certificate.
    DownstreamMtls,
    /// First URI SAN of the downstream's certificate.
    DownstreamUriSan,
    /// First URI SAN of this proxy's certificate for the downstream.
    DownstreamLocalUriSan,
    /// Digest of the upstream's certificate, present if it presented one.
    UpstreamCertificate,
    /// First URI SAN of the upstream's certificate.
    UpstreamUriSan,
    /// First URI SAN of this proxy's certificate for the upstream.
    UpstreamLocalUriSan,
}

impl Property {
    /// The attribute's path, its segments separated by NUL.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Node => "xds\0node",
            Self::NodeId => "xds\0node\0id",
            Self::PluginName => "plugin_name",
            Self::PluginRootId => "plugin_root_id",
            Self::ListenerDirection => "xds\0listener_direction",
            Self::ClusterName => "xds\0cluster_name",
            Self::ClusterMetadata => "xds\0cluster_metadata",
            Self::EndpointWorkload => {
                "xds\0upstream_host_metadata\0filter_metadata\0istio\0workload"
            }
            Self::EndpointTcp => {
                "xds\0upstream_host_metadata\0filter_metadata\0metadata_exchange\0tcp"
            }
            Self::EndpointMetadata => "xds\0upstream_host_metadata",
            Self::EndpointLocalityMetadata => "xds\0upstream_host_locality_metadata",
            Self::RouteMetadata => "xds\0route_metadata",
            Self::ListenerMetadata => "xds\0listener_metadata",
            Self::DownstreamPeer => StateKey::DownstreamPeer.name(),
            Self::UpstreamPeer => StateKey::UpstreamPeer.name(),
            Self::ResponseCodeDetails => "response\0code_details",
            Self::ResponseCode => "response\0code",
            Self::ResponseFlags => "response\0flags",
            Self::GrpcStatus => "response\0grpc_status",
            Self::RequestDuration => "request\0duration",
            Self::RequestTotalSize => "request\0total_size",
            Self::ResponseTotalSize => "response\0total_size",
            Self::RequestHost => "request\0host",
            Self::RequestProtocol => "request\0protocol",
            Self::SourceAddress => "source\0address",
            Self::UpstreamAddress => "upstream\0address",
            Self::DownstreamMtls => "connection\0mtls",
            Self::DownstreamUriSan => "connection\0uri_san_peer_certificate",
            Self::DownstreamLocalUriSan => "connection\0uri_san_local_certificate",
            Self::UpstreamCertificate => "upstream\0sha256_peer_certificate_digest",
            Self::UpstreamUriSan => "upstream\0uri_san_peer_certificate",
            Self::UpstreamLocalUriSan => "upstream\0uri_san_local_certificate",
        }
    }
}

/// The status of a failed host call, which is neither Ok nor a regular
/// "absent".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostError(pub u32);

/// The result of a host call.
pub type HostResult<T> = Result<T, HostError>;

/// The proxy, as the exchange sees it. No call may fail a request: the exchange
/// continues without the result.
pub trait Host {
    /// The first value of a header, which may be empty; `None` if it is absent.
    fn header(&self, map: HeaderMap, name: &'static str) -> HostResult<Option<Vec<u8>>>;

    /// Replaces all values of a header by one.
    fn set_header(&self, map: HeaderMap, name: &'static str, value: &[u8]) -> HostResult<()>;

    /// Removes all values of a header.
    fn remove_header(&self, map: HeaderMap, name: &'static str) -> HostResult<()>;

    /// The bytes of all names and values in a header map, pseudo-headers included.
    fn header_bytes(&self, map: HeaderMap) -> HostResult<usize>;

    /// An attribute; `None` if it is absent.
    fn property(&self, property: Property) -> HostResult<Option<Vec<u8>>>;

    /// Writes filter state.
    fn store(&self, key: StateKey, value: &[u8]) -> HostResult<()>;

    /// Defines a metric, or finds the existing one of that name.
    fn define_metric(&self, kind: MetricKind, name: &str) -> HostResult<u32>;

    /// Adds `offset` to a counter.
    fn increment_metric(&self, id: u32, offset: i64) -> HostResult<()>;

    /// Records a value in a histogram.
    fn record_metric(&self, id: u32, value: u64) -> HostResult<()>;
}

/// The proxy, as the exchange over TCP sees it. The bytes are those that have arrived and were not passed on yet.
pub trait TcpHost: Host {
    /// The first bytes that have arrived, at most `max`.
    fn data(&self, data: Data, max: usize) -> HostResult<Vec<u8>>;

    /// Replaces the first `size` bytes, at most as many as have arrived.
    fn replace_data(&self, data: Data, size: usize, bytes: &[u8]) -> HostResult<()>;
}
