//! Access-log messages as they were sent once, sent again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use envoy_types::pb::envoy::data::accesslog::v3::AccessLogCommon;
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_client::AccessLogServiceClient;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use flate2::read::GzDecoder;
use prost::Message as _;
use serde::Deserialize;

/// The messages of several streams.
#[derive(Clone, Debug)]
pub struct Recording {
    streams: BTreeMap<u64, Vec<StreamAccessLogsMessage>>,
}

/// A line of a recording.
#[derive(Deserialize)]
struct Line {
    /// Lines of one number are one stream, in order.
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

    /// The streams, each with its messages in order.
    pub fn streams(&self) -> impl Iterator<Item = &[StreamAccessLogsMessage]> {
        self.streams.values().map(Vec::as_slice)
    }

    /// The same as if it had been recorded until now. What has no start time gets
    /// none.
    pub fn until_now(mut self) -> Result<Self> {
        let mut starts = Vec::new();
        self.each_common(|common| starts.extend(common.start_time.map(|start| start.seconds)));
        let latest = starts
            .into_iter()
            .max()
            .context("nothing has a start time")?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let later = i64::try_from(now)? - latest;
        self.each_common(|common| {
            if let Some(start) = &mut common.start_time {
                start.seconds += later;
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
        for messages in self.streams() {
            let messages = messages.to_vec();
            let sent = client
                .stream_access_logs(tokio_stream::iter(messages))
                .await;
            sent.context("a stream of the recording")?;
        }
        Ok(())
    }
}
