//! Tests of the host itself, with small modules in text form: each call behaves as in Envoy.

use wasm_host::{
    Action, Declaration, Direction, Error, Headers, HostCall, LifeSpan, LogLevel, Module, Node,
    Properties, Root, Settings, StateObject, StateType, Status, Stream, Vm,
};

/// A builder for a module: strings in its memory, functions in its body.
#[derive(Default)]
struct Guest {
    strings: Vec<u8>,
    functions: String,
    imports: String,
}

/// Where the strings of a guest start.
const STRINGS: usize = 1024;

impl Guest {
    /// The pointer and size of a string, as two operands.
    fn text(&mut self, text: impl AsRef<[u8]>) -> String {
        let text = text.as_ref();
        let start = STRINGS + self.strings.len();
        self.strings.extend(text);
        format!("(i32.const {start}) (i32.const {})", text.len())
    }

    fn import(mut self, line: &str) -> Self {
        self.imports.push_str(line);
        self
    }

    /// Adds a callback with a stream context and any further parameters, which returns 0 or nothing.
    fn on(self, callback: &str, body: &str) -> Self {
        let signature = match callback {
            "request_headers" | "response_headers" | "request_body" | "response_body" => {
                "(param $context i32) (param i32 i32) (result i32)"
            }
            "vm_start" | "configure" | "request_trailers" | "response_trailers" => {
                "(param $context i32) (param i32) (result i32)"
            }
            "context_create" => "(param $context i32) (param $parent i32)",
            "done" => "(param $context i32) (result i32)",
            _ => "(param $context i32)",
        };
        let result = match callback {
            "vm_start" | "configure" | "done" => "(i32.const 1)",
            _ if signature.contains("result") => "(i32.const 0)",
            _ => "",
        };
        let function =
            format!(r#"(func (export "proxy_on_{callback}") {signature} {body} {result})"#);
        self.function(&function)
    }

    /// Adds any other function.
    fn function(mut self, text: &str) -> Self {
        self.functions.push_str(text);
        self
    }

    fn wat(&self) -> String {
        let strings: Vec<String> = self
            .strings
            .iter()
            .map(|byte| format!("\\{byte:02x}"))
            .collect();
        let strings = strings.concat();
        let Self {
            imports, functions, ..
        } = self;
        format!(
            r#"(module
            (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
            (import "env" "proxy_get_header_map_value" (func $get_header (param i32 i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_get_header_map_pairs" (func $get_headers (param i32 i32 i32) (result i32)))
            (import "env" "proxy_replace_header_map_value" (func $replace_header (param i32 i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_add_header_map_value" (func $add_header (param i32 i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_remove_header_map_value" (func $remove_header (param i32 i32 i32) (result i32)))
            (import "env" "proxy_get_property" (func $get_property (param i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_set_property" (func $set_property (param i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_call_foreign_function" (func $foreign (param i32 i32 i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_get_buffer_bytes" (func $get_buffer (param i32 i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_set_tick_period_milliseconds" (func $set_tick (param i32) (result i32)))
            (import "env" "proxy_get_log_level" (func $get_log_level (param i32) (result i32)))
            (import "env" "proxy_get_current_time_nanoseconds" (func $get_time (param i32) (result i32)))
            (import "env" "proxy_define_metric" (func $define_metric (param i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_increment_metric" (func $increment_metric (param i32 i64) (result i32)))
            (import "env" "proxy_record_metric" (func $record_metric (param i32 i64) (result i32)))
            (import "env" "proxy_get_metric" (func $get_metric (param i32 i32) (result i32)))
            (import "env" "proxy_set_effective_context" (func $set_effective (param i32) (result i32)))
            (import "env" "proxy_done" (func $done (result i32)))
            (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "clock_time_get" (func $clock_time_get (param i32 i64 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
            {imports}
            (memory (export "memory") 2)
            (data (i32.const {STRINGS}) "{strings}")
            (global $heap (mut i32) (i32.const 65536))
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "malloc") (param $size i32) (result i32)
                (global.get $heap)
                (global.set $heap (i32.add (global.get $heap) (local.get $size))))
            ;; Logs a status as a letter: a for Ok, b for NotFound, c for BadArgument and so on.
            (func $say (param $status i32)
                (i32.store8 (i32.const 8) (i32.add (i32.const 97) (local.get $status)))
                (drop (call $log (i32.const 2) (i32.const 8) (i32.const 1))))
            ;; Logs a status, then the bytes that the words at 16 and 20 point to and count.
            (func $tell (param $status i32)
                (call $say (local.get $status))
                (drop (call $log (i32.const 2) (i32.load (i32.const 16)) (i32.load (i32.const 20)))))
            {functions}
            )"#
        )
    }

    fn module(&self) -> Module {
        Module::new(&wat::parse_str(self.wat()).expect("the guest parses")).expect("it compiles")
    }

    fn start(&self) -> (Vm, Root) {
        self.start_with(Settings::default())
    }

    fn start_with(&self, settings: Settings) -> (Vm, Root) {
        let mut vm = Vm::start(&self.module(), settings).expect("it starts");
        let root = vm.configure("").expect("it is configured");
        (vm, root)
    }
}

fn messages(vm: &Vm) -> Vec<&str> {
    vm.logs().iter().map(|line| line.message.as_str()).collect()
}

fn request(vm: &mut Vm, root: &Root, headers: Headers) -> Stream {
    let stream = vm.open(root, Properties::new());
    vm.request_headers(&stream, headers).expect("no trap");
    stream
}

#[test]
fn a_header_is_its_first_value_under_any_case() {
    let mut guest = Guest::default();
    let several = guest.text("X-Several");
    let empty = guest.text("x-empty");
    let absent = guest.text("x-absent");
    let body = [several, empty, absent]
        .map(|name| {
            format!(
                "(call $tell (call $get_header (i32.const 0) {name} (i32.const 16) (i32.const 20)))"
            )
        })
        .concat();
    let (mut vm, root) = guest.on("request_headers", &body).start();
    let headers = Headers::from([
        ("x-several", "first"),
        ("x-empty", ""),
        ("x-several", "second"),
    ]);
    request(&mut vm, &root, headers);
    // The absent header leaves the outputs of the previous call unchanged: a null pointer and size 0.
    assert_eq!(messages(&vm), ["a", "first", "a", "", "b", ""]);
}

#[test]
fn headers_are_replaced_added_and_removed_whole() {
    let mut guest = Guest::default();
    let (one, two, three) = (guest.text("one"), guest.text("two"), guest.text("three"));
    let value = guest.text("new");
    let body = format!(
        "(call $say (call $replace_header (i32.const 0) {one} {value}))
         (call $say (call $add_header (i32.const 0) {two} {value}))
         (call $say (call $remove_header (i32.const 0) {three}))"
    );
    let (mut vm, root) = guest.on("request_headers", &body).start();
    let headers = [
        ("one", "1"),
        ("two", "2"),
        ("three", "3"),
        ("one", "1b"),
        ("three", "3b"),
    ];
    let stream = request(&mut vm, &root, Headers::from(headers));
    assert_eq!(messages(&vm), ["a", "a", "a"]);
    let expected = Headers::from([("two", "2"), ("one", "new"), ("two", "new")]);
    assert_eq!(stream.request_headers(), expected);
}

#[test]
fn a_map_is_in_reach_during_its_own_callback_only() {
    let mut guest = Guest::default();
    let name = guest.text("name");
    let read = |map: u32| {
        format!(
            "(call $say (call $get_header (i32.const {map}) {name} (i32.const 16) (i32.const 20)))"
        )
    };
    let write = format!("(call $say (call $remove_header (i32.const 0) {name}))");
    let guest = guest
        .on("request_headers", &[read(0), read(2), read(9)].concat())
        .on(
            "response_headers",
            &[read(0), read(2), write.clone()].concat(),
        )
        .on("log", &[read(0), read(2), read(1), write].concat());
    let (mut vm, root) = guest.start();
    let stream = request(&mut vm, &root, Headers::from([("name", "value")]));
    assert_eq!(messages(&vm), ["a", "c", "c"], "request");
    vm.response_headers(&stream, Headers::new())
        .expect("no trap");
    assert_eq!(messages(&vm)[3..], ["c", "b", "c"], "response");
    vm.finish(&stream).expect("no trap");
    assert_eq!(messages(&vm)[6..], ["a", "b", "b", "c"], "log");
}

#[test]
fn all_headers_come_as_pairs_and_none_as_nothing() {
    let body = "(call $tell (call $get_headers (i32.const 0) (i32.const 16) (i32.const 20)))";
    let (mut vm, root) = Guest::default().on("request_headers", body).start();
    request(&mut vm, &root, Headers::from([("k", "v")]));
    request(&mut vm, &root, Headers::new());
    assert_eq!(
        messages(&vm),
        ["a", "\x01\0\0\0\x01\0\0\0\x01\0\0\0k\0v\0", "a", ""]
    );
}

/// A body that reads each of these attributes and logs the status and value.
fn telling_properties(guest: &mut Guest, paths: &[&str]) -> String {
    let tell = |path: &&str| {
        let path = guest.text(path);
        format!("(call $tell (call $get_property {path} (i32.const 16) (i32.const 20)))")
    };
    paths.iter().map(tell).collect()
}

#[test]
fn the_stream_knows_better_than_the_proxy() {
    let mut guest = Guest::default();
    let paths = [
        "everywhere",
        "both",
        "both\0",
        "xds\0listener_direction",
        "broken",
        "nowhere",
        "",
    ];
    let body = telling_properties(&mut guest, &paths);
    let settings = Settings {
        properties: Properties::new()
            .bytes(&["everywhere"], "e")
            .bytes(&["both"], "proxy"),
        ..Settings::default()
    };
    let (mut vm, root) = guest.on("request_headers", &body).start_with(settings);
    let properties = Properties::new()
        .bytes(&["both"], "stream")
        .direction(Direction::Inbound)
        .failing(&["broken"], Status::InternalFailure);
    let stream = vm.open(&root, properties);
    vm.request_headers(&stream, Headers::new())
        .expect("no trap");
    let inbound = "\x01\0\0\0\0\0\0\0";
    let expected = [
        "a", "e", "a", "stream", "a", "stream", "a", inbound, "k", inbound, "b", inbound, "d",
        inbound,
    ];
    assert_eq!(messages(&vm), expected);
    let calls: Vec<String> = vm
        .take_calls()
        .iter()
        .map(|recorded| recorded.call.to_string())
        .collect();
    assert!(
        calls.contains(&"get_property xds.listener_direction".to_owned()),
        "{calls:?}"
    );
}

#[test]
fn a_set_property_is_filter_state_under_wasm_and_reads_back() {
    let mut guest = Guest::default();
    let (key, value) = (guest.text("peer"), guest.text("v"));
    let full = guest.text("filter_state\0wasm.peer");
    let set = format!("(call $say (call $set_property {key} {value}))");
    let get = |path: &str| {
        format!("(call $tell (call $get_property {path} (i32.const 16) (i32.const 20)))")
    };
    let body = [set.clone(), get(&key), get(&full)].concat();
    let (mut vm, root) = guest
        .on("configure", &set)
        .on("request_headers", &body)
        .start();
    assert_eq!(
        messages(&vm),
        ["b"],
        "a root context has no stream to keep it"
    );
    let stream = request(&mut vm, &root, Headers::new());
    assert_eq!(messages(&vm)[1..], ["a", "a", "v", "a", "v"]);
    assert_eq!(stream.filter_state_keys(), ["wasm.peer"]);
    let object = stream.filter_state("wasm.peer").expect("it was set");
    assert_eq!(
        (object.value.as_slice(), object.declaration),
        (&b"v"[..], Declaration::default())
    );
}

#[test]
fn a_read_only_object_stays() {
    let mut guest = Guest::default();
    let (key, value) = (guest.text("peer"), guest.text("v"));
    let set = format!("(call $say (call $set_property {key} {value}))");
    let (mut vm, root) = guest.on("request_headers", &set).start();
    let stream = vm.open(&root, Properties::new());
    let declaration = Declaration {
        read_only: true,
        ..Declaration::default()
    };
    let object = StateObject {
        value: b"other".to_vec(),
        declaration,
    };
    stream.set_filter_state("wasm.peer", object.clone());
    vm.request_headers(&stream, Headers::new())
        .expect("no trap");
    assert_eq!(messages(&vm), ["c"]);
    assert_eq!(stream.filter_state("wasm.peer"), Some(object));
}

#[test]
fn a_property_is_declared_once_in_each_root_context() {
    let mut guest = Guest::default();
    let function = guest.text("declare_property");
    let unknown = guest.text("no_such_function");
    // name "peer", FlatBuffers, schema "s", DownstreamRequest
    let arguments = guest.text(b"\x0a\x04peer\x18\x02\x22\x01s\x28\x01");
    let malformed = guest.text(b"\x0a\xff");
    let (key, value) = (guest.text("peer"), guest.text("v"));
    let call = |function: &str, arguments: &str| {
        format!("(call $say (call $foreign {function} {arguments} (i32.const 0) (i32.const 0)))")
    };
    let configure = [
        call(&function, &arguments),
        call(&function, &arguments),
        call(&function, &malformed),
        call(&unknown, &arguments),
    ];
    let set = format!("(drop (call $set_property {key} {value}))");
    let guest = guest
        .on("configure", &configure.concat())
        .on("request_headers", &set);
    let (mut vm, first) = guest.start();
    let second = vm.configure("").expect("no trap");
    assert_eq!(messages(&vm), ["a", "c", "c", "b", "a", "c", "c", "b"]);
    for root in [&first, &second] {
        let declaration = root.declaration("peer").expect("declared");
        assert_eq!(declaration.state_type(), StateType::FlatBuffers);
        assert_eq!(declaration.life_span(), LifeSpan::DownstreamRequest);
        assert_eq!(declaration.schema, b"s");
        assert!(!declaration.read_only);
        let stream = request(&mut vm, root, Headers::new());
        let object = stream.filter_state("wasm.peer").expect("it was set");
        assert_eq!(object.declaration, declaration);
    }
}

#[test]
fn configurations_are_buffers_while_they_matter() {
    let get = |buffer: u32, start: u32, length: i32| {
        format!(
            "(call $tell (call $get_buffer (i32.const {buffer}) (i32.const {start}) (i32.const {length})
                (i32.const 16) (i32.const 20)))"
        )
    };
    let configure = [get(7, 0, 100), get(7, 1, 2), get(6, 0, 100), get(7, 1, -1)].concat();
    let guest = Guest::default()
        .on("configure", &configure)
        .on(
            "request_headers",
            &[get(7, 0, 100), get(8, 0, 100)].concat(),
        )
        .on("request_body", &get(0, 0, 100));
    let settings = Settings {
        vm_configuration: b"of the vm".to_vec(),
        ..Settings::default()
    };
    let mut vm = Vm::start(&guest.module(), settings).expect("it starts");
    let root = vm.configure("of the plugin").expect("no trap");
    assert!(root.accepted());
    let expected = [
        "a",
        "of the plugin",
        "a",
        "f ",
        "a",
        "of the vm",
        "a",
        "f the plugin",
    ];
    assert_eq!(messages(&vm), expected);
    let stream = request(&mut vm, &root, Headers::new());
    vm.request_body(&stream, b"body", true).expect("no trap");
    assert_eq!(
        messages(&vm)[8..],
        ["b", "f the plugin", "b", "f the plugin", "a", "body"]
    );
}

#[test]
fn metrics_are_counted() {
    let mut guest = Guest::default();
    let name = guest.text("hits");
    let define = format!(
        "(call $say (call $define_metric (i32.const 0) {name} (i32.const 32)))
         (call $say (call $define_metric (i32.const 7) {name} (i32.const 32)))"
    );
    let count = "(call $say (call $increment_metric (i32.load (i32.const 32)) (i64.const 2)))
         (call $say (call $increment_metric (i32.load (i32.const 32)) (i64.const 0)))
         (call $say (call $record_metric (i32.load (i32.const 32)) (i64.const 3)))
         (call $say (call $get_metric (i32.load (i32.const 32)) (i32.const 40)))
         (call $say (call $increment_metric (i32.const 400) (i64.const 2)))
         (drop (call $log (i32.const 2) (i32.const 40) (i32.const 8)))";
    let (mut vm, root) = guest
        .on("configure", &define)
        .on("request_headers", count)
        .start();
    assert_eq!((vm.metric("hits"), vm.metric("misses")), (Some(0), None));
    request(&mut vm, &root, Headers::new());
    assert_eq!(
        messages(&vm),
        ["a", "c", "a", "c", "a", "a", "b", "\x05\0\0\0\0\0\0\0"]
    );
    assert_eq!(vm.metric("hits"), Some(5));
    let calls: Vec<String> = vm
        .take_calls()
        .iter()
        .map(|recorded| recorded.call.to_string())
        .collect();
    assert!(
        calls.contains(&"increment_metric hits 2".to_owned()),
        "{calls:?}"
    );
    assert!(
        calls.contains(&"increment_metric #400 2".to_owned()),
        "{calls:?}"
    );
}

#[test]
fn level_time_and_tick_are_the_tests() {
    let body = "(call $say (call $set_tick (i32.const 750)))
        (call $say (call $get_log_level (i32.const 32)))
        (call $say (i32.load (i32.const 32)))
        (call $say (call $get_time (i32.const 40)))
        (drop (call $log (i32.const 3) (i32.const 40) (i32.const 8)))";
    let tick = "(call $say (local.get $context))";
    let settings = Settings {
        log_level: LogLevel::Error,
        now: 0x0102,
        ..Settings::default()
    };
    let (mut vm, root) = Guest::default()
        .on("configure", body)
        .on("tick", tick)
        .start_with(settings);
    assert_eq!(root.tick_period(), 750);
    assert_eq!(messages(&vm), ["a", "a", "e", "a", "\x02\x01\0\0\0\0\0\0"]);
    assert_eq!(vm.logs()[4].level, LogLevel::Warn);
    vm.tick(&root).expect("no trap");
    assert_eq!(messages(&vm)[5..], ["b"], "the root context's id is 1");
}

#[test]
fn the_effective_context_lasts_as_long_as_the_callback() {
    let mut guest = Guest::default();
    let name = guest.text("own");
    let get = format!("(call $tell (call $get_property {name} (i32.const 16) (i32.const 20)))");
    let body = format!(
        "(call $say (call $set_effective (i32.const 99))) (call $say (call $set_effective (i32.const 2))) {get}"
    );
    let guest = guest.on("tick", &body).on("request_headers", &get);
    let (mut vm, root) = guest.start();
    let stream = vm.open(&root, Properties::new().bytes(&["own"], "mine"));
    let other = vm.open(&root, Properties::new().bytes(&["own"], "other"));
    vm.tick(&root).expect("no trap");
    vm.request_headers(&other, Headers::new()).expect("no trap");
    assert_eq!(stream.id(), 2);
    assert_eq!(messages(&vm), ["c", "a", "a", "mine", "a", "other"]);
}

#[test]
fn a_test_answers_in_the_hosts_stead() {
    let mut guest = Guest::default();
    let name = guest.text("name");
    let body =
        format!("(call $say (call $remove_header (i32.const 0) {name})) (call $say (call $done))");
    let (mut vm, root) = guest.on("request_headers", &body).start();
    vm.fail(|call| {
        matches!(call, HostCall::RemoveHeader { .. }).then_some(Status::InternalFailure)
    });
    let stream = request(&mut vm, &root, Headers::from([("name", "kept")]));
    assert!(
        stream.request_headers().contains("name"),
        "the call was not carried out"
    );
    vm.heal();
    let stream = request(&mut vm, &root, Headers::from([("name", "gone")]));
    assert!(!stream.request_headers().contains("name"));
    assert_eq!(messages(&vm), ["k", "b", "a", "b"]);
    let statuses: Vec<_> = vm
        .take_calls()
        .into_iter()
        .filter(|recorded| matches!(recorded.call, HostCall::RemoveHeader { .. }))
        .map(|recorded| (recorded.context, recorded.status))
        .collect();
    assert_eq!(statuses, [(2, Status::InternalFailure), (3, Status::Ok)]);
}

#[test]
fn an_import_that_the_host_lacks_is_unimplemented() {
    let guest = Guest::default()
        .import(r#"(import "env" "proxy_http_call" (func $http_call (param i32) (result i32)))"#)
        .import(r#"(import "env" "proxy_new_thing" (func $new_thing (param i64)))"#)
        .on(
            "request_headers",
            "(call $say (call $http_call (i32.const 0))) (call $new_thing (i64.const 1))",
        );
    let (mut vm, root) = guest.start();
    request(&mut vm, &root, Headers::new());
    assert_eq!(messages(&vm), ["m"]);
    let calls = vm.take_calls();
    let unknown: Vec<String> = calls
        .iter()
        .filter(|recorded| recorded.status == Status::Unimplemented)
        .map(|recorded| recorded.call.to_string())
        .collect();
    assert_eq!(unknown, ["proxy_http_call", "proxy_new_thing"]);
}

#[test]
fn pointers_out_of_memory_are_refused() {
    let body = "(call $say (call $remove_header (i32.const 0) (i32.const -8) (i32.const 4)))
        (call $say (call $get_log_level (i32.const 131071)))";
    let (mut vm, root) = Guest::default().on("request_headers", body).start();
    request(&mut vm, &root, Headers::new());
    assert_eq!(messages(&vm), ["g", "g"]);
}

#[test]
fn a_trap_names_its_callback_and_fails_the_vm() {
    let (mut vm, root) = Guest::default()
        .on("response_headers", "unreachable")
        .start();
    let stream = request(&mut vm, &root, Headers::new());
    let error = vm
        .response_headers(&stream, Headers::new())
        .expect_err("it traps");
    assert!(
        matches!(
            error,
            Error::Trap {
                callback: "proxy_on_response_headers",
                ..
            }
        ),
        "{error}"
    );
    let error = vm.finish(&stream).expect_err("it failed");
    assert!(
        matches!(error, Error::Failed) || vm.tick(&root).is_err(),
        "{error}"
    );
}

#[test]
fn a_runaway_is_a_trap() {
    let (mut vm, root) = Guest::default()
        .on("request_headers", "(loop $again (br $again))")
        .start();
    let stream = vm.open(&root, Properties::new());
    let error = vm
        .request_headers(&stream, Headers::new())
        .expect_err("it runs out of fuel");
    assert!(error.to_string().contains("fuel"), "{error}");
}

#[test]
fn only_the_log_works_during_initialisation() {
    let log = "(drop (call $log (i32.const 2) (i32.const 0) (i32.const 0)))";
    let initialise = |body: &str| format!("(func (export \"_initialize\") {body})");
    let guest = Guest::default().function(&initialise(log));
    assert_eq!(messages(&guest.start().0), [""]);
    let guest = Guest::default().function(&initialise("(drop (call $set_tick (i32.const 1)))"));
    let error = Vm::start(&guest.module(), Settings::default())
        .err()
        .expect("it traps");
    assert!(
        error
            .to_string()
            .contains("proxy_set_tick_period_milliseconds"),
        "{error}"
    );
}

#[test]
fn callbacks_come_in_envoys_order_and_missing_ones_are_skipped() {
    let (mut vm, root) = Guest::default().start();
    let stream = request(&mut vm, &root, Headers::new());
    vm.finish(&stream)
        .expect("a module without callbacks is no error");
    vm.tick(&root).expect("nor is a tick");

    let names = [
        "context_create",
        "vm_start",
        "configure",
        "request_headers",
        "request_body",
        "request_trailers",
        "response_headers",
        "response_body",
        "response_trailers",
        "log",
        "done",
        "delete",
    ];
    let guest = names.iter().fold(Guest::default(), |mut guest, name| {
        let text = guest.text(name);
        guest.on(name, &format!("(drop (call $log (i32.const 2) {text}))"))
    });
    let (mut vm, root) = guest.start();
    let stream = request(&mut vm, &root, Headers::new());
    vm.request_body(&stream, b"b", false).expect("no trap");
    vm.request_trailers(&stream, Headers::new())
        .expect("no trap");
    let action = vm.response_headers(&stream, Headers::new());
    assert_eq!(action.expect("no trap"), Action::Continue);
    vm.response_body(&stream, b"b", false).expect("no trap");
    vm.response_trailers(&stream, Headers::new())
        .expect("no trap");
    vm.finish(&stream).expect("no trap");
    vm.remove(&root).expect("no trap");
    let mut expected = names.to_vec();
    expected.insert(3, "context_create");
    expected.extend(["done", "delete"]);
    assert_eq!(messages(&vm), expected);
}

#[test]
fn a_response_before_any_request_does_not_enter_the_module() {
    let (mut vm, root) = Guest::default()
        .on("response_headers", "unreachable")
        .start();
    let stream = vm.open(&root, Properties::new());
    let action = vm.response_headers(&stream, Headers::new());
    assert_eq!(action.expect("no trap"), Action::Continue);
}

#[test]
fn streams_interleave() {
    let mut guest = Guest::default();
    let (name, key) = (guest.text("name"), guest.text("seen"));
    let body = format!(
        "(drop (call $get_header (i32.const 0) {name} (i32.const 16) (i32.const 20)))
         (drop (call $set_property {key} (i32.load (i32.const 16)) (i32.load (i32.const 20))))"
    );
    let (mut vm, root) = guest.on("request_headers", &body).start();
    let streams =
        ["a", "b", "c"].map(|value| request(&mut vm, &root, Headers::from([("name", value)])));
    for stream in streams.iter().rev() {
        vm.finish(stream).expect("no trap");
    }
    let seen = streams.map(|stream| stream.filter_state("wasm.seen").expect("it was set").value);
    assert_eq!(seen, [b"a", b"b", b"c"]);
}

#[test]
fn instructions_are_counted_exactly() {
    let (mut vm, root) = Guest::default().on("tick", "").start();
    let (result, empty) = vm.measure(|vm| vm.tick(&root));
    result.expect("no trap");
    let body = "(drop (i32.add (i32.const 1) (i32.const 2)))";
    let (mut vm, root) = Guest::default().on("tick", body).start();
    let (result, one_addition) = vm.measure(|vm| vm.tick(&root));
    result.expect("no trap");
    assert_eq!(
        one_addition - empty,
        3,
        "two constants and an addition; a drop is free"
    );
    let ((), nothing) = vm.measure(|_| ());
    assert_eq!(nothing, 0);
}

#[test]
fn memory_pages_are_seen() {
    let (mut vm, root) = Guest::default()
        .on("tick", "(drop (memory.grow (i32.const 3)))")
        .start();
    assert_eq!(vm.memory_pages(), 2);
    vm.tick(&root).expect("no trap");
    assert_eq!(vm.memory_pages(), 5);
}

#[test]
fn random_numbers_follow_the_seed() {
    let body = "(call $say (call $random_get (i32.const 32) (i32.const 11)))
        (drop (call $set_property (i32.const 0) (i32.const 1) (i32.const 32) (i32.const 11)))";
    let guest = Guest::default().on("request_headers", body);
    let draw = |seed| {
        let (mut vm, root) = guest.start_with(Settings {
            seed,
            ..Settings::default()
        });
        let stream = request(&mut vm, &root, Headers::new());
        stream.filter_state("wasm.\0").expect("it was set").value
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    assert_eq!(draw(1).len(), 11);
}

#[test]
fn wasi_has_output_environment_and_time_but_no_files() {
    let mut guest = Guest::default();
    let text = guest.text("to the console");
    let (pointer, size) = text.split_at(text.find(") (").expect("two operands") + 1);
    let body = format!(
        "(i32.store (i32.const 64) {pointer}) (i32.store (i32.const 68) {size})
         (call $say (call $fd_write (i32.const 2) (i32.const 64) (i32.const 1) (i32.const 72)))
         (call $say (i32.load (i32.const 72)))
         (call $say (call $environ_sizes_get (i32.const 64) (i32.const 68)))
         (call $say (i32.load (i32.const 64)))
         (call $say (i32.load (i32.const 68)))
         (call $say (call $environ_get (i32.const 64) (i32.const 128)))
         (drop (call $log (i32.const 2) (i32.load (i32.const 64)) (i32.const 4)))
         (call $say (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 64)))
         (call $say (i32.load (i32.const 64)))
         (call $say (call $fd_write (i32.const 5) (i32.const 64) (i32.const 1) (i32.const 72)))
         (call $say (call $path_open (i32.const 0)))"
    );
    let guest = guest
        .import(r#"(import "wasi_snapshot_preview1" "path_open" (func $path_open (param i32) (result i32)))"#)
        .on("request_headers", &body);
    let environment = vec![("A".to_owned(), "b".to_owned())];
    let settings = Settings {
        environment,
        now: 3,
        ..Settings::default()
    };
    let (mut vm, root) = guest.start_with(settings);
    request(&mut vm, &root, Headers::new());
    assert_eq!(vm.output(), "to the console");
    // 14 bytes written; one variable of four bytes; errno 8 is a bad descriptor and 52 an unknown call.
    let letter = |number: u8| char::from(b'a' + number).to_string();
    let no_system = String::from_utf8_lossy(&[b'a' + 52]).into_owned();
    let expected = [
        letter(0),
        letter(14),
        letter(0),
        letter(1),
        letter(4),
        letter(0),
        "A=b\0".to_owned(),
        letter(0),
        letter(3),
        letter(8),
        no_system,
    ];
    assert_eq!(messages(&vm), expected);
}

#[test]
fn leaving_the_process_is_a_trap() {
    let body = "(call $proc_exit (i32.const 7))";
    let (mut vm, root) = Guest::default().on("tick", body).start();
    let error = vm.tick(&root).expect_err("it traps");
    assert!(error.to_string().contains("code 7"), "{error}");
}

#[test]
fn other_modules_are_refused() {
    let load = |wat: &str| Module::new(&wat::parse_str(wat).expect("it parses"));
    let error = load("(module)").err().expect("no ABI version");
    assert!(error.to_string().contains("ABI"), "{error}");
    let abi = r#"(func (export "proxy_abi_version_0_2_0"))"#;
    for (rest, reason) in [
        ("", "memory"),
        (r#"(memory (export "memory") 1)"#, "allocator"),
        (
            r#"(memory (export "memory") 1) (func (export "malloc") (param i32) (result i32) (i32.const 0))
               (func (export "proxy_on_log") (result i32) (i32.const 0))"#,
            "proxy_on_log",
        ),
    ] {
        let module = load(&format!("(module {abi} {rest})")).expect("it compiles");
        let error = Vm::start(&module, Settings::default())
            .err()
            .expect("it is refused");
        assert!(error.to_string().contains(reason), "{error}");
    }
    assert!(matches!(
        Module::new(b"no module"),
        Err(Error::Module { .. })
    ));
    assert!(matches!(
        Module::from_file("/nowhere".as_ref()),
        Err(Error::Module { .. })
    ));
}

#[test]
fn a_refused_start_and_a_refused_configuration_are_distinguished() {
    let refuse = |callback| {
        format!(
            "(func (export \"proxy_on_{callback}\") (param i32 i32) (result i32) (i32.const 0))"
        )
    };
    let guest = Guest::default().function(&refuse("configure"));
    let mut vm = Vm::start(&guest.module(), Settings::default()).expect("it starts");
    assert!(!vm.configure("").expect("no trap").accepted());
    let guest = Guest::default().function(&refuse("vm_start"));
    let mut vm = Vm::start(&guest.module(), Settings::default()).expect("it starts");
    assert!(matches!(vm.configure(""), Err(Error::VmStartRefused)));
}

#[test]
fn the_node_reads_whole_or_field_by_field() {
    let node = Node::new(
        "the-id",
        &serde_json::json!({
            "NAME": "n", "PORT": 15090, "DEBUG": true, "NOTHING": null,
            "LABELS": {"app": "a"}, "IPS": ["1", "2"], "BROKEN": {"inner": null},
        }),
    );
    let mut guest = Guest::default();
    let paths = [
        "xds\0node\0id",
        "xds\0node\0metadata\0NAME",
        "xds\0node\0metadata\0PORT",
        "xds\0node\0metadata\0DEBUG",
        "xds\0node\0metadata\0LABELS",
        "xds\0node\0metadata\0IPS",
        "xds\0node\0metadata\0NOTHING",
        "xds\0node\0metadata\0BROKEN",
        "xds\0node\0metadata",
        "xds\0node\0metadata\0ABSENT",
        "node",
    ];
    let body = telling_properties(&mut guest, &paths);
    let settings = Settings {
        properties: Properties::new().xds_node(&node),
        ..Settings::default()
    };
    let (vm, _) = guest.on("configure", &body).start_with(settings);
    let port = String::from_utf8_lossy(&15090_f64.to_le_bytes()).into_owned();
    let ips = "\x02\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x001\0\x002\0\0";
    let labels = "\x01\0\0\0\x03\0\0\0\x01\0\0\0app\0a\0";
    let expected = [
        "a", "the-id", "a", "n", "a", &port, "a", "\x01", "a", labels, "a", ips, "d", ips, "d",
        ips, "d", ips, "b", ips, "b", ips,
    ];
    assert_eq!(messages(&vm), expected);
}
