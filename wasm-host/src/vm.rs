//! Loads a module and calls it as Envoy does.

use crate::call::{HostCall, Recorded};
use crate::context::{RootState, StreamState};
use crate::host::{Host, LogLine, Settings};
use crate::{Action, Error, Headers, MapKind, Properties, Root, Status, Stream, abi, wasi};
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use wasmtime::{
    AsContextMut, Config, Engine, ExternType, Instance, InstancePre, Linker, Memory, Store,
    TypedFunc, Val, WasmParams, WasmResults,
};

/// The most instructions that one callback may take, so that an endless loop becomes a trap.
const FUEL_PER_CALLBACK: u64 = 2_000_000_000;

/// The exports that declare ABI 0.2; a module must have one of them.
const ABI_VERSIONS: [&str; 2] = ["proxy_abi_version_0_2_0", "proxy_abi_version_0_2_1"];

/// To allocate guest memory, Envoy calls the first of these that a module exports.
const ALLOCATORS: [&str; 2] = ["malloc", "proxy_on_memory_allocate"];

/// A compiled module, from which VMs can be started.
pub struct Module {
    engine: Engine,
    instance: InstancePre<Host>,
}

impl Module {
    /// Reads and compiles a module.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path)
            .map_err(|error| Error::module(format_args!("{}: {error}", path.display())))?;
        Self::new(&bytes)
    }

    /// Compiles a module. Unknown imports return [`Status::Unimplemented`].
    pub fn new(bytes: &[u8]) -> Result<Self, Error> {
        let mut config = Config::new();
        config.consume_fuel(true);
        let engine = Engine::new(&config).map_err(Error::module)?;
        let module = wasmtime::Module::new(&engine, bytes).map_err(Error::module)?;
        if !exports_any(&module, &ABI_VERSIONS) {
            return Err(Error::module("it exports no version 0.2 of the ABI"));
        }
        let instance = link(&engine, &module).map_err(Error::module)?;
        Ok(Self { engine, instance })
    }
}

fn exports_any(module: &wasmtime::Module, names: &[&str]) -> bool {
    names.iter().any(|name| module.get_export(name).is_some())
}

fn link(engine: &Engine, module: &wasmtime::Module) -> wasmtime::Result<InstancePre<Host>> {
    let mut linker = Linker::new(engine);
    linker.allow_shadowing(true);
    stub_imports(&mut linker, module)?;
    abi::link(&mut linker)?;
    wasi::link(&mut linker)?;
    linker.instantiate_pre(module)
}

/// Stubs every import with "unimplemented", until a real function replaces it.
fn stub_imports(linker: &mut Linker<Host>, module: &wasmtime::Module) -> wasmtime::Result<()> {
    for import in module.imports() {
        let ExternType::Func(signature) = import.ty() else {
            continue;
        };
        let name = import.name().to_owned();
        let status = match import.module() {
            "env" => Status::Unimplemented as u32,
            _ => wasi::NO_SYSTEM,
        };
        linker.func_new(import.module(), import.name(), signature, {
            move |mut caller, _, results| {
                let host: &mut Host = caller.data_mut();
                host.record_unimplemented(&name);
                if let [result] = results {
                    *result = Val::I32(status.cast_signed());
                }
                Ok(())
            }
        })?;
    }
    Ok(())
}

/// A running VM: an instance of a module with its contexts.
pub struct Vm {
    store: Store<Host>,
    memory: Memory,
    callbacks: Callbacks,
    last_context: u32,
    spent: u64,
    failed: bool,
}

impl Vm {
    /// Instantiates and initialises a module.
    pub fn start(module: &Module, settings: Settings) -> Result<Self, Error> {
        let mut store = Store::new(&module.engine, Host::new(settings));
        store.limiter(|host| &mut host.limits);
        refuel(&mut store)?;
        let instance = module.instance.instantiate(&mut store);
        let instance = instance.map_err(|error| trap("start", &error))?;
        let memory = instance
            .get_memory(&mut store, "memory")
            .ok_or_else(|| Error::module("it exports no memory"))?;
        let allocate = first_function(&mut store, &instance, &ALLOCATORS)?
            .ok_or_else(|| Error::module("it exports no allocator"))?;
        let host = store.data_mut();
        host.memory = Some(memory);
        host.allocate = Some(allocate);
        let callbacks = Callbacks::find(&mut store, &instance)?;
        let mut vm = Self {
            store,
            memory,
            callbacks,
            last_context: 0,
            spent: 0,
            failed: false,
        };
        vm.initialise(&instance)?;
        Ok(vm)
    }

    /// Initialises a reactor (and runs its `main`, if there is one), or starts a command.
    fn initialise(&mut self, instance: &Instance) -> Result<(), Error> {
        let initialise = optional::<(), ()>(&mut self.store, instance, "_initialize")?;
        if initialise.is_none() {
            let start = optional::<(), ()>(&mut self.store, instance, "_start")?;
            self.call("_start", None, start, ())?;
            return Ok(());
        }
        self.call("_initialize", None, initialise, ())?;
        let main: Option<TypedFunc<(u32, u32), u32>> = optional(&mut self.store, instance, "main")?;
        self.call("main", None, main, (0, 0))?;
        Ok(())
    }

    /// Starts and configures a plugin with its own root context. Several may share the VM.
    pub fn configure(&mut self, configuration: impl AsRef<[u8]>) -> Result<Root, Error> {
        let configuration = configuration.as_ref();
        let mut root = Root {
            id: self.next_context(),
            accepted: false,
            state: Rc::new(RefCell::new(RootState::default())),
        };
        root.state.borrow_mut().configuration = Some(configuration.to_vec());
        let roots = &mut self.store.data_mut().roots;
        roots.insert(root.id, Rc::clone(&root.state));
        root.accepted = self.start_root(root.id, size(configuration))?;
        root.state.borrow_mut().configuration = None;
        Ok(root)
    }

    fn start_root(&mut self, id: u32, configuration_size: u32) -> Result<bool, Error> {
        let Callbacks {
            context_create,
            vm_start,
            configure,
            ..
        } = self.callbacks.clone();
        self.call("proxy_on_context_create", Some(id), context_create, (id, 0))?;
        let vm_configuration = size(&self.store.data().settings.vm_configuration);
        let started = self.call(
            "proxy_on_vm_start",
            Some(id),
            vm_start,
            (id, vm_configuration),
        )?;
        if started == Some(0) {
            return Err(Error::VmStartRefused);
        }
        let accepted = self.call(
            "proxy_on_configure",
            Some(id),
            configure,
            (id, configuration_size),
        )?;
        Ok(accepted != Some(0))
    }

    /// Fires a root context's timer.
    pub fn tick(&mut self, root: &Root) -> Result<(), Error> {
        let tick = self.callbacks.tick.clone();
        self.call("proxy_on_tick", Some(root.id), tick, root.id)?;
        Ok(())
    }

    /// Ends a root context, as Envoy does when the last stream of an old configuration is gone.
    pub fn remove(&mut self, root: &Root) -> Result<(), Error> {
        self.end(root.id)?;
        self.store.data_mut().roots.remove(&root.id);
        Ok(())
    }

    /// Opens a stream that the filter does not know yet: Envoy creates its context with the request's headers.
    pub fn open(&mut self, root: &Root, properties: Properties) -> Stream {
        let state = StreamState::new(root, properties.of_request());
        let stream = Stream {
            id: self.next_context(),
            state: Rc::new(RefCell::new(state)),
        };
        let streams = &mut self.store.data_mut().streams;
        streams.insert(stream.id, Rc::clone(&stream.state));
        stream
    }

    /// Passes the request's headers to the module.
    pub fn request_headers(&mut self, stream: &Stream, headers: Headers) -> Result<Action, Error> {
        self.create_context(stream)?;
        let callback = self.callbacks.request_headers.clone();
        self.show_headers(
            stream,
            MapKind::Request,
            headers,
            "proxy_on_request_headers",
            callback,
        )
    }

    /// Passes the response's headers to the module. As in Envoy, a filter that never saw the request does not see them.
    pub fn response_headers(&mut self, stream: &Stream, headers: Headers) -> Result<Action, Error> {
        let callback = self.callbacks.response_headers.clone();
        self.show_headers(
            stream,
            MapKind::Response,
            headers,
            "proxy_on_response_headers",
            callback,
        )
    }

    /// Passes a piece of the request's body to the module.
    pub fn request_body(
        &mut self,
        stream: &Stream,
        body: &[u8],
        end_of_stream: bool,
    ) -> Result<Action, Error> {
        let callback = self.callbacks.request_body.clone();
        stream.state.borrow_mut().request_body = Some(body.to_vec());
        let parameters = (stream.id, size(body), u32::from(end_of_stream));
        let action = self.call(
            "proxy_on_request_body",
            Some(stream.id),
            callback,
            parameters,
        );
        stream.state.borrow_mut().request_body = None;
        Ok(to_action(action?))
    }

    /// Passes a piece of the response's body to the module.
    pub fn response_body(
        &mut self,
        stream: &Stream,
        body: &[u8],
        end_of_stream: bool,
    ) -> Result<Action, Error> {
        let callback = self.callbacks.response_body.clone();
        stream.state.borrow_mut().response_body = Some(body.to_vec());
        let parameters = (stream.id, size(body), u32::from(end_of_stream));
        let action = self.call(
            "proxy_on_response_body",
            Some(stream.id),
            callback,
            parameters,
        );
        stream.state.borrow_mut().response_body = None;
        Ok(to_action(action?))
    }

    /// Passes the request's trailers to the module.
    pub fn request_trailers(
        &mut self,
        stream: &Stream,
        trailers: Headers,
    ) -> Result<Action, Error> {
        let callback = self.callbacks.request_trailers.clone();
        self.show_trailers(
            stream,
            MapKind::RequestTrailers,
            trailers,
            "proxy_on_request_trailers",
            callback,
        )
    }

    /// Passes the response's trailers to the module.
    pub fn response_trailers(
        &mut self,
        stream: &Stream,
        trailers: Headers,
    ) -> Result<Action, Error> {
        let callback = self.callbacks.response_trailers.clone();
        self.show_trailers(
            stream,
            MapKind::ResponseTrailers,
            trailers,
            "proxy_on_response_trailers",
            callback,
        )
    }

    /// Ends a stream: it is logged, then done, then deleted. The handle stays readable.
    pub fn finish(&mut self, stream: &Stream) -> Result<(), Error> {
        self.create_context(stream)?;
        let log = self.callbacks.log.clone();
        stream.state.borrow_mut().start_logging();
        let logged = self.call("proxy_on_log", Some(stream.id), log, stream.id);
        stream.state.borrow_mut().end_logging();
        logged?;
        self.end(stream.id)?;
        self.store.data_mut().streams.remove(&stream.id);
        Ok(())
    }

    /// Lets the test answer host calls: a call for which `fault` returns a status is not carried out.
    pub fn fail(&mut self, fault: impl FnMut(&HostCall) -> Option<Status> + 'static) {
        self.store.data_mut().fault = Some(Box::new(fault));
    }

    /// Removes the fault: host calls are carried out again.
    pub fn heal(&mut self) {
        self.store.data_mut().fault = None;
    }

    /// The host calls since this was last called.
    pub fn take_calls(&mut self) -> Vec<Recorded> {
        std::mem::take(&mut self.store.data_mut().calls)
    }

    /// The lines that the module has logged so far.
    #[must_use]
    pub fn logs(&self) -> &[LogLine] {
        &self.store.data().logs
    }

    /// The module's standard output and error.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.store.data().output).into_owned()
    }

    /// The value of a metric, `None` if it was never defined.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<u64> {
        self.store.data().metrics.by_name(name)
    }

    /// Sets the clock.
    pub fn set_now(&mut self, nanoseconds: u64) {
        self.store.data_mut().settings.now = nanoseconds;
    }

    /// Replaces the attributes that apply everywhere.
    pub fn set_properties(&mut self, properties: Properties) {
        self.store.data_mut().settings.properties = properties;
    }

    /// The guest instructions that `work` takes.
    pub fn measure<R>(&mut self, work: impl FnOnce(&mut Self) -> R) -> (R, u64) {
        let before = self.spent;
        let result = work(self);
        (result, self.spent - before)
    }

    /// The size of linear memory, in pages of 64 KiB.
    #[must_use]
    pub fn memory_pages(&self) -> u64 {
        self.memory.size(&self.store)
    }

    fn next_context(&mut self) -> u32 {
        self.last_context += 1;
        self.last_context
    }

    fn create_context(&mut self, stream: &Stream) -> Result<(), Error> {
        let root = {
            let mut state = stream.state.borrow_mut();
            if std::mem::replace(&mut state.created, true) {
                return Ok(());
            }
            state.root_id
        };
        let create = self.callbacks.context_create.clone();
        self.call(
            "proxy_on_context_create",
            Some(stream.id),
            create,
            (stream.id, root),
        )?;
        Ok(())
    }

    fn show_headers(
        &mut self,
        stream: &Stream,
        kind: MapKind,
        headers: Headers,
        name: &'static str,
        callback: Option<TypedFunc<(u32, u32, u32), u32>>,
    ) -> Result<Action, Error> {
        let parameters = (stream.id, count(&headers), 0);
        self.show(stream, kind, headers, |vm| {
            vm.call(name, Some(stream.id), callback, parameters)
        })
    }

    fn show_trailers(
        &mut self,
        stream: &Stream,
        kind: MapKind,
        trailers: Headers,
        name: &'static str,
        callback: Option<TypedFunc<(u32, u32), u32>>,
    ) -> Result<Action, Error> {
        let parameters = (stream.id, count(&trailers));
        self.show(stream, kind, trailers, |vm| {
            vm.call(name, Some(stream.id), callback, parameters)
        })
    }

    /// Makes a map accessible during its callback, and longer only if the callback pauses the stream.
    fn show(
        &mut self,
        stream: &Stream,
        kind: MapKind,
        headers: Headers,
        call: impl FnOnce(&mut Self) -> Result<Option<u32>, Error>,
    ) -> Result<Action, Error> {
        stream.state.borrow_mut().open_map(kind, headers);
        let action = if stream.state.borrow().created {
            to_action(call(self)?)
        } else {
            Action::Continue
        };
        if action == Action::Continue {
            stream.state.borrow_mut().close_map(kind);
        }
        Ok(action)
    }

    fn end(&mut self, context: u32) -> Result<(), Error> {
        let done = self.callbacks.done.clone();
        self.call("proxy_on_done", Some(context), done, context)?;
        let delete = self.callbacks.delete.clone();
        self.call("proxy_on_delete", Some(context), delete, context)?;
        Ok(())
    }

    /// Calls a callback for a context; one that the module does not export is skipped.
    fn call<P: WasmParams, R: WasmResults>(
        &mut self,
        name: &'static str,
        context: Option<u32>,
        callback: Option<TypedFunc<P, R>>,
        parameters: P,
    ) -> Result<Option<R>, Error> {
        if self.failed {
            return Err(Error::Failed);
        }
        let Some(callback) = callback else {
            return Ok(None);
        };
        refuel(&mut self.store)?;
        self.store.data_mut().enter(context);
        let result = callback.call(&mut self.store, parameters);
        self.spent += FUEL_PER_CALLBACK - self.store.get_fuel().map_err(Error::module)?;
        result.map(Some).map_err(|error| {
            self.failed = true;
            trap(name, &error)
        })
    }
}

/// The callbacks that the module exports.
#[derive(Clone)]
struct Callbacks {
    context_create: Option<TypedFunc<(u32, u32), ()>>,
    vm_start: Option<TypedFunc<(u32, u32), u32>>,
    configure: Option<TypedFunc<(u32, u32), u32>>,
    tick: Option<TypedFunc<u32, ()>>,
    request_headers: Option<TypedFunc<(u32, u32, u32), u32>>,
    request_body: Option<TypedFunc<(u32, u32, u32), u32>>,
    request_trailers: Option<TypedFunc<(u32, u32), u32>>,
    response_headers: Option<TypedFunc<(u32, u32, u32), u32>>,
    response_body: Option<TypedFunc<(u32, u32, u32), u32>>,
    response_trailers: Option<TypedFunc<(u32, u32), u32>>,
    log: Option<TypedFunc<u32, ()>>,
    done: Option<TypedFunc<u32, u32>>,
    delete: Option<TypedFunc<u32, ()>>,
}

impl Callbacks {
    fn find(store: &mut Store<Host>, instance: &Instance) -> Result<Self, Error> {
        Ok(Self {
            context_create: optional(store, instance, "proxy_on_context_create")?,
            vm_start: optional(store, instance, "proxy_on_vm_start")?,
            configure: optional(store, instance, "proxy_on_configure")?,
            tick: optional(store, instance, "proxy_on_tick")?,
            request_headers: optional(store, instance, "proxy_on_request_headers")?,
            request_body: optional(store, instance, "proxy_on_request_body")?,
            request_trailers: optional(store, instance, "proxy_on_request_trailers")?,
            response_headers: optional(store, instance, "proxy_on_response_headers")?,
            response_body: optional(store, instance, "proxy_on_response_body")?,
            response_trailers: optional(store, instance, "proxy_on_response_trailers")?,
            log: optional(store, instance, "proxy_on_log")?,
            done: optional(store, instance, "proxy_on_done")?,
            delete: optional(store, instance, "proxy_on_delete")?,
        })
    }
}

/// The export of this name, if there is one; it must have this signature.
fn optional<P: WasmParams, R: WasmResults>(
    store: &mut Store<Host>,
    instance: &Instance,
    name: &str,
) -> Result<Option<TypedFunc<P, R>>, Error> {
    let Some(function) = instance.get_func(store.as_context_mut(), name) else {
        return Ok(None);
    };
    let typed = function.typed(&store);
    typed
        .map(Some)
        .map_err(|error| Error::module(format_args!("{name}: {error:#}")))
}

fn first_function(
    store: &mut Store<Host>,
    instance: &Instance,
    names: &[&str],
) -> Result<Option<TypedFunc<u32, u32>>, Error> {
    for name in names {
        let found = optional(store, instance, name)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn refuel(store: &mut Store<Host>) -> Result<(), Error> {
    store.set_fuel(FUEL_PER_CALLBACK).map_err(Error::module)
}

fn trap(callback: &'static str, error: &wasmtime::Error) -> Error {
    Error::Trap {
        callback,
        reason: format!("{error:#}"),
    }
}

fn to_action(value: Option<u32>) -> Action {
    value.map_or(Action::Continue, Action::from_guest)
}

fn size(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn count(headers: &Headers) -> u32 {
    u32::try_from(headers.len()).unwrap_or(u32::MAX)
}
