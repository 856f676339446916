//! The imports of the proxy-wasm ABI 0.2.x, answered as Envoy answers them.

use crate::call::{BufferKind, HostCall};
use crate::guest::{self, Failure};
use crate::host::{Host, LogLine};
use crate::pairs;
use crate::properties::PropertyPath;
use crate::{LogLevel, MapKind, Status};
use wasmtime::{Caller, Linker, Result, bail};

const ENV: &str = "env";

/// A host call in progress: read the arguments, record the call, then carry it out.
struct Call<'a, 'b> {
    caller: &'a mut Caller<'b, Host>,
    recorded: Option<usize>,
}

impl Call<'_, '_> {
    fn bytes(&self, pointer: u32, size: u32) -> Result<Vec<u8>, Status> {
        guest::read(self.caller, pointer, size)
    }

    fn text(&self, pointer: u32, size: u32) -> Result<String, Status> {
        let bytes = self.bytes(pointer, size)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Records the call. A test may answer it in place of the host.
    fn announce(&mut self, call: HostCall) -> Result<(), Status> {
        let host = self.caller.data_mut();
        let fault = host.fault.as_mut().and_then(|fault| fault(&call));
        self.recorded = Some(host.record(call));
        match fault {
            None | Some(Status::Ok) => Ok(()),
            Some(status) => Err(status),
        }
    }

    fn host(&mut self) -> &mut Host {
        self.caller.data_mut()
    }

    fn give(&mut self, bytes: &[u8], pointer_out: u32, size_out: u32) -> Result<(), Failure> {
        guest::give(self.caller, bytes, pointer_out, size_out)
    }

    fn write(&mut self, pointer: u32, bytes: &[u8]) -> Result<(), Failure> {
        Ok(guest::write(self.caller, pointer, bytes)?)
    }
}

/// Carries out a call and converts its outcome to the status number that the guest receives.
fn answer(
    mut caller: Caller<'_, Host>,
    import: &str,
    perform: impl FnOnce(&mut Call<'_, '_>) -> Result<(), Failure>,
) -> Result<u32> {
    if caller.data().is_initialising() && import != "proxy_log" {
        bail!("{import} is not allowed while the module is initialised");
    }
    let mut call = Call {
        caller: &mut caller,
        recorded: None,
    };
    let outcome = perform(&mut call);
    let recorded = call.recorded;
    let status = match outcome {
        Ok(()) => Status::Ok,
        Err(Failure::Status(status)) => status,
        Err(Failure::Trap(trap)) => return Err(trap),
    };
    let host = caller.data_mut();
    let recorded = recorded.unwrap_or_else(|| host.record(other(import)));
    if let Some(recorded) = host.calls.get_mut(recorded) {
        recorded.status = status;
    }
    Ok(status as u32)
}

fn other(import: &str) -> HostCall {
    HostCall::Other {
        name: import.to_owned(),
    }
}

fn map_kind(value: u32) -> Result<MapKind, Status> {
    MapKind::from_guest(value).ok_or(Status::BadArgument)
}

/// Defines every import that this host knows.
pub(crate) fn link(linker: &mut Linker<Host>) -> Result<()> {
    link_general(linker)?;
    link_header_reads(linker)?;
    link_header_writes(linker)?;
    link_properties(linker)?;
    link_shared_data(linker)?;
    link_metrics(linker)
}

fn link_general(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(
        ENV,
        "proxy_log",
        |caller: Caller<'_, Host>, level: u32, text: u32, size: u32| {
            answer(caller, "proxy_log", |call| {
                let level = LogLevel::from_guest(level).ok_or(Status::BadArgument)?;
                let message = call.text(text, size)?;
                call.announce(HostCall::Log {
                    level,
                    message: message.clone(),
                })?;
                call.host().logs.push(LogLine { level, message });
                Ok(())
            })
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_get_log_level",
        |caller: Caller<'_, Host>, out: u32| {
            answer(caller, "proxy_get_log_level", |call| {
                call.announce(HostCall::GetLogLevel)?;
                let level = call.host().settings.log_level as u32;
                call.write(out, &level.to_le_bytes())
            })
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_get_current_time_nanoseconds",
        |caller: Caller<'_, Host>, out: u32| {
            answer(caller, "proxy_get_current_time_nanoseconds", |call| {
                call.announce(HostCall::GetCurrentTime)?;
                let now = call.host().settings.now;
                call.write(out, &now.to_le_bytes())
            })
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_set_tick_period_milliseconds",
        |caller: Caller<'_, Host>, milliseconds: u32| {
            answer(caller, "proxy_set_tick_period_milliseconds", |call| {
                call.announce(HostCall::SetTickPeriod { milliseconds })?;
                let root = call.host().root().ok_or(Status::BadArgument)?;
                root.borrow_mut().tick_period = milliseconds;
                Ok(())
            })
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_get_buffer_bytes",
        |caller: Caller<'_, Host>,
         buffer: u32,
         start: u32,
         length: u32,
         pointer_out: u32,
         size_out: u32| {
            answer(caller, "proxy_get_buffer_bytes", |call| {
                let buffer = BufferKind::from_guest(buffer).ok_or(Status::NotFound)?;
                call.announce(HostCall::GetBuffer { buffer })?;
                let bytes = call.host().buffer(buffer)?;
                let end = bytes
                    .len()
                    .min((start as usize).saturating_add(length as usize));
                match bytes.get(start as usize..end) {
                    // Envoy answers Ok for an empty range and leaves the outputs unchanged.
                    None | Some([]) => Ok(()),
                    Some(part) => call.give(part, pointer_out, size_out),
                }
            })
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_set_effective_context",
        |caller: Caller<'_, Host>, context: u32| {
            answer(caller, "proxy_set_effective_context", |call| {
                call.announce(HostCall::SetEffectiveContext { context })?;
                Ok(call.host().set_effective_context(context)?)
            })
        },
    )?;
    linker.func_wrap(ENV, "proxy_done", |caller: Caller<'_, Host>| {
        answer(caller, "proxy_done", |call| {
            call.announce(HostCall::Done)?;
            // Only a context that asked for a delay has something to finish, and this host supports no delays.
            Err(Status::NotFound.into())
        })
    })?;
    Ok(())
}

fn link_header_reads(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(
        ENV,
        "proxy_get_header_map_value",
        |caller: Caller<'_, Host>,
         map: u32,
         name: u32,
         name_size: u32,
         pointer_out: u32,
         size_out: u32| {
            answer(caller, "proxy_get_header_map_value", |call| {
                let map = map_kind(map)?;
                let name = call.text(name, name_size)?;
                call.announce(HostCall::GetHeader {
                    map,
                    name: name.clone(),
                })?;
                let value = call.host().read_map(map, |headers| {
                    headers
                        .get(&name)
                        .map(<[u8]>::to_vec)
                        .ok_or(Status::NotFound)
                })?;
                call.give(&value, pointer_out, size_out)
            })
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_get_header_map_size",
        |caller: Caller<'_, Host>, map: u32, size_out: u32| {
            answer(caller, "proxy_get_header_map_size", |call| {
                let map = map_kind(map)?;
                call.announce(HostCall::GetHeadersSize { map })?;
                let size = call
                    .host()
                    .read_map(map, |headers| Ok(headers.byte_size()))?;
                call.write(size_out, &size.to_le_bytes())
            })
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_get_header_map_pairs",
        |caller: Caller<'_, Host>, map: u32, pointer_out: u32, size_out: u32| {
            answer(caller, "proxy_get_header_map_pairs", |call| {
                let map = map_kind(map)?;
                call.announce(HostCall::GetHeaders { map })?;
                // Unlike the other calls, this one treats a missing map as empty.
                let headers = call.host().read_map(map, |headers| Ok(headers.clone()));
                let headers = headers.unwrap_or_default();
                let pairs: Vec<_> = headers.iter().collect();
                let bytes = if pairs.is_empty() {
                    Vec::new()
                } else {
                    pairs::encode(&pairs)
                };
                call.give(&bytes, pointer_out, size_out)
            })
        },
    )?;
    Ok(())
}

fn link_header_writes(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(
        ENV,
        "proxy_replace_header_map_value",
        |caller: Caller<'_, Host>,
         map: u32,
         name: u32,
         name_size: u32,
         value: u32,
         value_size: u32| {
            answer(caller, "proxy_replace_header_map_value", |call| {
                let map = map_kind(map)?;
                let name = call.text(name, name_size)?;
                let value = call.bytes(value, value_size)?;
                call.announce(HostCall::ReplaceHeader {
                    map,
                    name: name.clone(),
                    value: value.clone(),
                })?;
                Ok(call
                    .host()
                    .write_map(map, |headers| headers.replace(&name, &value))?)
            })
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_add_header_map_value",
        |caller: Caller<'_, Host>,
         map: u32,
         name: u32,
         name_size: u32,
         value: u32,
         value_size: u32| {
            answer(caller, "proxy_add_header_map_value", |call| {
                let map = map_kind(map)?;
                let name = call.text(name, name_size)?;
                let value = call.bytes(value, value_size)?;
                call.announce(HostCall::AddHeader {
                    map,
                    name: name.clone(),
                    value: value.clone(),
                })?;
                Ok(call
                    .host()
                    .write_map(map, |headers| headers.add(&name, &value))?)
            })
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_remove_header_map_value",
        |caller: Caller<'_, Host>, map: u32, name: u32, name_size: u32| {
            answer(caller, "proxy_remove_header_map_value", |call| {
                let map = map_kind(map)?;
                let name = call.text(name, name_size)?;
                call.announce(HostCall::RemoveHeader {
                    map,
                    name: name.clone(),
                })?;
                Ok(call
                    .host()
                    .write_map(map, |headers| headers.remove(&name))?)
            })
        },
    )?;
    Ok(())
}

fn link_properties(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(
        ENV,
        "proxy_get_property",
        |caller: Caller<'_, Host>, path: u32, path_size: u32, pointer_out: u32, size_out: u32| {
            answer(caller, "proxy_get_property", |call| {
                let path = PropertyPath::from_guest(call.bytes(path, path_size)?);
                call.announce(HostCall::GetProperty {
                    path: path.segments(),
                })?;
                let value = call.host().property(&path)?;
                call.give(&value, pointer_out, size_out)
            })
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_set_property",
        |caller: Caller<'_, Host>, key: u32, key_size: u32, value: u32, value_size: u32| {
            answer(caller, "proxy_set_property", |call| {
                let key = call.text(key, key_size)?;
                let value = call.bytes(value, value_size)?;
                call.announce(HostCall::SetProperty {
                    key: key.clone(),
                    value: value.clone(),
                })?;
                Ok(call.host().set_property(&key, &value)?)
            })
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_call_foreign_function",
        |caller: Caller<'_, Host>,
         function: u32,
         function_size: u32,
         arguments: u32,
         arguments_size: u32,
         pointer_out: u32,
         size_out: u32| {
            answer(caller, "proxy_call_foreign_function", |call| {
                let function = call.text(function, function_size)?;
                let arguments = call.bytes(arguments, arguments_size)?;
                call.announce(HostCall::CallForeignFunction {
                    function: function.clone(),
                    arguments: arguments.clone(),
                })?;
                call_foreign_function(call.host(), &function, &arguments)?;
                // Envoy writes only the outputs whose pointers are not null.
                for out in [pointer_out, size_out] {
                    if out != 0 {
                        call.write(out, &0_u32.to_le_bytes())?;
                    }
                }
                Ok(())
            })
        },
    )?;
    Ok(())
}

fn call_foreign_function(host: &Host, function: &str, arguments: &[u8]) -> Result<(), Status> {
    if function != "declare_property" {
        return Err(Status::NotFound);
    }
    let root = host.root().ok_or(Status::BadArgument)?;
    root.borrow_mut().declare(arguments)
}

fn link_shared_data(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(
        ENV,
        "proxy_get_shared_data",
        |caller: Caller<'_, Host>,
         key: u32,
         key_size: u32,
         pointer_out: u32,
         size_out: u32,
         cas_out: u32| {
            answer(caller, "proxy_get_shared_data", |call| {
                let key = call.text(key, key_size)?;
                call.announce(HostCall::GetSharedData { key: key.clone() })?;
                let (value, cas) = call.host().settings.shared_data.get(key.as_bytes())?;
                call.give(&value, pointer_out, size_out)?;
                call.write(cas_out, &cas.to_le_bytes())
            })
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_set_shared_data",
        |caller: Caller<'_, Host>,
         key: u32,
         key_size: u32,
         value: u32,
         value_size: u32,
         cas: u32| {
            answer(caller, "proxy_set_shared_data", |call| {
                let key = call.text(key, key_size)?;
                let value = call.bytes(value, value_size)?;
                call.announce(HostCall::SetSharedData {
                    key: key.clone(),
                    value: value.clone(),
                })?;
                let shared = &call.host().settings.shared_data;
                Ok(shared.set(key.as_bytes(), &value, cas)?)
            })
        },
    )?;
    Ok(())
}

fn link_metrics(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(
        ENV,
        "proxy_define_metric",
        |caller: Caller<'_, Host>, kind: u32, name: u32, name_size: u32, out: u32| {
            answer(caller, "proxy_define_metric", |call| {
                let name = call.text(name, name_size)?;
                call.announce(HostCall::DefineMetric { name: name.clone() })?;
                let id = call.host().metrics.define(kind, &name)?;
                call.write(out, &id.to_le_bytes())
            })
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_increment_metric",
        |caller: Caller<'_, Host>, id: u32, offset: i64| {
            answer(caller, "proxy_increment_metric", |call| {
                let name = call.host().metrics.name(id);
                call.announce(HostCall::IncrementMetric { name, offset })?;
                Ok(call.host().metrics.increment(id, offset)?)
            })
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_record_metric",
        |caller: Caller<'_, Host>, id: u32, value: u64| {
            answer(caller, "proxy_record_metric", |call| {
                let name = call.host().metrics.name(id);
                call.announce(HostCall::RecordMetric { name, value })?;
                Ok(call.host().metrics.record(id, value)?)
            })
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_get_metric",
        |caller: Caller<'_, Host>, id: u32, out: u32| {
            answer(caller, "proxy_get_metric", |call| {
                let name = call.host().metrics.name(id);
                call.announce(HostCall::GetMetric { name })?;
                let value = call.host().metrics.read(id)?;
                call.write(out, &value.to_le_bytes())
            })
        },
    )?;
    Ok(())
}
