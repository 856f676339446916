//! A TCP connection: passes the SDK's callbacks to the exchange.

use std::cell::Cell;
use std::rc::Rc;

use proxy_wasm::traits::{Context, StreamContext};
use proxy_wasm::types::Action;

use super::host::Envoy;
use crate::config::Protocol;
use crate::exchange::Exchange;
use crate::exchange::tcp::{Connection, Flow};

/// A connection. Without a configuration it changes nothing.
pub(super) struct TcpStream {
    pub(super) exchange: Option<Rc<Exchange>>,
    pub(super) connection: Connection,
    /// Set if there are bytes without an exchange for them.
    pub(super) misplaced: Rc<Cell<Option<Protocol>>>,
}

impl Context for TcpStream {}

impl StreamContext for TcpStream {
    fn on_downstream_data(&mut self, size: usize, is_end: bool) -> Action {
        let Some(exchange) = &self.exchange else {
            self.misplaced.set(Some(Protocol::Tcp));
            return Action::Continue;
        };
        action(exchange.on_downstream_data(&mut self.connection, &Envoy, size, is_end))
    }

    fn on_upstream_data(&mut self, size: usize, is_end: bool) -> Action {
        match &self.exchange {
            Some(exchange) => {
                action(exchange.on_upstream_data(&mut self.connection, &Envoy, size, is_end))
            }
            None => Action::Continue,
        }
    }

    fn on_log(&mut self) {
        if let Some(exchange) = &self.exchange {
            exchange.on_connection_end(&mut self.connection, &Envoy);
        }
    }
}

fn action(flow: Flow) -> Action {
    match flow {
        Flow::Hold => Action::Pause,
        Flow::Pass => Action::Continue,
    }
}
