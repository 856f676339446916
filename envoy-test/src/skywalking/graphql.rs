//! Queries an OAP by `GraphQL` over HTTP.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::wait::PATIENCE;

/// Sends a query; returns the `data` of the response. `variables` is an object.
pub(super) async fn ask(oap: SocketAddr, query: &str, variables: &Value) -> Result<Value> {
    let body = json!({ "query": query, "variables": variables }).to_string();
    let answer = timeout(PATIENCE, post(oap, body)).await;
    let answer = answer.context("no answer in time")?;
    let mut answer = answer.with_context(|| format!("asking the OAP at {oap} for {query}"))?;
    ensure!(
        answer.get("errors").is_none(),
        "the OAP rejects {query}: {}",
        answer["errors"]
    );
    Ok(answer["data"].take())
}

async fn post(oap: SocketAddr, body: String) -> Result<Value> {
    let stream = TcpStream::connect(oap).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::post("/graphql")
        .header("host", oap.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    ensure!(
        status == StatusCode::OK,
        "{status}: {}",
        String::from_utf8_lossy(&body)
    );
    Ok(serde_json::from_slice(&body)?)
}
