//! Runs Docker and Compose as commands: one project with its images, and its removal.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tempfile::TempDir;
use tokio::fs;
use tokio::process::Command;

use super::files;
use crate::demo::Member;
use crate::envoy::{Release, version_of};
use crate::repository;
use crate::wait::until;

/// The environment variable that names Envoy's image: [`LOCAL`], or any image.
const ENVOY_IMAGE: &str = "ENVOY_IMAGE";

/// Builds the image from the Envoy that the native harness uses.
const LOCAL: &str = "local";

/// The label with which Compose marks the containers and networks of a project.
const PROJECT_LABEL: &str = "com.docker.compose.project";

/// What is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setup {
    /// The demonstration.
    Demo,
    /// `deploy/compose`, as users start it.
    Start,
}

impl Setup {
    fn file(self) -> &'static str {
        match self {
            Self::Demo => "envoy-test/docker-compose.yaml",
            Self::Start => "deploy/compose/docker-compose.yaml",
        }
    }

    /// What the name of a project begins with.
    fn name(self) -> &'static str {
        match self {
            Self::Demo => "docker-demo-",
            Self::Start => "docker-start-",
        }
    }
}

/// A Compose project with a unique name.
#[derive(Debug)]
pub(super) struct Project {
    setup: Setup,
    name: String,
    /// The files that the containers mount and the images are built from.
    dir: TempDir,
    /// `docker compose` or `docker-compose`.
    compose: &'static [&'static str],
    envoy_image: EnvoyImage,
}

#[derive(Debug)]
enum EnvoyImage {
    /// Built from this binary.
    Local(PathBuf),
    /// Pulled by Compose, by the name in the environment or the file's default.
    Named,
}

impl Project {
    /// Checks the prerequisites; creates nothing in Docker yet.
    pub(super) async fn new(setup: Setup) -> Result<Self> {
        const INSTEAD: &str = "`make demo` shows the exchange without Docker";
        let engine = command(&["docker", "info", "--format", "{{.ServerVersion}}"]);
        output(engine)
            .await
            .with_context(|| format!("there is no Docker engine to talk to; {INSTEAD}"))?;
        let envoy_image = if std::env::var_os(ENVOY_IMAGE).is_some_and(|name| name == LOCAL) {
            EnvoyImage::Local(Release::Newest.binary()?)
        } else {
            EnvoyImage::Named
        };
        let target = repository("target");
        fs::create_dir_all(&target).await?;
        let dir = TempDir::with_prefix_in(setup.name(), target.canonicalize()?)?;
        let name = dir.path().file_name().context("a folder without name")?;
        Ok(Self {
            setup,
            name: name.to_string_lossy().to_lowercase(),
            compose: compose().await.context(INSTEAD)?,
            dir,
            envoy_image,
        })
    }

    /// Writes the sidecars' files and builds the images. Returns the size of the
    /// module.
    pub(super) async fn prepare(&self, members: &[Member]) -> Result<u64> {
        let dir = self.dir.path();
        let mut module_bytes = 0;
        for member in members {
            module_bytes = files::sidecar(&dir.join(member.name), member, members).await?;
        }
        let root = dir.join("image-harness");
        files::harness(&root).await?;
        self.build("harness").await?;
        self.build_envoy().await?;
        Ok(module_bytes)
    }

    async fn build_envoy(&self) -> Result<bool> {
        let EnvoyImage::Local(binary) = &self.envoy_image else {
            return Ok(false);
        };
        let root = self.dir.path().join("image-envoy");
        files::envoy(&root, binary).await?;
        self.build("envoy").await?;
        Ok(true)
    }

    /// Builds the images of [`Setup::Start`], unless they are pulled.
    pub(super) async fn prepare_start(&self) -> Result<()> {
        let mut changes = json!({});
        if self.build_envoy().await? {
            files::busybox(&self.dir.path().join("image-busybox")).await?;
            self.build("busybox").await?;
            let app = json!({ "image": self.image("busybox"), "entrypoint": ["/bin/busybox"] });
            changes = json!({ "web-app": app, "ratings-app": app });
        }
        let changes = json!({ "services": changes });
        Ok(fs::write(self.changes(), changes.to_string()).await?)
    }

    /// What goes over the file of [`Setup::Start`].
    fn changes(&self) -> PathBuf {
        self.dir.path().join("changes.json")
    }

    /// Creates and starts all containers.
    pub(super) async fn up(&self) -> Result<()> {
        self.compose(&["up", "--detach", "--no-build"]).await?;
        Ok(())
    }

    /// The address on this machine where the `port` of a service is published.
    pub(super) async fn port(&self, service: &str, port: u16) -> Result<SocketAddr> {
        let address = self.compose(&["port", service, &port.to_string()]).await?;
        address
            .parse()
            .with_context(|| format!("port {port} of {service} is published at {address:?}"))
    }

    /// The address of a container that is on a single network.
    pub(super) async fn ip(&self, service: &str) -> Result<String> {
        let id = self.compose(&["ps", "--quiet", service]).await?;
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let ip = output(command(&["docker", "inspect", "--format", format, &id])).await?;
        ensure!(!ip.is_empty(), "the container of {service} has no address");
        Ok(ip)
    }

    /// The version of a service's Envoy.
    pub(super) async fn envoy_version(&self, service: &str) -> Result<String> {
        let envoy = "/usr/local/bin/envoy";
        let said = self
            .compose(&["exec", "-T", service, envoy, "--version"])
            .await?;
        let (_, build) = said
            .rsplit_once("version: ")
            .with_context(|| format!("Envoy printed no version but {said:?}"))?;
        Ok(version_of(build).to_owned())
    }

    /// Fails if a container has exited, which none should.
    pub(super) async fn check_running(&self) -> Result<()> {
        let label = self.label();
        let ended = ["docker", "ps", "--all", "--filter", &label];
        let ended = [&ended[..], &["--filter", "status=exited"]].concat();
        let ended = [&ended[..], &["--format", "{{.Names}}: {{.Status}}"]].concat();
        let ended = output(command(&ended)).await?;
        ensure!(ended.is_empty(), "a container has ended: {ended}");
        Ok(())
    }

    /// All that the container of a service has printed.
    pub(super) async fn printed(&self, service: &str) -> Result<String> {
        let id = self.compose(&["ps", "--quiet", service]).await?;
        output(command(&["docker", "logs", &id])).await
    }

    /// The containers' output.
    pub(super) async fn logs(&self) -> String {
        let logs = self.compose(&["logs", "--no-color", "--tail=100"]).await;
        logs.unwrap_or_else(|error| format!("there are no logs: {error:#}"))
    }

    /// Removes containers, networks and the built images, and makes sure that they are gone: an
    /// interrupted command may still be running in the engine.
    pub(super) async fn down(&self) -> Result<()> {
        let mut last = None;
        let down = until("all containers and networks to be gone", async || {
            match self.try_down().await {
                Ok(gone) => Ok(gone.then_some(())),
                // An object that is still being created cannot be removed yet.
                Err(error) => {
                    last = Some(error);
                    Ok(None)
                }
            }
        })
        .await
        .map_err(|error| match last {
            Some(last) => last.context(error),
            None => error,
        });
        let images = ["docker", "images", "--quiet", "--filter", &self.label()];
        for image in output(command(&images)).await?.lines() {
            output(command(&["docker", "rmi", "--force", image])).await?;
        }
        down
    }

    /// Removes containers and networks; returns whether none is left.
    async fn try_down(&self) -> Result<bool> {
        self.compose(&["down", "--volumes", "--remove-orphans", "--timeout", "2"])
            .await?;
        let label = self.label();
        for list in [&["docker", "ps", "--all"][..], &["docker", "network", "ls"]] {
            let list = [list, &["--quiet", "--filter", &label]].concat();
            if !output(command(&list)).await?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Builds the image `what` from the folder `image-{what}`.
    async fn build(&self, what: &str) -> Result<()> {
        let file = repository("envoy-test/Dockerfile");
        let mut command = command(&["docker", "build", "--quiet", "--force-rm"]);
        command
            .arg("--label")
            .arg(format!("{PROJECT_LABEL}={}", self.name))
            .arg("--tag")
            .arg(self.image(what))
            .arg("--file")
            .arg(file)
            .arg(self.dir.path().join(format!("image-{what}")));
        output(command)
            .await
            .with_context(|| format!("the image of {what} cannot be built"))?;
        Ok(())
    }

    fn image(&self, what: &str) -> String {
        format!("{}/{what}", self.name)
    }

    fn label(&self) -> String {
        format!("label={PROJECT_LABEL}={}", self.name)
    }

    async fn compose(&self, arguments: &[&str]) -> Result<String> {
        let mut command = command(self.compose);
        command
            .arg("--project-name")
            .arg(&self.name)
            .arg("--file")
            .arg(repository(self.setup.file()));
        if self.setup == Setup::Start && self.changes().exists() {
            command.arg("--file").arg(self.changes());
        }
        command
            .args(arguments)
            .env("DEMO_DIR", self.dir.path())
            .env("HARNESS_IMAGE", self.image("harness"));
        if let EnvoyImage::Local(_) = self.envoy_image {
            command.env(ENVOY_IMAGE, self.image("envoy"));
        }
        output(command).await
    }
}

/// The Compose command of this machine.
async fn compose() -> Result<&'static [&'static str]> {
    const KINDS: [&[&str]; 2] = [&["docker", "compose"], &["docker-compose"]];
    for kind in KINDS {
        let version = [kind, &["version"]].concat();
        if output(command(&version)).await.is_ok() {
            return Ok(kind);
        }
    }
    bail!("there is neither `docker compose` nor `docker-compose`")
}

/// A command in its own process group, so that Ctrl-C in a terminal reaches only this program,
/// which then decides what to stop.
fn command(words: &[&str]) -> Command {
    let (program, arguments) = words.split_first().unwrap_or((&"", &[]));
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// The trimmed output of a command. An error contains the command's messages.
async fn output(mut command: Command) -> Result<String> {
    let words = format!("{:?}", command.as_std());
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .await
        .with_context(|| format!("cannot run {words}"))?;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "{words} failed:\n{}", stderr.trim_end());
    Ok(String::from_utf8(stdout)?.trim().to_owned())
}
