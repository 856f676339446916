//! Conversion between crates' types of one message.

use prost::{DecodeError, Message};

/// Converts a message to another crate's type of the same message.
pub fn convert<M: Message + Default>(message: &impl Message) -> Result<M, DecodeError> {
    M::decode(message.encode_to_vec().as_slice())
}
