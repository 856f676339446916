//! Istio's standard metrics, recorded when a stream ends: one metric of Envoy for each set of labels.
//!
//! They name the peer that is in filter state, whichever filter stored it. Envoy cannot remove a metric, so their number
//! is bounded: beyond the bound, the other side of the call is `unknown`, and a counter counts it.
//!
//! Source: <https://istio.io/latest/docs/reference/config/metrics/>

use crate::host::{HeaderMap, Host, MetricKind, Property};

mod flags;
mod labels;
mod numbers;

pub use labels::of_service;
use labels::{Name, UNKNOWN};
use numbers::Numbers;

/// How many peers are remembered with their labels, by their bytes in filter state.
const MAX_KNOWN_PEERS: usize = 1000;

/// The longest peer that is remembered, in bytes. A longer one is read again with each call.
const MAX_KNOWN_PEER_BYTES: usize = 4096;

/// Which side of the call records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reporter {
    /// The caller's proxy, or a gateway.
    Source,
    /// The callee's proxy.
    Destination,
}

/// The metrics of a plugin configuration.
#[derive(Debug)]
pub struct StandardMetrics {
    /// The labels of the local workload.
    local: String,
    max_series: usize,
    /// Sets of labels.
    series: Numbers,
    /// Envoy's ids of the metrics of each set.
    metrics: Vec<[u32; METRICS.len()]>,
    /// Labels of workloads and services, and principals.
    texts: Numbers,
    /// Peers as in filter state.
    peers: Numbers,
    /// The labels of each.
    workloads: Vec<String>,
}

const METRICS: [(MetricKind, &str); 4] = [
    (MetricKind::Counter, "istio_requests_total"),
    (MetricKind::Histogram, "istio_request_duration_milliseconds"),
    (MetricKind::Histogram, "istio_request_bytes"),
    (MetricKind::Histogram, "istio_response_bytes"),
];

/// What the labels of a call are made of, beside the local workload.
#[derive(Debug)]
struct Call {
    reporter: Reporter,
    /// The labels of the other side.
    peer: String,
    service: String,
    source_principal: Vec<u8>,
    destination_principal: Vec<u8>,
    is_mutual_tls: bool,
    is_grpc: bool,
    /// `u64::MAX` if the call is not gRPC, or without a valid status.
    grpc_status: u64,
    code: u64,
    flags: u64,
}

impl StandardMetrics {
    /// Metrics of a proxy that is `local`, as `FlatNode`, of at most `max_series` sets of labels that name the other side.
    #[must_use]
    pub fn new(local: &[u8], max_series: usize) -> Self {
        let mut texts = Numbers::default();
        texts.add(b"");
        Self {
            local: labels::of_workload(local),
            max_series,
            series: Numbers::default(),
            metrics: Vec::new(),
            texts,
            peers: Numbers::default(),
            workloads: Vec::new(),
        }
    }

    /// Records a call to `service`, see [`of_service`], which has ended. Returns whether its labels name the other side.
    pub fn record(&mut self, host: &impl Host, reporter: Reporter, service: String) -> bool {
        let mut call = self.call(host, reporter, service);
        let mut key = self.key(&call);
        let is_known = key
            .as_deref()
            .is_some_and(|key| self.series.get(key).is_some());
        let fits = is_known || (key.is_some() && self.series.len() < self.max_series);
        if !fits {
            call.forget();
            key = self.key(&call);
        }
        if let Some(metrics) = key.and_then(|key| self.metrics(host, &call, &key)) {
            let values = [
                1,
                number(host, Property::RequestDuration) / 1_000_000,
                number(host, Property::RequestTotalSize),
                number(host, Property::ResponseTotalSize),
            ];
            for ((id, (kind, _)), value) in metrics.into_iter().zip(METRICS).zip(values) {
                match kind {
                    MetricKind::Counter => host.increment_metric(id, 1).ok(),
                    MetricKind::Histogram => host.record_metric(id, value).ok(),
                };
            }
        }
        fits
    }

    fn call(&mut self, host: &impl Host, reporter: Reporter, service: String) -> Call {
        // A source does not tell whether its caller's connection has a certificate.
        let is_mutual_tls =
            reporter == Reporter::Destination && bytes(host, Property::DownstreamMtls) == [1];
        let (peer, source_principal, destination_principal) = match reporter {
            Reporter::Source => (
                Property::UpstreamPeer,
                bytes(host, Property::UpstreamLocalUriSan),
                bytes(host, Property::UpstreamUriSan),
            ),
            Reporter::Destination if is_mutual_tls => (
                Property::DownstreamPeer,
                bytes(host, Property::DownstreamUriSan),
                bytes(host, Property::DownstreamLocalUriSan),
            ),
            Reporter::Destination => (Property::DownstreamPeer, Vec::new(), Vec::new()),
        };
        let peer = self.peer(&bytes(host, peer));
        let content_type = host.header(HeaderMap::Request, "content-type");
        let content_type = content_type.ok().flatten().unwrap_or_default();
        let is_grpc = content_type.starts_with(b"application/grpc");
        let grpc_status = if is_grpc {
            number(host, Property::GrpcStatus)
        } else {
            u64::MAX
        };
        Call {
            reporter,
            peer,
            service,
            source_principal,
            destination_principal,
            is_mutual_tls,
            is_grpc,
            grpc_status,
            code: number(host, Property::ResponseCode),
            flags: number(host, Property::ResponseFlags),
        }
    }

    /// The labels of the peer that is stored as `flat`.
    fn peer(&mut self, flat: &[u8]) -> String {
        if let Some(number) = self.peers.get(flat) {
            return self.workloads.get(number).cloned().unwrap_or_default();
        }
        let labels = labels::of_workload(flat);
        if flat.len() <= MAX_KNOWN_PEER_BYTES {
            if self.peers.len() >= MAX_KNOWN_PEERS {
                self.peers.clear();
                self.workloads.clear();
            }
            self.peers.add(flat);
            self.workloads.push(labels.clone());
        }
        labels
    }

    /// What identifies the call's labels; `None` if a text is beyond the bound.
    fn key(&mut self, call: &Call) -> Option<Vec<u8>> {
        let mut numbers = vec![
            u64::from(call.reporter == Reporter::Source),
            u64::from(call.is_mutual_tls),
            u64::from(call.is_grpc),
            call.grpc_status,
            call.code,
            call.flags,
        ];
        let texts = [
            call.peer.as_bytes(),
            call.service.as_bytes(),
            &call.source_principal,
            &call.destination_principal,
        ];
        for text in texts {
            let number = match self.texts.get(text) {
                Some(number) => number,
                // Two of each series may be new.
                None if self.texts.len() > self.max_series.saturating_mul(2) => return None,
                None => self.texts.add(text),
            };
            numbers.push(number as u64);
        }
        Some(numbers.into_iter().flat_map(u64::to_le_bytes).collect())
    }

    /// The metrics of the call's labels, which are defined if they are new; `None` if the host refuses.
    fn metrics(&mut self, host: &impl Host, call: &Call, key: &[u8]) -> Option<[u32; 4]> {
        if let Some(number) = self.series.get(key) {
            return self.metrics.get(number).copied();
        }
        let name = self.name(call);
        let mut ids = [0; METRICS.len()];
        for (id, (kind, metric)) in ids.iter_mut().zip(METRICS) {
            *id = host.define_metric(kind, &name.of_metric(metric)).ok()?;
        }
        self.series.add(key);
        self.metrics.push(ids);
        Some(ids)
    }

    fn name(&self, call: &Call) -> Name {
        let (reporter, source, destination, security) = match call.reporter {
            Reporter::Source => ("source", &self.local, &call.peer, UNKNOWN),
            Reporter::Destination if call.is_mutual_tls => {
                ("destination", &call.peer, &self.local, "mutual_tls")
            }
            Reporter::Destination => ("destination", &call.peer, &self.local, "none"),
        };
        let status = call.grpc_status.to_string();
        let principals = [&call.source_principal, &call.destination_principal];
        let [source_principal, destination_principal] =
            principals.map(|principal| String::from_utf8_lossy(principal));
        let mut name = Name::default();
        name.label("reporter", reporter);
        name.workload("source", source, &source_principal);
        name.workload("destination", destination, &destination_principal);
        name.service(&call.service);
        name.label(
            "request_protocol",
            if call.is_grpc { "grpc" } else { "http" },
        );
        name.label("response_code", &call.code.to_string());
        let status = if call.grpc_status == u64::MAX {
            ""
        } else {
            &status
        };
        name.optional_label("grpc_response_status", status);
        name.label("response_flags", &flags::names(call.flags));
        name.label("connection_security_policy", security);
        name
    }
}

impl Call {
    /// Drops what the other side, or a request, can choose.
    fn forget(&mut self) {
        self.peer.clear();
        self.service.clear();
        self.source_principal.clear();
        self.destination_principal.clear();
        self.grpc_status = self.grpc_status.min(17);
    }
}

#[inline(never)]
fn bytes(host: &impl Host, property: Property) -> Vec<u8> {
    host.property(property).ok().flatten().unwrap_or_default()
}

/// An integer attribute, as eight bytes in little-endian order; 0 if it is absent.
fn number(host: &impl Host, property: Property) -> u64 {
    let bytes = bytes(host, property);
    bytes.as_slice().try_into().map_or(0, u64::from_le_bytes)
}
