//! CEL over every peer that the filter stores, wherever Envoy evaluates it: no expression crashes Envoy, and no request
//! fails. Envoy would dereference an absent vector of a `FlatNode` (`labels['app']`, `has(...)`, `in`).

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use envoy_test::bootstrap::file_log;
use envoy_test::client::{Call, PEER_HEADERS};
use envoy_test::peer::header;
use envoy_test::{Lab, Node, Workload};
use serde_json::{Map, Value, json};

use expression::{Expression, over};

mod expression;

envoy_test::stories!(
    every_received_peer_is_read,
    every_callee_that_its_endpoint_names_is_read,
    every_local_node_is_read,
);

/// Varied peers: each key alone, no maps, one map, empty maps, and whole nodes.
fn peers() -> Result<Vec<Value>> {
    let mut peers = vec![
        json!({"NAME": "a"}),
        json!({"NAMESPACE": "a"}),
        json!({"WORKLOAD_NAME": "a"}),
        json!({"OWNER": "a"}),
        json!({"MESH_ID": "a", "CLUSTER_ID": "a", "ISTIO_VERSION": "1.4"}),
        json!({"LABELS": {"app": "a"}}),
        json!({"LABELS": {"": ""}}),
        json!({"NAME": "a", "LABELS": {}}),
        json!({"NAME": "a", "LABELS": {}, "PLATFORM_METADATA": {}, "APP_CONTAINERS": "", "INSTANCE_IPS": ""}),
        json!({"PLATFORM_METADATA": {"app": "a"}}),
        json!({"APP_CONTAINERS": "a"}),
        json!({"INSTANCE_IPS": ",,"}),
    ];
    for node in [
        Node::pod_client()?,
        Node::vm_server()?,
        Node::vm_minimal()?,
        Node::gateway()?,
    ] {
        peers.push(node.as_peer());
    }
    Ok(peers)
}

/// What formatters read under `key`: each expression, and the object in each of Envoy's forms.
fn formats(key: &str, expressions: &[Expression]) -> Vec<(String, String)> {
    let of_expression = |expression: &Expression| {
        (
            expression.text.clone(),
            format!("%CEL({})%", expression.text),
        )
    };
    let forms = [
        "",
        ":PLAIN",
        ":TYPED",
        ":FIELD:name",
        ":FIELD:labels",
        ":PLAIN):3",
    ];
    let of_form = |form| {
        let end = if str::contains(form, ')') { "%" } else { ")%" };
        (form.to_owned(), format!("%FILTER_STATE({key}{form}{end}"))
    };
    let all = expressions.iter().map(of_expression);
    all.chain(forms.map(of_form)).collect()
}

/// Logs what every formatter reads to `path`.
fn log_of(formats: &[(String, String)], path: &Path) -> Value {
    let formats = formats
        .iter()
        .map(|(name, format)| (name.clone(), format.as_str().into()));
    file_log(path, &Value::Object(formats.collect()))
}

/// Adds a header per formatter to messages on the route; except the raw object, which is not text.
fn headers_of(formats: &[(String, String)]) -> Value {
    let header = |(index, (_, format)): (usize, &(String, String))| {
        json!({
            "header": { "key": format!("x-cel-{index}"), "value": format },
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        })
    };
    let texts = formats
        .iter()
        .filter(|(name, _)| !name.starts_with(":PLAIN"));
    texts.enumerate().map(header).collect()
}

/// Evaluates each expression as the condition of a policy that never matches: neither an error nor a comparison with
/// another type matches.
fn policies_of(expressions: &[Expression]) -> Value {
    let policy = |(index, expression): (usize, &Expression)| {
        let condition = json!({ "call_expr": {
            "function": "_==_",
            "args": [expression.tree, { "const_expr": { "string_value": "the value of no peer" } }],
        } });
        let policy = json!({
            "permissions": [{ "any": true }], "principals": [{ "any": true }], "condition": condition,
        });
        (format!("{index:03}"), policy)
    };
    let trees = expressions
        .iter()
        .filter(|expression| !expression.tree.is_null());
    let policies: Map<_, _> = trees.enumerate().map(policy).collect();
    json!({
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": { "action": "DENY", "policies": policies },
        },
    })
}

/// Each expression over each peer, in the log, in a policy, in request headers and in response headers.
async fn every_received_peer_is_read(lab: &Lab) -> Result<()> {
    let expressions = over("wasm.downstream_peer");
    let formats = formats("wasm.downstream_peer", &expressions);
    let path = lab.dir().join("cel.log");
    let mesh = lab
        .start([
            Workload::sidecar("ratings", Node::vm_server()?).listener("inbound", |listener| {
                listener.access_logs.push(log_of(&formats, &path));
                listener.behind.push(policies_of(&expressions));
                // Envoy takes at most a hundred headers.
                listener.virtual_host = json!({
                    "request_headers_to_add": headers_of(&formats),
                    "response_headers_to_add": headers_of(&formats),
                });
                listener.connection_manager =
                    json!({ "common_http_protocol_options": { "max_headers_count": 1000 } });
            }),
        ])
        .await?;
    let peers = peers()?;

    for peer in &peers {
        let reply = Call::new(mesh.address("ratings")?, "ratings")
            .header(PEER_HEADERS[0], &header(peer))?
            .header(PEER_HEADERS[1], "a")?
            .send()
            .await
            .with_context(|| format!("the peer {peer}"))?;
        ensure!(reply.status == 200, "{peer}: {}", reply.status);
    }

    let lines = lab.lines(&path, peers.len()).await?;
    for (peer, line) in peers.iter().zip(&lines) {
        let line: Value = serde_json::from_str(line)?;
        for (key, field) in [("NAME", "name"), ("WORKLOAD_NAME", "workload_name")] {
            let logged = &line[format!("filter_state['wasm.downstream_peer'].{field}")];
            let sent = peer[key].as_str().unwrap_or_default();
            assert_eq!(logged.as_str().unwrap_or_default(), sent, "{key} of {peer}");
        }
        let app = &line["filter_state['wasm.downstream_peer'].labels['app'].value"];
        assert_eq!(app.as_str(), peer["LABELS"]["app"].as_str(), "{peer}");
        assert_eq!(
            line["'wasm.downstream_peer' in filter_state"]
                .to_string()
                .trim_matches('"'),
            "true"
        );
    }
    println!(
        "{} formatters, {} policies, {} peers",
        formats.len(),
        expressions.len(),
        peers.len()
    );
    Ok(())
}

/// A callee named by its endpoint's metadata has no labels, or one.
async fn every_callee_that_its_endpoint_names_is_read(lab: &Lab) -> Result<()> {
    let expressions = over("wasm.upstream_peer");
    let formats = formats("wasm.upstream_peer", &expressions);
    let endpoints = [
        "pay;shop;;;",
        "pay;shop;payment;v2;east",
        "pay;shop",
        ";;;;",
    ];
    for (number, workload) in endpoints.into_iter().enumerate() {
        let path = lab.dir().join(format!("endpoint-{number}.log"));
        let mesh = lab
            .start([
                Workload::bare("payment")
                    .endpoint_metadata(json!({ "istio": { "workload": workload } })),
                Workload::sidecar("checkout", Node::pod_client()?).listener(
                    "outbound",
                    |listener| {
                        listener.access_logs.push(log_of(&formats, &path));
                    },
                ),
            ])
            .await?;

        let reply = mesh.call("checkout", "payment")?.send().await?;

        assert_eq!(reply.status, 200);
        lab.first_line(&path)
            .await
            .with_context(|| workload.to_owned())?;
        mesh.envoy("checkout")?.stats().await?;
    }
    Ok(())
}

/// `record_local_node` stores nodes with few fields.
async fn every_local_node_is_read(lab: &Lab) -> Result<()> {
    let expressions = over("wasm.upstream_peer");
    let formats = formats("wasm.upstream_peer", &expressions);
    let named = || Node::vm_minimal().map(|node| node.with("LABELS", json!({})));
    for (number, node) in [Node::vm_minimal()?, named()?].into_iter().enumerate() {
        let path = lab.dir().join(format!("local-{number}.log"));
        let mesh = lab
            .start([Workload::sidecar("ratings", node.clone())
                .configured(&json!({ "record_local_node": true }))
                .listener("inbound", |listener| {
                    listener.access_logs.push(log_of(&formats, &path));
                    listener.behind.push(policies_of(&expressions));
                })])
            .await?;

        let reply = Call::new(mesh.address("ratings")?, "ratings")
            .send()
            .await?;

        assert_eq!(reply.status, 200);
        let line: Value = serde_json::from_str(&lab.first_line(&path).await?)?;
        let name = &line["filter_state['wasm.upstream_peer'].name"];
        assert_eq!(name, &node.as_peer()["NAME"], "{line}");
        mesh.envoy("ratings")?.stats().await?;
    }
    Ok(())
}
