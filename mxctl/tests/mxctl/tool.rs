//! Runs the tool, and sends access logs to it as an Envoy does.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, HttpAccessLogEntry, HttpRequestProperties, HttpResponseProperties,
    TcpAccessLogEntry,
};
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_client::AccessLogServiceClient;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    HttpAccessLogEntries, Identifier, LogEntries, TcpAccessLogEntries,
};
use envoy_types::pb::google::protobuf::{Any, BytesValue, Duration as ProtoDuration, UInt32Value};
use metadata_exchange::peer::{Peer, flat};
use mxctl::entry::struct_of_json;
use prost::{Message as _, Name as _};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What a run that ended has left.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("{self:?}"))
    }
}

/// Runs the tool to its end.
pub(crate) fn run(arguments: &[&str], stdin: &[u8]) -> Result<Done> {
    let mut child = command(arguments).stdin(Stdio::piped()).spawn()?;
    let mut to = child.stdin.take().context("no stdin")?;
    let input = stdin.to_vec();
    let writer = std::thread::spawn(move || to.write_all(&input));
    let output = child.wait_with_output()?;
    // A tool that failed before may not have read it.
    let _ = writer.join();
    Ok(Done {
        status: output.status,
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

/// Runs the tool where nobody reads what it says.
pub(crate) fn run_unheard(arguments: &[&str], stdin: &[u8]) -> Result<ExitStatus> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let mut command = command(arguments);
    command.stderr(writer.try_clone()?).stdout(writer);
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    let mut to = child.stdin.take().context("no stdin")?;
    // A tool that failed before may not have read it.
    let _ = to.write_all(stdin);
    drop(to);
    Ok(child.wait()?)
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mxctl"));
    command.args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The tool while it runs. It is killed with its value.
pub(crate) struct Tool {
    child: Child,
    pub(crate) stdout: Option<BufReader<ChildStdout>>,
    stderr: BufReader<ChildStderr>,
}

impl Tool {
    pub(crate) fn start(arguments: &[&str]) -> Result<Self> {
        let mut child = command(arguments).stdin(Stdio::null()).spawn()?;
        let stdout = child.stdout.take().map(BufReader::new);
        let stderr = BufReader::new(child.stderr.take().context("no stderr")?);
        Ok(Self {
            child,
            stdout,
            stderr,
        })
    }

    /// The address in the next line that the tool says on standard error.
    pub(crate) fn address(&mut self, said: &str) -> Result<SocketAddr> {
        let mut line = String::new();
        self.stderr.read_line(&mut line)?;
        let address = line.trim().trim_end_matches('/').strip_prefix(said);
        let address = address.with_context(|| format!("{line:?} instead of {said:?}"))?;
        Ok(address.parse()?)
    }

    pub(crate) fn collector(&mut self) -> Result<SocketAddr> {
        self.address("mxctl: access logs are taken at ")
    }

    /// The next line of the output.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let stdout = self.stdout.as_mut().context("no stdout")?;
        ensure!(stdout.read_line(&mut line)? > 0, "the output has ended");
        Ok(line)
    }

    /// Tells it to end, as a terminal or a supervisor does.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args([signal, &id]).status()?;
        ensure!(status.success(), "kill {signal} {id}: {status}");
        Ok(())
    }

    /// Tells it to end again and again, until it does.
    pub(crate) fn interrupt_until_it_ends(mut self) -> Result<Done> {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the tool does not end");
            self.signal("-INT")?;
            std::thread::sleep(Duration::from_millis(20));
        }
        self.end()
    }

    /// The most memory that it has held so far, in bytes.
    pub(crate) fn peak_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        let kib: u64 = kib.context("the kernel tells no VmHWM")?.parse()?;
        Ok(kib * 1024)
    }

    /// Waits for its end, with what it still says.
    pub(crate) fn end(mut self) -> Result<Done> {
        let deadline = Instant::now() + PATIENCE;
        let stdout = self.stdout.take();
        let rest = std::thread::spawn(move || match stdout {
            Some(stdout) => std::io::read_to_string(stdout),
            None => Ok(String::new()),
        });
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("the tool does not end");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let stdout = rest.join().ok().context("the reader has died")??;
        let stderr = std::io::read_to_string(&mut self.stderr)?;
        Ok(Done {
            status,
            stdout,
            stderr,
        })
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connections that stay, and say nothing: one of bare TCP, and a client of HTTP/2
/// that has begun.
pub(crate) fn silent_connections(to: SocketAddr) -> Result<[TcpStream; 2]> {
    let tcp = TcpStream::connect(to)?;
    let mut http = TcpStream::connect(to)?;
    // The preface, and settings: an empty frame of type 4.
    http.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
    // The server has said something, so it knows the client.
    http.set_read_timeout(Some(PATIENCE))?;
    http.read_exact(&mut [0; 9])?;
    Ok([tcp, http])
}

/// A stream of access logs.
pub(crate) struct Stream {
    messages: mpsc::Sender<StreamAccessLogsMessage>,
    call: tokio::task::JoinHandle<Result<(), tonic::Status>>,
}

impl Stream {
    /// Opens a stream of the log `log` by the node of that service.
    pub(crate) async fn open(to: SocketAddr, log: &str, service: &str) -> Result<Self> {
        let mut client = AccessLogServiceClient::connect(format!("http://{to}")).await?;
        let (messages, queue) = mpsc::channel(1);
        let call = tokio::spawn(async move {
            client
                .stream_access_logs(ReceiverStream::new(queue))
                .await?;
            Ok(())
        });
        let identifier = Identifier {
            node: Some(node(service)?),
            log_name: log.to_owned(),
        };
        let first = StreamAccessLogsMessage {
            identifier: Some(identifier),
            log_entries: None,
        };
        messages.send(first).await?;
        Ok(Self { messages, call })
    }

    pub(crate) async fn send(&self, entries: LogEntries) -> Result<()> {
        let message = StreamAccessLogsMessage {
            identifier: None,
            log_entries: Some(entries),
        };
        Ok(self.messages.send(message).await?)
    }

    /// Sends a request to `path` that `service` answered so.
    pub(crate) async fn request(&self, peer: &Peer<'_>, path: &str, status: u32) -> Result<()> {
        self.send(LogEntries::HttpLogs(HttpAccessLogEntries {
            log_entry: vec![http(peer, path, status)],
        }))
        .await
    }

    /// Ends the stream, and says how the server ended it.
    pub(crate) async fn end(self) -> Result<Result<(), tonic::Status>> {
        drop(self.messages);
        Ok(tokio::time::timeout(PATIENCE, self.call).await??)
    }
}

fn node(service: &str) -> Result<Node> {
    let metadata = json!({
        "NAME": format!("{service}-1"), "NAMESPACE": "shop", "LABELS": { "app": service },
        "OWNER": "kubernetes://apis/apps/v1/namespaces/shop/deployments/x",
    });
    Ok(Node {
        id: format!("sidecar~10.0.0.1~{service}-1.shop~shop.svc.cluster.local"),
        metadata: Some(struct_of_json(&metadata)?),
        ..Node::default()
    })
}

/// A pod of a service.
pub(crate) fn peer(service: &str) -> Peer<'static> {
    Peer {
        name: Some(format!("{service}-1").into()),
        namespace: Some("shop".into()),
        labels: Some(vec![("app".into(), service.to_owned().into())]),
        app_containers: Some("main".into()),
        ..Peer::default()
    }
}

/// A request to `callee`.
pub(crate) fn http(callee: &Peer<'_>, path: &str, status: u32) -> HttpAccessLogEntry {
    HttpAccessLogEntry {
        common_properties: Some(common(callee)),
        request: Some(HttpRequestProperties {
            request_method: 1,
            path: path.to_owned(),
            ..HttpRequestProperties::default()
        }),
        response: Some(HttpResponseProperties {
            response_code: Some(UInt32Value { value: status }),
            ..HttpResponseProperties::default()
        }),
        ..HttpAccessLogEntry::default()
    }
}

/// A connection to `callee`.
pub(crate) fn tcp(callee: &Peer<'_>) -> LogEntries {
    LogEntries::TcpLogs(TcpAccessLogEntries {
        log_entry: vec![TcpAccessLogEntry {
            common_properties: Some(common(callee)),
            ..TcpAccessLogEntry::default()
        }],
    })
}

fn common(callee: &Peer<'_>) -> AccessLogCommon {
    let bytes = BytesValue {
        value: flat::write(callee),
    };
    let any = Any {
        type_url: BytesValue::type_url(),
        value: bytes.encode_to_vec(),
    };
    AccessLogCommon {
        filter_state_objects: [("wasm.upstream_peer".to_owned(), any)].into(),
        time_to_last_downstream_tx_byte: Some(ProtoDuration {
            seconds: 0,
            nanos: 3_000_000,
        }),
        ..AccessLogCommon::default()
    }
}
