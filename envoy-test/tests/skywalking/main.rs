//! What `SkyWalking` makes of access logs: tests a real OAP, and compares
//! `mxctl`'s implementation of its rules with it.

mod judge;
mod reading;
