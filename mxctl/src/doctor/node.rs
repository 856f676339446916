//! Checks that the node names its workload.

use metadata_exchange::config::Config;
use metadata_exchange::local::{self, LocalNode, Note};
use metadata_exchange::peer::Field;
use serde_json::Value;

use super::direction::is_gateway;
use super::facts::{Facts, Node};
use super::finding::{Code, Finding};
use super::logs::grpc_logs;
use crate::encode::{self, Environment, metadata_of};
use crate::naming::Naming;

/// The labels that name a service, for `SkyWalking` and Istio, by precedence.
const NAMING_LABELS: [&str; 4] = [
    "service.istio.io/canonical-name",
    "app.kubernetes.io/name",
    "app",
    "k8s-app",
];

/// A key of the node that `SkyWalking` 10.2 and later reads like such a label.
const NAMING_KEY: &str = "SERVICE";

pub(super) fn examine(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let Some(node) = &facts.node else {
        return;
    };
    let stated = stated(facts, node, findings);
    let metadata = stated.as_ref().unwrap_or(node.metadata);
    let is_nameless = names(metadata).next().is_none();
    if is_nameless {
        findings.push(Finding::error(
            Code::NamelessNode,
            "node",
            "nothing in node.metadata names this workload (NAME, WORKLOAD_NAME or a label of its \
             service): peers cannot name this proxy",
            "set NAME, NAMESPACE and LABELS in the key `node` of the plugin configuration, or in \
             node.metadata of the bootstrap; in Istio the agent does, on a VM from \
             ISTIO_METAJSON_LABELS",
        ));
    } else if !is_sent(facts, node) {
        findings.push(Finding::error(
            Code::NamelessNode,
            "node",
            "the plugin configuration leaves nothing of node.metadata to send: peers cannot name \
             this proxy",
            "include NAME, NAMESPACE and the labels of the service in `share`, and raise \
             max_sent_bytes; `mxctl encode --plugin-config` shows what is sent",
        ));
    }
    let missing = missing(metadata);
    if !is_nameless && !missing.is_empty() {
        findings.push(Finding::error(
            Code::NoNodeMetadata,
            "node",
            format!("node.metadata has no {}", missing.join(", ")),
            "set them in the key `node` of the plugin configuration, or in node.metadata of the \
             bootstrap; in Istio the agent does, on a VM from ISTIO_METAJSON_LABELS",
        ));
    }
    findings.extend(no_naming_label(metadata));
    if let Some(stated) = &stated {
        findings.extend(not_in_bootstrap(facts, node.metadata, stated));
    }
    findings.extend(too_long(metadata));
    findings.extend(value_types(node.metadata));
    findings.extend(role(facts));
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(str::is_empty)
}

/// The values that name the workload, of any type: a number is sent as well.
fn names(metadata: &Value) -> impl Iterator<Item = &Value> {
    let keys = ["NAME", "WORKLOAD_NAME"].map(|key| &metadata[key]);
    let labels = NAMING_LABELS.map(|label| &metadata["LABELS"][label]);
    keys.into_iter()
        .chain(labels)
        .filter(|value| !is_empty(value))
}

/// The first valid configuration of the filter, with its environment.
fn configured<'f>(facts: &'f Facts<'_>) -> Option<(&'f Config, Vec<(String, String)>)> {
    let mut plugins = facts.ours().map(|placed| placed.plugin);
    plugins.find_map(|plugin| {
        let configuration = plugin.configuration.as_ref().ok()?;
        Some((configuration, plugin.environment()))
    })
}

/// The exchanged metadata that the configuration makes of the node, computed
/// with the filter's own code; `None` if it says nothing of the node.
fn stated(facts: &Facts<'_>, node: &Node<'_>, findings: &mut Vec<Finding>) -> Option<Value> {
    let (configuration, environment) = configured(facts)?;
    if configuration.node.is_empty() {
        return None;
    }
    let (stated, notes) = over(node, configuration, &environment)?;
    for note in notes {
        let (code, remedy) = match note {
            Note::Absent { .. } => (
                Code::AbsentSource,
                "pass the environment variable to the VM by vm_config.environment_variables, or \
                 give the reference a default",
            ),
            Note::SameEverywhere => (
                Code::SameIdentity,
                "let id or NAME have a source such as ${env:POD_NAME}, ${env:HOSTNAME} or \
                 ${node:/id}",
            ),
            _ => continue,
        };
        findings.push(Finding::warning(code, "node", note.to_string(), remedy));
    }
    Some(metadata_of(&stated))
}

fn over(
    node: &Node<'_>,
    configuration: &Config,
    environment: &Environment,
) -> Option<(local::Node, Vec<Note>)> {
    let mut json = node.json.clone();
    json["id"] = node.id.into();
    // Metadata that cannot be encoded are reported elsewhere.
    encode::over(&json, configuration, environment).ok()
}

/// Whether the filter sends any metadata of this node, computed with the
/// filter's own code.
fn is_sent(facts: &Facts<'_>, node: &Node<'_>) -> bool {
    let (default, none) = (Config::default(), Vec::new());
    let (configuration, environment) = configured(facts).unwrap_or((&default, none));
    over(node, configuration, &environment).is_none_or(|(node, mut notes)| {
        let (share, max) = (&configuration.share, configuration.max_sent_bytes);
        LocalNode::new(&node, share, max, &mut notes)
            .header
            .is_some()
    })
}

fn missing(metadata: &Value) -> Vec<&'static str> {
    let mut missing: Vec<&str> = ["NAME", "NAMESPACE"]
        .into_iter()
        .filter(|key| is_empty(&metadata[*key]))
        .collect();
    let labels = metadata["LABELS"].as_object();
    if labels.is_none_or(serde_json::Map::is_empty) {
        missing.push("LABELS");
    }
    missing
}

fn no_naming_label(metadata: &Value) -> Option<Finding> {
    let labels = metadata["LABELS"].as_object()?;
    // SkyWalking ignores case.
    let is_naming = |key: &String| {
        NAMING_LABELS
            .iter()
            .any(|label| label.eq_ignore_ascii_case(key))
    };
    let is_named = labels
        .iter()
        .any(|(key, value)| is_naming(key) && !is_empty(value))
        || !is_empty(&metadata[NAMING_KEY]);
    (!labels.is_empty() && !is_named).then(|| {
        Finding::warning(
            Code::NoNamingLabel,
            "node",
            format!(
                "no label of the node names its service, which SkyWalking then calls `-`. \
                 SkyWalking reads the first of {}",
                NAMING_LABELS.join(", ")
            ),
            "add one of these labels to LABELS in node.metadata, on VMs as well",
        )
    })
}

/// `SkyWalking` takes the local side from the bootstrap, which the configuration's `node` does not
/// change, and the peers from what the filter sends.
fn not_in_bootstrap(facts: &Facts<'_>, bootstrap: &Value, stated: &Value) -> Option<Finding> {
    let naming = Naming::default();
    let name = |metadata: &Value| {
        let (service, instance) = (naming.service(metadata), naming.instance(metadata));
        format!("service {service}, instance {instance}")
    };
    let (drawn, meant) = (name(bootstrap), name(stated));
    let mut logs = facts.all_logs().flat_map(|logs| grpc_logs(&logs));
    (drawn != meant && logs.any(|log| log.names_peers())).then(|| {
        Finding::warning(
            Code::NodeNotInBootstrap,
            "node",
            format!(
                "SkyWalking draws this proxy as {drawn}, for its peers it is {meant}: SkyWalking \
                 takes the local side from node.metadata of the bootstrap, which the key `node` of \
                 the plugin configuration does not change"
            ),
            "put the same NAME, NAMESPACE and LABELS into node.metadata of the bootstrap; where the \
             control plane does not let you, name this proxy by wasm.local_peer in other logs, \
             metrics or traces",
        )
    })
}

/// How many characters, as Java counts them, `SkyWalking` keeps of a service's
/// name with its namespace, and of an instance's name.
const MAX_NAME: usize = 70;

fn too_long(metadata: &Value) -> Vec<Finding> {
    let naming = Naming::default();
    let names = [
        ("service", naming.service(metadata)),
        ("instance", naming.instance(metadata)),
    ];
    let length = |name: &str| name.encode_utf16().count();
    let long = names
        .into_iter()
        .filter(|(_, name)| length(name) > MAX_NAME);
    let finding = |(what, name): (&str, String)| {
        Finding::warning(
            Code::NameTooLong,
            "node",
            format!(
                "the {what} {name} has {} characters: SkyWalking keeps {MAX_NAME}, and merges \
                 names that begin alike",
                length(&name)
            ),
            "shorten NAME, NAMESPACE or the label of the service, or raise the OAP's \
             SW_SERVICE_NAME_MAX_LENGTH and SW_INSTANCE_NAME_MAX_LENGTH",
        )
    };
    long.map(finding).collect()
}

/// Bools and numbers instead of strings, as YAML parses unquoted values.
fn value_types(metadata: &Value) -> Vec<Finding> {
    let texts = Field::ALL
        .into_iter()
        .filter(|field| !matches!(field, Field::Labels | Field::PlatformMetadata))
        .map(|field| (field.key().to_owned(), &metadata[field.key()]));
    let labels = metadata["LABELS"].as_object().into_iter().flatten();
    let labels = labels.map(|(key, value)| (format!("LABELS.{key}"), value));
    let wrong = texts.chain(labels).filter_map(|(key, value)| {
        let kind = match value {
            Value::Bool(_) => "a bool",
            Value::Number(_) => "a number",
            Value::Object(_) => "an object",
            Value::Array(_) if !is_list(&key) => "a list",
            _ => return None,
        };
        let is_scalar = value.is_boolean() || value.is_number();
        let (message, remedy) = if is_scalar {
            (
                format!("{key} is {value}, {kind} instead of a string: peers receive \"{value}\""),
                "quote it in the bootstrap's YAML: an unquoted `y`, `on`, `yes` or `true` is a \
                 bool there, and 010 is 8",
            )
        } else {
            (
                format!("{key} is {kind} instead of a string: it is not sent"),
                "write a string",
            )
        };
        Some(Finding::warning(
            Code::NodeValueType,
            "node",
            message,
            remedy,
        ))
    });
    wrong.collect()
}

/// Keys that may hold a list.
fn is_list(key: &str) -> bool {
    [Field::AppContainers, Field::InstanceIps]
        .iter()
        .any(|field| field.key() == key)
}

/// `SkyWalking` draws unknown callers only for gateways, which it recognises by the role in the id.
fn role(facts: &Facts<'_>) -> Option<Finding> {
    use metadata_exchange::direction::Direction;
    let id = facts.node_id();
    let mut ours = facts.ours();
    let is_one = is_gateway(facts)
        || ours.any(|placed| {
            let configuration = placed.plugin.configuration.as_ref().ok();
            configuration.is_some_and(|one| one.direction == Some(Direction::Gateway))
        });
    // An unknown id may come from the command line.
    (is_one && !id.is_empty() && !id.starts_with("router~") && !facts.is_waypoint()).then(|| {
        Finding::warning(
            Code::NodeIdRole,
            "node",
            format!(
                "this proxy is a gateway, but its node id {id:?} does not begin with router~: \
                 SkyWalking does not draw requests from callers that it does not know"
            ),
            "set node.id to router~ADDRESS~NAME.NAMESPACE~NAMESPACE.svc.cluster.local",
        )
    })
}
