//! A receiver of the Fluent Forward protocol: `MessagePack` over TCP.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rmpv::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// The tag of the bootstrap.
const TAG: &str = "envoy.access";

/// The fields of a record; those that are nil are absent.
type Record = BTreeMap<String, String>;

/// It ends with its value.
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    store: Arc<Mutex<Store>>,
    server: AbortHandle,
}

#[derive(Default)]
struct Store {
    records: Vec<Record>,
    error: Option<String>,
}

impl Receiver {
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let store = Arc::<Mutex<Store>>::default();
        let kept = Arc::clone(&store);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let store = Arc::clone(&kept);
                tokio::spawn(async move {
                    if let Err(error) = receive(stream, &store).await {
                        lock(&store).error = Some(format!("{error:#}"));
                    }
                });
            }
        });
        Ok(Self {
            address,
            store,
            server: server.abort_handle(),
        })
    }

    /// All records so far. An error if one of the messages is none.
    pub(super) fn records(&self) -> Result<Vec<Record>> {
        let store = lock(&self.store);
        match &store.error {
            Some(error) => Err(anyhow!("not the Forward protocol: {error}")),
            None => Ok(store.records.clone()),
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn receive(mut stream: TcpStream, store: &Mutex<Store>) -> Result<()> {
    let mut buffer = Vec::new();
    while stream.read_buf(&mut buffer).await? > 0 {
        while let Some((message, length)) = first(&buffer)? {
            buffer.drain(..length);
            lock(store).records.extend(records_of(message)?);
        }
    }
    ensure!(buffer.is_empty(), "a message is cut off");
    Ok(())
}

/// The first message, if it is there as a whole, and its length.
fn first(buffer: &[u8]) -> Result<Option<(Value, usize)>> {
    let mut cursor = Cursor::new(buffer);
    match rmpv::decode::read_value(&mut cursor) {
        Ok(message) => Ok(Some((message, usize::try_from(cursor.position())?))),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Of `[tag, [[time, record], ...], option]`, the mode `Forward`.
fn records_of(message: Value) -> Result<Vec<Record>> {
    let Value::Array(parts) = message else {
        bail!("{message} is no array");
    };
    let mut parts = parts.into_iter();
    let tag = parts.next().context("no tag")?;
    ensure!(tag.as_str() == Some(TAG), "the tag is {tag}");
    let Some(Value::Array(entries)) = parts.next() else {
        bail!("no entries");
    };
    entries.into_iter().map(record_of).collect()
}

fn record_of(entry: Value) -> Result<Record> {
    let Value::Array(entry) = entry else {
        bail!("{entry} is no entry");
    };
    let [time, Value::Map(fields)] = entry.as_slice() else {
        bail!("{entry:?} is no entry");
    };
    ensure!(
        time.as_u64().is_some_and(|time| time > 0),
        "the time is {time}"
    );
    let field = |(key, value): &(Value, Value)| {
        let key = key.as_str().context("a key that is no text")?.to_owned();
        let value = match value {
            Value::Nil => None,
            Value::String(text) => Some(text.as_str().context("no UTF-8")?.to_owned()),
            other => Some(other.to_string()),
        };
        anyhow::Ok(value.map(|value| (key, value)))
    };
    fields
        .iter()
        .filter_map(|one| field(one).transpose())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_message_is_an_error_and_a_partial_one_is_awaited() {
        let text = |text: &str| Value::from(text);
        let record = Value::Map(vec![(text("a"), text("b")), (text("c"), Value::Nil)]);
        let entry = Value::Array(vec![1.into(), record]);
        let message = Value::Array(vec![text(TAG), Value::Array(vec![entry])]);
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &message).unwrap();

        assert!(first(&bytes[..bytes.len() - 1]).unwrap().is_none());
        let (read, length) = first(&bytes).unwrap().unwrap();
        assert_eq!(length, bytes.len());
        let expected = [BTreeMap::from([("a".to_owned(), "b".to_owned())])];
        assert_eq!(records_of(read).unwrap(), expected);
        assert!(records_of(text("a")).is_err());
        assert!(records_of(Value::Array(vec![text("other"), Value::Array(Vec::new())])).is_err());
    }
}
