//! Runs the tool as a process.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// The deadline for every operation.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The result of a finished run.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("{self:?}"))
    }
}

/// Runs the tool to its end.
pub(crate) fn run(arguments: &[&str], stdin: &[u8]) -> Result<Done> {
    let mut child = command(arguments).stdin(Stdio::piped()).spawn()?;
    let mut to = child.stdin.take().context("no stdin")?;
    let input = stdin.to_vec();
    let writer = std::thread::spawn(move || to.write_all(&input));
    let output = child.wait_with_output()?;
    // The tool may have failed before reading it.
    let _ = writer.join();
    Ok(Done {
        status: output.status,
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

/// Runs the tool with closed output.
pub(crate) fn run_unheard(arguments: &[&str], stdin: &[u8]) -> Result<ExitStatus> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let mut command = command(arguments);
    command.stderr(writer.try_clone()?).stdout(writer);
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    let mut to = child.stdin.take().context("no stdin")?;
    // The tool may have failed before reading it.
    let _ = to.write_all(stdin);
    drop(to);
    Ok(child.wait()?)
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(crate::PROGRAM);
    command.args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A running tool, which is killed on drop.
pub(crate) struct Tool {
    child: Child,
    pub(crate) stdout: Option<BufReader<ChildStdout>>,
    stderr: BufReader<ChildStderr>,
}

impl Tool {
    pub(crate) fn start(arguments: &[&str]) -> Result<Self> {
        let mut child = command(arguments).stdin(Stdio::null()).spawn()?;
        let stdout = child.stdout.take().map(BufReader::new);
        let stderr = BufReader::new(child.stderr.take().context("no stderr")?);
        Ok(Self {
            child,
            stdout,
            stderr,
        })
    }

    /// The address in the next line on standard error.
    pub(crate) fn address(&mut self, said: &str) -> Result<SocketAddr> {
        let mut line = String::new();
        self.stderr.read_line(&mut line)?;
        let address = line.trim().trim_end_matches('/').strip_prefix(said);
        let address = address.with_context(|| format!("{line:?} instead of {said:?}"))?;
        Ok(address.parse()?)
    }

    pub(crate) fn collector(&mut self) -> Result<SocketAddr> {
        self.address("mxctl: receiving access logs at ")
    }

    /// The next line of the output.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let stdout = self.stdout.as_mut().context("no stdout")?;
        ensure!(stdout.read_line(&mut line)? > 0, "the output has ended");
        Ok(line)
    }

    /// Sends a signal, as a terminal or a supervisor does.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args([signal, &id]).status()?;
        ensure!(status.success(), "kill {signal} {id}: {status}");
        Ok(())
    }

    /// Sends SIGINT repeatedly until it ends.
    pub(crate) fn interrupt_until_it_ends(mut self) -> Result<Done> {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the tool does not end");
            self.signal("-INT")?;
            std::thread::sleep(Duration::from_millis(20));
        }
        self.end()
    }

    /// Its peak memory so far, in bytes.
    pub(crate) fn peak_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        let kib: u64 = kib.context("the kernel reports no VmHWM")?.parse()?;
        Ok(kib * 1024)
    }

    /// Waits for its end, and collects the remaining output.
    pub(crate) fn end(mut self) -> Result<Done> {
        let deadline = Instant::now() + PATIENCE;
        let stdout = self.stdout.take();
        let rest = std::thread::spawn(move || match stdout {
            Some(stdout) => std::io::read_to_string(stdout),
            None => Ok(String::new()),
        });
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("the tool does not end");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let stdout = rest.join().ok().context("the reader thread panicked")??;
        let stderr = std::io::read_to_string(&mut self.stderr)?;
        Ok(Done {
            status,
            stdout,
            stderr,
        })
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Idle connections: one of plain TCP, and one that has begun HTTP/2.
pub(crate) fn silent_connections(to: SocketAddr) -> Result<[TcpStream; 2]> {
    let tcp = TcpStream::connect(to)?;
    let mut http = TcpStream::connect(to)?;
    // The preface, and settings: an empty frame of type 4.
    http.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
    // The server has answered, so it has accepted the connection.
    http.set_read_timeout(Some(PATIENCE))?;
    http.read_exact(&mut [0; 9])?;
    Ok([tcp, http])
}
