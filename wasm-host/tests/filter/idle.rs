//! An invalid configuration, delivered as Envoy does: first to a VM for validation, then to those that serve. As the
//! first configuration it leaves the filter idle; as an update it is refused.

use crate::support::{METADATA, Proxy, Workload, assert_stored, assert_stripped, module};
use wasm_host::{Direction, Headers, LogLevel, Properties, Root, Settings, SharedData, Vm};

const BAD: &str = r#"{"trsut": "mtls"}"#;
const BAD_TOO: &str = r#"{"max_labels": -1}"#;
const GOOD: &str = "{}";

const SECOND: u64 = 1_000_000_000;

/// An Envoy with one worker.
struct Envoy {
    shared: SharedData,
    name: &'static str,
    now: u64,
    /// The serving VM with its configurations, the newest last.
    vm: Vm,
    roots: Vec<Root>,
}

impl Envoy {
    fn new() -> Self {
        Self::with("metadata-exchange", SharedData::default())
    }

    fn with(name: &'static str, shared: SharedData) -> Self {
        let vm = start(name, &shared, SECOND);
        Self {
            shared,
            name,
            now: SECOND,
            vm,
            roots: Vec::new(),
        }
    }

    /// Validates a configuration, and applies it if it was not refused.
    fn configure(&mut self, configuration: &str) -> bool {
        let mut trial = start(self.name, &self.shared, self.now);
        if !trial.configure(configuration).expect("no trap").accepted() {
            return false;
        }
        self.take(configuration);
        true
    }

    /// Applies a configuration without validation, as Envoy does with a text that it has validated before.
    fn take(&mut self, configuration: &str) {
        let root = self.vm.configure(configuration).expect("no trap");
        assert!(root.accepted(), "the VM that serves refuses: it is lost");
        if let Some(before) = self.roots.pop() {
            self.vm.remove(&before).expect("no trap");
        }
        self.roots.push(root);
    }

    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += SECOND;
            self.vm.set_now(self.now);
            for root in &self.roots {
                self.vm.tick(root).expect("no trap");
            }
        }
    }

    /// Whether a caller is stored and its headers removed; an idle filter does neither, and answers nothing.
    fn exchanges(&mut self) -> bool {
        let caller = Workload::new("caller");
        let root = self.roots.last().expect("there is a configuration");
        let properties = Properties::new().direction(Direction::Inbound);
        let stream = self.vm.open(root, properties);
        let request = self.vm.request_headers(&stream, caller.headers());
        request.expect("no trap");
        let response = self.vm.response_headers(&stream, Headers::new());
        response.expect("no trap");
        self.vm.finish(&stream).expect("no trap");
        if stream.filter_state_keys().is_empty() {
            assert_eq!(stream.request_headers(), caller.headers());
            assert_eq!(stream.response_headers(), Headers::new());
            return false;
        }
        assert_stored(&stream, Some(&caller), None);
        assert_stripped(&stream.request_headers());
        assert!(stream.response_headers().contains(METADATA));
        true
    }

    fn metric(&self, name: &str) -> Option<u64> {
        self.vm.metric(&format!("metadata_exchange.{name}"))
    }
}

fn start(name: &str, shared: &SharedData, now: u64) -> Vm {
    let properties = Properties::new()
        .xds_node(&Workload::new("local").node())
        .bytes(&["plugin_name"], name)
        .bytes(&["plugin_root_id"], "root");
    let settings = Settings {
        properties,
        shared_data: shared.clone(),
        now,
        ..Settings::default()
    };
    Vm::start(module(), settings).expect("the VM starts")
}

#[test]
fn a_first_configuration_leaves_the_filter_idle() {
    let mut envoy = Envoy::new();
    assert!(envoy.configure(BAD));
    assert!(!envoy.exchanges());
    let errors = envoy.vm.logs().iter();
    let errors: Vec<_> = errors
        .filter(|line| line.level >= LogLevel::Error)
        .collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    for part in ["plugin configuration refused", "trsut", "idle"] {
        assert!(errors[0].message.contains(part), "{errors:?}");
    }
    assert_eq!(envoy.metric("configuration_errors"), Some(1));
}

/// The VM in which Envoy validates a configuration has no tick, and is not counted.
#[test]
fn the_gauge_shows_what_is_idle_now() {
    let mut envoy = Envoy::new();
    assert!(envoy.configure(BAD));
    assert_eq!(envoy.metric("configuration_idle"), Some(0));
    envoy.wait(3);
    assert_eq!(envoy.metric("configuration_idle"), Some(1));
    assert!(envoy.configure(BAD_TOO));
    envoy.wait(3);
    assert_eq!(envoy.metric("configuration_idle"), Some(1));
    assert!(envoy.configure(GOOD));
    envoy.wait(1);
    assert_eq!(envoy.metric("configuration_idle"), Some(0));
    assert_eq!(envoy.metric("configuration_errors"), Some(2));
}

/// A replaced listener lives on until it is drained. Its requests are counted, but it does not hold the configuration
/// in force.
#[test]
fn the_gauge_excludes_drained_plugins() {
    let mut envoy = Envoy::new();
    assert!(envoy.configure(BAD));
    envoy.wait(1);
    let idle = envoy.roots.pop().expect("a configuration");
    assert!(envoy.configure(GOOD));
    envoy.roots.insert(0, idle);
    envoy.wait(10);
    assert_eq!(envoy.metric("configuration_idle"), Some(0));

    envoy.roots.swap(0, 1);
    assert!(!envoy.exchanges());
    envoy.wait(1);
    assert_eq!(envoy.metric("configuration_idle"), Some(1));
    envoy.wait(10);
    assert_eq!(envoy.metric("configuration_idle"), Some(0));
    assert!(!envoy.exchanges());
    envoy.wait(1);
    assert_eq!(envoy.metric("configuration_idle"), Some(1));
    let idle = envoy.roots.pop().expect("a configuration");
    envoy.vm.remove(&idle).expect("no trap");
    assert_eq!(envoy.metric("configuration_idle"), Some(0));
}

#[test]
fn invalid_and_valid_configurations_alternate() {
    let mut envoy = Envoy::new();
    for (configuration, is_accepted, exchanges) in [
        (BAD, true, false),
        (BAD_TOO, true, false),
        (GOOD, true, true),
        ("nonsense", false, true),
        ("", true, true),
        ("[]", false, true),
        // It was idle before, and Envoy does not validate it again.
        (BAD, true, false),
        (GOOD, true, true),
    ] {
        assert_eq!(
            envoy.configure(configuration),
            is_accepted,
            "{configuration}"
        );
        assert_eq!(envoy.exchanges(), exchanges, "{configuration}");
    }
}

#[test]
fn without_requests_the_tick_records_that_a_configuration_is_in_force() {
    let mut envoy = Envoy::new();
    assert!(envoy.configure(GOOD));
    envoy.wait(1);
    assert!(!envoy.configure(BAD));
    // A configuration that replaces another is in force as well.
    assert!(envoy.configure(r#"{"max_labels": 1}"#));
    assert!(!envoy.configure(BAD));
}

/// A bootstrap with a good and a bad listener: no VM has ticked or served yet.
#[test]
fn two_first_configurations_of_one_plugin() {
    let mut envoy = Envoy::new();
    assert!(envoy.configure(GOOD));
    let good = envoy.roots.pop().expect("a configuration");
    assert!(envoy.configure(BAD));
    envoy.roots.insert(0, good);
    assert!(!envoy.exchanges());
    envoy.wait(2);
    assert_eq!(envoy.metric("configuration_idle"), Some(1));
    // Another worker, later.
    envoy.take(BAD);
    assert!(!envoy.exchanges());
    envoy.roots.truncate(1);
    assert!(envoy.exchanges());
}

/// Without a `vm_id` all plugins share one key space, which outlives this plugin.
#[test]
fn removed_and_created_again() {
    let shared = SharedData::default();
    let mut envoy = Envoy::with("metadata-exchange", shared.clone());
    assert!(envoy.configure(GOOD));
    assert!(envoy.exchanges());
    let root = envoy.roots.pop().expect("a configuration");
    envoy.vm.remove(&root).expect("no trap");

    let mut anew = Envoy::with("metadata-exchange", shared);
    assert!(anew.configure(BAD));
    assert!(!anew.exchanges());
    assert!(anew.configure(GOOD));
    assert!(anew.exchanges());
}

/// A VM that died has withdrawn nothing.
#[test]
fn a_plugin_whose_vm_failed_is_no_longer_in_force() {
    let shared = SharedData::default();
    let mut envoy = Envoy::with("metadata-exchange", shared.clone());
    assert!(envoy.configure(GOOD));
    envoy.wait(1);

    let mut anew = Envoy::with("metadata-exchange", shared);
    anew.now = envoy.now + 2 * SECOND;
    assert!(!anew.configure(BAD));
    anew.now = envoy.now + 10 * SECOND;
    assert!(anew.configure(BAD));
}

#[test]
fn another_plugin_in_force_has_no_effect() {
    let shared = SharedData::default();
    let mut good = Envoy::with("inbound", shared.clone());
    assert!(good.configure(GOOD));
    assert!(good.exchanges());
    let mut bad = Envoy::with("outbound", shared.clone());
    assert!(bad.configure(BAD));
    assert!(!bad.exchanges());
    assert!(good.exchanges());
    let keys = shared.keys();
    assert!(
        keys.iter()
            .all(|key| key.starts_with("metadata_exchange\0"))
    );
}

/// The validation of an update publishes its counters itself, because its VM has no tick.
#[test]
fn a_refusal_is_counted() {
    let mut envoy = Envoy::new();
    assert!(envoy.configure(GOOD));
    envoy.wait(1);
    let mut trial = start(envoy.name, &envoy.shared, envoy.now);
    assert!(!trial.configure(BAD).expect("no trap").accepted());
    let name = "metadata_exchange.configuration_errors";
    assert_eq!(trial.metric(name), Some(1));
    let errors = trial.logs().iter();
    let errors: Vec<_> = errors
        .filter(|line| line.level >= LogLevel::Error)
        .collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].message.contains("stays in force"), "{errors:?}");
}

#[test]
fn an_idle_filter_costs_nothing_on_the_way() {
    let mut envoy = Envoy::new();
    assert!(envoy.configure(BAD));
    let mut proxy = Proxy {
        vm: envoy.vm,
        root: envoy.roots.remove(0),
    };
    let caller = Workload::new("caller").headers();
    // The first stream tells what kind of filter chain this is.
    proxy.inbound(&caller);
    proxy.vm.take_calls();
    proxy.inbound(&caller);
    assert_eq!(proxy.vm.take_calls(), []);
}
