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

use crate::config::admission::{Plugin, Verdict};
use crate::config::{Config, ConfigError};
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

/// After how many ticks without a stream a root counts as quiet.
const QUIET_TICKS: u32 = 5;

/// What a configuration error says of its consequence.
const IDLE: &str = "the filter is idle: requests pass, nothing is exchanged or removed";

/// One plugin configuration.
#[derive(Default)]
struct Root {
    plugin: Plugin,
    /// None while there is no configuration that can be used: idle.
    exchange: Option<Rc<Exchange>>,
    /// Whether it has told that its configuration is in force.
    is_in_force: bool,
    /// Ticks since the last stream.
    quiet_ticks: u32,
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
        self.metrics.set_idle(false, &self.counters);
        self.metrics = Metrics::define(&self.counters);
        let names = ["plugin_name", "plugin_root_id"].map(|name| self.property(name));
        let [name, root_id] = names
            .map(|name| String::from_utf8_lossy(name.as_deref().unwrap_or_default()).into_owned());
        self.plugin = Plugin::new(&name, &root_id);
        let configuration = match raw::buffer(Buffer::PluginConfiguration) {
            Ok(configuration) => configuration,
            Err(HostError(status)) => {
                log::error!("plugin configuration cannot be read, status {status}; {IDLE}");
                return self.idle();
            }
        };
        match Config::parse(&configuration) {
            Ok(configuration) => self.exchange(configuration),
            Err(error) => self.on_error(&configuration, &error),
        }
    }

    /// Works with a configuration from now on.
    fn exchange(&mut self, configuration: Config) -> bool {
        for key in StateKey::ALL {
            self.counters.survive(declare(key));
        }
        self.counters.survive(raw::set_tick_period(TICK));
        let local = self.local_node(&configuration);
        let counters = Rc::clone(&self.counters);
        self.exchange = Some(Rc::new(Exchange::new(configuration, local, counters)));
        true
    }

    /// Refuses a configuration that cannot be used, or is idle with it.
    fn on_error(&mut self, configuration: &[u8], error: &ConfigError) -> bool {
        match self.plugin.admit(&Envoy, configuration) {
            Verdict::Refused => {
                log::error!("plugin configuration refused: {error}; the one before stays in force");
                self.counters.count(Counter::ConfigurationError);
                // This VM gets no tick.
                self.metrics.publish(&self.counters);
                false
            }
            Verdict::Idle => {
                log::error!("plugin configuration refused: {error}; {IDLE}");
                self.idle()
            }
        }
    }

    /// Does nothing from now on, but to say so.
    fn idle(&mut self) -> bool {
        self.exchange = None;
        self.counters.count(Counter::ConfigurationError);
        self.metrics.publish(&self.counters);
        self.counters.survive(raw::set_tick_period(TICK));
        true
    }

    /// A stream of this root begins.
    fn on_stream(&mut self) -> HttpStream {
        self.quiet_ticks = 0;
        if !self.is_in_force {
            self.mark_in_force();
        }
        HttpStream {
            exchange: self.exchange.clone(),
            stream: Stream::default(),
        }
    }

    /// `has_served`: whether this VM has had requests. `is_succeeded`: whether it
    /// has a root of the same plugin that is later or busy.
    fn on_tick(&mut self, has_served: bool, is_succeeded: bool) {
        self.counters.survive(logger::follow_level());
        if has_served {
            self.counters.count(Counter::Tick);
        }
        self.metrics.publish(&self.counters);
        // Not before the first tick: the VM of Envoy's trial never comes so far.
        // A listener that Envoy has replaced lives on until it is drained.
        let is_drained = is_succeeded && self.is_quiet();
        self.quiet_ticks = self.quiet_ticks.saturating_add(1);
        let is_idle = self.exchange.is_none() && !is_drained;
        self.metrics.set_idle(is_idle, &self.counters);
        self.mark_in_force();
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(CLUSTER_REFRESH_TICKS)
            && let Some(exchange) = &self.exchange
        {
            exchange.refresh_clusters();
        }
    }

    /// Publishes what was counted since the last tick. `is_succeeded`: whether
    /// another root in this VM has a configuration of the same plugin in force.
    fn on_delete(&mut self, is_succeeded: bool) {
        if self.is_in_force && !is_succeeded {
            self.counters.survive(self.plugin.withdraw(&Envoy));
        }
        self.metrics.set_idle(false, &self.counters);
        self.metrics.publish(&self.counters);
    }

    /// Whether there was no stream for a while.
    fn is_quiet(&self) -> bool {
        self.quiet_ticks >= QUIET_TICKS
    }

    /// Tells the VMs of later configurations that there is one before them.
    fn mark_in_force(&mut self) {
        if self.exchange.is_some() {
            self.counters.survive(self.plugin.mark_in_force(&Envoy));
            self.is_in_force = true;
        }
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
#[derive(Default)]
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

    fn on_log(&mut self) {
        if let Some(exchange) = &self.exchange {
            exchange.on_log(&mut self.stream, &Envoy);
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
