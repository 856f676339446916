//! Waiting for other processes: by asking again, never by a fixed pause.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// How long anything may take. Generous, for it only decides how soon a failure
/// is reported on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const INTERVAL: Duration = Duration::from_millis(10);

/// Asks until there is an answer; fails after half a minute, saying what was
/// waited for.
pub async fn until<T>(what: &str, ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    until_within(PATIENCE, INTERVAL, what, ask).await
}

/// Asks every `interval` until there is an answer; fails after `patience`.
pub(crate) async fn until_within<T>(
    patience: Duration,
    interval: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        sleep(interval).await;
    }
}
