//! The status numbers of the proxy-wasm ABI.

use std::fmt;

/// The result of a host call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// No such header, property, metric, buffer or function.
    NotFound = 1,
    /// The call is invalid here: a read-only state, or a map outside its callback.
    BadArgument = 2,
    /// The property has no serialised form, such as a null.
    SerializationFailure = 3,
    /// The host could not parse the arguments.
    ParseFailure = 4,
    /// A malformed CEL expression.
    BadExpression = 5,
    /// A pointer outside linear memory.
    InvalidMemoryAccess = 6,
    /// An empty queue.
    Empty = 7,
    /// Shared data changed in between.
    CasMismatch = 8,
    /// The result is not of the expected type.
    ResultMismatch = 9,
    /// The host failed.
    InternalFailure = 10,
    /// The connection is gone.
    BrokenConnection = 11,
    /// The host does not support the call.
    Unimplemented = 12,
}

impl Status {
    /// Every status but [`Status::Ok`], for tests that make host calls fail.
    pub const FAILURES: [Self; 12] = [
        Self::NotFound,
        Self::BadArgument,
        Self::SerializationFailure,
        Self::ParseFailure,
        Self::BadExpression,
        Self::InvalidMemoryAccess,
        Self::Empty,
        Self::CasMismatch,
        Self::ResultMismatch,
        Self::InternalFailure,
        Self::BrokenConnection,
        Self::Unimplemented,
    ];
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The action that a callback returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Continue with the next filter.
    Continue,
    /// Hold the stream.
    Pause,
}

impl Action {
    /// Every value but 0 pauses the stream in some way.
    pub(crate) fn from_guest(value: u32) -> Self {
        if value == 0 {
            Self::Continue
        } else {
            Self::Pause
        }
    }
}

/// The level of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum LogLevel {
    /// 0
    Trace = 0,
    /// 1
    Debug = 1,
    /// 2
    Info = 2,
    /// 3
    Warn = 3,
    /// 4
    Error = 4,
    /// 5
    Critical = 5,
}

impl LogLevel {
    pub(crate) fn from_guest(value: u32) -> Option<Self> {
        Some(match value {
            0 => Self::Trace,
            1 => Self::Debug,
            2 => Self::Info,
            3 => Self::Warn,
            4 => Self::Error,
            5 => Self::Critical,
            _ => return None,
        })
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Critical => "critical",
        })
    }
}
