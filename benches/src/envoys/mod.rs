//! Real Envoys under load: one with each module and one with none, asked in turns.

pub(crate) mod app;
mod calls;
pub(crate) mod consumers;
pub(crate) mod first_request;
pub(crate) mod lane;
pub(crate) mod load;
pub(crate) mod on_log;
pub(crate) mod sidecar;
pub(crate) mod start;
pub(crate) mod tcp;
pub(crate) mod turns;
pub(crate) mod wire_bytes;
