//! The folder with the programs and files of Istio and Kubernetes that are run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

/// The environment variable that names the folder.
pub const HOME: &str = "ISTIO_HOME";

/// A file of the folder, and where it comes from.
struct Part {
    name: &'static str,
    origin: &'static str,
}

/// Programs. Each may be compressed, with the ending `.xz`.
const PROGRAMS: [Part; 4] = [
    Part {
        name: "kube-apiserver",
        origin: "https://dl.k8s.io/v1.34.4/bin/linux/amd64/kube-apiserver",
    },
    Part {
        name: "pilot-discovery",
        origin: "/usr/local/bin/pilot-discovery of the image istio/pilot:1.30.3",
    },
    Part {
        name: "pilot-agent",
        origin: "/usr/local/bin/pilot-agent of the image istio/proxyv2:1.30.3",
    },
    Part {
        name: "istioctl",
        origin: "bin/istioctl of the release archive of Istio 1.30.3",
    },
];

const FILES: [Part; 3] = [
    Part {
        name: "crd-all.gen.yaml",
        origin: "manifests/charts/base/files of the release archive",
    },
    Part {
        name: "gateway-api-crd.yaml",
        origin: "standard-install.yaml of the Gateway API's release",
    },
    Part {
        name: "envoy_bootstrap.json",
        origin: "/var/lib/istio/envoy/envoy_bootstrap_tmpl.json of the image istio/proxyv2:1.30.3",
    },
];

/// What is run besides, and the Debian package that has it.
const INSTALLED: [(&str, &str); 8] = [
    ("etcd", "etcd-server"),
    ("ip", "iproute2"),
    ("iptables-restore", "iptables"),
    ("mount", "mount"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("xz", "xz-utils"),
];

/// The folder.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

impl Home {
    /// What the environment names for a test. If something is lacking it says that
    /// the test is skipped, and fails where nothing may be (`NO_SKIPPING`).
    pub fn for_test() -> Result<Option<Self>> {
        match Self::by_environment() {
            Ok(home) => Ok(Some(home)),
            Err(lacking) => {
                let skipped = format!("SKIPPED: no Istio is run: {lacking:#}");
                ensure!(std::env::var_os("NO_SKIPPING").is_none(), skipped);
                println!("{skipped}");
                Ok(None)
            }
        }
    }

    /// The folder that the environment names. An error says what is lacking, on this
    /// machine, too.
    pub fn by_environment() -> Result<Self> {
        let named = std::env::var_os(HOME).filter(|named| !named.is_empty());
        let named = named.with_context(|| {
            format!("{HOME} names no folder; deploy/istio/README.md says what it holds")
        })?;
        let home = Self::of(Path::new(&named))?;
        machine()?;
        Ok(home)
    }

    fn of(folder: &Path) -> Result<Self> {
        let home = Self(folder.to_owned());
        for part in PROGRAMS.iter().chain(&FILES) {
            home.find(part.name).with_context(|| {
                format!(
                    "{HOME}={}: it has no {}, compressed or not, neither itself nor in bin/ or \
                     files/: {}",
                    folder.display(),
                    part.name,
                    part.origin
                )
            })?;
        }
        Ok(home)
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        let folders = ["", "bin", "files"].map(|folder| self.0.join(folder));
        folders.iter().find_map(|folder| {
            let files = [name.to_owned(), format!("{name}.xz")].map(|file| folder.join(file));
            files.into_iter().find(|file| file.is_file())
        })
    }

    /// Puts all of it into `dir`, unpacked.
    pub(super) async fn unpack(&self, dir: &Path) -> Result<()> {
        let mut running = Vec::new();
        for part in PROGRAMS.iter().chain(&FILES) {
            let from = self.find(part.name).context(part.name)?;
            let to = dir.join(part.name);
            running.push(tokio::task::spawn_blocking(move || unpack(&from, &to)));
        }
        for one in running {
            one.await??;
        }
        Ok(())
    }
}

fn unpack(from: &Path, to: &Path) -> Result<()> {
    let context = || format!("{} to {}", from.display(), to.display());
    let program = if from.extension().is_some_and(|end| end == "xz") {
        "xz --decompress --stdout"
    } else {
        "cat"
    };
    let done = Command::new("sh")
        .args(["-c", &format!(r#"{program} "$0" > "$1" && chmod 755 "$1""#)])
        .args([from, to])
        .status()
        .with_context(context)?;
    ensure!(done.success(), "{}: {done}", context());
    Ok(())
}

/// What a machine must have.
fn machine() -> Result<()> {
    for (program, package) in INSTALLED {
        let found = Command::new("sh")
            .args(["-c", r#"command -v "$0" >/dev/null"#, program])
            .env("PATH", super::path())
            .status()?;
        ensure!(
            found.success(),
            "there is no {program}: on Debian, apt-get install {package}"
        );
    }
    let id = Command::new("id").arg("-u").output().context("id")?;
    ensure!(id.stdout.trim_ascii() == b"0", "it needs root");
    let made = Command::new("unshare")
        .args(super::sandbox::NAMESPACES)
        .args(["sh", "-c", "mount -t tmpfs tmpfs /run"])
        .output()?;
    if !made.status.success() {
        let why = String::from_utf8_lossy(&made.stderr);
        bail!("namespaces cannot be made here: {}", why.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_reported_with_its_origin() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let error = format!("{:#}", Home::of(folder.path()).unwrap_err());
        assert!(error.contains("it has no kube-apiserver"), "{error}");
        std::fs::create_dir(folder.path().join("bin"))?;
        for part in PROGRAMS {
            std::fs::write(
                folder
                    .path()
                    .join("bin")
                    .join(part.name)
                    .with_extension("xz"),
                "",
            )?;
        }
        let error = format!("{:#}", Home::of(folder.path()).unwrap_err());
        assert!(error.contains("it has no crd-all.gen.yaml"), "{error}");
        for part in FILES {
            std::fs::write(folder.path().join(part.name), "")?;
        }
        Home::of(folder.path())?;
        Ok(())
    }
}
