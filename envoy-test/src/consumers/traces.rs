//! Traces across three services, as a real Jaeger shows them.

use anyhow::{Result, ensure};
use hyper::StatusCode;
use serde_json::Value;

use super::example::{Example, manager};
use super::jaeger::{Jaeger, Span, Trace};
use super::report::Counts;
use super::sidecar::{PRODUCTPAGE, Plan, workload};
use crate::client::Call;
use crate::mesh::Lab;
use crate::node::Node;
use crate::wait::until;

/// How spans are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    OpenTelemetry,
    Zipkin,
}

/// Each calls the next; each is in a namespace of its own.
const SERVICES: [(&str, &str); 3] = [
    ("frontend", "shop"),
    ("checkout", "orders"),
    ("payment", "money"),
];

const JOURNEYS: usize = 3;

/// The spans of a journey: who reports what kind of span of which call.
const SPANS: [(usize, &str, usize, usize); 4] = [
    (0, "client", 0, 1),
    (1, "server", 0, 1),
    (1, "client", 1, 2),
    (2, "server", 1, 2),
];

/// The tags of an end without `istio.source_` or `istio.destination_`, and the node metadata that they contain.
const TAGS: [(&str, &str); 5] = [
    ("workload", "/WORKLOAD_NAME"),
    ("namespace", "/NAMESPACE"),
    ("instance_name", "/NAME"),
    (
        "canonical_service",
        "/LABELS/service.istio.io~1canonical-name",
    ),
    (
        "canonical_revision",
        "/LABELS/service.istio.io~1canonical-revision",
    ),
];

pub(super) async fn run(
    lab: &Lab,
    example: &Example,
    jaeger: &Jaeger,
    protocol: Protocol,
) -> Result<Counts> {
    let nodes = SERVICES.map(|(name, namespace)| workload(name, namespace));
    let receiver = match protocol {
        Protocol::OpenTelemetry => jaeger.otlp,
        Protocol::Zipkin => jaeger.zipkin,
    };
    let mut sidecars = Vec::new();
    let mut next = None;
    for ((name, _), node) in SERVICES.iter().zip(&nodes).rev() {
        // What the top of the file says of names.
        let named = |bootstrap: &mut Value| {
            bootstrap["node"]["cluster"] = (*name).into();
            for listener in ["inbound", "outbound"] {
                let provider = &mut manager(bootstrap, listener)?["tracing"]["provider"];
                if protocol == Protocol::OpenTelemetry {
                    ensure!(provider["typed_config"]["service_name"] == "ratings");
                    provider["typed_config"]["service_name"] = (*name).into();
                }
            }
            Ok(())
        };
        let called = next.map(|inbound| ("productpage", inbound));
        let plan = Plan {
            node: Some(node.clone()),
            clusters: called.into_iter().chain([("jaeger", receiver)]).collect(),
            change: &named,
            ..Plan::new(example)
        };
        let sidecar = plan.start(lab).await?;
        next = Some(sidecar.inbound);
        sidecars.push(sidecar);
    }
    sidecars.reverse();

    let path = format!("/call/{PRODUCTPAGE}");
    for _ in 0..JOURNEYS {
        let call = Call::new(sidecars[0].outbound, PRODUCTPAGE).path(&path);
        let reply = call.send().await?;
        ensure!(reply.status == StatusCode::OK, "{reply:?}");
    }

    let (first, _) = SERVICES[0];
    let is_whole = |trace: &Trace| trace.spans.len() >= SPANS.len();
    let settled = until("all spans", async || {
        let traces = jaeger.traces(first).await?;
        let whole = traces.iter().filter(|trace| is_whole(trace)).count();
        Ok((whole >= JOURNEYS).then_some(()))
    });
    let in_time = settled.await;
    let traces = jaeger.traces(first).await?;
    if let Err(error) = in_time {
        // The counts say more.
        eprintln!("{error:#}");
    }
    Ok(count(&traces, &nodes))
}

fn count(traces: &[Trace], nodes: &[Node]) -> Counts {
    let mut counts = Counts::default();
    for _ in 0..JOURNEYS {
        counts.made("one trace across three services");
    }
    for (reporter, kind, source, destination) in SPANS {
        let (name, _) = SERVICES[reporter];
        let ends =
            [source, destination].map(|end| format!("{}.{}", SERVICES[end].0, SERVICES[end].1));
        let what = format!("{} -> {}, the {kind}'s span of {name}", ends[0], ends[1]);
        for _ in 0..JOURNEYS {
            counts.made(&what);
        }
        let is_it = |span: &&Span| {
            span.service == name
                && span.tag("span.kind") == Some(kind)
                && names(span, "source", &nodes[source])
                && names(span, "destination", &nodes[destination])
        };
        for _ in traces.iter().flat_map(|trace| &trace.spans).filter(is_it) {
            counts.found(&what);
        }
    }
    for trace in traces {
        if trace.spans.len() == SPANS.len() {
            counts.found("one trace across three services");
        } else {
            let spans: Vec<_> = trace
                .spans
                .iter()
                .map(|span| span.service.as_str())
                .collect();
            counts.found(&format!("a trace with the spans of {}", spans.join(", ")));
        }
    }
    counts
}

/// Whether the tags of that end are those of the node.
fn names(span: &Span, end: &str, node: &Node) -> bool {
    TAGS.iter().all(|(tag, pointer)| {
        let expected = node.metadata.pointer(pointer).and_then(Value::as_str);
        expected.is_some() && span.tag(&format!("istio.{end}_{tag}")) == expected
    })
}
