//! `examples/policy/conditions.yaml`: each tree says what its CEL says.

use anyhow::{Context as _, Result, ensure};
use envoy_test::bootstrap::file_log;
use envoy_test::client::{Call, PEER_HEADERS};
use envoy_test::peer::header;
use envoy_test::{Lab, Node, Workload, repository};
use serde_json::{Map, Value, json};

envoy_test::stories!(each_tree_is_its_text);

struct Condition {
    cel: String,
    tree: Value,
}

fn conditions() -> Result<Vec<Condition>> {
    let text = std::fs::read_to_string(repository("examples/policy/conditions.yaml"))?;
    let all: Vec<Value> = serde_saphyr::from_str(&text)?;
    let condition = |one: Value| {
        let cel = one["cel"].as_str().context("no CEL")?.to_owned();
        Ok(Condition {
            cel,
            tree: one["condition"].clone(),
        })
    };
    all.into_iter().map(condition).collect()
}

/// An RBAC filter that only notes whether the condition holds.
fn noting(number: usize, condition: &Condition) -> Value {
    json!({
        "name": format!("noting-{number}"),
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "shadow_rules_stat_prefix": format!("of_{number}_"),
            "shadow_rules": { "action": "ALLOW", "policies": { "one": {
                "permissions": [{ "any": true }],
                "principals": [{ "any": true }],
                "condition": condition.tree,
            } } },
        },
    })
}

/// Envoy evaluates the text for a log, and the tree for a policy, over callers for which each holds, or does not, or is an
/// error.
async fn each_tree_is_its_text(lab: &Lab) -> Result<()> {
    let conditions = conditions()?;
    ensure!(conditions.len() >= 7, "{} conditions", conditions.len());
    let path = lab.dir().join("conditions.log");
    let mut format = Map::new();
    for (number, condition) in conditions.iter().enumerate() {
        format.insert(
            format!("text {number}"),
            format!("%CEL({})%", condition.cel).into(),
        );
        let result = format!("envoy.filters.http.rbac:of_{number}_shadow_engine_result");
        format.insert(
            format!("tree {number}"),
            format!("%DYNAMIC_METADATA({result})%").into(),
        );
    }
    let callee = Workload::sidecar("ratings", Node::vm_server()?).listener("inbound", |listener| {
        listener
            .access_logs
            .push(file_log(&path, &Value::Object(format.clone())));
        let all = conditions.iter().enumerate();
        listener
            .behind
            .extend(all.map(|(number, condition)| noting(number, condition)));
    });
    let mesh = lab.start([callee]).await?;
    let callers = [
        json!({ "NAMESPACE": "shop", "WORKLOAD_NAME": "checkout", "CLUSTER_ID": "east", "LABELS": { "app": "checkout" } }),
        json!({ "NAMESPACE": "billing", "WORKLOAD_NAME": "invoices", "CLUSTER_ID": "west", "LABELS": { "app": "invoices" } }),
        json!({ "NAMESPACE": "other", "WORKLOAD_NAME": "other" }),
        Value::Null,
    ];

    for caller in &callers {
        let mut call = Call::new(mesh.address("ratings")?, "ratings");
        if !caller.is_null() {
            let [metadata, id] = PEER_HEADERS;
            call = call.header(metadata, &header(caller))?.header(id, "a")?;
        }
        call.send().await?;
    }

    let lines = lab.lines(&path, callers.len()).await?;
    let mut held = vec![Vec::new(); conditions.len()];
    for (caller, line) in callers.iter().zip(&lines) {
        let line: Value = serde_json::from_str(line)?;
        for (number, condition) in conditions.iter().enumerate() {
            let text = &line[format!("text {number}")];
            let by_text = *text == json!("true") || *text == json!(true);
            let tree = &line[format!("tree {number}")];
            ensure!(
                *tree == json!("allowed") || *tree == json!("denied"),
                "{line}"
            );
            let by_tree = *tree == json!("allowed");
            assert_eq!(by_tree, by_text, "{} of {caller}: {line}", condition.cel);
            held[number].push(by_tree);
        }
    }
    // Each holds of some caller; the one of a certificate cannot here, without TLS.
    for (condition, held) in conditions.iter().zip(held) {
        let by_certificate = condition.cel.starts_with("connection.");
        assert_eq!(held.contains(&true), !by_certificate, "{}", condition.cel);
        assert!(held.contains(&false), "{}", condition.cel);
    }
    Ok(())
}
