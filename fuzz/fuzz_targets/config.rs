//! See [`metadata_exchange_fuzz::config`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| metadata_exchange_fuzz::config::run(data));
