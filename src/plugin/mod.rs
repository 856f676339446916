//! The filter as Envoy loads it: contexts, and what they read at configure. The
//! only place that speaks proxy-wasm.
//!
//! The SDK keeps the contexts and the log. Its host calls are not used, for
//! they panic on statuses that Envoy gives in ordinary cases, and a panic fails
//! the VM; [`host_calls`] has those that are needed.

use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};

use crate::config::Config;
use crate::exchange::{Exchange, Stream};
use crate::host::{Host, HostError, StateKey};
use crate::local::{LocalNode, Node};
use crate::peer::{flat, wire};

#[allow(unsafe_code)]
mod host_calls;
mod metrics;

use host_calls::{Buffer, Envoy};
use metrics::Metrics;

/// How often counts are published and the log level is looked at.
const TICK: Duration = Duration::from_secs(1);

/// After how many ticks the metadata of clusters is looked at anew.
const CLUSTER_REFRESH_TICKS: u32 = 10;

/// Called once by the entry point of the module.
fn start() {
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}

/// One plugin configuration.
#[derive(Default)]
struct Root {
    exchange: Option<Rc<Exchange>>,
    metrics: Metrics,
    ticks: u32,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_vm_start(&mut self, _: usize) -> bool {
        let id = node_id().unwrap_or_default();
        log::info!(
            "metadata-exchange {} started, node id {:?}",
            env!("CARGO_PKG_VERSION"),
            String::from_utf8_lossy(&id)
        );
        true
    }

    fn on_configure(&mut self, _: usize) -> bool {
        follow_log_level();
        let configuration = host_calls::buffer(Buffer::PluginConfiguration);
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
        self.publish();
        let local = local_node(&configuration);
        let exchange = Exchange::new(configuration, local);
        for key in StateKey::ALL {
            if declare(key).is_err() {
                exchange.count_host_error();
            }
        }
        self.metrics = Metrics::define();
        if host_calls::set_tick_period(TICK).is_err() {
            exchange.count_host_error();
        }
        self.exchange = Some(Rc::new(exchange));
        true
    }

    fn on_tick(&mut self) {
        follow_log_level();
        self.publish();
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
    fn publish(&self) {
        if let Some(exchange) = &self.exchange {
            self.metrics.publish(exchange.counters());
        }
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

/// Logs what the operator's log level lets through, so that nothing is built
/// for a log that is off.
fn follow_log_level() {
    if let Ok(level) = host_calls::log_level() {
        proxy_wasm::set_log_level(level);
    }
}

fn node_id() -> Option<Vec<u8>> {
    let get = |path| Envoy.property(path).ok().flatten();
    get("xds\0node\0id").or_else(|| get("node\0id"))
}

/// Reads the local node, and logs what of it is not sent.
fn local_node(configuration: &Config) -> LocalNode {
    let mut notes = Vec::new();
    let node = match Envoy.property("xds\0node") {
        Ok(Some(node)) => Node::of_message(&node),
        _ => Node::of_properties(|path| Envoy.property(path).ok().flatten(), &mut notes),
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
    host_calls::call_foreign_function("declare_property", &arguments)
}
