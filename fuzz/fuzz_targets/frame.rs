//! See [`metadata_exchange_fuzz::frame`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| metadata_exchange_fuzz::frame::run(data));
