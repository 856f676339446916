//! `mxctl topology`

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal as _, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{Empty, Limits, Mapping, live, plain_json, say};
use crate::escape::visible;
use crate::render::{dot, html, mermaid, svg, text};
use crate::topology::explain::{Answer, Explanation, Question};
use crate::topology::{NoteView, Reading, Snapshot, Topology};
use access_log::Entry;
use access_log::server::{Counts, Server};

/// Draw who calls whom, from recorded entries (files), live ones (--listen), or
/// both.
///
/// An edge is what one workload calls of another. Either end's proxy may have
/// logged it: where both did and differ, figures are client / server. Errors
/// are requests without response or with status 500 and more. Pods, VMs,
/// gateways and unknown ends are told apart by node id, OWNER, APP_CONTAINERS
/// and labels.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// JSON lines of `mxctl collect`; - is standard input
    files: Vec<PathBuf>,
    /// Where Envoys send their gRPC access logs
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// End after so many seconds, instead of at an interrupt
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Show a page that follows the graph at this address, as 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS")]
    serve: Option<SocketAddr>,
    /// What to make of the graph; --json is the same as json
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Write it to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// By whose rules entries become edges
    #[arg(long = "as", value_enum, default_value_t)]
    reading: Reading,
    /// Say why SkyWalking draws an edge as it does, or not at all, instead of
    /// drawing: CALLER->CALLEE, by its names
    #[arg(long, value_name = "EDGE", conflicts_with_all = ["serve", "format"])]
    explain: Option<Question>,
    #[command(flatten)]
    mapping: Mapping,
    #[command(flatten)]
    limits: Limits,
}

/// What to make of the graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table for the terminal
    #[default]
    Table,
    /// All figures, all instances with their metadata
    Json,
    /// A picture
    Svg,
    /// A page that needs nothing else
    Html,
    /// For Graphviz
    Dot,
    /// For Markdown
    Mermaid,
}

/// The graph while it grows, with what did not come into it.
struct Graph {
    topology: Mutex<Topology>,
    /// What is asked of an edge.
    explanation: Option<Mutex<Explanation>>,
    /// Lines of files that are no entries.
    bad_lines: AtomicU64,
    /// Of the server, if there is one.
    counts: OnceLock<Arc<Counts>>,
    /// Held while a page is drawn: a drawing takes a whole core.
    drawing: Arc<tokio::sync::Mutex<()>>,
}

type Shared = Arc<Graph>;

impl Graph {
    fn new(topology: Topology) -> Self {
        Self {
            topology: Mutex::new(topology),
            explanation: None,
            bad_lines: AtomicU64::new(0),
            counts: OnceLock::new(),
            drawing: Arc::default(),
        }
    }

    fn snapshot(&self) -> Snapshot {
        let topology = self.topology.lock();
        let mut snapshot = topology.unwrap_or_else(PoisonError::into_inner).snapshot();
        let lost = self.lost().into_iter().filter(|(_, count)| *count > 0);
        snapshot.notes.extend(lost.map(|(note, count)| NoteView {
            note: note.to_owned(),
            count,
        }));
        snapshot
    }

    /// What did not come into the graph, and how often.
    fn lost(&self) -> [(&'static str, u64); 4] {
        let count = |of: fn(&Counts) -> &AtomicU64| {
            let count = self.counts.get().map(|counts| of(counts));
            count.map_or(0, |count| count.load(Ordering::Relaxed))
        };
        let too_large = count(|counts| &counts.too_large);
        let broken = count(|counts| &counts.broken).saturating_sub(too_large);
        [
            (
                "a line of a file that is no entry: left out",
                self.bad_lines.load(Ordering::Relaxed),
            ),
            (
                "a stream beyond --max-streams: refused, its entries are missing",
                count(|counts| &counts.refused),
            ),
            (
                "a message beyond --max-message, or of too many entries: left out, and its stream broken off",
                too_large,
            ),
            (
                "a stream that broke off: what its Envoy had yet to send is missing",
                broken,
            ),
        ]
    }

    fn record(&self, entries: &[Entry]) {
        if let Some(explanation) = &self.explanation {
            let mut explanation = explanation.lock().unwrap_or_else(PoisonError::into_inner);
            return entries.iter().for_each(|entry| explanation.record(entry));
        }
        let mut topology = self.topology.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            topology.record(entry);
        }
    }
}

impl Arguments {
    pub(super) async fn run(mut self, json: bool) -> Result<()> {
        if json {
            self.format = Format::Json;
        }
        if self.files.is_empty() && self.listen.is_none() {
            bail!("neither a file nor --listen: where are the entries?");
        }
        let naming = self.mapping.naming()?;
        let explanation = self.explain.take();
        let explanation = explanation.map(|edge| Explanation::new(edge, naming.clone()).into());
        let graph = Arc::new(Graph {
            explanation,
            ..Graph::new(Topology::new(naming, self.reading))
        });
        for path in &self.files {
            match read(path, &graph) {
                // More is to come.
                Err(error) if error.is::<Empty>() && self.listen.is_some() => {}
                read => read.with_context(|| path.display().to_string())?,
            }
        }
        let live = match self.listen {
            Some(address) => Some(Live::start(address, &self.limits, &graph).await?),
            None => None,
        };
        if let Some(address) = self.serve {
            let listener = live::listen(address).await?;
            let address = listener.local_addr()?;
            say(&format!("the page is at http://{address}/"));
            tokio::spawn(serve(listener, Arc::clone(&graph)));
        }
        if live.is_some() || self.serve.is_some() {
            let redrawing = self.redraw(&graph);
            tokio::select! {
                told = live::told_to_end(self.seconds) => told?,
                failed = redrawing => failed?,
            }
        }
        if let Some(live) = live {
            // What was received is shown all the same.
            if let Err(error) = live.end().await {
                say(&format!("{error:#}"));
            }
        }
        match &graph.explanation {
            None => self.write(&graph.snapshot()),
            Some(explanation) => {
                let explanation = explanation.lock().unwrap_or_else(PoisonError::into_inner);
                self.write_answer(&explanation.answer(), json)
            }
        }
    }

    /// Shows the table again and again, if a person looks at it.
    async fn redraw(&self, graph: &Graph) -> Result<()> {
        const EVERY: Duration = Duration::from_secs(2);
        let is_watched = graph.explanation.is_none()
            && self.format == Format::Table
            && self.out.is_none()
            && io::stdout().is_terminal();
        if !is_watched {
            return std::future::pending().await;
        }
        loop {
            let table = text::table(&graph.snapshot(), width());
            let mut out = io::stdout().lock();
            write!(out, "\x1b[H\x1b[2J{table}")?;
            out.flush()?;
            drop(out);
            tokio::time::sleep(EVERY).await;
        }
    }

    fn write_answer(&self, answer: &Answer, json: bool) -> Result<()> {
        self.put(if json {
            plain_json(&serde_json::to_string_pretty(answer)?) + "\n"
        } else {
            answer.to_string()
        })
    }

    fn write(&self, snapshot: &Snapshot) -> Result<()> {
        let to_terminal = self.out.is_none() && io::stdout().is_terminal();
        let output = match self.format {
            Format::Table => text::table(snapshot, to_terminal.then(width).flatten()),
            Format::Json => plain_json(&serde_json::to_string_pretty(&json!(snapshot))?) + "\n",
            Format::Svg => svg::draw(snapshot),
            Format::Html => html::page(snapshot)?,
            Format::Dot => dot::draw(snapshot),
            Format::Mermaid => mermaid::draw(snapshot),
        };
        self.put(output)
    }

    fn put(&self, output: String) -> Result<()> {
        match &self.out {
            Some(path) => std::fs::write(path, output).with_context(|| path.display().to_string()),
            None => Ok(io::stdout().write_all(output.as_bytes())?),
        }
    }
}

/// The terminal's, as far as it says so.
fn width() -> Option<u16> {
    terminal_size::terminal_size().map(|(width, _)| width.0)
}

/// The longest line that is read: some times the longest entry.
const MAX_LINE: u64 = 32 << 20;

/// A recording may have been cut off: a line that is no entry is told, and the
/// others are read. A file without any entry is no recording.
fn read(path: &Path, graph: &Graph) -> Result<()> {
    let lines: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(path)?))
    };
    let read = read_lines(lines, |entry| graph.record(&[entry]))?;
    let Lines { good, bad, first } = read;
    graph.bad_lines.fetch_add(bad, Ordering::Relaxed);
    let Some((number, why)) = first else {
        return if good == 0 { Err(Empty.into()) } else { Ok(()) };
    };
    let why = visible(&why);
    ensure!(
        good > 0,
        "no line is an entry, so this is no recording of `mxctl collect --json` or `--out`; line {number}: {why}"
    );
    let path = path.display();
    say(&format!("{path}:{number}: no entry: {why}"));
    if bad > 1 {
        say(&format!("{path}: {bad} lines are no entries"));
    }
    Ok(())
}

/// What the lines of a file are.
#[derive(Debug, Default)]
struct Lines {
    good: u64,
    bad: u64,
    /// The first bad one: its number, and why it is bad.
    first: Option<(u64, String)>,
}

fn read_lines(mut from: impl BufRead, mut each: impl FnMut(Entry)) -> Result<Lines> {
    let mut lines = Lines::default();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            break;
        }
        ensure!(
            (line.len() as u64) < MAX_LINE,
            "line {number} is longer than {MAX_LINE} bytes: no recording of `mxctl collect` has such lines"
        );
        if line.trim_ascii().is_empty() {
            continue;
        }
        let entry = str::from_utf8(&line)
            .map_err(anyhow::Error::from)
            .and_then(Entry::of_line);
        match entry {
            Ok(entry) => {
                lines.good += 1;
                each(entry);
            }
            Err(error) => {
                lines.bad += 1;
                lines.first.get_or_insert((number, error.to_string()));
            }
        }
    }
    Ok(lines)
}

/// Entries on their way to the graph.
struct Live {
    server: Server,
    recorder: JoinHandle<()>,
}

impl Live {
    async fn start(address: SocketAddr, limits: &Limits, graph: &Shared) -> Result<Self> {
        let (server, entries) = live::receive(address, limits.of_server()).await?;
        let _first = graph.counts.set(Arc::clone(&server.counts));
        let recorder = tokio::spawn(recorder(entries, Arc::clone(graph)));
        Ok(Self { server, recorder })
    }

    async fn end(self) -> Result<()> {
        self.server.stop().await?;
        // With the server, the queue has ended.
        Ok(self.recorder.await?)
    }
}

async fn recorder(mut entries: mpsc::Receiver<live::Received>, graph: Shared) {
    while let Some(batch) = entries.recv().await {
        graph.record(&batch.entries);
    }
}

async fn serve(listener: TcpListener, graph: Shared) {
    let router = Router::new()
        .route("/", get(page))
        .route("/topology.json", get(data))
        .with_state(graph)
        .layer(middleware::from_fn(only_for_addresses));
    if let Err(error) = axum::serve(listener, router).await {
        say(&format!("the page is gone: {error}"));
    }
}

async fn page() -> impl IntoResponse {
    axum::response::Html(html::live_page())
}

async fn data(State(graph): State<Shared>) -> Response {
    match draw(graph).await {
        Ok(data) => ([(header::CONTENT_TYPE, "application/json")], data).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Draws on a thread of its own: it takes its time, which others need not wait
/// for, nor does the end of the process. One at a time, even if nobody waits for
/// it any more.
async fn draw(graph: Shared) -> Result<String> {
    let turn = Arc::clone(&graph.drawing).lock_owned().await;
    let (drawn, is_drawn) = oneshot::channel();
    std::thread::spawn(move || {
        let data = html::data(&graph.snapshot());
        drop(turn);
        // Nobody may be there to see it any more.
        let _ = drawn.send(data);
    });
    is_drawn.await.context("the drawing has died")?
}

/// Answers requests to an address or to localhost only: another name may be a
/// web site's that leads here to read the mesh through a browser.
async fn only_for_addresses(headers: HeaderMap, request: Request, next: Next) -> Response {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    if host.is_some_and(is_address) {
        next.run(request).await
    } else {
        let how = "ask by address, as http://127.0.0.1:PORT/, or as localhost\n";
        (StatusCode::MISDIRECTED_REQUEST, how).into_response()
    }
}

fn is_address(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || bare.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::naming::Naming;

    fn empty() -> Shared {
        Arc::new(Graph::new(Topology::new(Naming::default(), Reading::Mesh)))
    }

    #[tokio::test]
    async fn one_drawing_is_made_at_a_time() {
        let graph = empty();
        let turn = Arc::clone(&graph.drawing).lock_owned().await;
        tokio::select! {
            drawn = draw(Arc::clone(&graph)) => panic!("drawn beside another: {drawn:?}"),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        drop(turn);
        draw(graph).await.unwrap();
    }

    /// A runtime that ends waits for what blocks it, and so does the process.
    #[test]
    fn the_end_does_not_wait_for_a_drawing() {
        let graph = empty();
        let topology = graph.topology.lock();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let drawing = runtime.spawn(draw(Arc::clone(&graph)));
        // The drawing waits for the graph, which it does not get.
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while graph.drawing.try_lock().is_ok() {
            assert!(std::time::Instant::now() < deadline, "nothing is drawn");
            std::thread::yield_now();
        }
        let (ended, is_ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(runtime);
            ended.send(()).unwrap();
        });
        is_ended.recv_timeout(Duration::from_secs(30)).unwrap();
        drop((drawing, topology));
    }

    #[test]
    fn names_of_others_are_no_addresses() {
        for host in [
            "127.0.0.1:8080",
            "127.0.0.1",
            "[::1]:8080",
            "[::1]",
            "localhost:80",
        ] {
            assert!(is_address(host), "{host}");
        }
        for host in [
            "evil.example:8080",
            "",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
        ] {
            assert!(!is_address(host), "{host}");
        }
    }
}
