//! The host's side of a VM: the state behind the module's imports, and a record of its calls.

use crate::call::{BufferKind, HostCall, Recorded};
use crate::context::{RootState, StreamState};
use crate::metrics::Metrics;
use crate::properties::PropertyPath;
use crate::{Headers, LogLevel, MapKind, Properties, SharedData, Status};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use wasmtime::{Memory, StoreLimits, StoreLimitsBuilder, TypedFunc};

/// The settings of the proxy around a VM.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Attributes that apply everywhere, such as the node.
    pub properties: Properties,
    /// The lowest level that is logged.
    pub log_level: LogLevel,
    /// The seed of random numbers.
    pub seed: u64,
    /// The time, in nanoseconds since 1970; it does not advance until a test sets it.
    pub now: u64,
    /// The data shared with the other VMs of its `vm_id`.
    pub shared_data: SharedData,
    /// The VM's configuration.
    pub vm_configuration: Vec<u8>,
    /// The module's environment variables.
    pub environment: Vec<(String, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            properties: Properties::new(),
            log_level: LogLevel::Info,
            seed: 0,
            now: 1_700_000_000_000_000_000,
            shared_data: SharedData::default(),
            vm_configuration: Vec::new(),
            environment: Vec::new(),
        }
    }
}

/// A line that the module logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// The level of the line.
    pub level: LogLevel,
    /// The text.
    pub message: String,
}

pub(crate) type Override = Box<dyn FnMut(&HostCall) -> Option<Status>>;

pub(crate) struct Host {
    pub(crate) settings: Settings,
    pub(crate) memory: Option<Memory>,
    pub(crate) allocate: Option<TypedFunc<u32, u32>>,
    pub(crate) roots: BTreeMap<u32, Rc<RefCell<RootState>>>,
    pub(crate) streams: BTreeMap<u32, Rc<RefCell<StreamState>>>,
    pub(crate) metrics: Metrics,
    pub(crate) calls: Vec<Recorded>,
    pub(crate) logs: Vec<LogLine>,
    pub(crate) output: Vec<u8>,
    pub(crate) fault: Option<Override>,
    current: Option<u32>,
    effective: Option<u32>,
    random: u64,
    pub(crate) limits: StoreLimits,
}

/// The most memory that Envoy's engine gives a VM, in bytes: V8 stops at 16,384 pages.
const MOST_MEMORY: usize = 1 << 30;

impl Host {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            random: settings.seed,
            settings,
            memory: None,
            allocate: None,
            roots: BTreeMap::new(),
            streams: BTreeMap::new(),
            metrics: Metrics::default(),
            calls: Vec::new(),
            logs: Vec::new(),
            output: Vec::new(),
            fault: None,
            current: None,
            effective: None,
            limits: StoreLimitsBuilder::new().memory_size(MOST_MEMORY).build(),
        }
    }

    /// Sets the context for which host calls are made from here on; `None` during initialisation.
    pub(crate) fn enter(&mut self, context: Option<u32>) {
        self.current = context;
        self.effective = None;
    }

    pub(crate) fn is_initialising(&self) -> bool {
        self.current.is_none()
    }

    /// Records a call before it is carried out.
    pub(crate) fn record(&mut self, call: HostCall) -> usize {
        self.calls.push(Recorded {
            context: self.current.unwrap_or_default(),
            call,
            status: Status::Ok,
        });
        self.calls.len() - 1
    }

    /// Records a call of an import that this host does not carry out.
    pub(crate) fn record_unimplemented(&mut self, import: &str) {
        self.calls.push(Recorded {
            context: self.current.unwrap_or_default(),
            call: HostCall::Other {
                name: import.to_owned(),
            },
            status: Status::Unimplemented,
        });
    }

    pub(crate) fn set_effective_context(&mut self, context: u32) -> Result<(), Status> {
        if !self.roots.contains_key(&context) && !self.streams.contains_key(&context) {
            return Err(Status::BadArgument);
        }
        self.effective = Some(context);
        Ok(())
    }

    fn context(&self) -> Option<u32> {
        self.effective.or(self.current)
    }

    fn stream(&self) -> Option<&Rc<RefCell<StreamState>>> {
        self.streams.get(&self.context()?)
    }

    /// The root context of the current context, which may be that context itself.
    pub(crate) fn root(&self) -> Option<&Rc<RefCell<RootState>>> {
        let context = self.context()?;
        let root = self
            .stream()
            .map_or(context, |stream| stream.borrow().root_id);
        self.roots.get(&root)
    }

    /// Looks up a property in the stream, then in the proxy, then in the filter state that modules set.
    pub(crate) fn property(&self, path: &PropertyPath) -> Result<Vec<u8>, Status> {
        if path.is_empty() {
            return Err(Status::SerializationFailure);
        }
        let stream = self.stream().map(|stream| stream.borrow());
        let of_stream = stream.as_ref().and_then(|s| s.properties.get(path));
        if let Some(found) = of_stream.or_else(|| self.settings.properties.get(path)) {
            return found.map(<[u8]>::to_vec);
        }
        let stream = stream.ok_or(Status::NotFound)?;
        let segments = path.segments();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let found = match segments[..] {
            [name] => stream.state_of_property(name),
            ["filter_state", key] => stream.state_of_key(key),
            _ => None,
        };
        found.map(<[u8]>::to_vec).ok_or(Status::NotFound)
    }

    pub(crate) fn set_property(&mut self, name: &str, value: &[u8]) -> Result<(), Status> {
        let stream = self.stream().ok_or(Status::NotFound)?;
        stream.borrow_mut().set_property(name, value)
    }

    pub(crate) fn read_map<R>(
        &self,
        kind: MapKind,
        read: impl FnOnce(&Headers) -> Result<R, Status>,
    ) -> Result<R, Status> {
        let stream = self.stream().ok_or(Status::BadArgument)?;
        read(stream.borrow().readable_map(kind)?)
    }

    pub(crate) fn write_map(
        &mut self,
        kind: MapKind,
        write: impl FnOnce(&mut Headers),
    ) -> Result<(), Status> {
        let stream = self.stream().ok_or(Status::BadArgument)?;
        write(stream.borrow_mut().writable_map(kind)?);
        Ok(())
    }

    pub(crate) fn buffer(&self, kind: BufferKind) -> Result<Vec<u8>, Status> {
        let body = |pick: fn(&StreamState) -> &Option<Vec<u8>>| {
            self.stream()
                .and_then(|stream| pick(&stream.borrow()).clone())
        };
        let buffer = match kind {
            BufferKind::RequestBody => body(|stream| &stream.request_body),
            BufferKind::ResponseBody => body(|stream| &stream.response_body),
            BufferKind::VmConfiguration => Some(self.settings.vm_configuration.clone()),
            BufferKind::PluginConfiguration => self
                .root()
                .and_then(|root| root.borrow().configuration.clone()),
        };
        buffer.ok_or(Status::NotFound)
    }

    /// `SplitMix64`: good enough for tests, and the same sequence on every run.
    pub(crate) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
