//! Modules that make the host calls of a cached exchange with fixed values, and think nothing: what is left of a
//! plugin's cost if its own code took no time.

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

/// Whose host calls are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plugin {
    /// This filter's.
    Filter,
    /// Those of the C++ plugin of istio/proxy release-1.17, as many as were counted of it (11 either way): it looks for
    /// peer headers in either direction's request and response, and its SDK exports every callback.
    Cpp,
}

/// Writes the module for that direction, and says where it is.
pub(crate) fn module(bench: &Bench, plugin: Plugin, direction: Direction) -> Result<PathBuf> {
    let path = format!("calls-{plugin:?}-{direction:?}.wasm");
    let path = bench.lab.dir().join(path);
    std::fs::write(&path, bytes(plugin, direction)?)?;
    Ok(path)
}

fn bytes(plugin: Plugin, direction: Direction) -> Result<Vec<u8>> {
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
    let look = |module: &mut Calls, map| {
        for name in [metadata, id] {
            module.get_header(map, name);
        }
    };
    let take = |module: &mut Calls, map| {
        look(module, map);
        module.set_property(peer_keys[0], &peer);
        module.set_property(peer_keys[1], peer_id.as_bytes());
        for name in [metadata, id] {
            module.remove_header(map, name);
        }
    };
    let give = |module: &mut Calls, map| {
        if plugin == Plugin::Filter {
            module.get_headers_size(map);
        }
        for (name, value) in &own {
            module.set_header(map, name, value);
        }
    };
    module.get_property(Property::ListenerDirection);
    match direction {
        Direction::Inbound => {
            take(&mut module, REQUEST);
            module.on_response_from_here();
            if plugin == Plugin::Cpp {
                look(&mut module, RESPONSE);
            }
            give(&mut module, RESPONSE);
        }
        Direction::Outbound => {
            match plugin {
                Plugin::Filter => module.get_property(Property::ClusterName),
                Plugin::Cpp => look(&mut module, REQUEST),
            }
            give(&mut module, REQUEST);
            module.on_response_from_here();
            take(&mut module, RESPONSE);
        }
    }
    let more = match plugin {
        Plugin::Filter => "",
        Plugin::Cpp => ALL_CALLBACKS,
    };
    Ok(wat::parse_str(module.text(more))?)
}

/// The other callbacks of a stream that an SDK exports.
const ALL_CALLBACKS: &str = r#"
    (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32) (i32.const 0))
    (func (export "proxy_on_request_trailers") (param i32 i32) (result i32) (i32.const 0))
    (func (export "proxy_on_response_body") (param i32 i32 i32) (result i32) (i32.const 0))
    (func (export "proxy_on_response_trailers") (param i32 i32) (result i32) (i32.const 0))
    (func (export "proxy_on_done") (param i32) (result i32) (i32.const 1))
    (func (export "proxy_on_log") (param i32))"#;

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

    fn get_headers_size(&mut self, map: u32) {
        let size = ANSWERS - 4;
        let arguments = format!("(i32.const {map}) (i32.const {size})");
        self.call("get_headers_size", &arguments);
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

    /// The module, with `more` in it.
    fn text(&self, more: &str) -> String {
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
            import("get_header_map_size", "get_headers_size", 2),
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
            (func (export "proxy_on_delete") (param i32))
            {more})"#
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

    fn host_calls(plugin: Plugin, direction: Direction) -> usize {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("calls.wasm");
        std::fs::write(&file, bytes(plugin, direction).unwrap()).unwrap();
        host_calls_of(&Module::from_file(&file).unwrap(), direction)
    }

    fn host_calls_of(module: &Module, direction: Direction) -> usize {
        let name = match direction {
            Direction::Inbound => "inbound, peer cached",
            Direction::Outbound => "outbound, peer cached",
        };
        let path = Path::ALL.into_iter().find(|path| path.name == name);
        let cost = cost(module, &path.unwrap(), USUAL_LABELS, "{}");
        cost.unwrap().host_calls
    }

    /// So that nothing is measured that the filter does not do.
    #[test]
    fn as_many_calls_are_made_as_the_filter_makes() {
        let filter = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../dist/metadata_exchange.wasm"
        );
        let filter = Module::from_file(filter.as_ref()).unwrap();
        for direction in [Direction::Inbound, Direction::Outbound] {
            assert_eq!(
                host_calls(Plugin::Filter, direction),
                host_calls_of(&filter, direction),
                "{direction:?}"
            );
        }
    }

    #[test]
    fn as_many_calls_are_made_as_the_cpp_plugin_made() {
        for direction in [Direction::Inbound, Direction::Outbound] {
            assert_eq!(host_calls(Plugin::Cpp, direction), 11, "{direction:?}");
        }
    }
}
