//! Child programs, none of which outlives the harness.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// How long a program may take to end after its signal.
const FAREWELL: Duration = Duration::from_secs(10);

/// A command that the kernel ends with `signal` when the thread that started it
/// is gone; it runs as the user `user`, if given. `setpriv` of util-linux does
/// both.
pub(crate) fn bound_to_us(program: &Path, signal: &str, user: Option<&str>) -> Command {
    // This process may have been killed before the signal was set.
    const IF_PARENT_LIVES: &str = r#"[ "$PPID" = "$0" ] && exec "$@""#;
    let mut command = Command::new("setpriv");
    if let Some(user) = user {
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
    }
    command
        .args(["--pdeathsig", signal, "--", "sh", "-c", IF_PARENT_LIVES])
        .arg(std::process::id().to_string())
        .arg(program);
    command
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let done = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        done.status.success(),
        "{command:?}: {}\n{}",
        done.status,
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

/// A running program. Dropping it sends the signal and waits for the end.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    signal: &'static str,
}

impl Process {
    /// Starts `command` with all its output in the file `log`. `signal`, such
    /// as `TERM`, ends it.
    pub(crate) fn start(mut command: Command, log: &Path, signal: &'static str) -> Result<Self> {
        let output = File::create(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot run `setpriv` of util-linux")?;
        Ok(Self { child, signal })
    }

    /// Its exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    fn ends_in_time(&mut self) -> bool {
        let deadline = Instant::now() + FAREWELL;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(10)),
                Ok(Some(_)) => return true,
                Err(_) => return false,
            }
        }
        false
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        let id = self.child.id().to_string();
        // The standard library can only kill.
        let asked = Command::new("sh")
            .args(["-c", r#"kill -s "$0" "$1""#, self.signal, &id])
            .status();
        let is_asked = asked.is_ok_and(|status| status.success());
        if !(is_asked && self.ends_in_time()) {
            // Nothing more can be done if this fails.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
