//! Replays recorded access-log messages.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use access_log::{Each, Entry, Limits, Server};
use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use envoy_types::pb::envoy::data::accesslog::v3::AccessLogCommon;
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_client::AccessLogServiceClient;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use flate2::read::GzDecoder;
use mxctl::naming::Naming;
use mxctl::topology::{Reading, Snapshot, Topology};
use prost::Message as _;
use serde::Deserialize;
use tokio::net::TcpListener;

/// Recorded messages of several streams.
#[derive(Clone, Debug)]
pub struct Recording {
    streams: BTreeMap<u64, Vec<StreamAccessLogsMessage>>,
}

/// A line of a recording.
#[derive(Deserialize)]
struct Line {
    /// Lines with the same number form one stream, in order.
    stream: u64,
    message_b64: String,
}

impl Recording {
    /// Reads a file of JSON lines, which may be compressed (`.gz`).
    pub fn read(path: &Path) -> Result<Self> {
        let context = || path.display().to_string();
        let file = std::fs::read(path).with_context(context)?;
        let text = if path.extension().is_some_and(|end| end == "gz") {
            std::io::read_to_string(GzDecoder::new(file.as_slice())).with_context(context)?
        } else {
            String::from_utf8(file).with_context(context)?
        };
        let mut streams = BTreeMap::<u64, Vec<_>>::new();
        for line in text.lines() {
            let line: Line = serde_json::from_str(line).with_context(context)?;
            let message = STANDARD.decode(line.message_b64).with_context(context)?;
            let message = StreamAccessLogsMessage::decode(message.as_slice())?;
            streams.entry(line.stream).or_default().push(message);
        }
        Ok(Self { streams })
    }

    /// The recording without one stream.
    #[must_use]
    pub fn without(mut self, stream: u64) -> Self {
        self.streams.remove(&stream);
        self
    }

    /// The recording with all start times set to the current second. Entries without a start time
    /// stay so.
    pub fn now(mut self) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let now = i64::try_from(now)?;
        self.each_common(|common| {
            if let Some(start) = &mut common.start_time {
                start.seconds = now;
            }
        });
        Ok(self)
    }

    fn each_common(&mut self, mut each: impl FnMut(&mut AccessLogCommon)) {
        for message in self.streams.values_mut().flatten() {
            match &mut message.log_entries {
                Some(LogEntries::HttpLogs(logs)) => {
                    let entries = logs.log_entry.iter_mut();
                    entries
                        .filter_map(|entry| entry.common_properties.as_mut())
                        .for_each(&mut each);
                }
                Some(LogEntries::TcpLogs(logs)) => {
                    let entries = logs.log_entry.iter_mut();
                    entries
                        .filter_map(|entry| entry.common_properties.as_mut())
                        .for_each(&mut each);
                }
                None => {}
            }
        }
    }

    /// Sends every stream, one after the other.
    pub async fn send(&self, to: SocketAddr) -> Result<()> {
        let mut client = AccessLogServiceClient::connect(format!("http://{to}")).await?;
        for messages in self.streams.values().cloned() {
            let sent = client
                .stream_access_logs(tokio_stream::iter(messages))
                .await;
            sent.context("a stream of the recording")?;
        }
        Ok(())
    }

    /// The result of `mxctl topology --as skywalking`, through its collector and its files.
    pub async fn as_read(&self) -> Result<Snapshot> {
        let topology = Topology::new(Naming::default(), Reading::Skywalking);
        let topology = Arc::new(Mutex::new((topology, Ok(()))));
        let reading = Arc::clone(&topology);
        let each = move |entry: &Entry| {
            let mut reading = reading.lock().unwrap_or_else(PoisonError::into_inner);
            match Entry::of_line(&entry.to_line()) {
                Ok(entry) => reading.0.record(&entry),
                Err(error) => reading.1 = Err(error),
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let server = Server::start(listener, Limits::default(), Each(each))?;
        self.send(server.address).await?;
        server.stop().await?;
        let mut reading = topology.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut reading.1, Ok(()))?;
        Ok(reading.0.snapshot())
    }
}
