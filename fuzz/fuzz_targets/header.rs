//! See [`metadata_exchange_fuzz::header`].
#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use metadata_exchange_fuzz::header::value_offset;

fuzz_target!(|data: &[u8]| metadata_exchange_fuzz::header::run(data));

// Randomly changed bytes are rarely valid base64, so every other time the
// message inside is changed.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mutated = if seed.is_multiple_of(2) {
        mutate_message(data, size, max_size)
    } else {
        None
    };
    mutated.unwrap_or_else(|| fuzzer_mutate(data, size, max_size))
});

/// Mutates the message inside the base64 and returns the new size; `None` if it
/// is not base64 or becomes too long.
fn mutate_message(data: &mut [u8], size: usize, max_size: usize) -> Option<usize> {
    let (_, value) = data.split_at_mut(value_offset(&data[..size]));
    let offset = max_size - value.len();
    let mut message = STANDARD.decode(&value[..size - offset]).ok()?;
    let message_size = message.len();
    message.resize(max_size, 0);
    let message_size = fuzzer_mutate(&mut message, message_size, max_size);
    let encoded = STANDARD.encode(&message[..message_size]);
    value
        .get_mut(..encoded.len())?
        .copy_from_slice(encoded.as_bytes());
    Some(offset + encoded.len())
}
