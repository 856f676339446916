//! Observe mode beside Istio's own filter, for which a Lua filter stands in: it
//! exchanges the metadata, and this filter stores the peers that it would
//! remove.
//!
//! On inbound listeners this filter is ahead of it; on outbound ones it is
//! behind it, directly before the router, because responses pass the filters in
//! reverse.

use anyhow::Result;
use envoy_test::bootstrap::lua_filter;
use envoy_test::client::{PEER_HEADERS, has_peer_headers};
use envoy_test::peer::header;
use envoy_test::{Lab, Listener, Mesh, Node, Reply, Side, Workload};
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde_json::{Value, json};

use crate::{assert_clean, assert_no_peer, assert_peer, counter};

envoy_test::stories!(
    both_sides_are_observed,
    a_mesh_is_mixed,
    a_gateway_is_observed,
    in_the_other_order_nothing_is_seen,
    an_answer_from_outside_the_mesh_is_not_believed,
    an_echo_is_not_a_peer,
);

async fn both_sides_are_observed(lab: &Lab) -> Result<()> {
    let (client, server) = (
        Native::of(Node::pod_client()?),
        Native::of(Node::vm_server()?),
    );
    let mesh = lab
        .start([client.observed("productpage"), server.observed("ratings")])
        .await?;

    for _ in 0..2 {
        let reply = call(&mesh).await?;
        assert_both_logged(lab, &reply, &client.node, &server.node).await?;
        client.assert_seen_by_callee(&mesh, &reply)?;
        server.assert_seen(&reply.headers);
    }

    for (workload, stored) in [
        ("productpage", "upstream_peer_stored"),
        ("ratings", "downstream_peer_stored"),
    ] {
        let envoy = mesh.envoy(workload)?;
        assert_eq!(counter(envoy, stored, 2).await?, 2);
    }
    Ok(())
}

/// One side with Istio's exchange and an observer, the other with this filter
/// alone.
async fn a_mesh_is_mixed(lab: &Lab) -> Result<()> {
    let native = Native::of(Node::pod_client()?);
    let ours = Node::vm_server()?;
    let mesh = lab
        .start([
            native.observed("productpage"),
            Workload::sidecar("ratings", ours.clone()),
        ])
        .await?;
    let reply = call(&mesh).await?;
    assert_both_logged(lab, &reply, &native.node, &ours).await?;
    let [_, id] = PEER_HEADERS;
    assert_eq!(reply.headers[&*seen(id)], ours.id);

    let ours = Node::pod_client()?;
    let native = Native::of(Node::vm_server()?);
    let mesh = lab
        .start([
            Workload::sidecar("productpage", ours.clone()),
            native.observed("ratings"),
        ])
        .await?;
    let reply = call(&mesh).await?;
    assert_both_logged(lab, &reply, &ours, &native.node).await?;
    let received = mesh.app("ratings")?.received(&reply.call);
    assert!(
        received
            .iter()
            .all(|one| one.headers[&*seen(id)] == ours.id)
    );
    Ok(())
}

/// Istio's gateways report outbound, so they are observed like calling
/// sidecars.
async fn a_gateway_is_observed(lab: &Lab) -> Result<()> {
    let gateway = Native::of(Node::gateway()?);
    let server = Native::of(Node::vm_server()?);
    let ingress = Workload::istio_gateway("ingress", gateway.node.clone())
        .configured(&observing())
        .listener("gateway", |listener| {
            listener.before.push(gateway.outbound());
        });
    let mesh = lab.start([ingress, server.observed("ratings")]).await?;

    let reply = mesh.call("ingress", "ratings")?.send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    let passed_on = lab.entry("ingress/gateway", &reply.call).await?;
    assert_peer(&passed_on, Side::Upstream, &server.node)?;
    assert_no_peer(&passed_on, Side::Downstream)?;
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&inbound, Side::Downstream, &gateway.node)?;
    assert_clean(&mesh, "ratings", &reply)?;
    server.assert_seen(&reply.headers);
    Ok(())
}

/// Why the order matters: the first filter on the headers' path sees them.
async fn in_the_other_order_nothing_is_seen(lab: &Lab) -> Result<()> {
    let (client, server) = (
        Native::of(Node::pod_client()?),
        Native::of(Node::vm_server()?),
    );
    let swap = |listener: &mut Listener| std::mem::swap(&mut listener.before, &mut listener.behind);
    let mesh = lab
        .start([
            client.observed("productpage").listener("outbound", swap),
            server.observed("ratings").listener("inbound", swap),
        ])
        .await?;

    let reply = call(&mesh).await?;

    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_no_peer(&inbound, Side::Downstream)?;
    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_no_peer(&outbound, Side::Upstream)?;
    // The other filter's exchange still works.
    assert_clean(&mesh, "ratings", &reply)?;
    client.assert_seen_by_callee(&mesh, &reply)?;
    server.assert_seen(&reply.headers);
    Ok(())
}

/// Istio's filter sends metadata to every callee by default, so having been
/// sent metadata is not enough to be believed. The cluster that answers
/// decides, even if a filter behind this one has selected it.
async fn an_answer_from_outside_the_mesh_is_not_believed(lab: &Lab) -> Result<()> {
    let reroute = lua_filter(
        "function envoy_on_request(request)
           if request:headers():get(':authority') == 'rerouted' then
             request:headers():replace(':authority', 'outside')
             request:clearRouteCache()
           end
         end",
    );
    for (service, policy, is_believed) in [
        ("outside", "skip", false),
        ("rerouted", "skip", false),
        ("outside", "send", true),
    ] {
        let client = Native::of(Node::pod_client()?);
        let mut configuration = observing();
        configuration["external_clusters"] = policy.into();
        configuration["external_cluster_names"] = json!(["outside"]);
        let productpage = client.observed("productpage").configured(&configuration);
        let mesh = lab
            .start([
                productpage.listener("outbound", |listener| listener.behind.push(reroute.clone())),
                Workload::bare("outside"),
                Workload::bare("rerouted"),
            ])
            .await?;

        let call = mesh.call("productpage", service)?.path("/forged");
        let reply = call.send().await?;

        assert_eq!(reply.status, StatusCode::OK);
        let received = mesh.app("outside")?.received(&reply.call);
        assert_eq!(received.len(), 1, "{service}");
        assert!(received.iter().all(|one| has_peer_headers(&one.headers)));
        assert!(!has_peer_headers(&reply.headers));
        let outbound = lab.entry("productpage/outbound", &reply.call).await?;
        let peer = outbound.peer(Side::Upstream)?.cloned();
        let expected = is_believed.then(|| json!({ "NAME": "x" }));
        assert_eq!(peer, expected, "{service}, {policy}");
    }
    Ok(())
}

/// An app without a sidecar echoes what Istio's filter sent, which differs from
/// what this filter would send.
async fn an_echo_is_not_a_peer(lab: &Lab) -> Result<()> {
    let client = Native::of(Node::pod_client()?);
    let mesh = lab
        .start([client.observed("productpage"), Workload::bare("legacy")])
        .await?;

    let call = mesh.call("productpage", "legacy")?;
    let reply = call.path("/echo").send().await?;

    client.assert_seen(&reply.headers);
    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_no_peer(&outbound, Side::Upstream)?;
    assert_eq!(counter(mesh.envoy("productpage")?, "own", 1).await?, 1);
    Ok(())
}

fn observing() -> Value {
    json!({ "mode": "observe" })
}

async fn call(mesh: &Mesh) -> Result<Reply> {
    let reply = mesh.call("productpage", "ratings")?.send().await?;
    assert_eq!(reply.status, StatusCode::OK);
    assert_clean(mesh, "ratings", &reply)?;
    Ok(reply)
}

async fn assert_both_logged(lab: &Lab, reply: &Reply, client: &Node, server: &Node) -> Result<()> {
    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_peer(&outbound, Side::Upstream, server)?;
    assert_no_peer(&outbound, Side::Downstream)?;
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&inbound, Side::Downstream, client)?;
    assert_no_peer(&inbound, Side::Upstream)
}

/// A workload whose proxy exchanges metadata with Istio's own filter, which
/// sends few fields since Istio 1.24.
struct Native {
    /// The node as its peers know it.
    node: Node,
    header: String,
}

impl Native {
    fn of(node: Node) -> Self {
        let mut metadata = json!({ "LABELS": { "version": "v1" } });
        for key in ["NAME", "NAMESPACE", "WORKLOAD_NAME"] {
            metadata[key] = node.metadata[key].clone();
        }
        let header = header(&metadata);
        let node = Node { metadata, ..node };
        Self { node, header }
    }

    /// A sidecar with Istio's filter and an observer.
    fn observed(&self, name: &str) -> Workload {
        // The proxy itself has more metadata than Istio's filter sends.
        let node = self.node.clone().with("CLUSTER_ID", "east".into());
        Workload::sidecar(name, node)
            .configured(&observing())
            .listener("inbound", |listener| listener.behind.push(self.inbound()))
            .listener("outbound", |listener| listener.before.push(self.outbound()))
    }

    /// Removes what the caller sent, and answers each header that it sent.
    fn inbound(&self) -> Value {
        self.filter(
            "function envoy_on_request(request)
               local asked = request:streamInfo():dynamicMetadata()
               for name in pairs(own) do
                 if take(request:headers(), name) then asked:set('native', name, true) end
               end
             end
             function envoy_on_response(response)
               local asked = response:streamInfo():dynamicMetadata():get('native') or {}
               for name in pairs(asked) do response:headers():replace(name, own[name]) end
             end",
        )
    }

    /// Sends both headers, and removes those of the answer.
    fn outbound(&self) -> Value {
        self.filter(
            "function envoy_on_request(request)
               for name, value in pairs(own) do request:headers():replace(name, value) end
             end
             function envoy_on_response(response)
               for name in pairs(own) do take(response:headers(), name) end
             end",
        )
    }

    /// It keeps what it removes under another name, for the test.
    fn filter(&self, script: &str) -> Value {
        let [metadata, id] = PEER_HEADERS;
        let (header, node_id) = (&self.header, &self.node.id);
        lua_filter(&format!(
            "local own = {{ ['{metadata}'] = '{header}', ['{id}'] = '{node_id}' }}
             local function take(headers, name)
               local value = headers:get(name)
               if value then headers:replace('{SEEN}' .. name, value) end
               headers:remove(name)
               return value
             end
             {script}"
        ))
    }

    /// Asserts that Istio's filter in the callee's proxy has received what this
    /// one sends.
    fn assert_seen_by_callee(&self, mesh: &Mesh, reply: &Reply) -> Result<()> {
        for request in mesh.app("ratings")?.received(&reply.call) {
            self.assert_seen(&request.headers);
        }
        Ok(())
    }

    /// Asserts that `headers` contain what this one sends.
    fn assert_seen(&self, headers: &HeaderMap) {
        let [metadata, id] = PEER_HEADERS;
        assert_eq!(headers[&*seen(metadata)], self.header);
        assert_eq!(headers[&*seen(id)], self.node.id);
    }
}

const SEEN: &str = "seen-";

fn seen(name: &str) -> String {
    format!("{SEEN}{name}")
}
