//! Gateways: a proxy between two others, without an app.

use anyhow::Result;
use envoy_test::client::{METADATA_OF_NAME_X, PEER_HEADERS, has_peer_headers};
use envoy_test::{Direction, Lab, Node, Side, Workload};
use hyper::StatusCode;
use serde_json::json;

use crate::{assert_clean, assert_no_peer, assert_peer};

envoy_test::stories!(
    an_inner_gateway_takes_part_on_both_sides,
    an_outbound_listener_is_configured_as_gateway,
    a_listener_without_direction_believes_no_stranger,
    an_istio_gateway_answers_nobody_outside,
    a_gateway_follows_a_redirect,
);

async fn an_inner_gateway_takes_part_on_both_sides(lab: &Lab) -> Result<()> {
    through_a_gateway(lab, Workload::gateway("egress", Node::gateway()?)).await
}

async fn an_outbound_listener_is_configured_as_gateway(lab: &Lab) -> Result<()> {
    let gateway = Workload::gateway("egress", Node::gateway()?)
        .listener("gateway", |listener| {
            listener.direction = Some(Direction::Outbound);
        })
        .configured(&json!({ "direction": "gateway" }));
    through_a_gateway(lab, gateway).await
}

async fn through_a_gateway(lab: &Lab, gateway: Workload) -> Result<()> {
    let (client, server) = (Node::pod_client()?, Node::vm_server()?);
    let mesh = lab
        .start([
            calling_through_egress(client.clone()),
            gateway,
            Workload::sidecar("ratings", server.clone()),
        ])
        .await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_peer(&outbound, Side::Upstream, &Node::gateway()?)?;
    let passed_on = lab.entry("egress/gateway", &reply.call).await?;
    assert_peer(&passed_on, Side::Downstream, &client)?;
    assert_peer(&passed_on, Side::Upstream, &server)?;
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&inbound, Side::Downstream, &Node::gateway()?)?;
    assert_clean(&mesh, "ratings", &reply)?;
    Ok(())
}

/// Other control planes than Istio's give no listener of a gateway a direction,
/// and it may face the Internet.
async fn a_listener_without_direction_believes_no_stranger(lab: &Lab) -> Result<()> {
    let edge = Workload::gateway("edge", Node::gateway()?).configured(&json!({}));
    believes_nobody_outside(lab, "edge", edge).await
}

/// A client outside sends forged metadata: an edge gateway neither stores nor
/// forwards it, nor sends its own.
async fn an_istio_gateway_answers_nobody_outside(lab: &Lab) -> Result<()> {
    let ingress = Workload::istio_gateway("ingress", Node::gateway()?);
    believes_nobody_outside(lab, "ingress", ingress).await
}

/// A client without a certificate sends metadata to the gateway `name`: it neither learns nor teaches anything, and the
/// gateway and the workload behind it know each other.
async fn believes_nobody_outside(lab: &Lab, name: &str, gateway: Workload) -> Result<()> {
    let server = Node::vm_server()?;
    let mesh = lab
        .start([gateway, Workload::sidecar("ratings", server.clone())])
        .await?;

    let [value, id] = PEER_HEADERS;
    let call = mesh.call(name, "ratings")?;
    let call = call.header(value, METADATA_OF_NAME_X)?;
    let reply = call.header(id, "outsider")?.send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    let passed_on = lab.entry(&format!("{name}/gateway"), &reply.call).await?;
    assert_no_peer(&passed_on, Side::Downstream)?;
    assert_peer(&passed_on, Side::Upstream, &server)?;
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&inbound, Side::Downstream, &Node::gateway()?)?;
    assert_clean(&mesh, "ratings", &reply)?;
    Ok(())
}

/// Envoy runs the redirected request through the filter again, with the headers
/// that the first pass set: the caller stays the first one.
async fn a_gateway_follows_a_redirect(lab: &Lab) -> Result<()> {
    let (client, server) = (Node::pod_client()?, Node::vm_server()?);
    let mesh = lab
        .start([
            calling_through_egress(client.clone()),
            Workload::gateway("egress", Node::gateway()?).listener("gateway", |listener| {
                listener.route_action = json!({
                    "internal_redirect_policy": { "redirect_response_codes": [302] },
                });
            }),
            Workload::sidecar("reviews", Node::vm_minimal()?),
            Workload::sidecar("ratings", server.clone()),
        ])
        .await?;

    let call = mesh.call("productpage", "reviews")?;
    let reply = call.path("/redirect/ratings").send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    assert!(!has_peer_headers(&reply.headers));
    let entries = lab.entries("egress/gateway", &reply.call, 1).await?;
    for passed_on in entries {
        assert_peer(&passed_on, Side::Downstream, &client)?;
    }
    for service in ["reviews", "ratings"] {
        let inbound = lab
            .entry(&format!("{service}/inbound"), &reply.call)
            .await?;
        assert_peer(&inbound, Side::Downstream, &Node::gateway()?)?;
        assert_clean(&mesh, service, &reply)?;
    }
    let envoy = mesh.envoy("egress")?;
    envoy.counts("wasmcustom.metadata_exchange.own", 1).await?;
    Ok(())
}

fn calling_through_egress(node: Node) -> Workload {
    Workload::sidecar("productpage", node).listener("outbound", |listener| {
        listener.via = ["reviews", "ratings"]
            .map(|service| (service.to_owned(), "egress".to_owned()))
            .into();
    })
}
