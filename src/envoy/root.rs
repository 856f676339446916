//! A plugin configuration: what is read at configure, and what happens on
//! ticks.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use prost::Message;
use proxy_wasm::traits::{Context, HttpContext, RootContext, StreamContext};
use proxy_wasm::types::{BufferType, ContextType, StreamType};

use super::host::Envoy;
use super::http::HttpStream;
use super::metrics::Metrics;
use super::tcp::TcpStream;
use super::{imports, logger, roots};
use crate::config::admission::{Plugin, Verdict};
use crate::config::{Config, ConfigError, Protocol};
use crate::counted_host::{CountedHost, count_error};
use crate::counters::{Counter, Counters};
use crate::exchange::tcp::Connection;
use crate::exchange::{Exchange, Stream};
use crate::host::{Host, HostError, HostResult, Property, StateKey};
use crate::local::{LocalNode, Node, Note, Role};
use crate::peer::flat;

/// How often counts are published and the log level is read.
const TICK: Duration = Duration::from_secs(1);

/// After how many ticks the metadata of clusters are read again.
const CLUSTER_REFRESH_TICKS: u32 = 10;

thread_local! {
    /// Whether this VM has had requests.
    static HAS_SERVED: Cell<bool> = const { Cell::new(false) };
}

/// The consequence of a configuration error, for its log line.
const IDLE: &str = "the filter is idle: requests pass, nothing is exchanged or removed";

/// A plugin configuration. Two plugins in one VM have a root each; a replaced
/// configuration keeps its root until its last stream ends.
pub(super) struct Root {
    id: u32,
    plugin: Plugin,
    /// `None` while there is no valid configuration: idle.
    exchange: Option<Rc<Exchange>>,
    /// Whether this configuration is marked as in force.
    is_in_force: Cell<bool>,
    /// Counts over all configurations of this root.
    counters: Rc<Counters>,
    metrics: Metrics,
    ticks: u32,
    /// Whether a stream was of the kind that the configuration is for.
    is_placed: Cell<bool>,
    /// The kind of filter chain, if the configuration is for another: set by its streams.
    misplaced: Rc<Cell<Option<Protocol>>>,
    is_misplaced: bool,
}

impl Context for Root {}

impl RootContext for Root {
    /// Logs that the VM has started, and for which node.
    fn on_vm_start(&mut self, _size: usize) -> bool {
        let id = self.text(Property::NodeId);
        log::info!(
            "metadata-exchange {} started, node id {id:?}",
            env!("CARGO_PKG_VERSION"),
        );
        true
    }

    /// Reads the plugin configuration; returns false to refuse it.
    fn on_configure(&mut self, _size: usize) -> bool {
        self.count_error(&logger::follow_level());
        self.metrics.set_idle(false, &self.counters);
        self.metrics = Metrics::define(&self.counters);
        let (name, root_id) = (
            self.text(Property::PluginName),
            self.text(Property::PluginRootId),
        );
        self.plugin = Plugin::new(&name, &root_id);
        (self.misplaced, self.is_misplaced) = (Rc::default(), false);
        let is_accepted = match imports::buffer(BufferType::PluginConfiguration, usize::MAX) {
            Ok(json) => match Config::parse(&json) {
                Ok(config) => self.start(config),
                Err(error) => self.on_error(&json, &error),
            },
            Err(HostError(status)) => {
                log::error!("plugin configuration cannot be read, status {status}; {IDLE}");
                self.idle()
            }
        };
        roots::set(self.id, self.plugin.clone(), self.exchange.is_some());
        is_accepted
    }

    fn on_tick(&mut self) {
        self.count_error(&logger::follow_level());
        if HAS_SERVED.get() {
            self.counters.count(Counter::Tick);
        }
        self.metrics.publish(&self.counters);
        self.report_misplaced();
        // Not before the first tick, which never comes in the VM that
        // validates. A replaced listener lives on until it is drained.
        let is_drained = roots::on_tick(self.id);
        let is_idle = (self.exchange.is_none() || self.is_misplaced) && !is_drained;
        self.metrics.set_idle(is_idle, &self.counters);
        self.mark_in_force();
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(CLUSTER_REFRESH_TICKS)
            && let Some(exchange) = &self.exchange
        {
            exchange.refresh_clusters();
        }
        self.pass_overdue();
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        let exchange = self.exchange_of_stream(Protocol::Http);
        if exchange.is_none() {
            self.misplaced.set(Some(Protocol::Http));
        }
        Some(Box::new(HttpStream {
            exchange,
            stream: Stream::default(),
        }))
    }

    fn create_stream_context(&self, id: u32) -> Option<Box<dyn StreamContext>> {
        Some(Box::new(TcpStream {
            exchange: self.exchange_of_stream(Protocol::Tcp),
            connection: Connection::new(id),
            misplaced: Rc::clone(&self.misplaced),
        }))
    }

    /// The kind of the stream that begins. The SDK panics on callbacks of another kind, so the stream itself tells it,
    /// and not only the configuration.
    fn get_type(&self) -> Option<ContextType> {
        let configured = self.configured_protocol();
        let protocol = if self.is_placed.get() {
            configured
        } else {
            self.protocol_of_stream().unwrap_or(configured)
        };
        // A request that Envoy refuses before its first filter has no protocol, but has no callback of either kind.
        self.is_placed
            .set(self.is_placed.get() || protocol == configured);
        Some(match protocol {
            Protocol::Http => ContextType::HttpContext,
            Protocol::Tcp => ContextType::StreamContext,
        })
    }
}

impl Drop for Root {
    /// Publishes what was counted since the last tick.
    fn drop(&mut self) {
        let is_succeeded = roots::remove(self.id, &self.plugin);
        if self.is_in_force.get() && !is_succeeded {
            self.count_error(&self.plugin.withdraw(&Envoy));
        }
        self.metrics.set_idle(false, &self.counters);
        self.metrics.publish(&self.counters);
    }
}

impl Root {
    pub(super) fn new(id: u32) -> Self {
        Self {
            id,
            plugin: Plugin::default(),
            exchange: None,
            is_in_force: Cell::new(false),
            counters: Rc::default(),
            metrics: Metrics::default(),
            ticks: 0,
            is_placed: Cell::default(),
            misplaced: Rc::default(),
            is_misplaced: false,
        }
    }

    /// The exchange for a stream that begins.
    fn exchange_of_stream(&self, protocol: Protocol) -> Option<Rc<Exchange>> {
        HAS_SERVED.set(true);
        roots::on_stream(self.id);
        if !self.is_in_force.get() {
            self.mark_in_force();
        }
        let exchange = self.exchange.as_ref()?;
        if exchange.protocol() == protocol {
            return Some(Rc::clone(exchange));
        }
        None
    }

    /// The kind of the stream that begins; `None` if Envoy does not tell.
    fn protocol_of_stream(&self) -> Option<Protocol> {
        if self.property(Property::RequestProtocol).is_some() {
            return Some(Protocol::Http);
        }
        let address = self.property(Property::SourceAddress);
        address.map(|_| Protocol::Tcp)
    }

    fn configured_protocol(&self) -> Protocol {
        let exchange = self.exchange.as_ref();
        exchange.map_or(Protocol::Http, |exchange| exchange.protocol())
    }

    /// Logs once that the configuration is for another kind of filter chain.
    fn report_misplaced(&mut self) {
        let (Some(protocol), Some(_)) = (self.misplaced.get(), &self.exchange) else {
            return;
        };
        if !std::mem::replace(&mut self.is_misplaced, true) {
            let (here, chain) = match protocol {
                Protocol::Http => ("http", "an HTTP"),
                Protocol::Tcp => ("tcp", "a network"),
            };
            log::error!(
                "\"protocol\" must be \"{here}\", because the filter is loaded into {chain} filter chain; {IDLE}"
            );
            self.counters.count(Counter::ConfigurationError);
        }
    }

    /// Passes on the bytes of connections that are held too long.
    fn pass_overdue(&self) {
        let overdue = self.exchange.as_ref().map(|exchange| exchange.overdue());
        for id in overdue.unwrap_or_default() {
            let is_passed = imports::set_effective_context(id)
                .and_then(|()| imports::continue_stream(StreamType::Downstream))
                .and_then(|()| imports::set_effective_context(self.id));
            self.count_error(&is_passed);
        }
    }

    /// Applies a configuration.
    fn start(&mut self, config: Config) -> bool {
        for key in StateKey::ALL {
            if key != StateKey::LocalPeer || config.local_peer {
                self.count_error(&declare(key, config.protocol));
            }
        }
        self.count_error(&imports::set_tick_period(TICK));
        let local = self.local_node(&config);
        let counters = Rc::clone(&self.counters);
        self.exchange = Some(Rc::new(Exchange::new(config, local, counters)));
        true
    }

    /// Refuses an invalid configuration, or becomes idle.
    fn on_error(&mut self, json: &[u8], error: &ConfigError) -> bool {
        match self.plugin.admit(&Envoy, json) {
            Verdict::Refused => {
                log::error!(
                    "plugin configuration refused: {error}; the previous one stays in \
                             force"
                );
                self.counters.count(Counter::ConfigurationError);
                // This VM has no ticks, so it publishes now.
                self.metrics.publish(&self.counters);
                false
            }
            Verdict::Idle => {
                log::error!("plugin configuration refused: {error}; {IDLE}");
                self.idle()
            }
        }
    }

    /// Becomes idle, and counts this.
    fn idle(&mut self) -> bool {
        self.exchange = None;
        self.counters.count(Counter::ConfigurationError);
        self.metrics.publish(&self.counters);
        self.count_error(&imports::set_tick_period(TICK));
        true
    }

    /// Marks this configuration as in force.
    fn mark_in_force(&self) {
        if self.exchange.is_some() {
            self.count_error(&self.plugin.mark_in_force(&Envoy));
            self.is_in_force.set(true);
        }
    }

    /// Reads the local node, and logs what is not sent.
    fn local_node(&self, config: &Config) -> LocalNode {
        let bootstrap = self.property(Property::Node).unwrap_or_default();
        let bootstrap = Node::from_message(&bootstrap);
        let mut notes = Vec::new();
        let env = |name: &str| std::env::var(name).ok();
        let node = config.node.over(&bootstrap, &env, &mut notes);
        if !config.node.is_empty() {
            let id = String::from_utf8_lossy(&node.id);
            log::info!("this proxy is {id:?}, {}", node.peer(&mut Vec::new()));
        }
        let local = LocalNode {
            role: Role::of(&bootstrap.id),
            ..LocalNode::new(&node, &config.share, config.max_sent_bytes, &mut notes)
        };
        for note in notes {
            if matches!(note, Note::Nameless) {
                self.counters.count(Counter::NodeWithoutName);
            }
            log::warn!("{note}");
        }
        local
    }

    /// An attribute as text; empty if it is absent.
    fn text(&self, property: Property) -> String {
        let bytes = self.property(property).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn property(&self, property: Property) -> Option<Vec<u8>> {
        let host = CountedHost::new(&Envoy, &self.counters);
        host.property(property).ok().flatten()
    }

    fn count_error(&self, result: &HostResult<()>) {
        count_error(result, &self.counters);
    }
}

/// `envoy.source.extensions.common.wasm.DeclarePropertyArguments`
#[derive(Clone, PartialEq, Eq, Message)]
struct DeclarePropertyArguments {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "3")]
    kind: i32,
    #[prost(bytes = "vec", tag = "4")]
    schema: Vec<u8>,
    #[prost(int32, tag = "5")]
    span: i32,
}

/// Declares a key: it lives as long as the request, including internal
/// redirects, or as the connection. Peers are `FlatBuffers` with their schema, so that CEL can read
/// their fields, and ids are bytes.
fn declare(key: StateKey, protocol: Protocol) -> HostResult<()> {
    const BYTES: i32 = 0;
    const FLAT_BUFFERS: i32 = 2;
    const DOWNSTREAM_REQUEST: i32 = 1;
    const DOWNSTREAM_CONNECTION: i32 = 2;

    let (kind, schema) = match key {
        StateKey::DownstreamPeer | StateKey::UpstreamPeer | StateKey::LocalPeer => {
            (FLAT_BUFFERS, flat::BINARY_SCHEMA)
        }
        StateKey::DownstreamPeerId | StateKey::UpstreamPeerId => (BYTES, &[][..]),
    };
    let arguments = DeclarePropertyArguments {
        name: key.name().to_owned(),
        kind,
        schema: schema.to_vec(),
        span: match protocol {
            Protocol::Http => DOWNSTREAM_REQUEST,
            Protocol::Tcp => DOWNSTREAM_CONNECTION,
        },
    };
    imports::call_foreign_function("declare_property", &arguments.encode_to_vec())
}
