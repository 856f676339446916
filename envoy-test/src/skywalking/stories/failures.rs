//! Calls that fail, with each of Envoy's response flags.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::{Stage, UNKNOWN, gateway, pod, vm};
use crate::mesh::Mesh;
use crate::skywalking::drawn::{Calls, Sides};
use crate::skywalking::expected::Made;
use crate::wait::until;
use crate::workload::Workload;

/// Code 0: there was no response.
const CODE_0: &str = "code 0 counts as success";

pub(super) async fn all(stage: &mut Stage<'_>) -> Result<()> {
    no_answer_in_time(stage).await?;
    no_answer_at_all(stage).await?;
    no_route(stage).await
}

/// Delays or aborts a request, as its header says.
fn fault_filter() -> Value {
    let always = json!({ "numerator": 100 });
    json!({
        "name": "envoy.filters.http.fault",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
            "delay": { "header_delay": {}, "percentage": always },
            "abort": { "header_abort": {}, "percentage": always },
        },
    })
}

const DELAY_MS: &str = "x-envoy-fault-delay-request";
const ABORT: &str = "x-envoy-fault-abort-request";
const FOR_LONG: &str = "60000";

/// UT and DC: the callee is there, but too slow.
async fn no_answer_in_time(stage: &mut Stage<'_>) -> Result<()> {
    let namespace = stage.namespace("slow");
    let slow = |name: &str| {
        let workload = Workload::sidecar(name, vm(name, &namespace));
        workload.listener("inbound", |listener| listener.behind = vec![fault_filter()])
    };
    let mesh = stage
        .lab
        .start([
            Workload::sidecar("shop", pod("shop", &namespace)).listener("outbound", |listener| {
                listener.route_action = json!({ "timeout": "1s" });
            }),
            Workload::sidecar("reader", pod("reader", &namespace)),
            slow("stock"),
        ])
        .await?;

    let mut timed_out = Made::calls(&mesh, "shop", "stock", &["/", "/"]).await?;
    for _ in 0..2 {
        let call = mesh.call("shop", "stock")?.header(DELAY_MS, FOR_LONG)?;
        timed_out.add(call.send().await?.status);
    }
    ensure!(timed_out.client().calls == 4, "{timed_out:?}");
    Made::calls(&mesh, "reader", "stock", &["/"]).await?;
    for _ in 0..2 {
        leave(&mesh, "reader", "stock").await?;
    }

    let name = |service: &str| format!("{service}.{namespace}");
    let [shop, reader, stock] = ["shop", "reader", "stock"].map(name);
    let calls = timed_out.client().calls;
    let made = timed_out.client();
    let drawn = Sides {
        client: made,
        server: Calls::all(calls),
    };
    let expected = &mut stage.expected;
    let timed_out = (Sides::both(made), Some(drawn));
    expected.differs("timeouts (UT)", &shop, &stock, timed_out, CODE_0);
    let made = Sides::both(Calls {
        calls: 3,
        succeeded: 1,
    });
    let left = (made, Some(Sides::both(Calls::all(3))));
    expected.differs("the client leaves (DC)", &reader, &stock, left, CODE_0);
    stage.keep(mesh);
    Ok(())
}

/// Makes a call, and closes the connection once the callee's proxy has the
/// request.
async fn leave(mesh: &Mesh, from: &str, to: &str) -> Result<()> {
    let mut stream = TcpStream::connect(mesh.outbound(from)?).await?;
    let request = format!("GET / HTTP/1.1\r\nhost: {to}\r\n{DELAY_MS}: {FOR_LONG}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let active = "http.inbound.downstream_rq_active";
    mesh.envoy(to)?.counts(active, 1).await?;
    drop(stream);
    until("the request to be given up", async || {
        let stats = mesh.envoy(to)?.stats().await?;
        Ok((stats.get(active) == Some(&0)).then_some(()))
    })
    .await
}

/// UH, UO, UF and FI: no callee is reached.
async fn no_answer_at_all(stage: &mut Stage<'_>) -> Result<()> {
    let namespace = stage.namespace("failing");
    let no_health = json!({
        "health_checks": [{
            "timeout": "1s",
            "interval": "1s",
            "initial_jitter": "0s",
            "unhealthy_threshold": 1,
            "healthy_threshold": 1,
            "http_health_check": { "path": "/status/503" },
        }],
        "common_lb_config": { "healthy_panic_threshold": { "value": 0 } },
    });
    let no_room = json!({ "circuit_breakers": { "thresholds": [{ "max_requests": 0 }] } });
    // Istio's metadata of each service's cluster.
    let named = |service: &str, overrides: &Value| {
        let host = format!("{service}.{namespace}.svc.cluster.local");
        let service = json!({ "host": host, "name": service, "namespace": namespace });
        let mut cluster = overrides.clone();
        cluster["metadata"] = json!({ "filter_metadata": { "istio": { "services": [service] } } });
        cluster
    };
    let refused = format!("refused-v1;{namespace};refused;v1;east");
    let shop = Workload::sidecar("shop", pod("shop", &namespace))
        .listener("outbound", |listener| {
            listener.behind = vec![fault_filter()];
        })
        .cluster("dead", named("dead", &no_health))
        .cluster("full", named("full", &no_room))
        .cluster("aborted", named("aborted", &json!({})));
    let mesh = stage
        .lab
        .start([
            shop,
            Workload::bare("dead"),
            Workload::bare("full"),
            Workload::bare("refused")
                .endpoint_metadata(json!({ "istio": { "workload": refused } })),
            Workload::bare("aborted"),
        ])
        .await?;
    mesh.app("refused")?.stop().await?;
    until("the host to be unhealthy", async || {
        let stats = mesh.envoy("shop")?.stats().await?;
        Ok((stats.get("cluster.dead.membership_healthy") == Some(&0)).then_some(()))
    })
    .await?;

    let [shop, name] = ["shop", ""].map(|service| format!("{service}.{namespace}"));
    for (story, callee) in [
        ("no healthy host (UH)", "dead"),
        ("overflow (UO)", "full"),
        ("connections refused (UF)", "refused"),
    ] {
        let made = Made::calls(&mesh, "shop", callee, &["/", "/", "/"]).await?;
        ensure!(made.client().succeeded == 0, "{callee}: {made:?}");
        let callee = format!("{callee}{name}");
        let made = Sides::client(made.client());
        stage.expected.edge(story, &shop, &callee, made);
    }
    let mut made = Made::default();
    for _ in 0..2 {
        let call = mesh.call("shop", "aborted")?.header(ABORT, "503")?;
        made.add(call.send().await?.status);
    }
    let callee = format!("aborted{name}");
    let made = Sides::client(made.client());
    stage
        .expected
        .edge("a fault injected (FI)", &shop, &callee, made);
    stage.keep(mesh);
    Ok(())
}

/// NR: a gateway has no route for the request.
async fn no_route(stage: &mut Stage<'_>) -> Result<()> {
    let namespace = stage.namespace("noroute");
    let ingress = Workload::istio_gateway("ingress", gateway("ingress", &namespace));
    let mesh = stage.lab.start([ingress]).await?;
    let mut made = Made::default();
    for _ in 0..3 {
        let to = mesh.outbound("ingress")?;
        made.add(crate::client::Call::new(to, "nobody").send().await?.status);
    }
    ensure!(made.client().succeeded == 0, "{made:?}");
    ensure!(made.server() == Calls::all(3), "{made:?}");
    let ingress = format!("ingress.{namespace}");
    let made = Sides::server(made.server());
    stage
        .expected
        .edge("no route (NR)", UNKNOWN, &ingress, made);
    stage.keep(mesh);
    Ok(())
}
