//! Headers that name the caller to the app, and callers who forge them.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::certified;
use super::example::{Example, list, manager};
use super::report::Counts;
use super::sidecar::{Sidecar, as_from, workload};
use crate::mesh::Lab;

const CHECKOUT: &str = "spiffe://cluster.local/ns/shop/sa/checkout";
const HEADERS: [&str; 2] = ["x-caller-workload", "x-caller-namespace"];

/// What the app receives: workload and namespace.
type Received = [Vec<String>; 2];

pub(super) async fn run(lab: &Lab, example: &Example) -> Result<Counts> {
    let received = call(lab, example, &|_| Ok(())).await?;
    let known = [vec!["checkout".to_owned()], vec!["shop".to_owned()]];
    let nothing = [Vec::new(), Vec::new()];
    let expected = [&known, &known, &nothing, &nothing, &nothing];
    let mut counts = Counts::default();
    for ((what, received), expected) in CASES.iter().zip(&received).zip(expected) {
        counts.judged(*what, received == expected);
    }
    Ok(counts)
}

const CASES: [&str; 5] = [
    "a known caller: named",
    "a known caller that forges: named",
    "an unknown caller: not named",
    "an unknown caller that forges: not named",
    "a caller that is not believed and forges: not named",
];

async fn call(
    lab: &Lab,
    example: &Example,
    change: &(dyn Fn(&mut Value) -> Result<()> + Sync),
) -> Result<Vec<Received>> {
    let (sidecar, callers) = certified::start(lab, example, change, &[CHECKOUT]).await?;
    let forged = |call: crate::client::Call| {
        let [workload, namespace] = HEADERS;
        call.header(workload, "admin")?
            .header(namespace, "kube-system")
    };
    let call = || callers.call(CHECKOUT);
    let calls = [
        as_from(call(), &workload("checkout", "shop"))?,
        as_from(forged(call())?, &workload("checkout", "shop"))?,
        call(),
        forged(call())?,
        as_from(forged(call())?, &workload("checkout", "other"))?,
    ];
    let mut all = Vec::new();
    for call in calls {
        let reply = call.send().await?;
        all.push(received_by_app(&sidecar, &reply.call)?);
    }
    Ok(all)
}

fn received_by_app(sidecar: &Sidecar, call: &str) -> Result<Received> {
    let received = sidecar.app.received(call);
    let request = received.first().context("the app was not called")?;
    Ok(HEADERS.map(|name| {
        let values = request.headers.get_all(name).iter();
        values
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect()
    }))
}

/// What the app receives from an unknown caller that forges, if the names are not removed first: for the test that this is
/// what keeps forged ones out.
pub async fn without_removal(lab: &Lab) -> Result<String> {
    let example = Example::read(super::Consumer::CallerHeader.file())?;
    let change = |bootstrap: &mut Value| {
        let hosts = &mut manager(bootstrap, "inbound")?["route_config"]["virtual_hosts"];
        for host in list(hosts) {
            let removed = host["request_headers_to_remove"].as_array_mut();
            let removed = removed.context("nothing is removed")?;
            removed.retain(|name| !HEADERS.iter().any(|header| name == header));
        }
        Ok(())
    };
    let received = call(lab, &example, &change).await?;
    let [workload, _] = &received[3];
    Ok(workload.join(","))
}
