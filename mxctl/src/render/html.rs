//! The graph as a self-contained page, which can follow a live graph.
//!
//! Names are data only: JSON in an element that is not executed, inserted as
//! text. In addition, the page's Content Security Policy allows no script but
//! its own.

use anyhow::Result;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::layout::{COLUMNS, Layout};
use super::{is_failing, labels, svg, tcp_figures};
use crate::escape;
use crate::topology::Snapshot;

const SCRIPT: &str = include_str!("page.js");
const STYLE: &str = concat!(include_str!("page.css"), include_str!("graph.css"));

/// The page of a finished graph.
pub fn page(snapshot: &Snapshot) -> Result<String> {
    Ok(document(&escape::json_in_html(&data(snapshot)?), false))
}

/// The page that polls its server for [`data`].
#[must_use]
pub fn live_page() -> String {
    document("null", true)
}

/// The page's data as JSON: the graph and its layouts.
pub fn data(snapshot: &Snapshot) -> Result<String> {
    let labels = labels(snapshot);
    let workloads = snapshot.workloads.iter().map(|workload| {
        json!({
            "outline": svg::outline(workload.kind),
            "class": svg::class(workload.kind),
            "kind": workload.kind.name(),
            "short": svg::short(&workload.name),
        })
    });
    let edges = snapshot.edges.iter().zip(&labels).map(|(edge, label)| {
        json!({
            "text": label,
            "failing": edge.main().is_some_and(is_failing),
            "seen_by": edge.seen_by(),
            "connections": edge.has_connections().then(|| tcp_figures(edge)),
            "requests": edge.has_requests(),
        })
    });
    let stacked = COLUMNS.map(|columns| Layout::stacked(snapshot, &labels, columns));
    let layouts = [Layout::of(snapshot, &labels)].into_iter().chain(stacked);
    let drawn = json!({
        // The page uses the first layout that is legible at its size.
        "layouts": layouts.collect::<Vec<_>>(),
        "workloads": workloads.collect::<Value>(),
        "edges": edges.collect::<Value>(),
    });
    let mut graph = serde_json::to_value(snapshot)?;
    make_visible(&mut graph);
    Ok(json!({ "graph": graph, "drawn": drawn }).to_string())
}

fn make_visible(value: &mut Value) {
    match value {
        Value::String(text) => *text = escape::visible(text),
        Value::Array(values) => values.iter_mut().for_each(make_visible),
        Value::Object(fields) => {
            let taken = std::mem::take(fields);
            fields.extend(taken.into_iter().map(|(key, mut value)| {
                make_visible(&mut value);
                (escape::visible(&key), value)
            }));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn document(data: &str, is_live: bool) -> String {
    let (script, style) = (hash(SCRIPT), hash(STYLE));
    format!(
        "<!doctype html>\n<html lang=\"en\" data-live=\"{is_live}\">\n<head>\n<meta \
         charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src \
         'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'\">\n<meta name=\"viewport\" content=\"width=device-width, \
         initial-scale=1\">\n<title>Call \
         graph</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header><h1>Call graph</h1><p \
         id=\"status\"></p></header>\n<main><div id=\"picture\"><p id=\"zoom\"><button \
         id=\"smaller\" title=\"smaller\">-</button> <button id=\"fit\" title=\"the whole \
         graph\">fit</button> <button id=\"larger\" title=\"larger\">+</button></p><div \
         id=\"graph\"></div></div><aside id=\"details\"><p>A click on a workload shows its \
         metadata and its edges.</p></aside></main>\n<section><h2>Edges</h2><div \
         class=\"wide\"><table id=\"edges\"></table></div><div \
         class=\"wide\"><table id=\"connections\"></table></div><ul \
         id=\"notes\"></ul></section>\n<script type=\"application/json\" \
         id=\"data\">{data}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
}

/// A source expression of the Content Security Policy.
fn hash(text: &str) -> String {
    let digest = BASE64_STANDARD.encode(Sha256::digest(text));
    format!("sha256-{digest}")
}
