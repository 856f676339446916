//! `mxctl collect`

use std::time::Duration;

use access_log::{Entry, Protocol};
use anyhow::{Result, ensure};
use envoy_types::pb::envoy::data::accesslog::v3::HttpAccessLogEntry;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    HttpAccessLogEntries, LogEntries,
};

use crate::stream::{Stream, http, peer, tcp};
use crate::tool::{Tool, run, run_unheard, silent_connections};

const LISTEN: [&str; 3] = ["collect", "--listen", "127.0.0.1:0"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_are_printed_live_and_filtered() -> Result<()> {
    let filters = [
        "--status",
        "5xx,404",
        "--path",
        "/pay*",
        "--workload",
        "ratings.shop",
    ];
    let mut tool = Tool::start(&[&LISTEN[..], &filters].concat())?;
    let stream = Stream::open(tool.collector()?, "a/outbound", "productpage").await?;
    stream.request(&peer("ratings"), "/pay/1", 200).await?;
    stream.request(&peer("ratings"), "/other", 503).await?;
    stream.request(&peer("reviews"), "/pay/2", 503).await?;
    stream.request(&peer("ratings"), "/pay/3", 503).await?;
    stream.request(&peer("ratings"), "/pay/4", 404).await?;
    let expected = "productpage.shop -> ratings.shop  GET /pay/3  503  3.0 ms  (a/outbound)\n";
    assert_eq!(tool.line()?, format!("-  {expected}"));
    assert!(tool.line()?.contains("/pay/4"));
    tool.signal("-INT")?;
    let done = tool.end()?;
    ensure!(done.status.success(), "{done:?}");
    assert!(
        done.stderr
            .contains("5 entries of 1 streams, 2 of them written"),
        "{done:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_name_is_one_line_without_escape_sequences() -> Result<()> {
    let mut tool = Tool::start(&LISTEN)?;
    let stream = Stream::open(tool.collector()?, "l\x1b[2J", "a").await?;
    stream
        .request(&peer("\u{1b}]0;owned\u{7}\u{202e}"), "/\r\nforged", 200)
        .await?;
    let line = tool.line()?;
    assert!(
        line.contains("a.shop -> \\u{1b}]0;owned\\u{7}\\u{202e}.shop"),
        "{line:?}"
    );
    assert!(line.contains("GET /\\u{d}\\u{a}forged"), "{line:?}");
    assert!(
        !line.contains(['\u{1b}', '\u{7}', '\u{202e}', '\r']),
        "{line:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_received_is_in_the_file_after_sigterm() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("calls.jsonl");
    let out = path.to_str().unwrap_or_default();
    let mut tool = Tool::start(&[&LISTEN[..], &["--out", out, "--quiet"]].concat())?;
    let address = tool.collector()?;
    let mut streams = Vec::new();
    for number in 0..50 {
        let stream = Stream::open(address, &format!("{number}/outbound"), "a").await?;
        let entries = (0..20).map(|at| http(&peer("b"), &format!("/{number}/{at}"), 200));
        let log_entry = entries.collect();
        stream
            .send(LogEntries::HttpLogs(HttpAccessLogEntries { log_entry }))
            .await?;
        stream.send(tcp(&peer("c"))).await?;
        streams.push(stream);
    }
    // A stream that ended without an error has been read completely.
    for stream in streams {
        ensure!(stream.end().await?.is_ok(), "a stream was broken off");
    }
    tool.signal("-TERM")?;
    let done = tool.end()?;
    ensure!(done.status.success(), "{done:?}");
    assert_eq!(done.stdout, "");
    let text = std::fs::read_to_string(&path)?;
    let entries = text
        .lines()
        .map(Entry::of_line)
        .collect::<Result<Vec<_>>>()?;
    assert_eq!(entries.len(), 50 * 21);
    let connections = entries
        .iter()
        .filter(|entry| entry.protocol == Protocol::Tcp);
    assert_eq!(connections.count(), 50);
    Ok(())
}

/// A slow reader holds up the streams, and the memory stays bounded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_reader_stalls_the_streams() -> Result<()> {
    let mut tool = Tool::start(&[&LISTEN[..], &["--json"]].concat())?;
    let address = tool.collector()?;
    let path = "/".repeat(8000);
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(Stream::open(address, "a/outbound", "a").await?);
    }
    let mut sent = 0_usize;
    // Each message is 80 KB: an unbounded queue would hold 320 MB in the end.
    for stream in &streams {
        let mut is_held_up = false;
        for _ in 0..500 {
            let log_entry = vec![http(&peer("b"), &path, 200); 10];
            let entries = LogEntries::HttpLogs(HttpAccessLogEntries { log_entry });
            let wait = Duration::from_secs(1);
            if tokio::time::timeout(wait, stream.send(entries))
                .await
                .is_err()
            {
                is_held_up = true;
                break;
            }
            sent += 10;
        }
        ensure!(is_held_up, "{sent} entries were accepted that nobody read");
    }
    let peak = tool.peak_bytes()?;
    ensure!(
        peak < 100 << 20,
        "{peak} bytes for {sent} entries that nobody read"
    );
    // Nothing is lost.
    let mut stdout = tool.stdout.take();
    let lines = tokio::task::spawn_blocking(move || {
        let lines = std::io::BufRead::lines(stdout.as_mut().expect("an output"));
        lines.take(sent).map_while(Result::ok).count()
    });
    assert_eq!(lines.await?, sent);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_output_is_an_error_and_the_file_is_complete() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("calls.jsonl");
    let out = path.to_str().unwrap_or_default();
    let mut tool = Tool::start(&[&LISTEN[..], &["--out", out]].concat())?;
    let stream = Stream::open(tool.collector()?, "a/outbound", "a").await?;
    stream.request(&peer("b"), "/1", 200).await?;
    tool.line()?;
    // The reader goes away, as `head` does.
    drop(tool.stdout.take());
    while stream.request(&peer("b"), "/2", 200).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let done = tool.end()?;
    ensure!(!done.status.success(), "{done:?}");
    let text = std::fs::read_to_string(&path)?;
    for line in text.lines() {
        Entry::of_line(line)?;
    }
    ensure!(text.lines().count() >= 2, "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_messages_beyond_the_limits_are_refused() -> Result<()> {
    let limits = ["--max-streams", "1", "--max-message", "10000"];
    let mut tool = Tool::start(&[&LISTEN[..], &limits].concat())?;
    let address = tool.collector()?;
    let first = Stream::open(address, "a/outbound", "a").await?;
    first.request(&peer("b"), "/1", 200).await?;
    tool.line()?;
    let second = Stream::open(address, "a/outbound", "a").await?;
    let refused = second.end().await?.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    first.request(&peer("b"), &"/".repeat(20_000), 200).await?;
    assert_eq!(
        first.end().await?.unwrap_err().code(),
        tonic::Code::OutOfRange
    );
    tool.signal("-INT")?;
    let done = tool.end()?;
    assert!(
        done.stderr.contains("1 streams refused, 1 broken off"),
        "{done:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_connections_do_not_delay_the_exit() -> Result<()> {
    let mut tool = Tool::start(&LISTEN)?;
    let address = tool.collector()?;
    let _silent = silent_connections(address)?;
    let stream = Stream::open(address, "a/outbound", "a").await?;
    stream.request(&peer("b"), "/1", 200).await?;
    tool.line()?;
    tool.signal("-TERM")?;
    let done = tool.end()?;
    ensure!(done.status.success(), "{done:?}");
    assert_eq!(
        done.stderr,
        "mxctl: 1 entries of 1 streams, 1 of them written; 0 streams refused, 0 broken off\n"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_exits_immediately() -> Result<()> {
    let mut tool = Tool::start(&LISTEN)?;
    let stream = Stream::open(tool.collector()?, "a/outbound", "a").await?;
    // Nobody reads the output, so the end would wait.
    let log_entry = vec![http(&peer("b"), &"/".repeat(8000), 200); 100];
    stream
        .send(LogEntries::HttpLogs(HttpAccessLogEntries { log_entry }))
        .await?;
    tool.line()?;
    let done = tool.interrupt_until_it_ends()?;
    assert_eq!(done.status.code(), Some(130), "{done:?}");
    Ok(())
}

fn empty_entries(count: usize) -> LogEntries {
    let log_entry = vec![HttpAccessLogEntry::default(); count];
    LogEntries::HttpLogs(HttpAccessLogEntries { log_entry })
}

/// An empty entry takes two bytes in its message and a kilobyte in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_with_too_many_entries_are_refused() -> Result<()> {
    let mut tool = Tool::start(&[&LISTEN[..], &["--json"]].concat())?;
    let address = tool.collector()?;
    let stream = Stream::open(address, "a/outbound", "a").await?;
    stream.send(empty_entries(5000)).await?;
    let refused = stream.end().await?.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::OutOfRange);
    assert!(
        refused.message().contains("5000 parts, the limit is 4096"),
        "{refused}"
    );
    let stream = Stream::open(address, "a/outbound", "a").await?;
    stream.send(empty_entries(4000)).await?;
    for _ in 0..4000 {
        tool.line()?;
    }
    tool.signal("-INT")?;
    let done = tool.end()?;
    assert!(
        done.stderr.contains("mxctl: 4000 entries of 2 streams")
            && done.stderr.ends_with("0 streams refused, 1 broken off\n"),
        "{done:?}"
    );
    Ok(())
}

/// The queue is also bounded by the memory of its decoded messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_stall_the_streams() -> Result<()> {
    let mut tool = Tool::start(&[&LISTEN[..], &["--json"]].concat())?;
    let address = tool.collector()?;
    let mut streams = Vec::new();
    for _ in 0..8 {
        let stream = Stream::open(address, "a/outbound", "a").await?;
        for _ in 0..20 {
            let wait = Duration::from_millis(500);
            let sent = stream.send(empty_entries(4000));
            if tokio::time::timeout(wait, sent).await.is_err() {
                break;
            }
        }
        streams.push(stream);
    }
    let peak = tool.peak_bytes()?;
    ensure!(peak < 200 << 20, "{peak} bytes of entries that nobody read");
    Ok(())
}

#[test]
fn excessive_limits_are_capped_silently() -> Result<()> {
    let done = run(&["collect", "--max-streams", "18446744073709551615"], b"")?;
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    ensure!(done.stderr.contains("is not in 1..=1048576"), "{done:?}");
    let done = run(&["collect", "--json", "--max-message", "0"], b"")?;
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    let error: serde_json::Value = serde_json::from_str(&done.stderr)?;
    let message = error["error"].as_str().unwrap_or_default();
    ensure!(
        message.starts_with("invalid value '0' for '--max-message"),
        "{message}"
    );
    let arguments = [&LISTEN[..], &["--for", "0"]].concat();
    let unheard = run_unheard(&arguments, b"")?;
    ensure!(unheard.success(), "{unheard}");
    Ok(())
}
