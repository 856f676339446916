//! Checks whether virtual hosts remove the headers of the exchange.

use serde_json::Value;

use super::dump::Manager;
use super::finding::{Code, Finding};
use super::json::list;

/// The headers of the exchange.
const HEADERS: [&str; 2] = ["x-envoy-peer-metadata", "x-envoy-peer-metadata-id"];

/// For requests that the filter does not see, only Envoy can keep the headers
/// from the app.
pub(super) fn headers_not_removed(manager: &Manager<'_>) -> Option<Finding> {
    let removes = |one: &Value, key: &str| {
        HEADERS.iter().all(|header| {
            list(&one[key]).any(|name| {
                name.as_str()
                    .is_some_and(|name| name.eq_ignore_ascii_case(header))
            })
        })
    };
    let keys = ["request_headers_to_remove", "response_headers_to_remove"];
    let is_open = |routes: &Value| {
        let hosts = list(&routes["virtual_hosts"]);
        let open = |host: &Value| {
            keys.iter()
                .any(|key| !removes(host, key) && !removes(routes, key))
        };
        let mut hosts = hosts;
        hosts.any(open)
    };
    manager.routes.iter().any(|routes| is_open(routes)).then(|| {
        Finding::info(
            Code::HeadersNotRemoved,
            manager.listener,
            "only the filter keeps its headers from the app: on requests that it does not see, \
             they pass through",
            "list x-envoy-peer-metadata and x-envoy-peer-metadata-id in request_headers_to_remove \
             and response_headers_to_remove of the virtual hosts",
        )
    })
}
