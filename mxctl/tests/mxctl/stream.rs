//! Sends access logs to the tool, as an Envoy does.

use std::net::SocketAddr;

use access_log::convert;
use anyhow::Result;
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
use prost::{Message as _, Name as _};
use serde_json::json;
use struct_json::struct_of_json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::tool::PATIENCE;

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
        // It may be refused already, which the end of the stream shows.
        let _refused = messages.send(first).await;
        Ok(Self { messages, call })
    }

    pub(crate) async fn send(&self, entries: LogEntries) -> Result<()> {
        let message = StreamAccessLogsMessage {
            identifier: None,
            log_entries: Some(entries),
        };
        Ok(self.messages.send(message).await?)
    }

    /// Sends an entry of a request to `path` that `peer` answered with
    /// `status`.
    pub(crate) async fn request(&self, peer: &Peer, path: &str, status: u32) -> Result<()> {
        self.send(LogEntries::HttpLogs(HttpAccessLogEntries {
            log_entry: vec![http(peer, path, status)],
        }))
        .await
    }

    /// Ends the stream; returns how the server ended it.
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
        metadata: Some(convert(&struct_of_json(&metadata)?)?),
        ..Node::default()
    })
}

/// A pod of a service.
pub(crate) fn peer(service: &str) -> Peer {
    Peer {
        name: Some(format!("{service}-1")),
        namespace: Some("shop".into()),
        labels: Some(vec![("app".into(), service.to_owned())]),
        app_containers: Some("main".into()),
        ..Peer::default()
    }
}

/// A request to `callee`.
pub(crate) fn http(callee: &Peer, path: &str, status: u32) -> HttpAccessLogEntry {
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
pub(crate) fn tcp(callee: &Peer) -> LogEntries {
    LogEntries::TcpLogs(TcpAccessLogEntries {
        log_entry: vec![TcpAccessLogEntry {
            common_properties: Some(common(callee)),
            ..TcpAccessLogEntry::default()
        }],
    })
}

fn common(callee: &Peer) -> AccessLogCommon {
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
