//! See [`metadata_exchange_fuzz::node`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| metadata_exchange_fuzz::node::run(data));
