//! Nodes that are named in different ways: as a peer and as the local node, a
//! workload must be one service.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Stage, pod};
use crate::node::Node;
use crate::skywalking::drawn::{Calls, Sides};
use crate::skywalking::expected::Made;
use crate::workload::Workload;

pub(super) async fn all(stage: &mut Stage<'_>) -> Result<()> {
    both_ways(stage).await?;
    own_node_recorded(stage).await
}

/// A way to name a node, and the name that is drawn.
struct Case {
    story: &'static str,
    namespace: String,
    metadata: Value,
    plugin: Value,
    service: String,
}

/// Each node is called by a pod and calls it: its peer and its own proxy give
/// it the same name.
async fn both_ways(stage: &mut Stage<'_>) -> Result<()> {
    let case = |story, name: &str, service: &str, metadata: Value, plugin: Value| Case {
        story,
        namespace: stage.namespace(name),
        metadata,
        plugin,
        service: service.to_owned(),
    };
    let long = format!(
        "{}-is-in-a-service-whose-name-has-many-more-characters-than-those-that-are-kept",
        stage.run
    );
    let minimal = || json!({ "share": "minimal" });
    let labels = |labels: Value| json!({ "LABELS": labels });
    let cases = [
        case("a VM without labels", "bare", "-", json!({}), json!({})),
        case(
            "share: minimal",
            "minimal",
            "stock",
            labels(json!({ "service.istio.io/canonical-name": "stock", "app": "a", "team": "t" })),
            minimal(),
        ),
        case(
            "share: minimal, k8s-app",
            "k8sapp",
            "stock",
            labels(json!({ "k8s-app": "stock", "team": "t" })),
            minimal(),
        ),
        case(
            "share: minimal, app.kubernetes.io/name",
            "kubename",
            "stock",
            labels(json!({ "app.kubernetes.io/name": "stock", "team": "t" })),
            minimal(),
        ),
        case(
            "share: minimal, App",
            "case",
            "stock",
            labels(json!({ "App": "stock", "team": "t" })),
            minimal(),
        ),
        case(
            "SERVICE alone",
            "service",
            "stock",
            json!({ "SERVICE": "stock" }),
            json!({}),
        ),
        case(
            "SERVICE alone, share: minimal",
            "service2",
            "stock",
            json!({ "SERVICE": "stock" }),
            minimal(),
        ),
        case(
            "keys in lower case",
            "lower",
            "stock",
            json!({ "lower": true }),
            json!({}),
        ),
        case(
            "more than 70 characters",
            "long",
            &long,
            labels(json!({ "app": long })),
            json!({}),
        ),
    ];
    let home = stage.namespace("names");
    let mut workloads = vec![Workload::sidecar("shop", pod("shop", &home))];
    for case in &cases {
        let workload = Workload::sidecar(&case.namespace, node(case)?);
        workloads.push(workload.configured(&case.plugin));
    }
    let mesh = stage.lab.start(workloads).await?;
    let shop = format!("shop.{home}");
    for case in &cases {
        let Case {
            story, namespace, ..
        } = case;
        let called = Made::calls(&mesh, "shop", namespace, &["/", "/"]).await?;
        let calls = Made::calls(&mesh, namespace, "shop", &["/"]).await?;
        let stock = cut(&format!("{}.{namespace}", case.service));
        let expected = &mut stage.expected;
        expected.edge(story, &shop, &stock, called.sides());
        expected.edge(story, &stock, &shop, calls.sides());
        expected.instances(&stock, ["stock-1"]);
    }
    stage.keep(mesh);
    Ok(())
}

/// Truncates a name as the OAP does.
fn cut(name: &str) -> String {
    name.chars().take(70).collect()
}

fn node(case: &Case) -> Result<Node> {
    let mut metadata = json!({ "NAME": "stock-1", "NAMESPACE": case.namespace });
    let given = case.metadata.as_object().context("no object")?;
    if given.contains_key("lower") {
        metadata = json!({
            "name": "stock-1",
            "namespace": case.namespace,
            "labels": { "app": "stock" },
        });
    } else {
        metadata
            .as_object_mut()
            .context("no object")?
            .extend(given.clone());
    }
    let id = format!(
        "sidecar~10.0.0.2~stock-1.{0}~{0}.svc.cluster.local",
        case.namespace
    );
    Ok(Node { id, metadata })
}

/// With `record_local_node`, each proxy seems to call itself.
async fn own_node_recorded(stage: &mut Stage<'_>) -> Result<()> {
    const STORY: &str = "record_local_node";
    let namespace = stage.namespace("recorded");
    let recording = json!({ "record_local_node": true });
    let sidecar =
        |name: &str| Workload::sidecar(name, pod(name, &namespace)).configured(&recording);
    let mesh = stage.lab.start([sidecar("shop"), sidecar("stock")]).await?;

    let made = Made::calls(&mesh, "shop", "stock", &["/", "/"]).await?;

    let [shop, stock] = ["shop", "stock"].map(|name| format!("{name}.{namespace}"));
    let why = "the local node is taken for a peer";
    let calls = Calls::all(made.client().calls);
    let none = Sides::default();
    let expected = &mut stage.expected;
    expected.edge(STORY, &shop, &stock, made.sides());
    expected.differs(STORY, &shop, &shop, (none, Some(Sides::server(calls))), why);
    expected.differs(
        STORY,
        &stock,
        &stock,
        (none, Some(Sides::client(calls))),
        why,
    );
    stage.keep(mesh);
    Ok(())
}
