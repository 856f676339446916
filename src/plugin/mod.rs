//! The filter as Envoy loads it: contexts, and what they read at configure. The
//! only place that speaks proxy-wasm.
//!
//! The SDK keeps the contexts. Its host calls and its log are not used, for they
//! panic on statuses that Envoy gives in ordinary cases, and a panic fails the
//! VM; [`raw`] has those that are needed.

use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

use crate::config::Config;
use crate::counters::{Counter, Counters};
use crate::exchange::{Exchange, Stream};
use crate::host::{Host, HostError, HostResult, StateKey};
use crate::local::{LocalNode, Node};
use crate::peer::{flat, wire};

mod logger;
mod metrics;
#[allow(unsafe_code)]
mod raw;

use metrics::Metrics;
use raw::{Buffer, Envoy};

/// How often counts are published and the log level is looked at.
const TICK: Duration = Duration::from_secs(1);

/// After how many ticks the metadata of clusters is looked at anew.
const CLUSTER_REFRESH_TICKS: u32 = 10;

/// Called once by the entry point of the module.
fn start() {
    logger::install();
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}

/// One plugin configuration.
#[derive(Default)]
struct Root {
    exchange: Option<Rc<Exchange>>,
    /// Of all configurations that this root ever had.
    counters: Rc<Counters>,
    metrics: Metrics,
    ticks: u32,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_vm_start(&mut self, _: usize) -> bool {
        let id = self.property("xds\0node\0id");
        let id = id.or_else(|| self.property("node\0id")).unwrap_or_default();
        log::info!(
            "metadata-exchange {} started, node id {:?}",
            env!("CARGO_PKG_VERSION"),
            String::from_utf8_lossy(&id)
        );
        true
    }

    fn on_configure(&mut self, _: usize) -> bool {
        logger::follow_level();
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
            self.survive(declare(key));
        }
        self.survive(raw::set_tick_period(TICK));
        let local = self.local_node(&configuration);
        let counters = Rc::clone(&self.counters);
        self.exchange = Some(Rc::new(Exchange::new(configuration, local, counters)));
        true
    }

    fn on_tick(&mut self) {
        logger::follow_level();
        self.metrics.publish(&self.counters);
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(CLUSTER_REFRESH_TICKS)
            && let Some(exchange) = &self.exchange
        {
            exchange.refresh_clusters();
        }
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(HttpStream {
            exchange: self.exchange.clone(),
            stream: Stream::default(),
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Root {
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

    fn property(&self, path: &str) -> Option<Vec<u8>> {
        self.survive(Envoy.property(path)).flatten()
    }

    /// Counts an error of the host and goes on without what was asked.
    fn survive<T>(&self, result: HostResult<T>) -> Option<T> {
        result
            .inspect_err(|_| self.counters.count(Counter::HostError))
            .ok()
    }
}

/// One request and its response. Without a configuration it touches nothing.
struct HttpStream {
    exchange: Option<Rc<Exchange>>,
    stream: Stream,
}

impl Context for HttpStream {}

impl HttpContext for HttpStream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        if let Some(exchange) = &self.exchange {
            exchange.on_request_headers(&mut self.stream, &Envoy);
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        if let Some(exchange) = &self.exchange {
            exchange.on_response_headers(&mut self.stream, &Envoy);
        }
        Action::Continue
    }
}

/// Declares how a key is kept: for the request, also when it is redirected
/// internally; peers as `FlatBuffers` with their schema, so that CEL reaches
/// into them, and ids as bytes.
fn declare(key: StateKey) -> Result<(), HostError> {
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
