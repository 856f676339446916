//! The demonstration: Kubernetes pods and VMs call each other, and each side's
//! access log is compared with the other side's node.

use anyhow::Result;
use serde_json::json;

use crate::collector::{Entry, Side};
use crate::mesh::{Lab, Mesh};
use crate::node::Node;
use crate::report::{Call, Key, Party, Report, View};
use crate::workload::Workload;

/// A workload of the demonstration.
pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) node: Node,
}

impl Member {
    pub(crate) fn workload(&self) -> Workload {
        Workload::sidecar(self.name, self.node.clone())
    }
}

/// Runs all calls. `progress` receives each step.
pub async fn run(lab: &Lab, progress: impl Fn(&str)) -> Result<Report> {
    let pod = Member {
        name: "productpage",
        node: Node::pod_client()?,
    };
    let cloud_vm = Member {
        name: "ratings",
        node: Node::vm_server()?,
    };
    let vm = Member {
        name: "foo",
        node: Node::vm_minimal()?,
    };

    progress("starting a pod and two VMs, each an app with an Envoy as sidecar");
    let mesh = lab
        .start([pod.workload(), cloud_vm.workload(), vm.workload()])
        .await?;
    let mut calls = Vec::new();
    for (title, client, server) in [
        ("K8s -> VM", &pod, &cloud_vm),
        ("VM -> K8s", &vm, &pod),
        ("VM -> VM", &vm, &cloud_vm),
    ] {
        progress(&format!("{} calls {}", client.name, server.name));
        calls.push(both_sides(lab, &mesh, title, client, server).await?);
    }

    progress("starting a pod and a VM whose plugin also records the local node");
    let recording = json!({ "record_local_node": true });
    let recording_mesh = lab
        .start([&pod, &cloud_vm].map(|member| member.workload().configured(&recording)))
        .await?;
    progress(&format!("{} calls {}", pod.name, cloud_vm.name));
    calls.push(one_entry(lab, &recording_mesh, &pod, &cloud_vm).await?);

    Ok(Report {
        envoy: mesh.envoy(pod.name)?.version().await?,
        module_bytes: tokio::fs::metadata(lab.module()).await?.len(),
        calls,
    })
}

/// One call, as both sidecars log it: each names the other side.
async fn both_sides(
    lab: &Lab,
    mesh: &Mesh,
    title: &str,
    client: &Member,
    server: &Member,
) -> Result<Call> {
    let reply = mesh.call(client.name, server.name)?.send().await?;
    let outbound = lab
        .entry(&format!("{}/outbound", client.name), &reply.call)
        .await?;
    let inbound = lab
        .entry(&format!("{}/inbound", server.name), &reply.call)
        .await?;
    let status = reply.status.as_u16();
    both_logs(title, client, server, status, &outbound, &inbound)
}

/// Compares what both sidecars have logged of a call with both nodes.
pub(crate) fn both_logs(
    title: &str,
    client: &Member,
    server: &Member,
    status: u16,
    outbound: &Entry,
    inbound: &Entry,
) -> Result<Call> {
    let mut call = Call::new(title, client.name, server.name, status);
    call.views = vec![view("client", outbound)?, view("server", inbound)?];
    call.expect(0, Side::Upstream, &server.node);
    call.expect(1, Side::Downstream, &client.node);
    Ok(call)
}

/// One call, of which a single entry names both sides.
async fn one_entry(lab: &Lab, mesh: &Mesh, client: &Member, server: &Member) -> Result<Call> {
    let reply = mesh.call(client.name, server.name)?.send().await?;
    let inbound = lab
        .entry(&format!("{}/inbound", server.name), &reply.call)
        .await?;
    let title = "record_local_node: one entry names both";
    let mut call = Call::new(title, client.name, server.name, reply.status.as_u16());
    call.views = vec![view("server", &inbound)?];
    call.expect(0, Side::Downstream, &client.node);
    call.expect(0, Side::Upstream, &server.node);
    Ok(call)
}

fn view(role: &str, entry: &Entry) -> Result<View> {
    let local = Node {
        id: entry.reporter.id.clone(),
        metadata: entry.reporter.metadata.clone(),
    };
    let keys = entry.keys().map(|(name, bytes)| Key {
        name: name.to_owned(),
        bytes,
    });
    Ok(View {
        role: role.to_owned(),
        log: entry.reporter.log.clone(),
        local: Party::of_node(&local),
        downstream: party(entry, Side::Downstream)?,
        upstream: party(entry, Side::Upstream)?,
        keys: keys.collect(),
    })
}

fn party(entry: &Entry, side: Side) -> Result<Option<Party>> {
    let peer = entry.peer(side)?;
    let id = entry.id(side)?.map(str::to_owned);
    Ok(peer.map(|peer| Party {
        id,
        metadata: peer.clone(),
    }))
}
