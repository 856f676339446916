//! Where the promises end: requests and responses, or parts of them, that the
//! filter does not see. Where Envoy's configuration closes such a gap, the same
//! story shows it.

use anyhow::Result;
use envoy_test::bootstrap::{
    FILTER, abort_filter, lua_filter, route_finding_filter, router, trailer_filter,
};
use envoy_test::client::{CALL, METADATA_OF_NAME_X, PEER_HEADERS, Protocol, has_peer_headers, raw};
use envoy_test::{Lab, Mesh, Node, Reply, Side, Workload};
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::{assert_clean, assert_no_peer, assert_peer, removal_of_peer_headers};

envoy_test::stories!(
    removal_does_not_disturb_the_exchange,
    a_route_disables_the_filter,
    an_upgrade_has_filters_of_its_own,
    trailers_pass,
    informational_responses_pass,
    a_filter_ahead_of_ours_replies,
    a_mirror_is_sent_what_the_callee_is_sent,
    another_filter_changes_the_route,
);

/// Envoy removes headers from requests after all filters, and from responses
/// before them, so an inbound listener can always remove them.
async fn removal_does_not_disturb_the_exchange(lab: &Lab) -> Result<()> {
    let (client, server) = (Node::pod_client()?, Node::vm_server()?);
    let mesh = lab
        .start([
            Workload::sidecar("productpage", client.clone()),
            Workload::sidecar("ratings", server.clone()).listener("inbound", |listener| {
                listener.virtual_host = removal_of_peer_headers();
            }),
        ])
        .await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;

    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&inbound, Side::Downstream, &client)?;
    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_peer(&outbound, Side::Upstream, &server)?;
    assert_clean(&mesh, "ratings", &reply)
}

async fn a_route_disables_the_filter(lab: &Lab) -> Result<()> {
    let disabled = json!({
        "typed_per_filter_config": {
            FILTER: {
                "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
                "disabled": true,
            },
        },
    });
    let open = behind(lab, disabled.clone(), json!({})).await?;
    let (request, response) = leaks(&open, &call_forged(&open).await?)?;
    assert!(request && response);

    let mut closing = disabled;
    for (key, value) in removal_of_peer_headers().as_object().into_iter().flatten() {
        closing[key] = value.clone();
    }
    let closed = behind(lab, closing, json!({})).await?;
    let (request, response) = leaks(&closed, &call_forged(&closed).await?)?;
    assert!(!request && !response);
    Ok(())
}

async fn an_upgrade_has_filters_of_its_own(lab: &Lab) -> Result<()> {
    let without_filter = json!({
        "upgrade_configs": [{ "upgrade_type": "websocket", "filters": [router()] }],
    });
    let with_filter = json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }] });
    for (upgrades, removal, leaking) in [
        (&without_filter, json!({}), true),
        (&without_filter, removal_of_peer_headers(), false),
        (&with_filter, json!({}), false),
    ] {
        let mesh = behind(lab, removal, upgrades.clone()).await?;
        let [metadata, _] = PEER_HEADERS;
        let call = mesh.call("outsider", "ratings")?.path("/forged");
        let call = call.header("connection", "upgrade")?;
        let call = call.header("upgrade", "websocket")?;
        let reply = call.header(metadata, METADATA_OF_NAME_X)?.send().await?;

        let received = mesh.app("ratings")?.received(&reply.call);
        assert!(
            received
                .iter()
                .all(|one| one.headers["upgrade"] == "websocket")
        );
        let (request, _) = leaks(&mesh, &reply)?;
        assert_eq!(request, leaking, "{upgrades}");
    }
    Ok(())
}

/// Starts `ratings` with overrides for its virtual host and connection manager.
async fn behind(lab: &Lab, virtual_host: Value, connection_manager: Value) -> Result<Mesh> {
    let ratings = Workload::sidecar("ratings", Node::vm_server()?);
    let ratings = ratings.listener("inbound", |listener| {
        listener.virtual_host = virtual_host.clone();
        listener.connection_manager = connection_manager.clone();
    });
    lab.start([Workload::bare("outsider"), ratings]).await
}

/// A call with a peer header, which the app answers with both headers.
async fn call_forged(mesh: &Mesh) -> Result<Reply> {
    let [metadata, _] = PEER_HEADERS;
    let call = mesh.call("outsider", "ratings")?.path("/forged");
    call.header(metadata, METADATA_OF_NAME_X)?.send().await
}

/// Whether the app saw a peer header, and whether the caller sees the id with
/// which the app answers.
fn leaks(mesh: &Mesh, reply: &Reply) -> Result<(bool, bool)> {
    assert_eq!(reply.status, StatusCode::OK);
    let received = mesh.app("ratings")?.received(&reply.call);
    assert_eq!(received.len(), 1);
    let request = received.iter().any(|one| has_peer_headers(&one.headers));
    let [_, id] = PEER_HEADERS;
    Ok((request, reply.headers.get(id).is_some_and(|id| id == "x")))
}

/// The filter does not touch trailers; here the request's trailers come back as
/// the response's.
async fn trailers_pass(lab: &Lab) -> Result<()> {
    for is_closed in [false, true] {
        let ratings = Workload::sidecar("ratings", Node::vm_server()?);
        let ratings = ratings.listener("inbound", |listener| {
            if is_closed {
                listener.behind.push(trailer_filter(&PEER_HEADERS));
            }
        });
        let mesh = lab.start([Workload::bare("outsider"), ratings]).await?;

        let [metadata, _] = PEER_HEADERS;
        let call = mesh.call("outsider", "ratings")?.path("/trailers");
        let call = call.protocol(Protocol::Http2).trailer("x-other", "1")?;
        let reply = call.trailer(metadata, METADATA_OF_NAME_X)?.send().await?;

        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(reply.trailers["x-other"], "1");
        assert_eq!(reply.trailers.contains_key(metadata), !is_closed);
        let inbound = lab.entry("ratings/inbound", &reply.call).await?;
        assert_no_peer(&inbound, Side::Downstream)?;
    }
    Ok(())
}

/// Envoy does not pass informational responses to Wasm filters, and forwards
/// them only if configured to.
async fn informational_responses_pass(lab: &Lab) -> Result<()> {
    let callee = TcpListener::bind("127.0.0.1:0").await?;
    let address = callee.local_addr()?;
    tokio::spawn(hint_and_answer(callee));
    for is_passed_on in [true, false] {
        let ratings = Workload::sidecar("ratings", Node::vm_server()?).served_at(address);
        let ratings = ratings.listener("inbound", |listener| {
            listener.connection_manager = json!({ "proxy_100_continue": is_passed_on });
        });
        let mesh = lab.start([ratings]).await?;

        let request = format!(
            "GET / HTTP/1.1\r\nhost: ratings\r\nconnection: close\r\n{CALL}: hints\r\n\r\n"
        );
        let reply = raw(mesh.address("ratings")?, request.as_bytes()).await?;

        let reply = String::from_utf8(reply)?;
        let (_, last) = reply.rsplit_once("HTTP/1.1 200").unwrap_or_default();
        assert!(
            !last.is_empty() && !last.contains(PEER_HEADERS[1]),
            "{reply}"
        );
        assert_eq!(reply.starts_with("HTTP/1.1 103"), is_passed_on, "{reply}");
        assert_eq!(reply.contains(PEER_HEADERS[1]), is_passed_on, "{reply}");
    }
    Ok(())
}

/// A callee that sends peer headers in an informational response and in the
/// final one.
async fn hint_and_answer(callee: TcpListener) -> Result<()> {
    loop {
        let (connection, _) = callee.accept().await?;
        tokio::spawn(answer(connection));
    }
}

async fn answer(mut connection: TcpStream) -> Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(connection.read_u8().await?);
    }
    let [_, id] = PEER_HEADERS;
    let early = format!("HTTP/1.1 103 Early Hints\r\n{id}: x\r\n\r\n");
    let last = format!("HTTP/1.1 200 OK\r\n{id}: x\r\ncontent-length: 0\r\n\r\n");
    connection.write_all(early.as_bytes()).await?;
    connection.write_all(last.as_bytes()).await?;
    Ok(())
}

/// A request that does not reach the filter: its caller is neither stored nor
/// answered.
async fn a_filter_ahead_of_ours_replies(lab: &Lab) -> Result<()> {
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?),
            Workload::sidecar("ratings", Node::vm_server()?).listener("inbound", |listener| {
                listener.before.push(abort_filter(403));
            }),
        ])
        .await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;

    assert_eq!(reply.status, StatusCode::FORBIDDEN);
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_no_peer(&inbound, Side::Downstream)?;
    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_no_peer(&outbound, Side::Upstream)
}

/// The filter sees the route's cluster, not its mirrors.
async fn a_mirror_is_sent_what_the_callee_is_sent(lab: &Lab) -> Result<()> {
    let removals = PEER_HEADERS.map(|name| json!({ "remove": name }));
    for (mutations, was_sent) in [(json!([]), true), (json!(removals), false)] {
        let mirror = json!({ "cluster": "external", "request_headers_mutations": mutations });
        let caller = Workload::sidecar("productpage", Node::pod_client()?);
        let caller = caller.configured(&json!({ "external_cluster_names": ["external"] }));
        let mesh = lab
            .start([
                caller.listener("outbound", |listener| {
                    listener.route_action = json!({ "request_mirror_policies": [mirror] });
                }),
                Workload::bare("inside"),
                Workload::bare("external"),
            ])
            .await?;

        let reply = mesh.call("productpage", "inside")?.send().await?;

        let received = |service: &str| -> Result<Option<bool>> {
            let received = mesh.app(service)?.received(&reply.call);
            Ok(received.first().map(|one| has_peer_headers(&one.headers)))
        };
        assert_eq!(received("inside")?, Some(true));
        let mirror =
            envoy_test::until("the mirrored request", async || received("external")).await?;
        assert_eq!(mirror, was_sent);
    }
    Ok(())
}

/// The filter decides by the cluster that Envoy has selected when it runs. A
/// filter behind it may change the route; and if one ahead of it clears the
/// route, Envoy selects the cluster later, in the router at the latest.
async fn another_filter_changes_the_route(lab: &Lab) -> Result<()> {
    let change = lua_filter(
        "function envoy_on_request(request)
           request:headers():replace(':authority', 'external')
           request:clearRouteCache()
         end",
    );
    for (place, ahead, behind, was_sent) in [
        ("behind", vec![], vec![change.clone()], true),
        ("ahead", vec![change.clone()], vec![], true),
        (
            "ahead, and found again",
            vec![change.clone(), route_finding_filter()],
            vec![],
            false,
        ),
    ] {
        for is_removed in [false, true] {
            let caller = Workload::sidecar("productpage", Node::pod_client()?);
            let caller = caller.configured(&json!({ "external_cluster_names": ["external"] }));
            let caller = caller.listener("outbound", |listener| {
                listener.before.clone_from(&ahead);
                listener.behind.clone_from(&behind);
                if is_removed {
                    listener.virtual_host = removal_of_peer_headers();
                }
            });
            let outside = [Workload::bare("inside"), Workload::bare("external")];
            let mesh = lab.start(outside.into_iter().chain([caller])).await?;

            let reply = mesh.call("productpage", "inside")?.send().await?;

            assert_eq!(reply.status, StatusCode::OK);
            let received = mesh.app("external")?.received(&reply.call);
            assert_eq!(received.len(), 1);
            let was_sent_metadata = received.iter().any(|one| has_peer_headers(&one.headers));
            assert_eq!(
                was_sent_metadata,
                was_sent && !is_removed,
                "{place}, {is_removed}"
            );
        }
    }
    Ok(())
}
