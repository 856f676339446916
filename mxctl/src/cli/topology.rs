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
use crate::prometheus;
use crate::render::{dot, html, mermaid, svg, text};
use crate::topology::explain::{Answer, Explanation, Question};
use crate::topology::{NoteView, Reading, Snapshot, Topology};
use access_log::Entry;
use access_log::server::{Counts, Server};

/// Draw the call graph from recorded entries (files), live ones (--listen), or
/// both, or from the metrics in a Prometheus.
///
/// An edge stands for the calls from one workload to another. Either side's
/// proxy may have logged them: where both did and differ, figures read client /
/// server. Errors are requests without a response or with status 500 and above.
/// Pods, VMs, gateways and unknown workloads are distinguished by node id,
/// OWNER, APP_CONTAINERS and labels.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// JSON lines from `mxctl collect`; - reads standard input
    files: Vec<PathBuf>,
    /// Where Envoys send their gRPC access logs
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Read Istio's standard metrics from the Prometheus at this URL, such as
    /// http://127.0.0.1:9090, instead of entries
    #[arg(long, value_name = "URL", conflicts_with_all = ["files", "listen", "serve", "explain", "reading", "seconds"])]
    prometheus: Option<String>,
    /// How far back calls in the Prometheus count, such as 5m or 2d
    #[arg(
        long,
        value_name = "DURATION",
        requires = "prometheus",
        default_value = "1h"
    )]
    range: String,
    /// Stop after this many seconds, instead of at an interrupt
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Serve a live page of the graph at this address, such as 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS")]
    serve: Option<SocketAddr>,
    /// The output format; --json is the same as json
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Write the output to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The rules by which entries become edges
    #[arg(long = "as", value_enum, default_value_t)]
    reading: Reading,
    /// Instead of drawing, explain why SkyWalking draws an edge or does not:
    /// CALLER->CALLEE, by its names
    #[arg(long, value_name = "EDGE", conflicts_with_all = ["serve", "format"])]
    explain: Option<Question>,
    #[command(flatten)]
    mapping: Mapping,
    #[command(flatten)]
    limits: Limits,
}

/// The output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table for the terminal
    #[default]
    Table,
    /// All figures, and all instances with their metadata
    Json,
    /// A picture
    Svg,
    /// A self-contained page
    Html,
    /// For Graphviz
    Dot,
    /// For Markdown
    Mermaid,
}

/// The graph while it grows, and what was left out of it.
struct Graph {
    topology: Mutex<Topology>,
    /// The edge to explain.
    explanation: Option<Mutex<Explanation>>,
    /// Lines of files that are not entries.
    bad_lines: AtomicU64,
    /// The server's counts, if there is a server.
    counts: OnceLock<Arc<Counts>>,
    /// Held while a page is drawn, because drawing occupies a whole core.
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

    /// What was left out of the graph, and how often.
    fn lost(&self) -> [(&'static str, u64); 4] {
        let count = |of: fn(&Counts) -> &AtomicU64| {
            let count = self.counts.get().map(|counts| of(counts));
            count.map_or(0, |count| count.load(Ordering::Relaxed))
        };
        let too_large = count(|counts| &counts.too_large);
        let broken = count(|counts| &counts.broken).saturating_sub(too_large);
        [
            (
                "a line of a file that is not an entry: skipped",
                self.bad_lines.load(Ordering::Relaxed),
            ),
            (
                "a stream beyond --max-streams: refused, and its entries are missing",
                count(|counts| &counts.refused),
            ),
            (
                "a message beyond --max-message, or with too many entries: skipped, and its stream \
                 closed",
                too_large,
            ),
            (
                "a stream that ended early: entries that its Envoy had not sent yet are missing",
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
        let naming = self.mapping.naming()?;
        if let Some(url) = &self.prometheus {
            ensure!(
                is_duration(&self.range),
                "--range {}: write it as 5m, 1h or 2d",
                self.range
            );
            let mut topology = Topology::new(naming, Reading::Mesh);
            for series in prometheus::totals(url, "istio_requests_total", &self.range).await? {
                topology.record_series(&series);
            }
            return self.write(&topology.snapshot());
        }
        if self.files.is_empty() && self.listen.is_none() {
            bail!("give a file or --listen to read entries from, or --prometheus");
        }
        let explanation = self.explain.take();
        let explanation = explanation.map(|edge| Explanation::new(edge, naming.clone()).into());
        let graph = Arc::new(Graph {
            explanation,
            ..Graph::new(Topology::new(naming, self.reading))
        });
        for path in &self.files {
            match read(path, &graph) {
                // Live entries may follow.
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
                stopped = live::until_stopped(self.seconds) => stopped?,
                failed = redrawing => failed?,
            }
        }
        if let Some(live) = live {
            // What was received is still shown.
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

    /// Redraws the table periodically, if the output is a terminal.
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

/// Whether it is one that Prometheus knows, of one unit.
fn is_duration(text: &str) -> bool {
    let number = text.strip_suffix(['s', 'm', 'h', 'd', 'w', 'y']);
    number.is_some_and(|number| number.parse::<u32>().is_ok_and(|number| number > 0))
}

/// The terminal's width, if known.
fn width() -> Option<u16> {
    terminal_size::terminal_size().map(|(width, _)| width.0)
}

/// The longest line that is read: several times the longest entry.
const MAX_LINE: u64 = 32 << 20;

/// Reads a recording, which may have been cut off: a line that is not an entry
/// is reported and skipped. A file without any entry is an error.
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
        "no line is an entry, so this is not a recording of `mxctl collect --json` or `--out`; \
         line {number}: {why}"
    );
    let path = path.display();
    say(&format!("{path}:{number}: no entry: {why}"));
    if bad > 1 {
        say(&format!("{path}: {bad} lines are not entries"));
    }
    Ok(())
}

/// How many lines of a file are entries, and how many are not.
#[derive(Debug, Default)]
struct Lines {
    good: u64,
    bad: u64,
    /// The first bad line: its number, and why it is bad.
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
            "line {number} is longer than {MAX_LINE} bytes, which no line of `mxctl collect` is"
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
        // The queue ended with the server.
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
        say(&format!("the page's server failed: {error}"));
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

/// Draws on its own thread, because drawing is slow: neither other requests nor
/// the end of the process wait for it. Only one drawing runs at a time, even if
/// its client is gone.
async fn draw(graph: Shared) -> Result<String> {
    let turn = Arc::clone(&graph.drawing).lock_owned().await;
    let (drawn, is_drawn) = oneshot::channel();
    std::thread::spawn(move || {
        let data = html::data(&graph.snapshot());
        drop(turn);
        // The client may be gone.
        let _ = drawn.send(data);
    });
    is_drawn.await.context("the drawing thread panicked")?
}

/// Accepts only requests whose Host is an address or localhost. This prevents
/// DNS rebinding, by which a web site could read the graph through a browser.
async fn only_for_addresses(headers: HeaderMap, request: Request, next: Next) -> Response {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    if host.is_some_and(is_address) {
        next.run(request).await
    } else {
        let how = "use an address, such as http://127.0.0.1:PORT/, or localhost\n";
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
    async fn only_one_drawing_runs_at_a_time() {
        let graph = empty();
        let turn = Arc::clone(&graph.drawing).lock_owned().await;
        tokio::select! {
            drawn = draw(Arc::clone(&graph)) => panic!("drawn beside another: {drawn:?}"),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        drop(turn);
        draw(graph).await.unwrap();
    }

    /// A runtime waits for its blocking tasks when it ends, and so would the
    /// process.
    #[test]
    fn shutdown_does_not_wait_for_a_drawing() {
        let graph = empty();
        let topology = graph.topology.lock();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let drawing = runtime.spawn(draw(Arc::clone(&graph)));
        // The drawing waits for a lock that is never released.
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
    fn a_range_is_a_number_with_a_unit() {
        assert!(["5m", "1h", "30s", "2d"].into_iter().all(is_duration));
        assert!(
            !["", "h", "5", "0m", "-1h", "1h] or vector(1)"]
                .into_iter()
                .any(is_duration)
        );
    }

    #[test]
    fn foreign_host_names_are_rejected() {
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
