//! A collector of OpenTelemetry log records: OTLP over gRPC.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// The attributes of a record, those of its resource among them.
type Record = BTreeMap<String, String>;

/// It ends with its value.
pub(super) struct Collector {
    pub(super) address: SocketAddr,
    store: Store,
    server: AbortHandle,
}

#[derive(Clone, Default)]
struct Store(Arc<Mutex<Vec<Record>>>);

impl Collector {
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let store = Store::default();
        let service = LogsServiceServer::new(store.clone());
        let server = Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener));
        Ok(Self {
            address,
            store,
            server: tokio::spawn(server).abort_handle(),
        })
    }

    pub(super) fn records(&self) -> Vec<Record> {
        let records = self.store.0.lock();
        records.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[tonic::async_trait]
impl LogsService for Store {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for of_resource in request.into_inner().resource_logs {
            let resource = of_resource.resource.unwrap_or_default().attributes;
            let logs = of_resource.scope_logs.into_iter();
            for record in logs.flat_map(|scope| scope.log_records) {
                let all = resource.iter().cloned().chain(record.attributes);
                records.push(all.filter_map(text_of).collect());
            }
        }
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

fn text_of(attribute: KeyValue) -> Option<(String, String)> {
    let AnyValue { value } = attribute.value?;
    match value? {
        Value::StringValue(text) => Some((attribute.key, text)),
        Value::IntValue(number) => Some((attribute.key, number.to_string())),
        _ => None,
    }
}
