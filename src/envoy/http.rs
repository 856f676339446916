//! A request and its response: passes the SDK's callbacks to the exchange.

use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

use super::host::Envoy;
use crate::exchange::{Exchange, Stream};

/// A stream. Without a configuration it changes nothing.
pub(super) struct HttpStream {
    pub(super) exchange: Option<Rc<Exchange>>,
    pub(super) stream: Stream,
}

impl Context for HttpStream {}

impl HttpContext for HttpStream {
    fn on_http_request_headers(&mut self, count: usize, _end_of_stream: bool) -> Action {
        if let Some(exchange) = &self.exchange {
            exchange.on_request_headers(&mut self.stream, &Envoy, count);
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, count: usize, _end_of_stream: bool) -> Action {
        if let Some(exchange) = &self.exchange {
            exchange.on_response_headers(&mut self.stream, &Envoy, count);
        }
        Action::Continue
    }

    fn on_log(&mut self) {
        if let Some(exchange) = &self.exchange {
            exchange.on_log(&mut self.stream, &Envoy);
        }
    }
}
