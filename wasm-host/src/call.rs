//! A record of what the module asked of its host.

use crate::{LogLevel, MapKind, Status};
use std::fmt;

/// A host call with its arguments. `Display` omits values, so that a list of calls reads as a list of steps:
/// `get_header request x-envoy-peer-metadata`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostCall {
    /// `proxy_log`
    Log {
        /// The level of the line.
        level: LogLevel,
        /// The line.
        message: String,
    },
    /// `proxy_get_log_level`
    GetLogLevel,
    /// `proxy_get_current_time_nanoseconds`
    GetCurrentTime,
    /// `proxy_set_tick_period_milliseconds`
    SetTickPeriod {
        /// 0 turns the tick off.
        milliseconds: u32,
    },
    /// `proxy_get_buffer_bytes`
    GetBuffer {
        /// Which one.
        buffer: BufferKind,
    },
    /// `proxy_get_header_map_value`
    GetHeader {
        /// Of which map.
        map: MapKind,
        /// The header's name, as the module wrote it.
        name: String,
    },
    /// `proxy_get_header_map_size`
    GetHeadersSize {
        /// Of which map.
        map: MapKind,
    },
    /// `proxy_get_header_map_pairs`
    GetHeaders {
        /// Which map.
        map: MapKind,
    },
    /// `proxy_replace_header_map_value`
    ReplaceHeader {
        /// In which map.
        map: MapKind,
        /// The header's name.
        name: String,
        /// Its new value.
        value: Vec<u8>,
    },
    /// `proxy_add_header_map_value`
    AddHeader {
        /// In which map.
        map: MapKind,
        /// The header's name.
        name: String,
        /// The value to add.
        value: Vec<u8>,
    },
    /// `proxy_remove_header_map_value`
    RemoveHeader {
        /// In which map.
        map: MapKind,
        /// The header's name.
        name: String,
    },
    /// `proxy_get_property`
    GetProperty {
        /// The path's segments.
        path: Vec<String>,
    },
    /// `proxy_set_property`
    SetProperty {
        /// The key, without the `wasm.` that the host puts in front.
        key: String,
        /// The value.
        value: Vec<u8>,
    },
    /// `proxy_call_foreign_function`
    CallForeignFunction {
        /// The function's name.
        function: String,
        /// Its arguments.
        arguments: Vec<u8>,
    },
    /// `proxy_define_metric`
    DefineMetric {
        /// Its name.
        name: String,
    },
    /// `proxy_increment_metric`
    IncrementMetric {
        /// Its name.
        name: String,
        /// By how much.
        offset: i64,
    },
    /// `proxy_record_metric`
    RecordMetric {
        /// Its name.
        name: String,
        /// The value.
        value: u64,
    },
    /// `proxy_get_metric`
    GetMetric {
        /// Its name.
        name: String,
    },
    /// `proxy_get_shared_data`
    GetSharedData {
        /// The key.
        key: String,
    },
    /// `proxy_set_shared_data`
    SetSharedData {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
    },
    /// `proxy_set_effective_context`
    SetEffectiveContext {
        /// The context's id.
        context: u32,
    },
    /// `proxy_done`
    Done,
    /// Any other import of the module, by its own name.
    Other {
        /// The import's name.
        name: String,
    },
}

impl fmt::Display for HostCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log { level, message } => write!(f, "log {level} {message}"),
            Self::GetLogLevel => f.write_str("get_log_level"),
            Self::GetCurrentTime => f.write_str("get_current_time"),
            Self::SetTickPeriod { milliseconds } => write!(f, "set_tick_period {milliseconds}"),
            Self::GetBuffer { buffer } => write!(f, "get_buffer {buffer}"),
            Self::GetHeader { map, name } => write!(f, "get_header {map} {name}"),
            Self::GetHeadersSize { map } => write!(f, "get_headers_size {map}"),
            Self::GetHeaders { map } => write!(f, "get_headers {map}"),
            Self::ReplaceHeader { map, name, .. } => write!(f, "replace_header {map} {name}"),
            Self::AddHeader { map, name, .. } => write!(f, "add_header {map} {name}"),
            Self::RemoveHeader { map, name } => write!(f, "remove_header {map} {name}"),
            Self::GetProperty { path } => write!(f, "get_property {}", path.join(".")),
            Self::SetProperty { key, .. } => write!(f, "set_property {key}"),
            Self::CallForeignFunction { function, .. } => write!(f, "foreign {function}"),
            Self::DefineMetric { name } => write!(f, "define_metric {name}"),
            Self::IncrementMetric { name, offset } => write!(f, "increment_metric {name} {offset}"),
            Self::RecordMetric { name, value } => write!(f, "record_metric {name} {value}"),
            Self::GetMetric { name } => write!(f, "get_metric {name}"),
            Self::GetSharedData { key } => write!(f, "get_shared_data {}", key.replace('\0', "/")),
            Self::SetSharedData { key, .. } => {
                write!(f, "set_shared_data {}", key.replace('\0', "/"))
            }
            Self::SetEffectiveContext { context } => write!(f, "set_effective_context {context}"),
            Self::Done => f.write_str("done"),
            Self::Other { name } => f.write_str(name),
        }
    }
}

/// A buffer of the ABI that this host knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferKind {
    /// The request's body.
    RequestBody,
    /// The response's body.
    ResponseBody,
    /// The VM's configuration.
    VmConfiguration,
    /// The plugin's configuration.
    PluginConfiguration,
}

impl BufferKind {
    pub(crate) fn from_guest(value: u32) -> Option<Self> {
        Some(match value {
            0 => Self::RequestBody,
            1 => Self::ResponseBody,
            6 => Self::VmConfiguration,
            7 => Self::PluginConfiguration,
            _ => return None,
        })
    }
}

impl fmt::Display for BufferKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RequestBody => "request_body",
            Self::ResponseBody => "response_body",
            Self::VmConfiguration => "vm_configuration",
            Self::PluginConfiguration => "plugin_configuration",
        })
    }
}

/// A recorded host call with its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The context for which the module was called; 0 during initialisation.
    pub context: u32,
    /// The call.
    pub call: HostCall,
    /// The status that it returned.
    pub status: Status,
}
