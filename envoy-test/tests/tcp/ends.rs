//! The two ends of connections: a server that a test speaks through, and its clients.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

/// A server whose connections the test reads and writes.
pub(crate) struct Server {
    listener: TcpListener,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> Result<End> {
        let accepted = timeout(PATIENCE, self.listener.accept()).await;
        let (stream, _) = accepted.context("nobody connects")??;
        Ok(End(stream))
    }
}

/// An end of a connection.
pub(crate) struct End(TcpStream);

impl End {
    pub(crate) async fn connect(to: SocketAddr) -> Result<Self> {
        Ok(Self(TcpStream::connect(to).await?))
    }

    pub(crate) async fn says(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.write_all(bytes).await?)
    }

    /// Waits for exactly these bytes.
    pub(crate) async fn hears(&mut self, expected: &[u8]) -> Result<()> {
        let mut bytes = vec![0; expected.len()];
        let read = timeout(PATIENCE, self.0.read_exact(&mut bytes)).await;
        let expected = expected.escape_ascii();
        read.with_context(|| format!("\"{expected}\" does not come"))?
            .with_context(|| format!("the connection ends instead of \"{expected}\""))?;
        ensure!(
            bytes.escape_ascii().to_string() == expected.to_string(),
            "\"{}\" instead of \"{expected}\"",
            bytes.escape_ascii()
        );
        Ok(())
    }

    /// Says no more.
    pub(crate) async fn ends(&mut self) -> Result<()> {
        Ok(self.0.shutdown().await?)
    }

    /// All bytes until the end of the connection.
    pub(crate) async fn rest(&mut self) -> Result<Vec<u8>> {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, self.0.read_to_end(&mut rest)).await;
        // Whether it is reset does not matter.
        let _ = read.context("the connection does not end")?;
        Ok(rest)
    }

    /// Waits for the end of the connection; no byte may come before.
    pub(crate) async fn is_closed(&mut self) -> Result<()> {
        let rest = self.rest().await?;
        ensure!(rest.is_empty(), "\"{}\" comes", rest.escape_ascii());
        Ok(())
    }
}
