//! The graph as a table for the terminal.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

use super::{counted, milliseconds};
use crate::escape::visible;
use crate::topology::{EdgeView, Reading, Snapshot, TallyView, WorkloadView};

const COLUMNS: [&str; 10] = [
    "caller", "callee", "seen by", "calls", SUCCESS, "errors", "4xx", "p50", "p90", "p99",
];
/// The column of `SkyWalking`'s success rate, only with its rules.
const SUCCESS: &str = "success";
/// The first numeric column.
const FIRST_FIGURE: usize = 3;

/// Renders the table in lines of at most `width`.
#[must_use]
pub fn table(snapshot: &Snapshot, width: Option<u16>) -> String {
    let mut table = Table::new();
    let below_header = LineStyle::none().fill('─').junction('─');
    table.load_style(TableStyle::new().header_separator(below_header));
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(width);
    }
    let is_shown = |column: &&str| *column != SUCCESS || snapshot.reading == Reading::Skywalking;
    table.set_header(COLUMNS.into_iter().filter(is_shown));
    for edge in &snapshot.edges {
        let cells = COLUMNS.iter().zip(row(snapshot, edge));
        let cells = cells.filter(|(column, _)| is_shown(column));
        table.add_row(cells.map(|(_, cell)| cell));
    }
    for column in table.column_iter_mut().skip(FIRST_FIGURE) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = table.trim_fmt();
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

fn row(snapshot: &Snapshot, edge: &EdgeView) -> [String; 10] {
    let name = |number: usize| {
        snapshot
            .workloads
            .get(number)
            .map_or_else(String::new, name)
    };
    let tallies = [&edge.client, &edge.server];
    let main = edge.main();
    let latency = |of: fn(&crate::topology::LatencyView) -> f64| {
        let latency = main.and_then(|tally| tally.latency_ms.as_ref());
        latency.map_or_else(String::new, |latency| milliseconds(of(latency)))
    };
    [
        name(edge.from),
        name(edge.to),
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

/// A figure: a single number if the sides agree or only one saw the edge, else
/// the client's and the server's.
fn sides(tallies: [&Option<TallyView>; 2], of: fn(&TallyView) -> Option<String>) -> String {
    match tallies.map(|tally| tally.as_ref().and_then(of)) {
        [Some(client), Some(server)] if client != server => format!("{client} / {server}"),
        [Some(figure), _] | [None, Some(figure)] => figure,
        [None, None] => String::new(),
    }
}

fn name(workload: &WorkloadView) -> String {
    format!("{} ({})", visible(&workload.name), workload.kind.name())
}
