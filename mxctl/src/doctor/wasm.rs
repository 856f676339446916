//! Checks the configuration of the VM.

use metadata_exchange::config::Protocol;
use serde_json::Value;

use super::facts::{Facts, Placed};
use super::finding::{Code, Finding};
use super::json::{any_text, text};

/// The first version that does not crash when Wasm arrives late.
const FIRST_SAFE: (u64, u64) = (1, 38);

/// The types that make Envoy load V8.
const LOADERS: [&str; 2] = [".wasm.v3.Wasm", ".wasm.v3.WasmService"];

pub(super) fn examine(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    for placed in facts.ours() {
        findings.extend(not_fail_open(&placed));
    }
    findings.extend(shared_names(facts));
    findings.extend(shared_environments(facts));
    findings.extend(late_wasm(facts));
}

fn not_fail_open(placed: &Placed<'_, '_>) -> Option<Finding> {
    let Placed { filter, plugin, .. } = placed;
    // Nothing is known of a discovered filter without a configuration.
    let is_known = plugin.config.is_object();
    (is_known && !plugin.is_fail_open()).then(|| {
        let policy = text(&plugin.config["failure_policy"]);
        let message = match (placed.protocol, policy) {
            (Protocol::Http, "FAIL_RELOAD") => {
                "its failure_policy is FAIL_RELOAD: if its VM dies, requests get 503 until a new \
                 one is loaded"
            }
            (Protocol::Http, _) => {
                "its failure_policy is not FAIL_OPEN: if its VM dies, every request gets 503"
            }
            (Protocol::Tcp, _) => {
                "its failure_policy is not FAIL_OPEN: if its VM dies, new TCP connections are \
                 closed as well"
            }
        };
        Finding::warning(
            Code::NotFailOpen,
            filter.name,
            message,
            "set failure_policy to FAIL_OPEN, in a WasmPlugin failStrategy: FAIL_OPEN, unless a \
             policy must not pass without the filter",
        )
    })
}

/// The filter identifies its plugin by name and VM: two configurations with the
/// same identity count as updates of each other.
fn shared_names(facts: &Facts<'_>) -> Vec<Finding> {
    type Seen<'a> = (&'a str, &'a str, &'a Value, &'a str);
    let mut seen: Vec<Seen<'_>> = Vec::new();
    let mut findings = Vec::new();
    for Placed {
        listener, plugin, ..
    } in facts.ours()
    {
        let (name, vm_id) = (plugin.name, plugin.vm_id());
        let first = seen
            .iter()
            .find(|(other, id, ..)| *other == name && *id == vm_id);
        match first {
            None => seen.push((name, vm_id, plugin.text, listener)),
            Some((_, _, text, _)) if *text == plugin.text => {}
            Some((.., other)) => findings.push(Finding::warning(
                Code::SharedPluginName,
                listener,
                format!(
                    "its plugin shares the name {name:?} and the vm_id {vm_id:?} with that on \
                     {other}, but not the configuration: an invalid configuration of one counts \
                     as an update of the other, and is refused"
                ),
                "give plugins with different configurations different names (`name` of the \
                 plugin's `config`)",
            )),
        }
    }
    findings
}

/// Envoy 1.36 finds a VM by its id and code, and leaves the environment out; 1.40 has it.
fn shared_environments(facts: &Facts<'_>) -> Vec<Finding> {
    if facts.version.is_some_and(|version| version >= (1, 40)) {
        return Vec::new();
    }
    let mut seen: Vec<(&str, &Value, &Value)> = Vec::new();
    let mut findings = Vec::new();
    for Placed {
        listener, plugin, ..
    } in facts.ours()
    {
        let vm = &plugin.config["vm_config"];
        let (vm_id, code, environment) =
            (plugin.vm_id(), &vm["code"], &vm["environment_variables"]);
        let first = seen
            .iter()
            .find(|(other, its_code, _)| *other == vm_id && *its_code == code);
        match first {
            None => seen.push((vm_id, code, environment)),
            Some((.., first)) if *first == environment => {}
            Some(_) => findings.push(Finding::warning(
                Code::SharedEnvironment,
                listener,
                format!(
                    "its plugin shares the vm_id {vm_id:?} with another one, whose \
                     environment_variables differ: both have those of the one that Envoy loads first"
                ),
                "give plugins with different environment_variables different vm_ids",
            )),
        }
    }
    findings
}

/// On a CPU with memory protection keys, such an Envoy crashes when its first
/// Wasm arrives after the start.
fn late_wasm(facts: &Facts<'_>) -> Option<Finding> {
    let (major, minor) = facts.version?;
    let bootstrap = facts.resources.bootstrap?;
    if (major, minor) >= FIRST_SAFE || has_loader(bootstrap) || is_loaded(facts) {
        return None;
    }
    Some(Finding::warning(
        Code::LateWasm,
        "bootstrap",
        format!(
            "Envoy {major}.{minor} has loaded no Wasm, and its bootstrap has no \
             envoy.bootstrap.wasm: on a CPU with memory protection keys it crashes with a \
             segmentation fault when the filter arrives"
        ),
        "add the bootstrap extension of deploy/envoy/v8-first.yaml, or use Envoy 1.38 or later; in \
         Istio, apply the filter and then restart the workloads",
    ))
}

/// Whether Wasm is loaded at startup.
fn has_loader(bootstrap: &Value) -> bool {
    let is_wasm = |text: &str| LOADERS.iter().any(|loader| text.ends_with(loader));
    // The node lists every extension that this Envoy has.
    ["static_resources", "bootstrap_extensions", "stats_sinks"]
        .iter()
        .any(|key| any_text(&bootstrap[*key], &mut |text| is_wasm(text)))
}

/// Whether Wasm is loaded now, by the statistics, or else by what was
/// discovered.
fn is_loaded(facts: &Facts<'_>) -> bool {
    if let Some(stats) = &facts.stats {
        return stats
            .counted()
            .any(|(name, _)| name.starts_with("wasm.") && name.ends_with(".created"));
    }
    let extensions = facts.resources.extensions.iter();
    let listeners = facts.resources.listeners.iter().flatten();
    let is_wasm = |text: &str| LOADERS.iter().any(|loader| text.ends_with(loader));
    extensions
        .chain(listeners)
        .any(|one| any_text(one, &mut |text| is_wasm(text)))
}
