//! Access to the guest's linear memory.

use crate::Status;
use crate::host::Host;
use wasmtime::{AsContext, AsContextMut, Caller};

/// Why a host call did not return Ok.
pub(crate) enum Failure {
    /// The guest receives this status.
    Status(Status),
    /// The guest trapped while allocating memory for the result.
    Trap(wasmtime::Error),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// Copies bytes out of the guest.
pub(crate) fn read(caller: &Caller<'_, Host>, pointer: u32, size: u32) -> Result<Vec<u8>, Status> {
    let memory = caller.data().memory.ok_or(Status::InvalidMemoryAccess)?;
    let start = pointer as usize;
    let end = start
        .checked_add(size as usize)
        .ok_or(Status::InvalidMemoryAccess)?;
    let bytes = memory.data(caller.as_context()).get(start..end);
    Ok(bytes.ok_or(Status::InvalidMemoryAccess)?.to_vec())
}

/// Copies bytes into the guest.
pub(crate) fn write(
    caller: &mut Caller<'_, Host>,
    pointer: u32,
    bytes: &[u8],
) -> Result<(), Status> {
    let memory = caller.data().memory.ok_or(Status::InvalidMemoryAccess)?;
    memory
        .write(caller.as_context_mut(), pointer as usize, bytes)
        .map_err(|_| Status::InvalidMemoryAccess)
}

/// Copies bytes into memory that the guest allocates, and writes pointer and size to its outputs. Empty bytes give a
/// null pointer and size 0.
pub(crate) fn give(
    caller: &mut Caller<'_, Host>,
    bytes: &[u8],
    pointer_out: u32,
    size_out: u32,
) -> Result<(), Failure> {
    let size = u32::try_from(bytes.len()).map_err(|_| Status::InvalidMemoryAccess)?;
    let pointer = if size == 0 {
        0
    } else {
        allocate(caller, size)?
    };
    write(caller, pointer, bytes)?;
    write(caller, pointer_out, &pointer.to_le_bytes())?;
    write(caller, size_out, &size.to_le_bytes())?;
    Ok(())
}

fn allocate(caller: &mut Caller<'_, Host>, size: u32) -> Result<u32, Failure> {
    let allocate = caller.data().allocate.clone();
    let allocate = allocate.ok_or(Status::InvalidMemoryAccess)?;
    let pointer = allocate
        .call(caller.as_context_mut(), size)
        .map_err(Failure::Trap)?;
    if pointer == 0 {
        return Err(Status::InvalidMemoryAccess.into());
    }
    Ok(pointer)
}
