//! The callee is named even if the call fails or has no answer, by other
//! sources.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use envoy_test::bootstrap::{filter_resource, lua_filter};
use envoy_test::client::{CALL, Call};
use envoy_test::{Direction, Entry, Lab, Node, Plugin, Side, Workload};
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::{assert_clean, assert_no_peer, assert_peer, counter};

envoy_test::stories!(
    the_callee_is_named_after_any_end,
    a_failed_callee_belongs_to_the_service_that_answered_before,
    a_cluster_is_named_as_istio_names_it,
    a_host_outside_the_mesh_is_named_by_its_host,
    a_second_filter_does_not_overwrite_the_callee,
    an_answer_without_a_name_is_replaced_by_the_endpoint,
    a_redirected_call_names_its_last_callee,
    a_gateways_entry_has_a_key,
    a_waypoint_is_a_gateway,
    grpcs_own_metadata_names_the_caller,
);

/// A filter that replies to requests with this header, instead of the filters
/// behind it.
pub(crate) fn replying_filter(header: &str) -> Value {
    lua_filter(&format!(
        r#"function envoy_on_request(handle)
            if handle:headers():get("{header}") then
                handle:respond({{[":status"] = "503"}}, "")
            end
        end"#
    ))
}

/// Istio's metadata of the cluster of a service in the namespace `shop`.
fn of_service(name: &str) -> Value {
    json!({ "filter_metadata": { "istio": { "services": [{
        "host": format!("{name}.shop.svc.cluster.local"), "name": name, "namespace": "shop",
    }] } } })
}

/// The callee in an entry, which must have no id.
fn callee(entry: &Entry) -> Result<Option<Value>> {
    assert_eq!(entry.id(Side::Upstream)?, None, "{entry:?}");
    Ok(entry.peer(Side::Upstream)?.cloned())
}

fn service(name: &str) -> Value {
    json!({ "NAMESPACE": "shop", "LABELS": { "service.istio.io/canonical-name": name } })
}

async fn the_callee_is_named_after_any_end(lab: &Lab) -> Result<()> {
    let (silent, resetting) = (Server::silent().await?, Server::resetting().await?);
    let dead = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let mut caller =
        Workload::sidecar("productpage", Node::pod_client()?).listener("outbound", |listener| {
            listener.before.push(replying_filter("x-ahead"));
            listener.behind.push(replying_filter("x-behind"));
            listener.route_action = json!({
                "timeout": "1s",
                "retry_policy": { "retry_on": "connect-failure", "num_retries": 1 },
            });
        });
    let nobody =
        json!({ "fallback_policy": "NO_FALLBACK", "subset_selectors": [{ "keys": ["x"] }] });
    let no_room = json!({ "thresholds": [{ "max_pending_requests": 0 }] });
    for (name, key, overrides) in [
        ("no-host", "lb_subset_config", nobody),
        ("overflow", "circuit_breakers", no_room),
        ("refused", "metadata", of_service("refused")),
        ("reset", "metadata", of_service("reset")),
        ("silent", "metadata", of_service("silent")),
    ] {
        let mut cluster = json!({ "metadata": of_service(name) });
        cluster[key] = overrides;
        caller = caller.cluster(name, cluster);
    }
    let mesh = lab
        .start([
            caller,
            Workload::bare("no-host"),
            Workload::bare("overflow"),
            Workload::bare("refused").served_at(dead),
            Workload::bare("reset").served_at(resetting.address),
            Workload::bare("silent").served_at(silent.address),
        ])
        .await?;

    for (service_name, header, status, details) in [
        ("no-host", None, 503, "no_healthy_upstream"),
        (
            "overflow",
            None,
            503,
            "upstream_reset_before_response_started{overflow}",
        ),
        (
            "refused",
            None,
            503,
            "upstream_reset_before_response_started",
        ),
        ("reset", None, 503, "upstream_reset_before_response_started"),
        ("silent", None, 504, "response_timeout"),
        ("silent", Some("x-behind"), 503, "lua_response"),
        ("silent", Some("x-ahead"), 503, "lua_response"),
    ] {
        let mut call = mesh.call("productpage", service_name)?;
        if let Some(header) = header {
            call = call.header(header, "1")?;
        }
        let reply = call.send().await?;
        assert_eq!(reply.status.as_u16(), status, "{service_name}");
        let entry = lab.entry("productpage/outbound", &reply.call).await?;
        assert!(entry.details.starts_with(details), "{entry:?}");
        assert_eq!(callee(&entry)?, Some(service(service_name)), "{entry:?}");
    }

    let call = abandon(mesh.outbound("productpage")?, "silent").await?;
    let entry = lab.entry("productpage/outbound", &call).await?;
    assert!(
        entry.details.starts_with("downstream_remote_disconnect"),
        "{entry:?}"
    );
    assert_eq!(callee(&entry)?, Some(service("silent")), "{entry:?}");
    let envoy = mesh.envoy("productpage")?;
    counter(envoy, "upstream_peer_from_cluster_metadata", 8).await?;
    Ok(())
}

/// Sends a request, and closes the connection once it has reached the proxy.
async fn abandon(to: SocketAddr, authority: &str) -> Result<String> {
    let call = format!("abandoned-{authority}");
    let mut stream = TcpStream::connect(to).await?;
    let request = format!(
        "POST / HTTP/1.1\r\nhost: {authority}\r\n{CALL}: {call}\r\ncontent-length: 100\r\n\r\npart"
    );
    stream.write_all(request.as_bytes()).await?;
    Ok(call)
}

async fn a_failed_callee_belongs_to_the_service_that_answered_before(lab: &Lab) -> Result<()> {
    let server = Node::pod_server()?;
    let mut mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?),
            Workload::sidecar("ratings", server.clone()),
        ])
        .await?;
    mesh.call("productpage", "ratings")?.send().await?;
    mesh.kill("ratings").await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;

    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    let entry = lab.entry("productpage/outbound", &reply.call).await?;
    let known = callee(&entry)?.context("nobody is named")?;
    let mut labels = server.metadata["LABELS"].clone();
    let naming = [
        "service.istio.io/canonical-name",
        "app.kubernetes.io/name",
        "app",
        "k8s-app",
    ];
    labels
        .as_object_mut()
        .context("labels")?
        .retain(|key, _| naming.contains(&key.as_str()));
    let expected = json!({ "NAMESPACE": server.metadata["NAMESPACE"], "LABELS": labels });
    assert_eq!(known, expected);
    counter(
        mesh.envoy("productpage")?,
        "upstream_peer_from_known_service",
        1,
    )
    .await?;
    Ok(())
}

async fn a_cluster_is_named_as_istio_names_it(lab: &Lab) -> Result<()> {
    let cluster = "outbound|9080||ratings.shop.svc.cluster.local";
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?).listener(
                "outbound",
                |listener| {
                    listener.via = vec![("ratings".to_owned(), cluster.to_owned())];
                },
            ),
            Workload::bare("ratings"),
            Workload::bare(cluster),
        ])
        .await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;

    let entry = lab.entry("productpage/outbound", &reply.call).await?;
    assert_eq!(callee(&entry)?, Some(service("ratings")));
    counter(
        mesh.envoy("productpage")?,
        "upstream_peer_from_cluster_name",
        1,
    )
    .await?;
    Ok(())
}

async fn a_host_outside_the_mesh_is_named_by_its_host(lab: &Lab) -> Result<()> {
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?).cluster(
                "card",
                json!({ "metadata": { "filter_metadata": { "istio": {
                    "external": true,
                    "services": [{ "host": "card.example.com", "name": "card.example.com", "namespace": "default" }],
                } } } }),
            ),
            Workload::bare("card").endpoint_metadata(json!({ "istio": {
                "workload": "card-network-0;default;card-network-0;;Kubernetes",
            } })),
        ])
        .await?;

    let reply = mesh.call("productpage", "card")?.send().await?;

    let entry = lab.entry("productpage/outbound", &reply.call).await?;
    let host = json!({ "LABELS": { "service.istio.io/canonical-name": "card.example.com" } });
    assert_eq!(callee(&entry)?, Some(host));
    Ok(())
}

/// The second filter is nearer to the callee, so the first never sees the
/// answer.
async fn a_second_filter_does_not_overwrite_the_callee(lab: &Lab) -> Result<()> {
    let server = Node::vm_server()?;
    let second = filter_resource(&Plugin::default(), lab.module());
    let second =
        json!({ "name": "second", "typed_config": second["resources"][0]["typed_config"] });
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?).listener(
                "outbound",
                |listener| {
                    listener.behind.push(second.clone());
                },
            ),
            Workload::sidecar("ratings", server.clone()).endpoint_metadata(json!({ "istio": {
                "workload": "ratings-by-endpoint;shop;ratings;v1;east",
            } })),
        ])
        .await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;

    let entry = lab.entry("productpage/outbound", &reply.call).await?;
    assert_peer(&entry, Side::Upstream, &server)
}

async fn an_answer_without_a_name_is_replaced_by_the_endpoint(lab: &Lab) -> Result<()> {
    let mut nobody = Node::vm_server()?;
    nobody.metadata = json!({ "ISTIO_VERSION": "1.30.0" });
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?),
            Workload::sidecar("ratings", nobody)
                .endpoint_metadata(json!({ "istio": { "workload": "ratings-v1;shop" } })),
        ])
        .await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;

    let entry = lab.entry("productpage/outbound", &reply.call).await?;
    let mut expected = service("ratings-v1");
    expected["NAME"] = "ratings-v1".into();
    expected["WORKLOAD_NAME"] = "ratings-v1".into();
    assert_eq!(callee(&entry)?, Some(expected));
    assert_clean(&mesh, "ratings", &reply)
}

/// The first callee sends its metadata, and redirects the call.
async fn a_redirected_call_names_its_last_callee(lab: &Lab) -> Result<()> {
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?).listener(
                "outbound",
                |listener| {
                    listener.route_action = json!({
                        "internal_redirect_policy": { "redirect_response_codes": [302] },
                    });
                },
            ),
            Workload::sidecar("reviews", Node::vm_server()?).endpoint_metadata(
                json!({ "istio": { "workload": "reviews-v1;shop;reviews;v1;east" } }),
            ),
            Workload::bare("legacy")
                .endpoint_metadata(json!({ "istio": { "workload": "legacy-v1;shop" } })),
        ])
        .await?;

    let call = mesh.call("productpage", "reviews")?;
    let reply = call.path("/redirect/legacy").send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    let entries = lab.entries("productpage/outbound", &reply.call, 2).await?;
    let names = entries.iter().map(|entry| {
        let callee = callee(entry)?.map(|callee| callee["NAME"].clone());
        anyhow::Ok((entry.status, callee))
    });
    let names = names.collect::<Result<Vec<_>>>()?;
    assert_eq!(names, [(302, None), (200, Some(json!("legacy-v1")))]);
    Ok(())
}

/// `SkyWalking` counts a gateway's call from outside only if its entry has a key. The filter stores an empty id, which names nobody.
async fn a_gateways_entry_has_a_key(lab: &Lab) -> Result<()> {
    let mesh = lab
        .start([
            Workload::istio_gateway("ingress", Node::gateway()?).listener("gateway", |listener| {
                listener.before.push(replying_filter("x-ahead"));
            }),
            Workload::bare("legacy"),
        ])
        .await?;

    let address = mesh.address("ingress")?;
    for call in [
        Call::new(address, "nowhere"),
        Call::new(address, "legacy"),
        Call::new(address, "legacy").header("x-ahead", "1")?,
    ] {
        let reply = call.send().await?;
        let entry = lab.entry("ingress/gateway", &reply.call).await?;
        let keys: Vec<_> = entry.keys().collect();
        assert_eq!(keys, [("wasm.upstream_peer_id", 0)], "{entry:?}");
        assert_no_peer(&entry, Side::Downstream)?;
        assert_eq!(entry.peer(Side::Upstream)?, None);
        assert_eq!(entry.id(Side::Upstream)?, None, "an empty id is none");
    }
    Ok(())
}

async fn a_waypoint_is_a_gateway(lab: &Lab) -> Result<()> {
    let (client, server) = (Node::pod_client()?, Node::vm_server()?);
    let mut waypoint = Node::gateway()?;
    waypoint.id = waypoint.id.replacen("router~", "waypoint~", 1);
    let mesh = lab
        .start([
            Workload::sidecar("productpage", client.clone()).listener("outbound", |listener| {
                listener.via = vec![("ratings".to_owned(), "waypoint".to_owned())];
            }),
            Workload::gateway("waypoint", waypoint.clone())
                .listener("gateway", |listener| {
                    listener.direction = Some(Direction::Inbound);
                })
                .configured(&json!({})),
            Workload::sidecar("ratings", server.clone()),
        ])
        .await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;

    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_peer(&outbound, Side::Upstream, &waypoint)?;
    let passed_on = lab.entry("waypoint/gateway", &reply.call).await?;
    assert_peer(&passed_on, Side::Downstream, &client)?;
    assert_peer(&passed_on, Side::Upstream, &server)?;
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&inbound, Side::Downstream, &waypoint)?;
    assert_clean(&mesh, "ratings", &reply)
}

/// A `google.protobuf.Struct` as gRPC's own exchange sends it, in base64 and
/// without an id: `workload_name`, `namespace_name`, `canonical_service`.
const OF_GRPC: &str = "ChkKDXdvcmtsb2FkX25hbWUSCBoGcGF5LXYxChgKDm5hbWVzcGFjZV9uYW1lEgYaBHNob3AKGgoRY2Fub25pY2FsX3NlcnZpY2USBRoDcGF5";

async fn grpcs_own_metadata_names_the_caller(lab: &Lab) -> Result<()> {
    let mesh = lab
        .start([
            Workload::bare("client"),
            Workload::sidecar("ratings", Node::vm_server()?),
        ])
        .await?;

    let call = mesh.call("client", "ratings")?;
    let reply = call
        .header("x-envoy-peer-metadata", OF_GRPC)?
        .send()
        .await?;

    assert_eq!(reply.status, StatusCode::OK);
    let entry = lab.entry("ratings/inbound", &reply.call).await?;
    let caller = entry.peer(Side::Downstream)?.cloned();
    let mut expected = service("pay");
    expected["WORKLOAD_NAME"] = "pay-v1".into();
    assert_eq!(caller, Some(expected));
    Ok(())
}

/// A server that never answers.
struct Server {
    address: SocketAddr,
    task: AbortHandle,
}

impl Server {
    /// A server that keeps its connections open.
    async fn silent() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        Ok(Self::of(listener.local_addr()?, async move {
            let mut kept = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                kept.push(stream);
            }
        }))
    }

    /// A server that closes connections once data has arrived.
    async fn resetting() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        Ok(Self::of(listener.local_addr()?, async move {
            while let Ok((stream, _)) = listener.accept().await {
                // The data is not read, so the connection is reset.
                let _ = stream.readable().await;
            }
        }))
    }

    fn of(address: SocketAddr, server: impl Future<Output = ()> + Send + 'static) -> Self {
        let task = tokio::spawn(server).abort_handle();
        Self { address, task }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}
