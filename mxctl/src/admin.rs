//! Client for Envoy's admin interface.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::rt::{Read, Write};
use hyper::{Request, Uri, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// The longest response that is read.
const MAX_ANSWER: usize = 64 << 20;

/// The timeout for a response. A large `config_dump` takes seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// The JSON at `path` of the admin interface at `url`: `http://127.0.0.1:9901`,
/// `127.0.0.1:9901` or, at a Unix socket, `unix:/run/envoy/admin.sock`.
pub async fn get(url: &str, path: &str) -> Result<Value> {
    let answer = get_bytes(url, path).await?;
    serde_json::from_slice(&answer)
        .with_context(|| format!("not JSON: it begins {:?}", beginning(&answer)))
        .with_context(|| format!("no {path} of {url}"))
}

/// The body at `path`, JSON or not.
pub async fn get_bytes(url: &str, path: &str) -> Result<Bytes> {
    let address = Address::parse(url)?;
    let what = || format!("no {path} of {url}");
    timeout(PATIENCE, address.ask(path))
        .await
        .with_context(|| format!("no answer in {} s", PATIENCE.as_secs()))
        .with_context(what)?
        .with_context(what)
}

/// Whether the connection was refused: Envoy is not running, or has not started
/// yet.
#[must_use]
pub fn is_refused(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| [ConnectionRefused, NotFound].contains(&error.kind()))
}

/// The beginning of a response, for an error message.
pub(crate) fn beginning(answer: &[u8]) -> String {
    const MAX_CHARS: usize = 200;
    String::from_utf8_lossy(answer)
        .chars()
        .take(MAX_CHARS)
        .collect()
}

/// Where an admin interface is.
#[derive(Debug, PartialEq, Eq)]
enum Address {
    /// At a host and a port.
    Tcp(String),
    /// At a Unix socket.
    Unix(PathBuf),
}

impl Address {
    fn parse(url: &str) -> Result<Self> {
        if let Some(path) = url.strip_prefix("unix:") {
            // URLs write it with two slashes.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                bail!("{url:?} has no path; write unix:/run/envoy/admin.sock");
            }
            return Ok(Self::Unix(path.into()));
        }
        let url = if url.contains("://") {
            url.to_owned()
        } else {
            format!("http://{url}")
        };
        let uri: Uri = url.parse().with_context(|| format!("not a URL: {url:?}"))?;
        if uri.scheme_str() != Some("http") {
            bail!("{url}: only http is spoken here, as http://127.0.0.1:9901");
        }
        let host = uri.host().with_context(|| format!("{url} has no host"))?;
        let port = uri.port_u16().unwrap_or(80);
        Ok(Self::Tcp(format!("{host}:{port}")))
    }

    async fn ask(&self, path: &str) -> Result<Bytes> {
        match self {
            Self::Tcp(authority) => {
                ask(TcpStream::connect(authority).await?, authority, path).await
            }
            Self::Unix(socket) => ask(UnixStream::connect(socket).await?, "localhost", path).await,
        }
    }
}

async fn ask<S>(stream: S, authority: &str, path: &str) -> Result<Bytes>
where
    TokioIo<S>: Read + Write + Unpin,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(header::HOST, authority)
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let reply = sender.send_request(request).await?;
        let status = reply.status();
        let body = Limited::new(reply.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
        anyhow::Ok((status, body))
    };
    let mut exchange = pin!(exchange);
    let answer = tokio::select! {
        answer = &mut exchange => answer,
        // A response may end with its connection and still be complete.
        ended = connection => match (exchange.await, ended) {
            (Err(_), Err(error)) => Err(error.into()),
            (answer, _) => answer,
        },
    };
    let (status, body) = answer?;
    if !status.is_success() {
        bail!("it answers {status}");
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};
    use std::thread;

    use serde_json::json;

    use super::*;

    /// Answers the first request with `answer`, then closes the connection.
    fn closing(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut part = [0; 1024];
            while !asked.ends_with(b"\r\n\r\n") {
                let length = stream.read(&mut part).unwrap();
                asked.extend_from_slice(&part[..length]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
        });
        address
    }

    async fn answer(answer: &'static str) -> Result<Value> {
        get(&closing(answer).to_string(), "/any").await
    }

    #[tokio::test]
    async fn a_response_ends_with_the_connection() {
        for whole in [
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"a\": 1}",
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 8\r\n\r\n{\"a\": 1}",
            "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n{\"a\": 1}",
            "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
             8\r\n{\"a\": 1}\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\n{\"a\": 1}",
        ] {
            assert_eq!(answer(whole).await.unwrap(), json!({ "a": 1 }), "{whole}");
        }
    }

    #[tokio::test]
    async fn an_invalid_response_is_reported() {
        for (part, expected) in [
            ("", "connection closed before message completed"),
            (
                "HTTP/1.1 200 OK\r\ncontent-le",
                "connection closed before message completed",
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n{}",
                "end of file",
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}",
                "unexpected EOF",
            ),
            (
                "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n{}",
                "404 Not Found",
            ),
            (
                "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello",
                "not JSON",
            ),
            ("SSH-2.0-OpenSSH\r\n", "invalid HTTP version"),
        ] {
            let error = format!("{:#}", answer(part).await.unwrap_err());
            assert!(
                error.starts_with("no /any of 127.0.0.1:"),
                "{part:?}: {error}"
            );
            assert!(error.contains(expected), "{part:?}: {error}");
        }
    }

    #[test]
    fn an_admin_is_named_by_address_url_or_socket() {
        let tcp = |authority: &str| Address::Tcp(authority.to_owned());
        for url in [
            "127.0.0.1:9901",
            "http://127.0.0.1:9901",
            "http://127.0.0.1:9901/",
        ] {
            assert_eq!(Address::parse(url).unwrap(), tcp("127.0.0.1:9901"), "{url}");
        }
        assert_eq!(Address::parse("[::1]:9901").unwrap(), tcp("[::1]:9901"));
        for url in ["unix:/run/a.sock", "unix:///run/a.sock"] {
            let socket = Address::Unix("/run/a.sock".into());
            assert_eq!(Address::parse(url).unwrap(), socket, "{url}");
        }
        for url in ["https://a:1", "", "a b", "http://", "unix:", "unix://"] {
            assert!(Address::parse(url).is_err(), "{url}");
        }
    }
}
