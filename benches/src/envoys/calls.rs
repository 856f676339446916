//! Modules that make the host calls of a cached exchange with fixed values, and think nothing: what is left of the
//! filter's cost if its own code took no time.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use envoy_test::Direction;
use envoy_test::client::PEER_HEADERS;
use metadata_exchange::host::{Property, StateKey};

use crate::bench::Bench;
use crate::codec;
use crate::sample::{USUAL_LABELS, headers, pod};

/// The header maps of the ABI.
const REQUEST: u32 = 0;
const RESPONSE: u32 = 2;

/// Where the host puts answers: on the fourth page, unseen.
const ANSWERS: u32 = 3 << 16;

/// Writes the module for that direction, and says where it is.
pub(crate) fn module(bench: &Bench, direction: Direction) -> Result<PathBuf> {
    let path = bench.lab.dir().join(match direction {
        Direction::Inbound => "calls-inbound.wasm",
        Direction::Outbound => "calls-outbound.wasm",
    });
    std::fs::write(&path, bytes(direction)?)?;
    Ok(path)
}

fn bytes(direction: Direction) -> Result<Vec<u8>> {
    let mut module = Calls::default();
    let [metadata, id] = PEER_HEADERS;
    let [(_, own_metadata), (_, own_id)] = headers(&pod("local-v1", USUAL_LABELS)?);
    let [(_, header), (_, peer_id)] = headers(&pod("peer-v1", USUAL_LABELS)?);
    let peer = codec::decode(header.as_bytes())?.flat;
    let own = [(metadata, own_metadata), (id, own_id)];
    let peer_keys = match direction {
        Direction::Inbound => [StateKey::DownstreamPeer, StateKey::DownstreamPeerId],
        Direction::Outbound => [StateKey::UpstreamPeer, StateKey::UpstreamPeerId],
    };
    let take = |module: &mut Calls, map| {
        for name in [metadata, id] {
            module.get_header(map, name);
        }
        module.set_property(peer_keys[0], &peer);
        module.set_property(peer_keys[1], peer_id.as_bytes());
        for name in [metadata, id] {
            module.remove_header(map, name);
        }
    };
    let give = |module: &mut Calls, map| {
        for (name, value) in &own {
            module.set_header(map, name, value);
        }
    };
    module.get_property(Property::ListenerDirection);
    match direction {
        Direction::Inbound => {
            take(&mut module, REQUEST);
            module.on_response_from_here();
            give(&mut module, RESPONSE);
        }
        Direction::Outbound => {
            module.get_property(Property::ClusterName);
            give(&mut module, REQUEST);
            module.on_response_from_here();
            take(&mut module, RESPONSE);
        }
    }
    Ok(wat::parse_str(module.text())?)
}

/// A module in the making.
#[derive(Default)]
struct Calls {
    data: Vec<u8>,
    on_request: String,
    on_response: String,
    is_response: bool,
}

impl Calls {
    /// What is called from now on is called on response headers.
    fn on_response_from_here(&mut self) {
        self.is_response = true;
    }

    fn get_property(&mut self, property: Property) {
        let path = self.place(property.path().as_bytes());
        self.call("get_property", &format!("{path} {}", answer()));
    }

    fn set_property(&mut self, key: StateKey, value: &[u8]) {
        let (key, value) = (self.place(key.name().as_bytes()), self.place(value));
        self.call("set_property", &format!("{key} {value}"));
    }

    fn get_header(&mut self, map: u32, name: &str) {
        let name = self.place(name.as_bytes());
        let arguments = format!("(i32.const {map}) {name} {}", answer());
        self.call("get_header", &arguments);
    }

    fn set_header(&mut self, map: u32, name: &str, value: &str) {
        let (name, value) = (self.place(name.as_bytes()), self.place(value.as_bytes()));
        let arguments = format!("(i32.const {map}) {name} {value}");
        self.call("set_header", &arguments);
    }

    fn remove_header(&mut self, map: u32, name: &str) {
        let name = self.place(name.as_bytes());
        let arguments = format!("(i32.const {map}) {name}");
        self.call("remove_header", &arguments);
    }

    fn call(&mut self, function: &str, arguments: &str) {
        let callback = if self.is_response {
            &mut self.on_response
        } else {
            &mut self.on_request
        };
        // A String takes all that is written.
        let _ = writeln!(callback, "(drop (call ${function} {arguments}))");
    }

    /// Address and size of `bytes`, which become the module's.
    fn place(&mut self, bytes: &[u8]) -> String {
        let address = self.data.len();
        self.data.extend_from_slice(bytes);
        format!("(i32.const {address}) (i32.const {})", bytes.len())
    }

    fn text(&self) -> String {
        let data = self.data.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "\\{byte:02x}");
            text
        });
        let import = |name: &str, function: &str, parameters: usize| {
            let parameters = "i32 ".repeat(parameters);
            format!(
                r#"(import "env" "proxy_{name}" (func ${function} (param {parameters}) (result i32)))"#
            )
        };
        let imports = [
            import("get_property", "get_property", 4),
            import("set_property", "set_property", 4),
            import("get_header_map_value", "get_header", 5),
            import("replace_header_map_value", "set_header", 5),
            import("remove_header_map_value", "remove_header", 3),
        ]
        .concat();
        let Self {
            on_request,
            on_response,
            ..
        } = self;
        format!(
            r#"(module {imports}
            (memory (export "memory") 4)
            (data (i32.const 0) "{data}")
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "_initialize"))
            (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const {ANSWERS}))
            (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
            (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
            (func (export "proxy_on_context_create") (param i32 i32))
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) {on_request} (i32.const 0))
            (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) {on_response} (i32.const 0))
            (func (export "proxy_on_delete") (param i32)))"#
        )
    }
}

/// Where the host writes address and size of an answer.
fn answer() -> String {
    let (address, size) = (ANSWERS - 8, ANSWERS - 4);
    format!("(i32.const {address}) (i32.const {size})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counted::cost;
    use wasm_host::Module;
    use wasm_host::cost::Path;

    /// So that nothing is measured that the filter does not do.
    #[test]
    fn as_many_calls_are_made_as_the_filter_makes() {
        let filter = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../dist/metadata_exchange.wasm"
        );
        let filter = Module::from_file(filter.as_ref()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("calls.wasm");
        for (name, direction) in [
            ("inbound, peer cached", Direction::Inbound),
            ("outbound, peer cached", Direction::Outbound),
        ] {
            std::fs::write(&file, bytes(direction).unwrap()).unwrap();
            let calls = Module::from_file(&file).unwrap();
            let path = Path::ALL.into_iter().find(|path| path.name == name);
            let [calls, filter] = [&calls, &filter].map(|module| {
                let cost = cost(module, &path.unwrap(), USUAL_LABELS);
                cost.unwrap().host_calls
            });
            assert_eq!(calls, filter, "{name}");
        }
    }
}
