//! What the doctor finds.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Peers are missing or wrong, or requests fail
    Error,
    /// Some peers may be missing or wrong, or something is about to go wrong
    Warning,
    /// Nothing is wrong as long as everything else is right
    Info,
}

impl Severity {
    /// The name in the JSON output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// Declares [`Code`] with the name and the documentation of each.
macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $name:literal,)*) => {
        /// The kind of a finding.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $name)] $code,)*
        }

        impl Code {
            /// Every code, in the order in which findings are listed.
            pub const ALL: &[Self] = &[$(Self::$code),*];

            /// The name in the JSON output.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$code => $name,)*
                }
            }
        }
    };
}

codes! {
    /// The filter is not on a listener, or it is disabled.
    FilterMissing = "filter_missing",
    /// The filter appears twice in one filter chain.
    FilterTwice = "filter_twice",
    /// Istio's agent replaced a module that it could not fetch by an allow-all filter.
    ModuleReplaced = "module_replaced",
    /// Some requests bypass the filter.
    FilterBypassed = "filter_bypassed",
    /// A listener without traffic direction.
    NoDirection = "no_direction",
    /// A listener with the other direction.
    WrongDirection = "wrong_direction",
    /// A gateway believes and answers every client.
    StrangersBelieved = "strangers_believed",
    /// The filter is at a position where it does not see the headers.
    WrongOrder = "wrong_order",
    /// Istio's own exchange and this one.
    NativeExchange = "native_exchange",
    /// `tcp_clusters` names a cluster that does not exist.
    UnknownCluster = "unknown_cluster",
    /// A cluster that expects a frame, and is sent none because it is outside the mesh.
    FrameNotSent = "frame_not_sent",
    /// Nothing to observe.
    NothingToObserve = "nothing_to_observe",
    /// The proxy is a waypoint.
    Waypoint = "waypoint",
    /// The access log does not name the keys.
    KeysNotLogged = "keys_not_logged",
    /// The access log names both generations of keys.
    BothKeysLogged = "both_keys_logged",
    /// Two gRPC access logs for each request.
    LoggedTwice = "logged_twice",
    /// Entries name the local node as a peer.
    LocalNodeLogged = "local_node_logged",
    /// The access log has entries of requests in progress.
    LoggedInProgress = "logged_in_progress",
    /// The collector of access logs cannot be reached.
    CollectorUnreachable = "collector_unreachable",
    /// Envoy does not speak HTTP/2 to the collector of access logs.
    CollectorNotHttp2 = "collector_not_http2",
    /// Entries of the access log were lost.
    EntriesLost = "entries_lost",
    /// Nothing in the node names a workload.
    NamelessNode = "nameless_node",
    /// The configuration's `node` names a source that gives nothing.
    AbsentSource = "absent_source",
    /// The configuration's `node` gives every proxy the same id and name.
    SameIdentity = "same_identity",
    /// The bootstrap does not have what the configuration's `node` says, and `SkyWalking` reads the
    /// bootstrap.
    NodeNotInBootstrap = "node_not_in_bootstrap",
    /// Plugins with different environments share a VM.
    SharedEnvironment = "shared_environment",
    /// The node lacks part of what names its workload.
    NoNodeMetadata = "no_node_metadata",
    /// No label of the node names its service.
    NoNamingLabel = "no_naming_label",
    /// A name is longer than readers keep.
    NameTooLong = "name_too_long",
    /// A value of the node is not a string.
    NodeValueType = "node_value_type",
    /// The node id of a gateway does not have the gateway role.
    NodeIdRole = "node_id_role",
    /// A policy uses peers that nothing vouches for.
    PolicyWithoutTrust = "policy_without_trust",
    /// Metrics by a caller that nothing vouches for, without a bound.
    UnboundedMetrics = "unbounded_metrics",
    /// A DENY policy matches on a peer that may be absent.
    DenyByPeer = "deny_by_peer",
    /// A header that names the peer to the app, and that a client may send as well.
    ForgeableHeader = "forgeable_header",
    /// The filter's metrics keep their labels in their names.
    MetricsWithoutTags = "metrics_without_tags",
    /// Something in the configuration that this Envoy does not have.
    NeedsNewerEnvoy = "needs_newer_envoy",
    /// Nothing but the filter keeps the headers from the app.
    HeadersNotRemoved = "headers_not_removed",
    /// A VM that dies costs requests.
    NotFailOpen = "not_fail_open",
    /// Configurations that the filter cannot distinguish.
    SharedPluginName = "shared_plugin_name",
    /// This Envoy ends when its first Wasm module arrives.
    LateWasm = "late_wasm",
    /// Peers were refused.
    PeersRefused = "peers_refused",
    /// Bytes that looked like the beginning of a frame were passed on.
    FrameTimedOut = "frame_timed_out",
    /// Headers exceeded a limit.
    HeaderLimit = "header_limit",
    /// Host calls of the filter failed.
    HostErrors = "host_errors",
    /// The filter is idle because its configuration was refused.
    FilterIdle = "filter_idle",
    /// A configuration was refused, or there is none.
    ConfigurationRefused = "configuration_refused",
    /// The module was not loaded, or its VM died.
    VmFailed = "vm_failed",
    /// Envoy keeps no statistics of what was refused.
    StatsDropped = "stats_dropped",
}

/// A problem that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The kind, for scripts.
    pub code: Code,
    /// The listener, filter, cluster or statistic.
    pub place: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

impl Finding {
    pub(super) fn error(
        code: Code,
        place: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Error,
            code,
            place: place.to_owned(),
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    pub(super) fn warning(
        code: Code,
        place: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, place, message, remedy)
        }
    }

    pub(super) fn info(
        code: Code,
        place: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Info,
            ..Self::error(code, place, message, remedy)
        }
    }
}
