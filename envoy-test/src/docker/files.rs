//! The files of the containers: the sidecars' configurations and the contents
//! of the images.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::fs;

use super::{APP, COLLECTOR, INBOUND, OUTBOUND};
use crate::bootstrap::{self, Endpoint};
use crate::demo::Member;
use crate::mesh::{module_path, routes};

/// The folder of the sidecars' files.
const MOUNT: &str = "/demo";
const MODULE: &str = "metadata_exchange.wasm";

/// The folder of the program in both images.
const PROGRAMS: &str = "usr/local/bin";

/// Writes the configuration of `member`'s sidecar to `dir`. Returns the size of
/// the module.
pub(super) async fn sidecar(dir: &Path, member: &Member, members: &[Member]) -> Result<u64> {
    fs::create_dir(dir).await?;
    let (bootstrap, services) = configuration(member, members)?;
    fs::write(dir.join("bootstrap.json"), bootstrap.to_string()).await?;
    fs::write(dir.join("services.json"), services.to_string()).await?;
    Ok(fs::copy(module_path()?, dir.join(MODULE)).await?)
}

/// The bootstrap of `member`'s sidecar and the file with the clusters of services.
fn configuration(member: &Member, members: &[Member]) -> Result<(Value, Value)> {
    let mount = Path::new(MOUNT);
    let workload = member.workload();
    let proxy = workload.proxy.context("a workload without sidecar")?;
    let names: Vec<&str> = members.iter().map(|member| member.name).collect();
    let listeners = proxy.listeners().map(|listener| {
        let filter = bootstrap::wasm_filter(&listener.plugin, &mount.join(MODULE));
        let log = format!("{}/{}", member.name, listener.name);
        let json = bootstrap::listener(listener, &log, &filter, &routes(listener, &names));
        let is_inbound = listener.name == proxy.inbound.name;
        let port = if is_inbound { INBOUND } else { OUTBOUND };
        bootstrap::listening_at(json, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
    });
    let clusters = [
        bootstrap::collector_cluster(Endpoint::named("collector", COLLECTOR)),
        bootstrap::app_cluster(Endpoint::named(&format!("{}-app", member.name), APP)),
    ];
    let services = names.iter().map(|name| {
        let endpoint = Endpoint::named(name, INBOUND);
        bootstrap::service_cluster(name, endpoint, &Value::Null, &Value::Null)
    });
    let listeners: Vec<Value> = listeners.collect();
    let services: Vec<Value> = services.collect();
    let watched = mount.join("services.json");
    let bootstrap = bootstrap::bootstrap(&member.node, &listeners, &clusters, &watched);
    Ok((bootstrap, bootstrap::clusters_resource(&services)))
}

/// Lays out the image of the harness in `root`: this program itself.
pub(super) async fn harness(root: &Path) -> Result<()> {
    ensure!(
        cfg!(target_feature = "crt-static"),
        "the harness runs in its own image and must be linked statically: run `make docker-demo`"
    );
    let program = std::env::current_exe()?;
    put(&program, &root.join(PROGRAMS).join("envoy-test")).await
}

/// Lays out the image of the Envoy `binary` in `root`: the binary and its
/// shared libraries.
pub(super) async fn envoy(root: &Path, binary: &Path) -> Result<()> {
    put(binary, &root.join(PROGRAMS).join("envoy")).await?;
    for library in libraries(binary)? {
        let inside = library.strip_prefix("/")?;
        put(&library, &root.join(inside)).await?;
    }
    fs::create_dir(root.join("tmp")).await?;
    Ok(())
}

/// Lays out the image of this machine's busybox in `root`, for apps that are shell scripts.
pub(super) async fn busybox(root: &Path) -> Result<()> {
    const BUSYBOX: &str = "bin/busybox";
    let binary = Path::new("/").join(BUSYBOX);
    put(&binary, &root.join(BUSYBOX))
        .await
        .context("on Debian: apt-get install busybox-static")?;
    for library in libraries(&binary)? {
        put(&library, &root.join(library.strip_prefix("/")?)).await?;
    }
    for applet in ["sh", "sleep", "wget", "httpd"] {
        fs::symlink("busybox", root.join("bin").join(applet)).await?;
    }
    fs::create_dir(root.join("tmp")).await?;
    Ok(())
}

async fn put(file: &Path, target: &Path) -> Result<()> {
    let dir = target.parent().context("a file without folder")?;
    fs::create_dir_all(dir).await?;
    fs::copy(file, target)
        .await
        .with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(())
}

/// The shared libraries of `binary`, the loader among them; none if it is static.
fn libraries(binary: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(binary).output();
    let output = output.context("cannot run ldd, which names Envoy's shared libraries")?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(
        !text.contains("not found"),
        "Envoy lacks libraries on this machine:\n{text}"
    );
    // `libm.so.6 => /lib/libm.so.6 (0x7f)`, or without the arrow for the loader.
    let words = text.split_whitespace();
    let paths = words.filter(|word| word.starts_with('/') && !word.ends_with(':'));
    Ok(paths.map(PathBuf::from).collect())
}
