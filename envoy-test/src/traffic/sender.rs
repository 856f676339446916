//! Sends the numbered requests of a [`Ledger`] concurrently, and lets it check
//! the replies.
//!
//! Over HTTP/1.1 it writes requests as bytes, because no HTTP library sends
//! what a hostile caller sends, and pipelines them. Over HTTP/2 it multiplexes.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Message;
use super::ledger::{Ledger, Reply};
use crate::client::{CALL, PEER_HEADERS, Protocol};
use crate::wait::PATIENCE;

const AUTHORITY: &str = "any-service";

/// How requests are sent.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The protocol.
    pub protocol: Protocol,
    /// The number of connections.
    pub connections: usize,
    /// The number of concurrent requests on each connection.
    pub at_a_time: usize,
}

/// Sends requests to `to` until the ledger has no more. A connection that ends
/// is reopened; a refused connection ends its share of the work.
pub async fn send(to: SocketAddr, shape: Shape, ledger: &Arc<Ledger>) -> Result<()> {
    let mut lanes = JoinSet::new();
    for _ in 0..shape.connections {
        let ledger = Arc::clone(ledger);
        lanes.spawn(async move {
            while let Ok(stream) = TcpStream::connect(to).await {
                stream.set_nodelay(true)?;
                let end = match shape.protocol {
                    Protocol::Http1 => Pipeline::new(stream, &ledger).run(shape.at_a_time).await?,
                    Protocol::Http2 => multiplex(stream, shape.at_a_time, &ledger).await?,
                };
                if end == End::AllSent {
                    break;
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane??;
    }
    Ok(())
}

/// Sends half a request and closes the connection, so that there is an entry
/// but no reply.
pub async fn abandon(to: SocketAddr, ledger: &Ledger) -> Result<()> {
    let Some((number, message)) = ledger.take() else {
        return Ok(());
    };
    let mut request = Vec::new();
    put_request(&mut request, number, message, "content-length: 100\r\n");
    request.extend_from_slice(b"the first part of the body");
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(&request).await?;
    ledger.unanswered(1);
    Ok(())
}

/// Why a connection is no longer used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The ledger has no more requests.
    AllSent,
    /// The other side has closed it.
    Closed,
}

/// An HTTP/1.1 connection.
struct Pipeline<'l> {
    stream: TcpStream,
    ledger: &'l Ledger,
    /// Requests that wait for their replies, which come in the same order.
    waiting: VecDeque<u64>,
    output: Vec<u8>,
    input: Vec<u8>,
    is_closing: bool,
}

impl<'l> Pipeline<'l> {
    fn new(stream: TcpStream, ledger: &'l Ledger) -> Self {
        Self {
            stream,
            ledger,
            waiting: VecDeque::new(),
            output: Vec::new(),
            input: Vec::new(),
            is_closing: false,
        }
    }

    async fn run(mut self, at_a_time: usize) -> Result<End> {
        loop {
            self.fill(at_a_time);
            if self.waiting.is_empty() {
                return Ok(if self.is_closing {
                    End::Closed
                } else {
                    End::AllSent
                });
            }
            if !self.exchange().await? {
                self.ledger.unanswered(self.waiting.len() as u64);
                return Ok(End::Closed);
            }
            self.take_replies()?;
        }
    }

    fn fill(&mut self, at_a_time: usize) {
        while self.waiting.len() < at_a_time && !self.is_closing {
            let Some((number, message)) = self.ledger.take() else {
                return;
            };
            put_request(&mut self.output, number, message, "");
            self.waiting.push_back(number);
        }
    }

    /// Writes pending output and reads some input; returns false if the other
    /// side has closed the connection.
    async fn exchange(&mut self) -> Result<bool> {
        // The other side may close before reading everything, if it has
        // rejected a request.
        let written = self.stream.write_all(&self.output).await;
        self.output.clear();
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.input)).await;
        let read = read.context("no reply in time")?;
        Ok(written.is_ok() && read.is_ok_and(|bytes| bytes > 0))
    }

    fn take_replies(&mut self) -> Result<()> {
        let mut taken = 0;
        while let Some(length) = self.take_reply(taken)? {
            taken += length;
        }
        self.input.drain(..taken);
        Ok(())
    }

    /// Consumes the reply at `start` of the input, if it is complete, and
    /// returns its length.
    fn take_reply(&mut self, start: usize) -> Result<Option<usize>> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut headers);
        let input = &self.input[start..];
        let httparse::Status::Complete(head_length) = head.parse(input)? else {
            return Ok(None);
        };
        let length = head_length + content_length(&head)?;
        if input.len() < length {
            return Ok(None);
        }
        let number = self.waiting.pop_front().context("a reply to no request")?;
        let [metadata, id] = PEER_HEADERS.map(|name| value(&head, name));
        let status = head.code.unwrap_or_default();
        self.ledger.check_reply(
            number,
            Reply {
                status,
                metadata,
                id,
            },
        );
        if value(&head, "connection") == Some(b"close") {
            self.is_closing = true;
        }
        Ok(Some(length))
    }
}

fn put_request(output: &mut Vec<u8>, number: u64, message: &Message, headers: &str) {
    let head = format!("GET / HTTP/1.1\r\nhost: {AUTHORITY}\r\n{CALL}: {number}\r\n{headers}");
    output.extend(head.bytes());
    for (name, values) in PEER_HEADERS.iter().zip([&message.metadata, &message.ids]) {
        for value in values {
            output.extend_from_slice(name.as_bytes());
            output.extend_from_slice(b": ");
            output.extend_from_slice(value);
            output.extend_from_slice(b"\r\n");
        }
    }
    output.extend_from_slice(b"\r\n");
}

fn content_length(head: &httparse::Response<'_, '_>) -> Result<usize> {
    let length = value(head, "content-length").context("a reply without content-length")?;
    Ok(str::from_utf8(length)?.parse()?)
}

fn value<'h>(head: &httparse::Response<'_, 'h>, name: &str) -> Option<&'h [u8]> {
    let header = head.headers.iter().find(|header| header.name == name);
    header.map(|header| header.value)
}

type Http2 = SendRequest<Empty<Bytes>>;

/// Sends requests over an HTTP/2 connection.
async fn multiplex(stream: TcpStream, at_a_time: usize, ledger: &Arc<Ledger>) -> Result<End> {
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut streams = JoinSet::new();
    for _ in 0..at_a_time {
        streams.spawn(one_after_the_other(sender.clone(), Arc::clone(ledger)));
    }
    let mut end = End::AllSent;
    while let Some(last) = streams.join_next().await {
        if last?? == End::Closed {
            end = End::Closed;
        }
    }
    Ok(end)
}

async fn one_after_the_other(mut sender: Http2, ledger: Arc<Ledger>) -> Result<End> {
    while sender.ready().await.is_ok() {
        let Some((number, message)) = ledger.take() else {
            return Ok(End::AllSent);
        };
        let reply = sender.send_request(request(number, message)?);
        let reply = timeout(PATIENCE, reply).await.context("no reply in time")?;
        let Ok(reply) = reply else {
            ledger.unanswered(1);
            return Ok(End::Closed);
        };
        let [metadata, id] = PEER_HEADERS.map(|name| reply.headers().get(name));
        let reply_to = Reply {
            status: reply.status().as_u16(),
            metadata: metadata.map(HeaderValue::as_bytes),
            id: id.map(HeaderValue::as_bytes),
        };
        ledger.check_reply(number, reply_to);
        ensure!(reply.into_body().collect().await.is_ok(), "half a reply");
    }
    Ok(End::Closed)
}

fn request(number: u64, message: &Message) -> Result<Request<Empty<Bytes>>> {
    let mut headers = HeaderMap::new();
    headers.insert(CALL, HeaderValue::from(number));
    for (name, values) in PEER_HEADERS.iter().zip([&message.metadata, &message.ids]) {
        for value in values {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_bytes(value)?,
            );
        }
    }
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = Uri::try_from(format!("http://{AUTHORITY}/"))?;
    *request.headers_mut() = headers;
    Ok(request)
}
