//! The filter as Envoy loads it: contexts, and what they read at configure. The
//! only place that speaks proxy-wasm.
//!
//! It speaks the ABI itself, in [`raw`]. The Rust SDK for it costs more per
//! request than all the rest of the filter, exports every callback there is, so
//! that bodies enter the VM chunk by chunk for nothing, and panics on statuses
//! that Envoy gives in ordinary cases; a panic fails the VM. See `docs/cost.md`.

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::config::Config;
use crate::counters::{Counter, Counters};
use crate::exchange::{Exchange, Stream};
use crate::host::{Host, HostError, HostResult, StateKey};
use crate::json::Quoted;
use crate::local::{LocalNode, Node};
use crate::peer::{flat, wire};

mod logger;
mod metrics;
#[allow(unsafe_code)]
mod raw;
mod vm;

use metrics::Metrics;
use raw::{Buffer, Envoy, Received};

/// How often counts are published and the log level is looked at.
const TICK: Duration = Duration::from_secs(1);

/// After how many ticks the metadata of clusters is looked at anew.
const CLUSTER_REFRESH_TICKS: u32 = 10;

/// One plugin configuration.
#[derive(Default)]
struct Root {
    exchange: Option<Rc<Exchange>>,
    /// Of all configurations that this root ever had.
    counters: Rc<Counters>,
    metrics: Metrics,
    ticks: u32,
}

impl Root {
    /// Says that the VM runs, and for whom.
    fn on_vm_start(&self) {
        let id = self.property("xds\0node\0id");
        let id = id.or_else(|| self.property("node\0id"));
        log::info!(
            "metadata-exchange {} started, node id {}",
            env!("CARGO_PKG_VERSION"),
            Quoted(&String::from_utf8_lossy(id.as_deref().unwrap_or_default()))
        );
    }

    /// Takes the plugin configuration; false refuses it.
    fn on_configure(&mut self) -> bool {
        self.counters.survive(logger::follow_level());
        let configuration = raw::buffer(Buffer::PluginConfiguration);
        let configuration = match configuration.map(|json| Config::parse(&json)) {
            Ok(Ok(configuration)) => configuration,
            Ok(Err(error)) => {
                log::error!("plugin configuration refused: {error}");
                return false;
            }
            Err(HostError(status)) => {
                log::error!("plugin configuration cannot be read: status {status}");
                return false;
            }
        };
        self.metrics = Metrics::define(&self.counters);
        for key in StateKey::ALL {
            self.counters.survive(declare(key));
        }
        self.counters.survive(raw::set_tick_period(TICK));
        let local = self.local_node(&configuration);
        let counters = Rc::clone(&self.counters);
        self.exchange = Some(Rc::new(Exchange::new(configuration, local, counters)));
        true
    }

    /// `has_served`: whether this VM has had requests.
    fn on_tick(&mut self, has_served: bool) {
        self.counters.survive(logger::follow_level());
        if has_served {
            self.counters.count(Counter::Tick);
        }
        self.metrics.publish(&self.counters);
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(CLUSTER_REFRESH_TICKS)
            && let Some(exchange) = &self.exchange
        {
            exchange.refresh_clusters();
        }
    }

    /// Publishes what was counted since the last tick.
    fn on_delete(&self) {
        self.metrics.publish(&self.counters);
    }

    /// Reads the local node, and logs what of it is not sent.
    fn local_node(&self, configuration: &Config) -> LocalNode {
        let mut notes = Vec::new();
        let node = match self.property("xds\0node") {
            Some(node) => Node::of_message(&node),
            None => Node::of_properties(|path| self.property(path), &mut notes),
        };
        let local = LocalNode::new(
            &node,
            &configuration.share,
            configuration.max_sent_bytes,
            &mut notes,
        );
        for note in notes {
            log::warn!("{note}");
        }
        local
    }

    fn property(&self, path: &str) -> Option<Received> {
        self.counters.survive(Envoy.property(path)).flatten()
    }
}

/// One request and its response. Without a configuration it touches nothing.
struct HttpStream {
    exchange: Option<Rc<Exchange>>,
    stream: Stream,
}

impl HttpStream {
    fn on_request_headers(&mut self, count: usize) {
        if let Some(exchange) = &self.exchange {
            exchange.on_request_headers(&mut self.stream, &Envoy, count);
        }
    }

    fn on_response_headers(&mut self, count: usize) {
        if let Some(exchange) = &self.exchange {
            exchange.on_response_headers(&mut self.stream, &Envoy, count);
        }
    }
}

/// Declares how a key is kept: for the request, also when it is redirected
/// internally; peers as `FlatBuffers` with their schema, so that CEL reaches
/// into them, and ids as bytes.
fn declare(key: StateKey) -> HostResult<()> {
    // envoy.source.extensions.common.wasm.DeclarePropertyArguments
    const NAME: u8 = 1;
    const SCHEMA: u8 = 4;
    const TYPE_FLAT_BUFFERS: &[u8] = &[3 << 3, 2];
    const SPAN_DOWNSTREAM_REQUEST: &[u8] = &[5 << 3, 1];

    let mut arguments = Vec::new();
    wire::put_bytes(&mut arguments, NAME, key.name().as_bytes());
    if matches!(key, StateKey::DownstreamPeer | StateKey::UpstreamPeer) {
        arguments.extend_from_slice(TYPE_FLAT_BUFFERS);
        wire::put_bytes(&mut arguments, SCHEMA, flat::BINARY_SCHEMA);
    }
    arguments.extend_from_slice(SPAN_DOWNSTREAM_REQUEST);
    raw::call_foreign_function("declare_property", &arguments)
}
