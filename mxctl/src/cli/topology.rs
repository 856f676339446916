//! `mxctl topology`

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Limits, Mapping, live, plain_json};
use crate::als::Server;
use crate::entry::Entry;
use crate::escape::visible;
use crate::render::{dot, html, mermaid, svg, text};
use crate::topology::{Reading, Snapshot, Topology};

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

type Shared = Arc<Mutex<Topology>>;

fn snapshot(topology: &Shared) -> Snapshot {
    topology
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .snapshot()
}

fn record(topology: &Shared, entries: &[Entry]) {
    let mut topology = topology.lock().unwrap_or_else(PoisonError::into_inner);
    for entry in entries {
        topology.record(entry);
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
        let topology = Arc::new(Mutex::new(Topology::new(naming, self.reading)));
        for path in &self.files {
            read(path, &topology).with_context(|| path.display().to_string())?;
        }
        let live = match self.listen {
            Some(address) => Some(Live::start(address, &self.limits, &topology).await?),
            None => None,
        };
        if let Some(address) = self.serve {
            let listener = live::listen(address).await?;
            super::say(&format!(
                "the page is at http://{}/",
                listener.local_addr()?
            ));
            tokio::spawn(serve(listener, Arc::clone(&topology)));
        }
        if live.is_some() || self.serve.is_some() {
            let redrawing = self.redraw(&topology);
            tokio::select! {
                told = live::told_to_end(self.seconds) => told?,
                failed = redrawing => failed?,
            }
        }
        if let Some(live) = live {
            live.end().await?;
        }
        self.write(&snapshot(&topology))
    }

    /// Shows the table again and again, if a person looks at it.
    async fn redraw(&self, topology: &Shared) -> Result<()> {
        const EVERY: Duration = Duration::from_secs(2);
        let is_watched =
            self.format == Format::Table && self.out.is_none() && io::stdout().is_terminal();
        if !is_watched {
            return std::future::pending().await;
        }
        loop {
            let table = text::table(&snapshot(topology), width());
            let mut out = io::stdout().lock();
            write!(out, "\x1b[H\x1b[2J{table}")?;
            out.flush()?;
            drop(out);
            tokio::time::sleep(EVERY).await;
        }
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

/// A recording may have been cut off: a line that is no entry is told, and the
/// others are read.
fn read(path: &Path, topology: &Shared) -> Result<()> {
    let lines: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(path)?))
    };
    let mut bad = 0_u64;
    for (number, line) in lines.split(b'\n').enumerate() {
        let line = line?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let entry = str::from_utf8(&line)
            .map_err(anyhow::Error::from)
            .and_then(Entry::of_line);
        match entry {
            Ok(entry) => record(topology, std::slice::from_ref(&entry)),
            Err(error) => {
                bad += 1;
                if bad == 1 {
                    let (path, line) = (path.display(), number + 1);
                    let error = visible(&error.to_string());
                    super::say(&format!("{path}:{line}: no entry: {error}"));
                }
            }
        }
    }
    if bad > 1 {
        super::say(&format!("{}: {bad} lines are no entries", path.display()));
    }
    Ok(())
}

/// Entries on their way to the graph.
struct Live {
    server: Server,
    recorder: JoinHandle<()>,
}

impl Live {
    async fn start(address: SocketAddr, limits: &Limits, topology: &Shared) -> Result<Self> {
        let (server, entries) = live::receive(address, limits.of_server()).await?;
        let recorder = tokio::spawn(recorder(entries, Arc::clone(topology)));
        Ok(Self { server, recorder })
    }

    async fn end(self) -> Result<()> {
        self.server.stop().await?;
        // With the server, the queue has ended.
        Ok(self.recorder.await?)
    }
}

async fn recorder(mut entries: mpsc::Receiver<live::Received>, topology: Shared) {
    while let Some(batch) = entries.recv().await {
        record(&topology, &batch.entries);
    }
}

async fn serve(listener: TcpListener, topology: Shared) {
    let router = Router::new()
        .route("/", get(page))
        .route("/topology.json", get(data))
        .with_state(topology)
        .layer(middleware::from_fn(only_for_addresses));
    if let Err(error) = axum::serve(listener, router).await {
        super::say(&format!("the page is gone: {error}"));
    }
}

async fn page() -> impl IntoResponse {
    axum::response::Html(html::live_page())
}

async fn data(State(topology): State<Shared>) -> Response {
    // The drawing takes its time, which others need not wait for.
    let drawn = tokio::task::spawn_blocking(move || html::data(&snapshot(&topology)));
    match drawn
        .await
        .map_err(anyhow::Error::from)
        .and_then(|data| data)
    {
        Ok(data) => ([(header::CONTENT_TYPE, "application/json")], data).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
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
