//! The graph as a table for the terminal.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

use super::{counted, milliseconds, sides, tcp_figures};
use crate::escape::visible;
use crate::topology::{EdgeView, Reading, Snapshot, WorkloadView};

const COLUMNS: [&str; 10] = [
    "caller", "callee", "seen by", "calls", SUCCESS, "errors", "4xx", "p50", "p90", "p99",
];
/// The columns of TCP connections.
const TCP_COLUMNS: [&str; 9] = [
    "caller",
    "callee",
    "seen by",
    "protocol",
    CONNECTIONS,
    OPEN,
    ERRORS,
    "received",
    "sent",
];
/// What only this tool's own rules count.
const CONNECTIONS: &str = "connections";
const ERRORS: &str = "errors";
/// The column of open connections, only if the log tells of any.
const OPEN: &str = "open";
/// The column of `SkyWalking`'s success rate, only with its rules.
const SUCCESS: &str = "success";
/// The first numeric column.
const FIRST_FIGURE: usize = 3;

/// Renders the table in lines of at most `width`.
#[must_use]
pub fn table(snapshot: &Snapshot, width: Option<u16>) -> String {
    let is_mesh = snapshot.reading == Reading::Mesh;
    let edges = || snapshot.edges.iter();
    let requests: Vec<_> = edges().filter(|edge| edge.has_requests()).collect();
    let connections: Vec<_> = edges().filter(|edge| edge.has_connections()).collect();
    let mut tables = Vec::new();
    if connections.is_empty() || !requests.is_empty() {
        let rows = requests.iter().map(|edge| row(snapshot, edge));
        let is_shown = |column: &str| column != SUCCESS || !is_mesh;
        tables.push(table_of(COLUMNS, rows, is_shown, width));
    }
    if !connections.is_empty() {
        let tells_open = connections.iter().any(|edge| {
            let mut sides = [&edge.client, &edge.server].into_iter().flatten();
            sides.any(|tally| tally.tcp.is_some_and(|tcp| tcp.open.is_some()))
        });
        let is_shown = |column: &str| match column {
            OPEN => tells_open,
            CONNECTIONS | ERRORS => is_mesh,
            _ => true,
        };
        let rows = connections.iter().map(|edge| tcp_row(snapshot, edge));
        tables.push(table_of(TCP_COLUMNS, rows, is_shown, width));
    }
    let mut text = tables.join("\n\n");
    let entries = snapshot.entries;
    let entries_word = if entries == 1 { "entry" } else { "entries" };
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "\n{}, {} of {entries} {entries_word}",
        counted(snapshot.workloads.len() as u64, "workload"),
        counted(snapshot.edges.len() as u64, "edge"),
    );
    for note in &snapshot.notes {
        let _ = writeln!(text, "  {} x {}", note.count, visible(&note.note));
    }
    text
}

fn table_of<const N: usize>(
    columns: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
    is_shown: impl Fn(&str) -> bool,
    width: Option<u16>,
) -> String {
    let mut table = Table::new();
    let below_header = LineStyle::none().fill('─').junction('─');
    table.load_style(TableStyle::new().header_separator(below_header));
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(width);
    }
    table.set_header(columns.into_iter().filter(|column| is_shown(column)));
    for row in rows {
        let cells = columns.into_iter().zip(row);
        let cells = cells.filter(|(column, _)| is_shown(column));
        table.add_row(cells.map(|(_, cell)| cell));
    }
    for column in table.column_iter_mut().skip(FIRST_FIGURE) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

fn name_of(snapshot: &Snapshot, number: usize) -> String {
    let workload = snapshot.workloads.get(number);
    workload.map_or_else(String::new, name)
}

fn tcp_row(snapshot: &Snapshot, edge: &EdgeView) -> [String; 9] {
    let [protocol, connections, open, errors, received, sent] = tcp_figures(edge);
    [
        name_of(snapshot, edge.from),
        name_of(snapshot, edge.to),
        edge.seen_by().to_owned(),
        protocol,
        connections,
        open,
        errors,
        received,
        sent,
    ]
}

fn row(snapshot: &Snapshot, edge: &EdgeView) -> [String; 10] {
    let tallies = [&edge.client, &edge.server];
    let main = edge.main();
    let latency = |of: fn(&crate::topology::LatencyView) -> f64| {
        let latency = main.and_then(|tally| tally.latency_ms.as_ref());
        latency.map_or_else(String::new, |latency| milliseconds(of(latency)))
    };
    [
        name_of(snapshot, edge.from),
        name_of(snapshot, edge.to),
        edge.seen_by().to_owned(),
        sides(tallies, |tally| Some(tally.calls.to_string())),
        sides(tallies, |tally| {
            Some(format!("{:.2} %", tally.success_rate?))
        }),
        sides(tallies, |tally| Some(tally.errors.to_string())),
        sides(tallies, |tally| Some(tally.client_errors.to_string())),
        latency(|latency| latency.p50),
        latency(|latency| latency.p90),
        latency(|latency| latency.p99),
    ]
}

fn name(workload: &WorkloadView) -> String {
    format!("{} ({})", visible(&workload.name), workload.kind.name())
}
