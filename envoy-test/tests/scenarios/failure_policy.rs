//! What Envoy does with requests once a plugin's VM has died. No input is known
//! that kills the filter's VM, so another module dies instead.

use std::path::PathBuf;

use anyhow::Result;
use envoy_test::client::{METADATA_OF_NAME_X, PEER_HEADERS};
use envoy_test::{FailurePolicy, Lab, Mesh, Node, Workload, until};
use hyper::StatusCode;
use serde_json::{Value, json};

use crate::removal_of_peer_headers;

envoy_test::stories!(
    failing_closed_refuses_every_request,
    failing_open_lets_peer_headers_pass,
    failing_open_with_removal_lets_none_pass,
    reloading_heals,
);

/// The outcome of a request with a peer header.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// 503, and the app was not called.
    Refused,
    /// Served, without the header.
    Stripped,
    /// Served, and the app saw the header.
    Leaked,
}

async fn failing_closed_refuses_every_request(lab: &Lab) -> Result<()> {
    let mesh = with_mortal_plugin(lab, FailurePolicy::Closed, json!({})).await?;
    kill(&mesh).await?;

    for _ in 0..3 {
        assert_eq!(call(&mesh).await?, Outcome::Refused);
    }
    Ok(())
}

async fn failing_open_lets_peer_headers_pass(lab: &Lab) -> Result<()> {
    let mesh = with_mortal_plugin(lab, FailurePolicy::Open, json!({})).await?;
    kill(&mesh).await?;

    for _ in 0..3 {
        assert_eq!(call(&mesh).await?, Outcome::Leaked);
    }
    Ok(())
}

async fn failing_open_with_removal_lets_none_pass(lab: &Lab) -> Result<()> {
    let mesh = with_mortal_plugin(lab, FailurePolicy::Open, removal_of_peer_headers()).await?;
    kill(&mesh).await?;

    for _ in 0..3 {
        assert_eq!(call(&mesh).await?, Outcome::Stripped);
    }
    Ok(())
}

/// Until the VM runs again, about a second at most, requests fail; none passes
/// without the plugin.
async fn reloading_heals(lab: &Lab) -> Result<()> {
    let mesh = with_mortal_plugin(lab, FailurePolicy::Reload, json!({})).await?;
    kill(&mesh).await?;

    until("the VM to run again", async || match call(&mesh).await? {
        Outcome::Refused => Ok(None),
        Outcome::Stripped => Ok(Some(())),
        Outcome::Leaked => anyhow::bail!("a request passed the dead VM"),
    })
    .await?;

    let reloads = "wasm.metadata_exchange.vm_reload_success";
    assert_eq!(mesh.envoy("ratings")?.counts(reloads, 1).await?, 1);
    Ok(())
}

pub(crate) async fn with_mortal_plugin(
    lab: &Lab,
    failure_policy: FailurePolicy,
    virtual_host: Value,
) -> Result<Mesh> {
    let module = mortal_module(lab)?;
    let ratings = Workload::sidecar("ratings", Node::vm_server()?);
    let ratings = ratings.listener("inbound", |listener| {
        listener.virtual_host = virtual_host.clone();
        "mortal".clone_into(&mut listener.plugin.vm_id);
        listener.plugin.module = Some(module.clone());
        listener.plugin.failure_policy = failure_policy;
    });
    let mesh = lab.start([Workload::bare("outsider"), ratings]).await?;
    assert_eq!(call(&mesh).await?, Outcome::Stripped);
    Ok(mesh)
}

pub(crate) fn mortal_module(lab: &Lab) -> Result<PathBuf> {
    let path = lab.dir().join("mortal.wasm");
    std::fs::write(&path, wat::parse_str(include_str!("mortal.wat"))?)?;
    Ok(path)
}

/// With any policy, the request in which the VM dies is lost.
pub(crate) async fn kill(mesh: &Mesh) -> Result<()> {
    let call = mesh.call("outsider", "ratings")?.header("x-kill", "now")?;
    let reply = call.send().await?;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    Ok(())
}

async fn call(mesh: &Mesh) -> Result<Outcome> {
    let [metadata, _] = PEER_HEADERS;
    let call = mesh.call("outsider", "ratings")?;
    let reply = call.header(metadata, METADATA_OF_NAME_X)?.send().await?;
    let received = mesh.app("ratings")?.received(&reply.call);
    Ok(match received.first() {
        None => {
            assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
            Outcome::Refused
        }
        Some(request) if request.headers.contains_key(metadata) => Outcome::Leaked,
        Some(_) => Outcome::Stripped,
    })
}
