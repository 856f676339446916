//! Both ends of a connection.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::timeout;

use super::content::{Content, Pool};
use super::plan::{Gate, Plan};
use crate::wait::PATIENCE;

/// What became of a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    /// The bytes that the server has received, all as they were sent.
    pub(super) to_server: u64,
    /// The same of the client.
    pub(super) to_client: u64,
    pub(super) faults: Vec<String>,
}

/// Why an end has stopped.
#[derive(Debug)]
enum Fault {
    /// The connection ended early. A reset explains it.
    Ended(String),
    /// Nothing does.
    Wrong(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Ended(error.to_string())
    }
}

/// Lets both ends send and receive until they have ended.
pub(super) async fn run(
    plan: &Plan,
    pool: &Arc<Pool>,
    client: TcpStream,
    server: TcpStream,
) -> Done {
    let reset_of = |by_client| {
        let reset = plan.reset.filter(|reset| reset.by_client == by_client);
        reset.map(|reset| reset.after)
    };
    let end = |is_client: bool, stream| {
        let (output, input, gates) = if is_client {
            (&plan.client, &plan.server, &plan.gates[0])
        } else {
            (&plan.server, &plan.client, &plan.gates[1])
        };
        End {
            stream,
            output: Content::new(output, pool),
            input: Content::new(input, pool),
            gates,
            closes_first: is_client == plan.client_closes_first,
            expected: input.length,
            reset_after: reset_of(is_client),
        }
    };
    let ((to_client, at_client), (to_server, at_server)) =
        tokio::join!(end(true, client).run(), end(false, server).run());
    let mut done = Done {
        to_server,
        to_client,
        faults: Vec::new(),
    };
    for (who, fault) in [("client", at_client), ("server", at_server)] {
        match fault {
            Ok(()) => {}
            Err(Fault::Ended(_)) if plan.reset.is_some() => {}
            Err(Fault::Ended(what) | Fault::Wrong(what)) => {
                done.faults.push(format!("at the {who}: {what}"));
            }
        }
    }
    done
}

struct End<'p> {
    stream: TcpStream,
    output: Content,
    input: Content,
    gates: &'p [Gate],
    closes_first: bool,
    /// The bytes that the other end sends.
    expected: u64,
    reset_after: Option<u64>,
}

/// What has arrived at an end.
#[derive(Clone, Copy, Debug, Default)]
struct Arrived {
    bytes: u64,
    has_ended: bool,
}

impl End<'_> {
    /// The bytes that have arrived as they were sent, and how it ended.
    async fn run(mut self) -> (u64, Result<(), Fault>) {
        let (arrived, arrivals) = watch::channel(Arrived::default());
        let (mut input, mut output) = self.stream.split();
        let reading = async {
            let read = read(&mut input, &mut self.input, &arrived).await;
            arrived.send_modify(|arrived| arrived.has_ended = true);
            read
        };
        let writing = write(
            &mut output,
            &mut self.output,
            self.gates,
            self.closes_first,
            arrivals,
            self.reset_after,
        );
        let ended = if self.reset_after.is_some() {
            // A reset ends the reading, too.
            tokio::pin!(reading, writing);
            tokio::select! {
                written = &mut writing => written,
                read = &mut reading => match read {
                    Err(Fault::Wrong(what)) => Err(Fault::Wrong(what)),
                    Ok(()) | Err(Fault::Ended(_)) => writing.await,
                },
            }
        } else {
            let (read, written) = tokio::join!(reading, writing);
            // Why it ended is more than that it did.
            match (read, written) {
                (Err(Fault::Wrong(what)), _) | (_, Err(Fault::Wrong(what))) => {
                    Err(Fault::Wrong(what))
                }
                (read, written) => read.and(written),
            }
        };
        let count = self.input.done;
        let ended = ended.and_then(|()| {
            if self.reset_after.is_some() {
                // Closed with a reset.
                self.stream.set_zero_linger()?;
            } else if count < self.expected {
                let expected = self.expected;
                let what = format!("{count} of {expected} bytes, then the end");
                return Err(Fault::Ended(what));
            }
            Ok(())
        });
        (count, ended)
    }
}

async fn read(
    stream: &mut ReadHalf<'_>,
    content: &mut Content,
    arrived: &watch::Sender<Arrived>,
) -> Result<(), Fault> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = timeout(PATIENCE, stream.read(&mut buffer)).await;
        let count = read.map_err(|_| stuck("read", content.done))??;
        if count == 0 {
            return Ok(());
        }
        content.check(&buffer[..count]).map_err(|place| {
            let bytes = &buffer[..count.min(40)];
            Fault::Wrong(format!(
                "byte {place} is not the one that was sent; read with it: {}",
                bytes.escape_ascii()
            ))
        })?;
        arrived.send_modify(|arrived| arrived.bytes = content.done);
    }
}

async fn write(
    stream: &mut WriteHalf<'_>,
    content: &mut Content,
    gates: &[Gate],
    closes_first: bool,
    mut arrivals: watch::Receiver<Arrived>,
    reset_after: Option<u64>,
) -> Result<(), Fault> {
    let mut gates = gates.iter().peekable();
    loop {
        while let Some(gate) = gates.next_if(|gate| gate.at <= content.done) {
            let wait =
                arrivals.wait_for(|arrived| arrived.has_ended || arrived.bytes >= gate.until);
            // Reading notices if nothing arrives any more.
            wait.await.map_err(|_| stuck("wait", content.done))?;
        }
        let done = content.done;
        let up_to = gates.peek().map_or(u64::MAX, |gate| gate.at);
        let up_to = up_to.min(reset_after.unwrap_or(u64::MAX));
        let most = usize::try_from(up_to - done).unwrap_or(usize::MAX);
        if reset_after == Some(done) {
            return Ok(());
        }
        let rest = content.rest();
        let rest = &rest[..rest.len().min(most)];
        if rest.is_empty() {
            break;
        }
        let count = rest.len();
        let written = timeout(PATIENCE, stream.write_all(rest)).await;
        written.map_err(|_| stuck("write", done))??;
        content.advance(count);
    }
    if !closes_first {
        let wait = arrivals.wait_for(|arrived| arrived.has_ended);
        wait.await.map_err(|_| stuck("wait", content.done))?;
    }
    stream.shutdown().await?;
    Ok(())
}

fn stuck(what: &str, at: u64) -> Fault {
    let seconds = PATIENCE.as_secs();
    Fault::Wrong(format!("cannot {what} for {seconds} s behind {at} bytes"))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use anyhow::Result;
    use tokio::net::TcpListener;

    use super::*;
    use crate::tcp::soak::plan::{Direction, Order, Reset};

    /// What a relay between both ends does to what the client sends.
    #[derive(Clone, Copy, Debug)]
    enum Harm {
        None,
        Changes(usize),
        Loses(usize),
        Adds(usize),
        Cuts(usize),
        /// Ahead of what the server sends.
        AddsToAnswer,
    }

    fn plan(reset: Option<Reset>) -> Plan {
        let direction = |seed| Direction {
            seed,
            opening: b"=#".to_vec(),
            length: 100_000,
            largest: 5000,
        };
        Plan {
            order: Order::AtOnce,
            client: direction(1),
            server: direction(2),
            gates: [vec![], vec![]],
            client_closes_first: true,
            reset,
        }
    }

    async fn both_ends(at: &TcpListener) -> Result<(TcpStream, TcpStream)> {
        let client = TcpStream::connect(at.local_addr()?).await?;
        let (server, _) = at.accept().await?;
        Ok((client, server))
    }

    async fn faults(harm: Harm, reset: Option<Reset>) -> Result<Vec<String>> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let (client, mut of_client) = both_ends(&listener).await?;
        let (mut of_server, server) = both_ends(&listener).await?;
        let relay = tokio::spawn(async move {
            let (mut from_client, mut to_client) = of_client.split();
            let (mut from_server, mut to_server) = of_server.split();
            let there = async {
                let mut sent = Vec::new();
                from_client.read_to_end(&mut sent).await?;
                match harm {
                    Harm::Changes(place) => sent[place] ^= 1,
                    Harm::Loses(place) => drop(sent.remove(place)),
                    Harm::Adds(place) => sent.insert(place, 0),
                    Harm::Cuts(place) => sent.truncate(place),
                    Harm::None | Harm::AddsToAnswer => {}
                }
                to_server.write_all(&sent).await?;
                to_server.shutdown().await
            };
            let back = async {
                if matches!(harm, Harm::AddsToAnswer) {
                    to_client.write_all(b"=#\x04\x67").await?;
                }
                tokio::io::copy(&mut from_server, &mut to_client).await?;
                to_client.shutdown().await
            };
            tokio::join!(there, back)
        });
        let done = run(&plan(reset), &Pool::new(1), client, server).await;
        relay.abort();
        Ok(done.faults)
    }

    #[tokio::test]
    async fn every_harm_is_a_fault() -> Result<()> {
        assert_eq!(faults(Harm::None, None).await?, [""; 0]);
        for harm in [
            Harm::Changes(0),
            Harm::Changes(50_000),
            Harm::Changes(99_999),
            Harm::Loses(0),
            Harm::Loses(99_999),
            Harm::Adds(0),
            Harm::Adds(100_000),
            Harm::Cuts(0),
            Harm::Cuts(99_999),
            Harm::AddsToAnswer,
        ] {
            let faults = faults(harm, None).await?;
            assert_eq!(faults.len(), 1, "{harm:?}: {faults:?}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_reset_explains_an_early_end_and_nothing_else() -> Result<()> {
        let reset = Some(Reset {
            by_client: false,
            after: 60_000,
        });
        assert_eq!(faults(Harm::Cuts(50_000), reset).await?, [""; 0]);
        assert_eq!(faults(Harm::AddsToAnswer, reset).await?.len(), 1);
        Ok(())
    }
}
