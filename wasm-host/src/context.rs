//! Root contexts (a plugin with its configuration) and stream contexts (one request and its response).
//!
//! Test and host share the state, so a handle stays readable after its context is deleted.

use crate::{Headers, MapKind, Properties, Status};
use prost::Message;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// The prefix that Envoy adds to the key of every filter state object that a module sets.
const STATE_PREFIX: &str = "wasm.";

/// A plugin's root context.
#[derive(Debug)]
pub struct Root {
    pub(crate) id: u32,
    pub(crate) accepted: bool,
    pub(crate) state: Rc<RefCell<RootState>>,
}

impl Root {
    /// Whether the module accepted the configuration.
    #[must_use]
    pub fn accepted(&self) -> bool {
        self.accepted
    }

    /// The context's id, as host calls are recorded with it.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The declaration of a property, if the module declared it.
    #[must_use]
    pub fn declaration(&self, name: &str) -> Option<Declaration> {
        self.state.borrow().declarations.get(name).cloned()
    }

    /// The tick period in milliseconds; 0 means no ticks.
    #[must_use]
    pub fn tick_period(&self) -> u32 {
        self.state.borrow().tick_period
    }
}

#[derive(Debug, Default)]
pub(crate) struct RootState {
    /// Readable as a buffer only while the plugin starts or is configured.
    pub(crate) configuration: Option<Vec<u8>>,
    pub(crate) declarations: BTreeMap<String, Declaration>,
    pub(crate) tick_period: u32,
}

impl RootState {
    /// The foreign function `declare_property`: the first declaration of a name wins.
    pub(crate) fn declare(&mut self, arguments: &[u8]) -> Result<(), Status> {
        let declaration = Declaration::decode(arguments).map_err(|_| Status::BadArgument)?;
        if self.declarations.contains_key(&declaration.name) {
            return Err(Status::BadArgument);
        }
        self.declarations
            .insert(declaration.name.clone(), declaration);
        Ok(())
    }
}

/// How a module declared a property; Envoy's `DeclarePropertyArguments`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Declaration {
    /// The property's name, without `wasm.`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Whether the first value is final.
    #[prost(bool, tag = "2")]
    pub read_only: bool,
    /// How consumers read the bytes.
    #[prost(enumeration = "StateType", tag = "3")]
    pub state_type: i32,
    /// The binary schema or type URL.
    #[prost(bytes = "vec", tag = "4")]
    pub schema: Vec<u8>,
    /// How long a value lives.
    #[prost(enumeration = "LifeSpan", tag = "5")]
    pub life_span: i32,
}

/// How consumers read a property's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum StateType {
    /// As they are.
    Bytes = 0,
    /// As text.
    String = 1,
    /// As a `FlatBuffer` of the declared schema.
    FlatBuffers = 2,
    /// As a message of the declared type.
    Protobuf = 3,
}

/// How long a filter state object lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum LifeSpan {
    /// As long as the filter chain: an internal redirect ends it.
    FilterChain = 0,
    /// As long as the request of the client.
    DownstreamRequest = 1,
    /// As long as the connection of the client.
    DownstreamConnection = 2,
}

/// An object in a stream's filter state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateObject {
    /// Its bytes.
    pub value: Vec<u8>,
    /// How it was declared when it was first set.
    pub declaration: Declaration,
}

/// One request and its response on their way through the filter.
#[derive(Debug)]
pub struct Stream {
    pub(crate) id: u32,
    pub(crate) state: Rc<RefCell<StreamState>>,
}

impl Stream {
    /// The context's id, as host calls are recorded with it.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The request's headers as they are now.
    #[must_use]
    pub fn request_headers(&self) -> Headers {
        self.state.borrow().map(MapKind::Request)
    }

    /// The response's headers as they are now.
    #[must_use]
    pub fn response_headers(&self) -> Headers {
        self.state.borrow().map(MapKind::Response)
    }

    /// The object under this full key, such as `wasm.downstream_peer`.
    #[must_use]
    pub fn filter_state(&self, key: &str) -> Option<StateObject> {
        self.state.borrow().filter_state.get(key).cloned()
    }

    /// Every key of the filter state.
    #[must_use]
    pub fn filter_state_keys(&self) -> Vec<String> {
        self.state.borrow().filter_state.keys().cloned().collect()
    }

    /// Sets a filter state object, as another filter would.
    pub fn set_filter_state(&self, key: &str, object: StateObject) {
        let mut state = self.state.borrow_mut();
        state.filter_state.insert(key.to_owned(), object);
    }

    /// Changes attributes of the stream, such as its upstream host.
    pub fn update_properties(&self, change: impl FnOnce(Properties) -> Properties) {
        let mut state = self.state.borrow_mut();
        state.properties = change(std::mem::take(&mut state.properties));
    }
}

#[derive(Debug)]
pub(crate) struct StreamState {
    pub(crate) root_id: u32,
    root: Rc<RefCell<RootState>>,
    pub(crate) created: bool,
    pub(crate) properties: Properties,
    filter_state: BTreeMap<String, StateObject>,
    maps: [Option<Headers>; MapKind::COUNT],
    open: [bool; MapKind::COUNT],
    logging: bool,
    pub(crate) request_body: Option<Vec<u8>>,
    pub(crate) response_body: Option<Vec<u8>>,
}

impl StreamState {
    pub(crate) fn new(root: &Root, properties: Properties) -> Self {
        Self {
            root_id: root.id,
            root: Rc::clone(&root.state),
            created: false,
            properties,
            filter_state: BTreeMap::new(),
            maps: Default::default(),
            open: Default::default(),
            logging: false,
            request_body: None,
            response_body: None,
        }
    }

    fn map(&self, kind: MapKind) -> Headers {
        self.maps[kind.index()].clone().unwrap_or_default()
    }

    /// Makes a map accessible to the module during a callback.
    pub(crate) fn open_map(&mut self, kind: MapKind, headers: Headers) {
        self.maps[kind.index()] = Some(headers);
        self.open[kind.index()] = true;
    }

    /// Envoy removes a map once the callback lets the stream continue.
    pub(crate) fn close_map(&mut self, kind: MapKind) {
        self.open[kind.index()] = false;
    }

    /// From here on header maps are read-only and absent ones are empty.
    pub(crate) fn start_logging(&mut self) {
        self.logging = true;
    }

    pub(crate) fn end_logging(&mut self) {
        self.logging = false;
    }

    pub(crate) fn readable_map(&self, kind: MapKind) -> Result<&Headers, Status> {
        let map = self.maps[kind.index()].as_ref();
        if self.logging {
            return map.ok_or(Status::NotFound);
        }
        map.filter(|_| self.open[kind.index()])
            .ok_or(Status::BadArgument)
    }

    pub(crate) fn writable_map(&mut self, kind: MapKind) -> Result<&mut Headers, Status> {
        let open = self.open[kind.index()];
        let map = self.maps[kind.index()].as_mut();
        map.filter(|_| open).ok_or(Status::BadArgument)
    }

    /// An object that a module set, by the property name it used.
    pub(crate) fn state_of_property(&self, name: &str) -> Option<&[u8]> {
        self.state_of_key(&format!("{STATE_PREFIX}{name}"))
    }

    pub(crate) fn state_of_key(&self, key: &str) -> Option<&[u8]> {
        Some(&self.filter_state.get(key)?.value)
    }

    /// Overwrites an object unless it is read-only, or creates one as declared.
    pub(crate) fn set_property(&mut self, name: &str, value: &[u8]) -> Result<(), Status> {
        let key = format!("{STATE_PREFIX}{name}");
        if let Some(object) = self.filter_state.get_mut(&key) {
            if object.declaration.read_only {
                return Err(Status::BadArgument);
            }
            object.value = value.to_vec();
            return Ok(());
        }
        let declared = self.root.borrow().declarations.get(name).cloned();
        let object = StateObject {
            value: value.to_vec(),
            declaration: declared.unwrap_or_default(),
        };
        self.filter_state.insert(key, object);
        Ok(())
    }
}
