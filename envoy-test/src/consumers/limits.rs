//! A local rate limit for each calling workload.

use anyhow::{Context as _, Result};
use hyper::StatusCode;
use serde_json::{Value, json};

use super::certified;
use super::example::{Example, list, manager};
use super::report::Counts;
use super::sidecar::{as_from, workload};
use crate::mesh::Lab;

const CHECKOUT: &str = "spiffe://cluster.local/ns/shop/sa/checkout";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const LIAR: &str = "spiffe://cluster.local/ns/other/sa/liar";

/// Requests in an hour, so that no time that passes gives one more: of callers that are not known, of a workload, and of a
/// namespace.
const UNKNOWN: usize = 1;
const WORKLOAD: usize = 3;
const NAMESPACE: usize = 7;

pub(super) async fn run(lab: &Lab, example: &Example) -> Result<Counts> {
    let uri_sans = [CHECKOUT, CART, LIAR];
    let (_sidecar, callers) = certified::start(lab, example, &with_few_tokens, &uri_sans).await?;

    let mut counts = Counts::default();
    // Each with its own bucket, in turns.
    let both = [(CHECKOUT, "checkout"), (CART, "cart")];
    for number in 0..=WORKLOAD {
        for (uri_san, name) in both {
            let call = as_from(callers.call(uri_san), &workload(name, "shop"))?;
            let status = call.send().await?.status;
            judge(
                &mut counts,
                &format!("{name}.shop"),
                number < WORKLOAD,
                status,
            );
        }
    }
    // The bucket of its namespace holds one that takes a new name for each call.
    for number in 0..=NAMESPACE {
        let call = as_from(
            callers.call(LIAR),
            &workload(&format!("name-{number}"), "other"),
        )?;
        let status = call.send().await?.status;
        judge(
            &mut counts,
            "made-up names of one namespace",
            number < NAMESPACE,
            status,
        );
    }
    for number in 0..=UNKNOWN {
        let status = callers.call(CHECKOUT).send().await?.status;
        judge(&mut counts, "no metadata", number < UNKNOWN, status);
    }
    Ok(counts)
}

fn judge(counts: &mut Counts, who: &str, is_within: bool, status: StatusCode) {
    let (what, expected) = if is_within {
        ("within the limit: 200", StatusCode::OK)
    } else {
        ("beyond the limit: 429", StatusCode::TOO_MANY_REQUESTS)
    };
    counts.judged(&format!("{who}, {what}"), status == expected);
}

fn with_few_tokens(bootstrap: &mut Value) -> Result<()> {
    let filters = &mut manager(bootstrap, "inbound")?["http_filters"];
    let name = "envoy.filters.http.local_ratelimit";
    let filter = list(filters).find(|filter| filter["name"] == name);
    let config = &mut filter.context("no rate limit")?["typed_config"];
    let bucket = |tokens: usize| json!({ "max_tokens": tokens, "tokens_per_fill": tokens, "fill_interval": "3600s" });
    config["token_bucket"] = bucket(UNKNOWN);
    for descriptor in list(&mut config["descriptors"]) {
        let is_of_workload = descriptor["entries"].as_array().map_or(0, Vec::len) == 2;
        descriptor["token_bucket"] = bucket(if is_of_workload { WORKLOAD } else { NAMESPACE });
    }
    Ok(())
}
