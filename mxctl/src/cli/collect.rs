//! `mxctl collect`

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use metadata_exchange::pattern::Pattern;
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Limits, Mapping, live, plain_json, say};
use crate::escape::visible;
use crate::naming::Naming;
use crate::render::bytes;
use crate::topology::sides::{Sides, host_of_cluster};
use crate::topology::{UNKNOWN_REPORTER, names};
use access_log::{Entry, Named, Protocol, Side};

/// Receive access logs, HTTP and TCP, and print each entry.
///
/// Accepts Envoy's gRPC access log, and OTLP logs over gRPC with the attributes of examples/otlp-log.
///
/// Each line shows the time, caller and callee, the request, its result, and the log that reported
/// it. With --json it is a JSON line that `mxctl topology` reads. mxctl drops nothing: if the
/// output is read slowly, Envoys wait, and finally drop and count entries themselves
/// (access_logs.grpc_access_log.logs_dropped).
#[derive(Debug, Args)]
pub(super) struct Collect {
    /// Where Envoys send their gRPC access logs
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:11800")]
    listen: SocketAddr,
    /// Also append the entries to this file, as JSON lines
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print nothing; only write --out
    #[arg(long, requires = "out")]
    quiet: bool,
    /// Only entries that name this service, instance or workload on either side; a name, or a
    /// prefix with a *
    #[arg(long, value_name = "NAME", value_parser = pattern)]
    workload: Option<Pattern>,
    /// Only requests for this path; a path, or a prefix with a *
    #[arg(long, value_name = "PATH", value_parser = pattern)]
    path: Option<Pattern>,
    /// Only these statuses: 404, 5xx or 400-499, separated by commas; 0 means no response
    #[arg(long, value_name = "STATUS", value_delimiter = ',')]
    status: Vec<Statuses>,
    /// Stop after this many seconds
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    #[command(flatten)]
    mapping: Mapping,
    #[command(flatten)]
    limits: Limits,
}

fn pattern(text: &str) -> Result<Pattern, String> {
    Pattern::parse(text).ok_or_else(|| "a * may only be at the end".to_owned())
}

/// A range of statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Statuses {
    first: u32,
    last: u32,
}

impl FromStr for Statuses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u32>().ok();
        let range = if let Some(class) = text.strip_suffix("xx") {
            let class = number(class).filter(|class| (1..=9).contains(class));
            class.map(|class| (class * 100, class * 100 + 99))
        } else if let Some((first, last)) = text.split_once('-') {
            number(first).zip(number(last))
        } else {
            number(text).map(|status| (status, status))
        };
        let is_status = |status: &u32| *status == 0 || (100..600).contains(status);
        match range {
            Some((first, last)) if first > last => Err(format!(
                "the first status, {first}, is above the last, {last}"
            )),
            Some((first, last)) if is_status(&first) && is_status(&last) => {
                Ok(Self { first, last })
            }
            Some(_) => Err(
                "a status is between 100 and 599, or 0 for no response: for example 404, 5xx \
                     or 400-499"
                    .to_owned(),
            ),
            None => Err("not a status: write for example 404, 5xx or 400-499".to_owned()),
        }
    }
}

/// At shutdown, how long writing the received entries may take.
const GRACE: Duration = Duration::from_secs(10);

impl Collect {
    pub(super) async fn run(self, json: bool) -> Result<()> {
        let naming = self.mapping.naming()?;
        let file = match &self.out {
            Some(path) => {
                let file = File::options().create(true).append(true).open(path);
                Some(BufWriter::new(
                    file.with_context(|| path.display().to_string())?,
                ))
            }
            None => None,
        };
        let (server, entries) = live::receive(self.listen, self.limits.of_server()).await?;
        let seconds = self.seconds;
        let counts = Arc::<Written>::default();
        let printer = Printer {
            stdout: (!self.quiet).then(|| BufWriter::new(io::stdout())),
            file,
            json,
            naming,
            wanted: self,
            counts: Arc::clone(&counts),
        };
        let mut done = printer.start(entries);
        let early = tokio::select! {
            stopped = live::until_stopped(seconds) => { stopped?; None }
            ended = &mut done => Some(ended),
        };
        let streams = Arc::clone(&server.counts);
        // A stream ends only after its entries have been consumed.
        let (stopped, written) = tokio::join!(server.stop(), async {
            match early {
                Some(ended) => Ok(ended),
                None => timeout(GRACE, done).await,
            }
        });
        let [seen, shown] =
            [&counts.seen, &counts.shown].map(|count| count.load(Ordering::Relaxed));
        let [begun, refused, broken] = [&streams.streams, &streams.refused, &streams.broken]
            .map(|count| count.load(Ordering::Relaxed));
        say(&format!(
            "{seen} entries of {begun} streams, {shown} of them written; {refused} streams refused, {broken} broken off"
        ));
        let Ok(written) = written else {
            bail!("the output is not being read: some received entries were not written");
        };
        written.context("the printer thread panicked")??;
        if let Err(error) = stopped {
            // Everything received is still written.
            say(&format!("{error:#}"));
        }
        Ok(())
    }

    fn wants(&self, entry: &Entry, naming: &Naming) -> bool {
        let status = entry.status;
        let is_status = |range: &Statuses| (range.first..=range.last).contains(&status);
        let is_request = entry.protocol == Protocol::Http;
        (self.status.is_empty() || is_request && self.status.iter().any(is_status))
            && self
                .path
                .as_ref()
                .is_none_or(|path| is_request && path.matches(&entry.path))
            && self
                .workload
                .as_ref()
                .is_none_or(|name| is_about(entry, naming, name))
    }
}

fn is_about(entry: &Entry, naming: &Naming, name: &Pattern) -> bool {
    let peers = [Side::Downstream, Side::Upstream].map(|side| entry.peer(side));
    let mut nodes = peers.into_iter().flatten().chain([entry.local()]);
    nodes.any(|node| {
        let workload = node.metadata["WORKLOAD_NAME"].as_str();
        name.matches(workload.unwrap_or_default())
            || names::of_node(naming, &node)
                .is_ok_and(|(service, instance)| name.matches(&service) || name.matches(&instance))
    })
}

#[derive(Debug, Default)]
struct Written {
    seen: AtomicU64,
    shown: AtomicU64,
}

/// Writes entries on its own thread, so that a slow or stopped reader blocks only this thread.
struct Printer {
    stdout: Option<BufWriter<io::Stdout>>,
    file: Option<BufWriter<File>>,
    json: bool,
    naming: Naming,
    wanted: Collect,
    counts: Arc<Written>,
}

impl Printer {
    /// Runs until the queue ends or an output fails.
    fn start(
        mut self,
        mut entries: mpsc::Receiver<live::Received>,
    ) -> oneshot::Receiver<Result<()>> {
        let (done, is_done) = oneshot::channel();
        std::thread::spawn(move || {
            // The receiver may be gone.
            let _ = done.send(self.print(&mut entries));
        });
        is_done
    }

    fn print(&mut self, entries: &mut mpsc::Receiver<live::Received>) -> Result<()> {
        loop {
            let batch = match entries.try_recv() {
                Ok(batch) => batch,
                Err(TryRecvError::Empty) => {
                    // Live output: flush before waiting for more.
                    self.flush()?;
                    match entries.blocking_recv() {
                        Some(batch) => batch,
                        None => return Ok(()),
                    }
                }
                Err(TryRecvError::Disconnected) => return self.flush(),
            };
            for entry in &batch.entries {
                self.counts.seen.fetch_add(1, Ordering::Relaxed);
                if self.wanted.wants(entry, &self.naming) {
                    self.write(entry)
                        .map_err(|error| self.flushed_after(error))?;
                    self.counts.shown.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let line = plain_json(&entry.to_line());
        // The file first, so that it is complete even if standard output is closed.
        if let Some(file) = &mut self.file {
            writeln!(file, "{line}")?;
        }
        match &mut self.stdout {
            None => Ok(()),
            Some(out) if self.json => writeln!(out, "{line}"),
            Some(out) => writeln!(out, "{}", human(entry, &self.naming)),
        }
    }

    fn flush(&mut self) -> Result<()> {
        if let Some(file) = &mut self.file {
            file.flush().context("the file")?;
        }
        if let Some(out) = &mut self.stdout {
            out.flush().map_err(|error| self.flushed_after(error))?;
        }
        Ok(())
    }

    /// Flushes the file even though the other output failed.
    fn flushed_after(&mut self, error: io::Error) -> anyhow::Error {
        match self.file.as_mut().map(Write::flush) {
            Some(Err(second)) => anyhow!("{error}, and the file: {second}"),
            _ => error.into(),
        }
    }
}

/// `12:00:01.123  a.shop -> b.shop  GET /pay  200  3.1 ms  (b/inbound)`
fn human(entry: &Entry, naming: &Naming) -> String {
    let time = entry
        .start
        .as_deref()
        .and_then(|start| start.split_once('T'));
    let time = time.map_or("-", |(_, time)| time.get(..12).unwrap_or(time));
    let (call, reporter) = sides(entry, naming);
    let what = match entry.protocol {
        Protocol::Tcp => format!(
            "TCP {}{}  received {}, sent {}",
            entry.upstream_address,
            if entry.intermediate { "  open" } else { "" },
            bytes(entry.received_bytes),
            bytes(entry.sent_bytes)
        ),
        Protocol::Http => format!("{} {}  {}", entry.method, entry.path, entry.status),
    };
    let mut line = format!("{time}  {call}  {what}");
    if !entry.flags.is_empty() {
        line.push_str("  ");
        line.push_str(&entry.flags.join(","));
    }
    if let Some(us) = entry.duration_us {
        #[allow(clippy::cast_precision_loss)] // A duration.
        let ms = us as f64 / 1000.0;
        // Writing to a String cannot fail.
        let _ = write!(line, "  {ms:.1} ms");
    }
    let _ = write!(line, "  ({}{reporter})", entry.reporter.log);
    visible(&line)
}

/// `a.shop -> b.shop`, or `a.shop -> gateway.edge -> b.shop` through a gateway; and the reporter, if it is neither. `?` stands for what the entry does not show.
fn sides(entry: &Entry, naming: &Naming) -> (String, String) {
    const UNTOLD: &str = "?";
    let sides = Sides::of(entry, naming);
    let name = |node: &Named<'_>| names::of_node(naming, node).map(|(service, _)| service);
    let peer = |node: &Option<Named<'_>>| node.as_ref().and_then(|node| name(node).ok());
    let local = name(&sides.local).unwrap_or_else(|_| UNKNOWN_REPORTER.to_owned());
    let caller = peer(&sides.caller).unwrap_or_else(|| UNTOLD.to_owned());
    let host = || {
        host_of_cluster(&entry.upstream_cluster)
            .unwrap_or(UNTOLD)
            .to_owned()
    };
    let callee = peer(&sides.callee);
    let call = match (sides.is_server(), sides.is_client()) {
        _ if sides.is_proxy => {
            let callee = callee.unwrap_or_else(host);
            format!("{caller} -> {local} -> {callee}")
        }
        (true, true) => format!("{caller} -> {}", callee.unwrap_or_else(host)),
        (true, false) => format!("{caller} -> {local}"),
        (false, true) => format!("{local} -> {}", callee.unwrap_or_else(host)),
        (false, false) => return (format!("{UNTOLD} -> {UNTOLD}"), format!(" of {local}")),
    };
    (call, String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_single_classes_or_ranges() {
        let statuses = |first, last| Ok(Statuses { first, last });
        assert_eq!("404".parse(), statuses(404, 404));
        assert_eq!("5xx".parse(), statuses(500, 599));
        assert_eq!("400-499".parse(), statuses(400, 499));
        assert_eq!("0".parse(), statuses(0, 0));
        for bad in [
            "",
            "x",
            "xx",
            "0xx",
            "6xx",
            "9xx",
            "99",
            "600",
            "400-600",
            "99-200",
            "499-400",
            "5XX",
            "1-2-3",
            "-1",
            "42949673xx",
        ] {
            assert!(bad.parse::<Statuses>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_unknown_callee_has_the_name_of_its_cluster() {
        let line = |log: &str, cluster: &str| {
            let entry = format!(
                r#"{{"version":1,"reporter":{{"log":"{log}","metadata":{{"NAMESPACE":"n","LABELS":{{"app":"a"}}}}}},
                    "protocol":"http","method":"GET","path":"/","status":200,"state":{{}},
                    "upstream_cluster":"{cluster}"}}"#
            );
            human(&Entry::of_line(&entry).unwrap(), &Naming::default())
        };
        let outside = line("a", "outbound|443||api.example.com");
        assert!(
            outside.contains("a.n -> api.example.com  GET /"),
            "{outside}"
        );
        let unknown = line("a/outbound", "");
        assert!(unknown.contains("a.n -> ?  GET /"), "{unknown}");
        let inbound = line("a/inbound", "inbound|8080||");
        assert!(inbound.contains("? -> a.n  GET /"), "{inbound}");
    }

    #[test]
    fn an_unknown_direction_is_not_guessed() {
        let line = |reporter: &str, cluster: &str| {
            let entry = format!(
                r#"{{"version":1,"reporter":{reporter},"protocol":"http","method":"GET","path":"/",
                    "status":200,"state":{{}},"upstream_cluster":"{cluster}"}}"#
            );
            human(&Entry::of_line(&entry).unwrap(), &Naming::default())
        };
        let sidecar = r#"{"log":"metadata_exchange","id":"sidecar~1~a-1.n~n.svc","metadata":{}}"#;
        assert_eq!(
            line(sidecar, "app"),
            "-  ? -> ?  GET /  200  (metadata_exchange of a-1.n)"
        );
        assert_eq!(
            line(r#"{"log":"inbound"}"#, "app"),
            "-  ? -> unknown reporter  GET /  200  (inbound)"
        );
        let gateway = r#"{"log":"edge","id":"router~1~gw-1.n~n.svc","metadata":{}}"#;
        assert_eq!(
            line(gateway, "outbound|80||b.n.svc"),
            "-  ? -> gw-1.n -> b.n.svc  GET /  200  (edge)"
        );
    }

    #[test]
    fn a_connection_has_its_bytes() {
        let line = |more: &str| {
            let entry = format!(
                r#"{{"version":1,"reporter":{{"log":"a/outbound","metadata":{{"NAMESPACE":"n","LABELS":{{"app":"a"}}}}}},
                    "protocol":"tcp","received_bytes":1200,"sent_bytes":7,"upstream_address":"10.0.0.7:5432",{more}
                    "upstream_cluster":"outbound|5432||db"}}"#
            );
            human(&Entry::of_line(&entry).unwrap(), &Naming::default())
        };
        assert_eq!(
            line(r#""duration_us":2500,"#),
            "-  a.n -> db  TCP 10.0.0.7:5432  received 1.20 kB, sent 7 B  2.5 ms  (a/outbound)"
        );
        let open = line(r#""intermediate":true,"#);
        assert!(
            open.contains("TCP 10.0.0.7:5432  open  received 1.20 kB"),
            "{open}"
        );
    }

    #[test]
    fn hostile_names_do_not_break_a_line() {
        let entry = Entry::of_line(
            r#"{"version":1,"reporter":{"log":"l\u001b[31m","metadata":{"NAMESPACE":"n\n","LABELS":{"app":"a"}}},
                "protocol":"http","method":"GET","path":"/\r\nforged","status":200,"duration_us":1234,
                "start":"2026-01-02T03:04:05.123456Z","state":{}}"#,
        )
        .unwrap();
        let line = human(&entry, &Naming::default());
        assert_eq!(
            line,
            "03:04:05.123  ? -> ?  GET /\\u{d}\\u{a}forged  200  1.2 ms  (l\\u{1b}[31m of a.n\\u{a})"
        );
    }
}
