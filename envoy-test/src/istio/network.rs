//! The network: a bridge, and a namespace for each pod. Nothing leads out of it.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{path, run};

/// The control plane's address, and the pods' way out, which leads nowhere.
pub(super) const CONTROL_PLANE: Ipv4Addr = Ipv4Addr::new(10, 44, 0, 1);

/// As `ip netns` keeps them.
const NAMESPACES: &str = "/run/netns";

/// The user of Istio's proxies, whose own connections are not redirected.
pub(super) const PROXY_USER: &str = "1337";

/// What istio-init has `iptables` do in a pod.
const REDIRECTION: &str = "\
*nat
:ISTIO_REDIRECT - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_INBOUND - [0:0]
:ISTIO_OUTPUT - [0:0]
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
COMMIT
";

/// Makes this process's own network namespace that of the control plane.
pub(super) fn set_up() -> Result<()> {
    // Namespaces are named there, and iptables locks a file.
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]))?;
    std::fs::create_dir(NAMESPACES)?;
    ip(&format!(
        "link set lo up\n\
         link add br0 type bridge\n\
         addr add {CONTROL_PLANE}/24 dev br0\n\
         link set br0 up\n"
    ))?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("ip_forward")
}

fn ip(batch: &str) -> Result<()> {
    feed(Command::new("ip").args(["-batch", "-"]), batch)
}

/// Runs a command with that input.
pub(super) fn feed(command: &mut Command, input: &str) -> Result<()> {
    use io::Write as _;
    let mut child = command
        .env("PATH", path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let done = child.wait_with_output()?;
    ensure!(
        done.status.success(),
        "{command:?}: {}\n{}{}",
        done.status,
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

/// A network namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Namespace(pub(super) &'static str);

impl Namespace {
    /// Makes it, with an address on the bridge.
    pub(super) fn create(self, address: Ipv4Addr) -> Result<()> {
        let Self(name) = self;
        ip(&format!(
            "netns add {name}\n\
             link add v-{name} type veth peer name eth0 netns {name}\n\
             link set v-{name} master br0 up\n"
        ))?;
        let inside = format!(
            "link set lo up\n\
             addr add {address}/24 dev eth0\n\
             link set eth0 up\n\
             route add default via {CONTROL_PLANE}\n"
        );
        feed(
            Command::new("ip").args(["-netns", name, "-batch", "-"]),
            &inside,
        )
        .with_context(|| format!("the network of {name}"))
    }

    /// Sends the connections of all but the proxy through the proxy.
    pub(super) fn redirect(self) -> Result<()> {
        feed(&mut self.command("iptables-restore"), REDIRECTION)
    }

    /// A command in it.
    pub(super) fn command(self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.env("PATH", path());
        command.args(["netns", "exec", self.0]);
        command.arg(program.as_ref());
        command
    }

    /// Makes a socket in it. A socket stays where it was made.
    fn make<T: Send>(self, socket: impl FnOnce() -> io::Result<T> + Send) -> Result<T> {
        let namespace = File::open(Path::new(NAMESPACES).join(self.0)).context(self.0)?;
        // A thread of its own, for it stays there, too.
        let made = thread::scope(|scope| {
            let made = scope.spawn(move || -> io::Result<T> {
                let of = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), of)?;
                socket()
            });
            made.join()
        });
        let made = made.map_err(|_| anyhow!("no socket in {}", self.0))?;
        made.with_context(|| format!("a socket in {}", self.0))
    }

    /// Listens at any address of it.
    pub(super) fn listen(self, port: u16) -> Result<TcpListener> {
        let listener = self.make(|| {
            let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        Ok(TcpListener::from_std(listener)?)
    }

    /// Connects from it.
    pub(super) async fn connect(self, to: SocketAddr) -> Result<TcpStream> {
        let socket = self.make(TcpSocket::new_v4)?;
        let connected = socket.connect(to).await;
        connected.with_context(|| format!("from {} to {to}", self.0))
    }
}
