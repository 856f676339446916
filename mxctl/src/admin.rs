//! What the admin interface of an Envoy says.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, Uri, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest answer that is read.
const MAX_ANSWER: usize = 64 << 20;

/// How long an answer may take. A large `config_dump` takes seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// The JSON at `path` of the admin interface at `url`, as
/// `http://127.0.0.1:9901` or `127.0.0.1:9901`.
pub async fn get(url: &str, path: &str) -> Result<Value> {
    let authority = authority(url)?;
    let what = || format!("no {path} of {authority}");
    timeout(PATIENCE, ask(&authority, path))
        .await
        .with_context(|| format!("no answer in {} s", PATIENCE.as_secs()))
        .with_context(what)?
        .with_context(what)
}

fn authority(url: &str) -> Result<String> {
    let url = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    let uri: Uri = url.parse().with_context(|| format!("no URL: {url:?}"))?;
    if uri.scheme_str() != Some("http") {
        bail!("{url}: an admin is spoken to in http, as http://127.0.0.1:9901");
    }
    let host = uri.host().with_context(|| format!("{url} has no host"))?;
    Ok(format!("{host}:{}", uri.port_u16().unwrap_or(80)))
}

async fn ask(authority: &str, path: &str) -> Result<Value> {
    let stream = TcpStream::connect(authority).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(header::HOST, authority)
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let reply = sender.send_request(request).await?;
        let status = reply.status();
        let body = Limited::new(reply.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        if !status.is_success() {
            bail!("it answers {status}");
        }
        serde_json::from_slice(&body).context("it answers no JSON")
    };
    tokio::select! {
        answer = exchange => answer,
        ended = connection => match ended {
            Ok(()) => bail!("it closed the connection"),
            Err(error) => Err(error.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_is_named_by_address_or_url() {
        for url in [
            "127.0.0.1:9901",
            "http://127.0.0.1:9901",
            "http://127.0.0.1:9901/",
        ] {
            assert_eq!(authority(url).unwrap(), "127.0.0.1:9901", "{url}");
        }
        assert_eq!(authority("[::1]:9901").unwrap(), "[::1]:9901");
        for url in ["https://a:1", "", "a b", "http://"] {
            assert!(authority(url).is_err(), "{url}");
        }
    }
}
