//! RBAC by the caller: each caller gets the status that the policy means for it.

use anyhow::Result;
use hyper::{Method, StatusCode};
use serde_json::Value;

use super::certified;
use super::example::{Example, list, manager};
use super::report::Counts;
use super::sidecar::{as_from, workload};
use crate::mesh::Lab;

const SHOP: &str = "spiffe://cluster.local/ns/shop/sa/checkout";
const INVOICES: &str = "spiffe://cluster.local/ns/billing/sa/invoices";
const REPORTS: &str = "spiffe://cluster.local/ns/billing/sa/reports";
const STRANGER: &str = "spiffe://cluster.local/ns/other/sa/stranger";
const ELSEWHERE: &str = "spiffe://elsewhere.test/ns/shop/sa/checkout";

const CALLS: usize = 2;

/// Who calls, by certificate, and who they say they are.
struct Case {
    what: &'static str,
    uri_san: &'static str,
    /// Name and namespace of the workload, if they say who they are.
    claim: Option<(&'static str, &'static str)>,
    method: Method,
    status: StatusCode,
}

fn cases() -> [Case; 10] {
    let case = |what, uri_san, claim, method, status| Case {
        what,
        uri_san,
        claim,
        method,
        status,
    };
    let (get, post) = (Method::GET, Method::POST);
    let (ok, forbidden) = (StatusCode::OK, StatusCode::FORBIDDEN);
    [
        case(
            "a namespace that may read, reads",
            SHOP,
            Some(("checkout", "shop")),
            get.clone(),
            ok,
        ),
        case(
            "a namespace that may read, writes",
            SHOP,
            Some(("checkout", "shop")),
            post.clone(),
            forbidden,
        ),
        case(
            "another namespace",
            STRANGER,
            Some(("stranger", "other")),
            get.clone(),
            forbidden,
        ),
        case(
            "a spoofed namespace",
            STRANGER,
            Some(("checkout", "shop")),
            get.clone(),
            forbidden,
        ),
        case(
            "the namespace of another trust domain",
            ELSEWHERE,
            Some(("checkout", "shop")),
            get.clone(),
            forbidden,
        ),
        case("no metadata", SHOP, None, get.clone(), forbidden),
        case(
            "a workload that may do everything, writes",
            INVOICES,
            Some(("invoices", "billing")),
            post.clone(),
            ok,
        ),
        case(
            "another workload of its namespace",
            REPORTS,
            Some(("reports", "billing")),
            get.clone(),
            forbidden,
        ),
        case(
            "a spoofed workload of its namespace",
            REPORTS,
            Some(("invoices", "billing")),
            get,
            forbidden,
        ),
        case(
            "no metadata, the service account of a workload",
            INVOICES,
            None,
            post,
            forbidden,
        ),
    ]
}

pub(super) async fn run(lab: &Lab, example: &Example) -> Result<Counts> {
    let calls = judge(lab, example, &|_| Ok(())).await?;
    let mut counts = Counts::default();
    for (case, statuses) in cases().iter().zip(calls) {
        for status in statuses {
            counts.judged(
                &format!("{}: {}", case.what, case.status.as_u16()),
                status == case.status,
            );
        }
    }
    Ok(counts)
}

/// The status of each call of each case.
async fn judge(
    lab: &Lab,
    example: &Example,
    change: &(dyn Fn(&mut Value) -> Result<()> + Sync),
) -> Result<Vec<Vec<StatusCode>>> {
    let uri_sans = [SHOP, INVOICES, REPORTS, STRANGER, ELSEWHERE];
    let (sidecar, callers) = certified::start(lab, example, change, &uri_sans).await?;
    let mut all = Vec::new();
    for case in cases() {
        let mut statuses = Vec::new();
        for _ in 0..CALLS {
            let mut call = callers.call(case.uri_san).method(case.method.clone());
            if let Some((name, namespace)) = case.claim {
                call = as_from(call, &workload(name, namespace))?;
            }
            let reply = call.send().await?;
            let reached = !sidecar.app.received(&reply.call).is_empty();
            anyhow::ensure!(
                reached == (reply.status == StatusCode::OK),
                "{}: {reply:?}",
                case.what
            );
            statuses.push(reply.status);
        }
        all.push(statuses);
    }
    Ok(all)
}

/// What the spoofed workload gets if the policy does not demand the service account: for the test that this is what keeps
/// it out.
pub async fn without_service_account(lab: &Lab) -> Result<Vec<StatusCode>> {
    let example = Example::read(super::Consumer::Policy.file())?;
    let change = |bootstrap: &mut Value| {
        let filters = &mut manager(bootstrap, "inbound")?["http_filters"];
        let rbac = list(filters).find(|filter| filter["name"] == "envoy.filters.http.rbac");
        let rbac = anyhow::Context::context(rbac, "no RBAC")?;
        let policy = &mut rbac["typed_config"]["rules"]["policies"]["by_workload"];
        policy["principals"] = serde_json::json!([{ "any": true }]);
        Ok(())
    };
    let statuses = judge(lab, &example, &change).await?;
    let spoofed = cases()
        .iter()
        .position(|case| case.what.starts_with("a spoofed workload"));
    Ok(spoofed
        .and_then(|index| statuses.into_iter().nth(index))
        .unwrap_or_default())
}
