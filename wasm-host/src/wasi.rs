//! The part of WASI preview 1 that a Rust module may import, as Envoy answers it: no files, no arguments, output into a
//! buffer. Random numbers come from the test's seed, at most as many bytes at once as Envoy gives. These calls are
//! recorded by name.

use crate::Status;
use crate::call::HostCall;
use crate::guest;
use crate::host::Host;
use wasmtime::{Caller, Linker, Result, bail};

const WASI: &str = "wasi_snapshot_preview1";

const SUCCESS: u32 = 0;
const BAD_DESCRIPTOR: u32 = 8;
const FAULT: u32 = 21;
const INVALID: u32 = 28;
/// What Envoy returns for calls that it does not support.
pub(crate) const NO_SYSTEM: u32 = 52;
const NOT_SUPPORTED: u32 = 58;

/// How many random bytes Envoy gives at once (proxy-wasm-cpp-host, `PROXY_WASM_HOST_WASI_RANDOM_GET_MAX_SIZE_BYTES`).
const MOST_RANDOM_BYTES: u32 = 64 << 10;

const REALTIME: u32 = 0;
const MONOTONIC: u32 = 1;

/// Defines the functions that this host carries out.
pub(crate) fn link(linker: &mut Linker<Host>) -> Result<()> {
    link_output(linker)?;
    link_environment(linker)?;
    linker.func_wrap(
        WASI,
        "random_get",
        |mut caller: Caller<'_, Host>, out: u32, size: u32| {
            record(&mut caller, "random_get");
            if size > MOST_RANDOM_BYTES {
                return INVALID;
            }
            let bytes = random_bytes(caller.data_mut(), size as usize);
            errno(guest::write(&mut caller, out, &bytes))
        },
    )?;
    linker.func_wrap(
        WASI,
        "clock_time_get",
        |mut caller: Caller<'_, Host>, clock: u32, _precision: u64, out: u32| {
            record(&mut caller, "clock_time_get");
            if !matches!(clock, REALTIME | MONOTONIC) {
                return NOT_SUPPORTED;
            }
            let now = caller.data().settings.now;
            errno(guest::write(&mut caller, out, &now.to_le_bytes()))
        },
    )?;
    linker.func_wrap(WASI, "proc_exit", |code: u32| -> Result<()> {
        bail!("the module exited with code {code}")
    })?;
    Ok(())
}

fn link_output(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(
        WASI,
        "fd_write",
        |mut caller: Caller<'_, Host>, descriptor: u32, vectors: u32, count: u32, out: u32| {
            record(&mut caller, "fd_write");
            if !matches!(descriptor, 1 | 2) {
                return BAD_DESCRIPTOR;
            }
            let Some(text) = gather(&caller, vectors, count) else {
                return FAULT;
            };
            let written = u32::try_from(text.len()).unwrap_or(u32::MAX);
            caller.data_mut().output.extend(text);
            errno(guest::write(&mut caller, out, &written.to_le_bytes()))
        },
    )?;
    Ok(())
}

fn link_environment(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(
        WASI,
        "environ_sizes_get",
        |mut caller: Caller<'_, Host>, count_out: u32, size_out: u32| {
            record(&mut caller, "environ_sizes_get");
            let entries = environment(caller.data());
            let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
            let size: usize = entries.iter().map(Vec::len).sum();
            let size = u32::try_from(size).unwrap_or(u32::MAX);
            errno(
                guest::write(&mut caller, count_out, &count.to_le_bytes())
                    .and_then(|()| guest::write(&mut caller, size_out, &size.to_le_bytes())),
            )
        },
    )?;
    linker.func_wrap(
        WASI,
        "environ_get",
        |mut caller: Caller<'_, Host>, mut pointers: u32, mut buffer: u32| {
            record(&mut caller, "environ_get");
            for entry in environment(caller.data()) {
                let written = guest::write(&mut caller, pointers, &buffer.to_le_bytes())
                    .and_then(|()| guest::write(&mut caller, buffer, &entry));
                if written.is_err() {
                    return FAULT;
                }
                pointers = pointers.wrapping_add(4);
                buffer = buffer.wrapping_add(u32::try_from(entry.len()).unwrap_or(u32::MAX));
            }
            SUCCESS
        },
    )?;
    Ok(())
}

fn record(caller: &mut Caller<'_, Host>, function: &str) {
    caller.data_mut().record(HostCall::Other {
        name: function.to_owned(),
    });
}

fn errno(result: Result<(), Status>) -> u32 {
    result.map_or(FAULT, |()| SUCCESS)
}

fn environment(host: &Host) -> Vec<Vec<u8>> {
    let variables = host.settings.environment.iter();
    variables
        .map(|(name, value)| format!("{name}={value}\0").into_bytes())
        .collect()
}

fn random_bytes(host: &mut Host, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend(host.random().to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Joins the pieces that a vectored write names: pairs of pointer and size.
fn gather(caller: &Caller<'_, Host>, vectors: u32, count: u32) -> Option<Vec<u8>> {
    let table = guest::read(caller, vectors, count.checked_mul(8)?).ok()?;
    let mut text = Vec::new();
    for vector in table.chunks_exact(8) {
        let (pointer, size) = vector.split_at(4);
        let pointer = u32::from_le_bytes(pointer.try_into().ok()?);
        let size = u32::from_le_bytes(size.try_into().ok()?);
        text.extend(guest::read(caller, pointer, size).ok()?);
    }
    Some(text)
}
