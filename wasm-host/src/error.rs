//! Errors of a module or its VM.

use std::fmt;

/// Why a module could not be loaded, or how it failed.
#[derive(Debug)]
pub enum Error {
    /// The module cannot be read or compiled, or lacks what the ABI requires.
    Module {
        /// What is wrong with it.
        reason: String,
    },
    /// The guest trapped, ran out of fuel or exited. In Envoy, the VM would have failed.
    Trap {
        /// The callback in which it happened.
        callback: &'static str,
        /// The reason.
        reason: String,
    },
    /// The VM trapped earlier; Envoy no longer calls it.
    Failed,
    /// `proxy_on_vm_start` refused.
    VmStartRefused,
}

impl Error {
    pub(crate) fn module(reason: impl fmt::Display) -> Self {
        Self::Module {
            reason: format!("{reason:#}"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Module { reason } => write!(f, "unusable module: {reason}"),
            Self::Trap { callback, reason } => write!(f, "trap in {callback}: {reason}"),
            Self::Failed => f.write_str("the VM failed earlier"),
            Self::VmStartRefused => f.write_str("proxy_on_vm_start refused"),
        }
    }
}

impl std::error::Error for Error {}
