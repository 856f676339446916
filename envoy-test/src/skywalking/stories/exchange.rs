//! Calls that succeed: between pods and VMs, through gateways, at a second
//! attempt, and to callees without the exchange.

use anyhow::{Result, ensure};
use hyper::StatusCode;
use serde_json::json;

use super::{Stage, UNKNOWN, gateway, pod, vm};
use crate::skywalking::drawn::{Calls, Sides};
use crate::skywalking::expected::Made;
use crate::workload::Workload;

pub(super) async fn pods_and_vms(stage: &mut Stage<'_>) -> Result<()> {
    let namespace = stage.namespace("pairs");
    let mesh = stage
        .lab
        .start([
            Workload::sidecar("shop", pod("shop", &namespace)),
            Workload::sidecar("stock", vm("stock", &namespace)),
        ])
        .await?;

    let paths = ["/", "/price", "/price", "/status/404", "/status/503"];
    let to_vm = Made::calls(&mesh, "shop", "stock", &paths).await?;
    let to_pod = Made::calls(&mesh, "stock", "shop", &["/order", "/order", "/status/302"]).await?;
    let grpc = mesh.call("shop", "stock")?.grpc_health_check().await;
    let mut to_vm = to_vm;
    ensure!(grpc.is_ok(), "{grpc:?}");
    to_vm.add(StatusCode::OK);

    let [shop, stock] = ["shop", "stock"].map(|name| format!("{name}.{namespace}"));
    let expected = &mut stage.expected;
    expected.edge("pod to VM", &shop, &stock, to_vm.sides());
    expected.edge("VM to pod", &stock, &shop, to_pod.sides());
    let [pod, vm] = ["shop-84975bc778-pxz2w", "stock-vm-1"];
    expected.instances(&shop, [pod]);
    expected.instances(&stock, [vm]);
    expected.endpoints(&shop, ["GET:/order", "GET:/status/302"]);
    expected.endpoints(
        &stock,
        [
            "GET:/",
            "GET:/price",
            "GET:/status/404",
            "GET:/status/503",
            "POST:/grpc.health.v1.Health/Check",
        ],
    );
    stage.keep(mesh);
    Ok(())
}

pub(super) async fn gateways(stage: &mut Stage<'_>) -> Result<()> {
    let namespace = stage.namespace("gateways");
    let through = |gateway: &'static str| {
        move |listener: &mut crate::workload::Listener| {
            listener.via = vec![("stock".to_owned(), gateway.to_owned())];
        }
    };
    let mesh = stage
        .lab
        .start([
            Workload::istio_gateway("ingress", gateway("ingress", &namespace)),
            Workload::gateway("egress", gateway("egress", &namespace)),
            Workload::sidecar("shop", pod("shop", &namespace))
                .listener("outbound", through("egress")),
            Workload::sidecar("stock", vm("stock", &namespace)),
        ])
        .await?;

    let inside = Made::calls(&mesh, "shop", "stock", &["/", "/", "/status/500"]).await?;
    let outside = Made::calls(&mesh, "ingress", "shop", &["/", "/status/404"]).await?;

    let name = |service: &str| format!("{service}.{namespace}");
    let [ingress, egress, shop, stock] = ["ingress", "egress", "shop", "stock"].map(name);
    let expected = &mut stage.expected;
    expected.edge("to a gateway in the mesh", &shop, &egress, inside.sides());
    expected.edge("on from it", &egress, &stock, inside.sides());
    let from_nobody = Sides::server(outside.server());
    expected.edge("to a gateway at the edge", UNKNOWN, &ingress, from_nobody);
    expected.edge("on from it", &ingress, &shop, outside.sides());
    stage.keep(mesh);
    Ok(())
}

pub(super) async fn retries(stage: &mut Stage<'_>) -> Result<()> {
    let namespace = stage.namespace("retries");
    let retry = json!({ "retry_policy": { "retry_on": "5xx", "num_retries": 2 } });
    let mesh = stage
        .lab
        .start([
            Workload::sidecar("shop", pod("shop", &namespace)).listener("outbound", |listener| {
                listener.route_action = retry.clone();
            }),
            Workload::sidecar("stock", vm("stock", &namespace)),
        ])
        .await?;

    let made = Made::calls(&mesh, "shop", "stock", &["/flaky", "/flaky", "/"]).await?;
    ensure!(made.client() == Calls::all(3), "{made:?}");

    let sides = Sides {
        client: Calls::all(3),
        // Counts each attempt: two were refused at first.
        server: Calls {
            calls: 5,
            succeeded: 3,
        },
    };
    let [shop, stock] = ["shop", "stock"].map(|name| format!("{name}.{namespace}"));
    stage.expected.edge("retries", &shop, &stock, sides);
    stage.keep(mesh);
    Ok(())
}

pub(super) async fn silent_callees(stage: &mut Stage<'_>) -> Result<()> {
    let namespace = stage.namespace("silent");
    let endpoint =
        json!({ "istio": { "workload": format!("legacy-v2;{namespace};legacy;v2;east") } });
    let mesh = stage
        .lab
        .start([
            Workload::sidecar("shop", pod("shop", &namespace)),
            Workload::bare("legacy").endpoint_metadata(endpoint),
            Workload::bare("stranger"),
        ])
        .await?;

    let known = Made::calls(&mesh, "shop", "legacy", &["/", "/status/500"]).await?;
    let unknown = Made::calls(&mesh, "shop", "stranger", &["/", "/"]).await?;

    let [shop, legacy, stranger] =
        ["shop", "legacy", "stranger"].map(|name| format!("{name}.{namespace}"));
    let expected = &mut stage.expected;
    let known = Sides::client(known.client());
    expected.edge("a callee without filter", &shop, &legacy, known);
    expected.differs(
        "a callee of which nothing is known",
        &shop,
        &stranger,
        (Sides::client(unknown.client()), None),
        "nothing names it",
    );
    stage.keep(mesh);
    Ok(())
}
