//! Waits for other processes by polling with a deadline.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// The deadline for every wait. It is generous, because it only decides how
/// soon a failure is reported on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const INTERVAL: Duration = Duration::from_millis(10);

/// Polls until there is a result; fails after half a minute, naming what was
/// awaited.
pub async fn until<T>(what: &str, ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    until_within(PATIENCE, INTERVAL, what, ask).await
}

/// Polls every `interval` until there is a result; fails after `patience`.
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
