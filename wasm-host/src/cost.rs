//! What a stream costs in the VM: guest instructions and host calls, from the creation of its context to its deletion.
//! They are counted, so the same module gives the same figures everywhere.

use crate::{Direction, Error, Headers, Properties, Root, Vm};
use serde_json::json;

/// A path of a stream through the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Its name in reports.
    pub name: &'static str,
    /// The listener's direction.
    pub direction: Direction,
    /// Whether the other side sends its metadata.
    pub sends_metadata: bool,
    /// Whether the other side is in the filter's cache.
    pub is_cached: bool,
}

/// The cost of a whole stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Guest instructions.
    pub instructions: u64,
    /// Calls of the host.
    pub host_calls: usize,
}

impl Path {
    /// Every path whose cost is measured.
    pub const ALL: [Self; 6] = [
        Self::new("outbound, silent callee", Direction::Outbound, false, true),
        Self::new("inbound, peer cached", Direction::Inbound, true, true),
        Self::new("outbound, peer cached", Direction::Outbound, true, true),
        Self::new("inbound, peer new", Direction::Inbound, true, false),
        Self::new("outbound, peer new", Direction::Outbound, true, false),
        Self::new("inbound, silent caller", Direction::Inbound, false, true),
    ];

    /// What names this proxy or silent peers beyond the defaults, and a configuration with it. The third is what the
    /// fourth needs.
    pub const SOURCES: [(&str, &str); 4] = [
        ("local_peer", r#"{"local_peer": true}"#),
        ("callee: kuma", r#"{"callee": "kuma"}"#),
        (
            "trust: mtls",
            r#"{"trust": "mtls", "upstream_trust": "mtls"}"#,
        ),
        (
            "trust: mtls, name_from_certificate",
            r#"{"trust": "mtls", "upstream_trust": "mtls", "name_from_certificate": true,
                "spiffe_patterns": ["spiffe://{MESH_ID}/{WORKLOAD_NAME}"]}"#,
        ),
    ];

    const fn new(
        name: &'static str,
        direction: Direction,
        sends_metadata: bool,
        is_cached: bool,
    ) -> Self {
        Self {
            name,
            direction,
            sends_metadata,
            is_cached,
        }
    }

    /// The cost of one stream in a VM that has served others before. `headers_of` returns the headers of a peer by
    /// name.
    pub fn cost(
        &self,
        vm: &mut Vm,
        root: &Root,
        headers_of: impl Fn(&str) -> Headers,
    ) -> Result<Cost, Error> {
        for other in 0..30 {
            self.stream(vm, root, &headers_of(&format!("other-{other}")))?;
        }
        let peer = headers_of("productpage-v1");
        if self.is_cached {
            self.stream(vm, root, &peer)?;
        }
        // A first stream without a peer, so that the cluster is known.
        self.stream(vm, root, &Headers::new())?;

        vm.take_calls();
        let silent = Headers::new();
        let headers = if self.sends_metadata { &peer } else { &silent };
        let (result, instructions) = vm.measure(|vm| self.stream(vm, root, headers));
        result?;
        Ok(Cost {
            instructions,
            host_calls: vm.take_calls().len(),
        })
    }

    /// A whole stream whose other side sends `headers`. Kuma's certificates and its metadata of endpoints name it, too.
    fn stream(&self, vm: &mut Vm, root: &Root, headers: &Headers) -> Result<(), Error> {
        let [request, response] = match self.direction {
            Direction::Inbound => [headers.clone(), Headers::new()],
            _ => [Headers::new(), headers.clone()],
        };
        let uri_san = "spiffe://default/productpage";
        let labels = json!({
            "kuma.io/workload": "productpage", "kuma.io/mesh": "default", "kuma.io/zone": "zone-1",
        });
        let properties = Properties::new()
            .direction(self.direction)
            .bytes(
                &["xds", "cluster_name"],
                "outbound|9080||productpage.default.svc.cluster.local",
            )
            .metadata(
                &["xds", "upstream_host_metadata"],
                &json!({ "envoy.lb": { "version": "v1" }, "io.kuma.labels": labels }),
            )
            .flag(&["connection", "mtls"], true)
            .bytes(&["connection", "uri_san_peer_certificate"], uri_san)
            .bytes(&["upstream", "sha256_peer_certificate_digest"], "digest")
            .bytes(&["upstream", "uri_san_peer_certificate"], uri_san);
        let stream = vm.open(root, properties);
        vm.request_headers(&stream, request)?;
        vm.response_headers(&stream, response)?;
        vm.finish(&stream)
    }
}
