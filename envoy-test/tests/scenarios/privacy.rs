//! What leaves a proxy, and where it goes.

use anyhow::Result;
use envoy_test::client::{METADATA_OF_NAME_X, PEER_HEADERS, has_peer_headers};
use envoy_test::{Lab, Mesh, Node, Reply, Side, Workload, until};
use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde_json::{Value, json};

use crate::{assert_no_peer, counter};

envoy_test::stories!(
    clusters_outside_the_mesh_are_sent_nothing,
    a_replaced_cluster_is_noticed,
    the_selected_cluster_of_a_weighted_route_decides,
    a_caller_is_answered_only_what_it_sent,
);

/// Callees outside the mesh: by Istio's name, by Istio's metadata, and by two
/// configured names.
const OUTSIDE: [&str; 4] = ["PassthroughCluster", "external", "database", "ext-api"];

/// A callee in the mesh for which Istio disables the exchange.
const FORBIDDEN: &str = "over-hbone";

async fn clusters_outside_the_mesh_are_sent_nothing(lab: &Lab) -> Result<()> {
    let mesh = mesh_with_an_outside(lab, &json!({})).await?;

    for callee in OUTSIDE.into_iter().chain([FORBIDDEN]) {
        let reply = call_forged(&mesh, callee).await?;
        assert_sent_metadata(&mesh, callee, &reply, None)?;
        let outbound = lab.entry("productpage/outbound", &reply.call).await?;
        assert_no_peer(&outbound, Side::Upstream)?;
    }
    let reply = call_forged(&mesh, "inside").await?;
    assert_sent_metadata(&mesh, "inside", &reply, Some(&Node::pod_client()?))?;
    assert_answer_is_believed(lab, &reply).await?;

    let envoy = mesh.envoy("productpage")?;
    let skipped = OUTSIDE.len() + 1;
    assert_eq!(counter(envoy, "external_skipped", skipped).await?, skipped);
    Ok(())
}

async fn mesh_with_an_outside(lab: &Lab, configuration: &Value) -> Result<Mesh> {
    let istio =
        |key: &str| json!({ "metadata": { "filter_metadata": { "istio": { key: true } } } });
    let mut configuration = configuration.clone();
    configuration["external_cluster_names"] = json!(["database", "ext-*"]);
    let callees = OUTSIDE.into_iter().chain([FORBIDDEN, "inside"]);
    let mut workloads: Vec<Workload> = callees.map(Workload::bare).collect();
    workloads.push(
        Workload::sidecar("productpage", Node::pod_client()?)
            .cluster("external", istio("external"))
            .cluster(FORBIDDEN, istio("disable_mx"))
            .configured(&configuration),
    );
    lab.start(workloads).await
}

/// Calls, with forged headers, a callee that answers with forged headers.
async fn call_forged(mesh: &Mesh, callee: &str) -> Result<Reply> {
    let [metadata, id] = PEER_HEADERS;
    let call = mesh.call("productpage", callee)?.path("/forged");
    let call = call.header(metadata, METADATA_OF_NAME_X)?;
    let reply = call.header(id, "somebody-else")?.send().await?;
    assert_eq!(reply.status, StatusCode::OK);
    Ok(reply)
}

/// Asserts that the callee received `caller`, or nothing, and that the calling
/// app received nothing.
fn assert_sent_metadata(
    mesh: &Mesh,
    callee: &str,
    reply: &Reply,
    caller: Option<&Node>,
) -> Result<()> {
    assert!(!has_peer_headers(&reply.headers), "{callee}");
    let received = mesh.app(callee)?.received(&reply.call);
    assert_eq!(received.len(), 1, "{callee}");
    let [metadata, id] = PEER_HEADERS;
    for request in received {
        let id = request.headers.get(id).map(HeaderValue::as_bytes);
        assert_eq!(id, caller.map(|caller| caller.id.as_bytes()), "{callee}");
        let was_sent = request.headers.contains_key(metadata);
        assert_eq!(was_sent, caller.is_some(), "{callee}");
    }
    Ok(())
}

async fn assert_answer_is_believed(lab: &Lab, reply: &Reply) -> Result<()> {
    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    let peer = outbound.peer(Side::Upstream)?.cloned();
    assert_eq!(peer, Some(json!({ "NAME": "x" })));
    Ok(())
}

/// The filter reads the metadata of clusters again every ten seconds.
async fn a_replaced_cluster_is_noticed(lab: &Lab) -> Result<()> {
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?),
            Workload::bare("legacy"),
        ])
        .await?;
    assert!(was_sent(&mesh, "legacy").await?);

    let external = json!({
        "metadata": { "filter_metadata": { "istio": { "external": true } } },
    });
    mesh.replace_cluster("productpage", "legacy", &external)
        .await?;

    until("nothing to be sent outside the mesh", async || {
        Ok((!was_sent(&mesh, "legacy").await?).then_some(()))
    })
    .await
}

/// Envoy selects the route again after the filter has changed headers, with the
/// same cluster.
async fn the_selected_cluster_of_a_weighted_route_decides(lab: &Lab) -> Result<()> {
    let caller = Workload::sidecar("productpage", Node::pod_client()?);
    let caller = caller.configured(&json!({ "external_cluster_names": ["external"] }));
    let caller = caller.listener("outbound", |listener| {
        listener.route_action = json!({
            "cluster": null,
            "weighted_clusters": {
                "clusters": [
                    { "name": "inside", "weight": 50 },
                    { "name": "external", "weight": 50 },
                ],
            },
        });
    });
    let outside = [Workload::bare("inside"), Workload::bare("external")];
    let mesh = lab.start(outside.into_iter().chain([caller])).await?;

    let (mut inside, mut external) = (0, 0);
    while inside < 20 || external < 20 {
        let reply = mesh.call("productpage", "inside")?.send().await?;
        assert_eq!(reply.status, StatusCode::OK);
        for request in mesh.app("inside")?.received(&reply.call) {
            assert!(has_peer_headers(&request.headers));
            inside += 1;
        }
        for request in mesh.app("external")?.received(&reply.call) {
            assert!(!has_peer_headers(&request.headers));
            external += 1;
        }
    }
    Ok(())
}

async fn was_sent(mesh: &Mesh, callee: &str) -> Result<bool> {
    let reply = mesh.call("productpage", callee)?.send().await?;
    assert_eq!(reply.status, StatusCode::OK);
    let received = mesh.app(callee)?.received(&reply.call);
    assert_eq!(received.len(), 1);
    Ok(received.iter().any(|one| has_peer_headers(&one.headers)))
}

/// A sidecar and an inner gateway answer each header whose counterpart they
/// received.
async fn a_caller_is_answered_only_what_it_sent(lab: &Lab) -> Result<()> {
    let gateway = Workload::gateway("egress", Node::gateway()?);
    let mesh = lab
        .start([
            Workload::bare("outsider"),
            Workload::sidecar("ratings", Node::vm_server()?),
            gateway,
        ])
        .await?;
    let [metadata, id] = PEER_HEADERS;

    for (caller, entry) in [
        ("outsider", "ratings/inbound"),
        ("egress", "egress/gateway"),
    ] {
        for asked in [&[] as &[&'static str], &[id], &[metadata], &[metadata, id]] {
            let mut call = mesh.call(caller, "ratings")?;
            for name in asked {
                call = call.header(name, METADATA_OF_NAME_X)?;
            }
            let reply = call.send().await?;

            assert_eq!(reply.status, StatusCode::OK);
            for name in PEER_HEADERS {
                let is_answered = reply.headers.contains_key(name);
                assert_eq!(is_answered, asked.contains(&name), "{caller}, {asked:?}");
            }
            let logged = lab.entry(entry, &reply.call).await?;
            let is_stored = logged.peer(Side::Downstream)?.is_some();
            assert_eq!(is_stored, asked.contains(&metadata), "{caller}, {asked:?}");
        }
    }
    Ok(())
}
