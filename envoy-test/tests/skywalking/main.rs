//! What `SkyWalking` makes of access logs: a real OAP, and `mxctl`'s reading of its
//! rules, held against it.

mod judge;
mod reading;
