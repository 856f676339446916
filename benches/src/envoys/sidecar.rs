//! A sidecar with a module, or with none.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use envoy_test::bootstrap::router;
use envoy_test::consumers::cost::{Measured, Subject};
use envoy_test::{Direction, Envoy, Lab, Mesh, Workload};
use serde_json::json;

use super::app::App;
use super::calls::{self, Plugin};
use crate::bench::Bench;
use crate::sample::{USUAL_LABELS, headers, pod};

/// The service that the sidecar's own app calls.
pub(crate) const CALLEE: &str = "callee";
const LOCAL: &str = "local";

/// What stands behind sidecars.
pub(crate) struct Apps {
    /// The sidecar's own: it knows nothing of the exchange.
    own: App,
    /// One behind another sidecar, which answers for it.
    callee: App,
}

impl Apps {
    pub(crate) async fn start() -> Result<Self> {
        let callee = pod("ratings-v1", USUAL_LABELS)?;
        Ok(Self {
            own: App::start(&[]).await?,
            callee: App::start(&headers(&callee)).await?,
        })
    }
}

/// What a sidecar runs.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) name: String,
    modules: Option<Modules>,
    is_filter: bool,
}

/// What each listener loads.
#[derive(Clone, Debug)]
struct Modules {
    inbound: PathBuf,
    outbound: PathBuf,
}

impl Setup {
    pub(crate) fn none() -> Self {
        Self {
            name: "none".to_owned(),
            modules: None,
            is_filter: false,
        }
    }

    /// The host calls of a plugin alone.
    pub(crate) fn calls(name: &str, plugin: Plugin, bench: &Bench) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            modules: Some(Modules {
                inbound: calls::module(bench, plugin, Direction::Inbound)?,
                outbound: calls::module(bench, plugin, Direction::Outbound)?,
            }),
            is_filter: false,
        })
    }

    pub(crate) fn filter(bench: &Bench) -> Self {
        Self::with("filter", bench.lab.module(), bench)
    }

    /// A module beside the filter, for both listeners.
    pub(crate) fn of_module(name: &str, module: &Path) -> Self {
        Self {
            name: name.to_owned(),
            modules: Some(Modules {
                inbound: module.to_owned(),
                outbound: module.to_owned(),
            }),
            is_filter: false,
        }
    }

    /// No module first, the one that does nothing second.
    pub(crate) fn all(bench: &Bench) -> Vec<Self> {
        let modules = bench.modules().into_iter();
        let modules = modules.map(|one| Self::with(&one.name, &one.module, bench));
        [Self::none()].into_iter().chain(modules).collect()
    }

    fn with(name: &str, module: &Path, bench: &Bench) -> Self {
        Self {
            name: name.to_owned(),
            modules: Some(Modules {
                inbound: module.to_owned(),
                outbound: module.to_owned(),
            }),
            is_filter: module == bench.lab.module(),
        }
    }
}

/// A running sidecar.
pub(crate) struct Sidecar {
    running: Running,
    is_filter: bool,
}

enum Running {
    Mesh(Mesh),
    Consumer(Box<Measured>),
}

impl Sidecar {
    pub(crate) async fn start(lab: &Lab, setup: &Setup, apps: &Apps, workers: u32) -> Result<Self> {
        let local = workload(LOCAL, setup)?
            .served_at(apps.own.address)
            .workers(workers);
        let callee = Workload::bare(CALLEE).served_at(apps.callee.address);
        let sidecar = Self {
            running: Running::Mesh(lab.start([local, callee]).await?),
            is_filter: setup.is_filter,
        };
        if setup.modules.is_some() {
            let active = "wasm.envoy.wasm.runtime.v8.active";
            sidecar.envoy()?.counts(active, 1).await?;
        }
        Ok(sidecar)
    }

    /// One with a consumer of peers.
    pub(crate) async fn with_consumer(lab: &Lab, subject: Subject, apps: &Apps) -> Result<Self> {
        Ok(Self {
            running: Running::Consumer(subject.start(lab, apps.own.address).await?.into()),
            is_filter: subject != Subject::Nothing,
        })
    }

    pub(crate) fn envoy(&self) -> Result<&Envoy> {
        match &self.running {
            Running::Mesh(mesh) => mesh.envoy(LOCAL),
            Running::Consumer(measured) => Ok(measured.envoy()),
        }
    }

    /// Where requests of this direction go.
    pub(crate) fn address(&self, direction: Direction) -> Result<SocketAddr> {
        match (&self.running, direction) {
            (Running::Mesh(mesh), Direction::Inbound) => mesh.address(LOCAL),
            (Running::Mesh(mesh), Direction::Outbound) => mesh.outbound(LOCAL),
            (Running::Consumer(measured), Direction::Inbound) => Ok(measured.inbound()),
            (Running::Consumer(measured), Direction::Outbound) => Ok(measured.outbound()),
        }
    }

    /// Makes sure that the filter, if it is this sidecar's, has stored as many peers as it must have.
    pub(crate) async fn has_stored(&self, direction: Direction, least: u64) -> Result<()> {
        if self.is_filter {
            let side = match direction {
                Direction::Inbound => "downstream",
                Direction::Outbound => "upstream",
            };
            let counter = format!("wasmcustom.metadata_exchange.{side}_peer_stored");
            let stored = self.envoy()?.counts(&counter, least).await?;
            ensure!(stored >= least, "{stored} peers stored, not {least}");
        }
        Ok(())
    }
}

/// A workload whose sidecar runs `setup` on both listeners and logs nothing, for access logs cost, too.
pub(crate) fn workload(name: &str, setup: &Setup) -> Result<Workload> {
    let bare = if setup.modules.is_some() {
        json!({ "access_log": [] })
    } else {
        json!({ "access_log": [], "http_filters": [router()] })
    };
    let load = |listener: &mut envoy_test::Listener, module: fn(&Modules) -> &PathBuf| {
        listener.plugin.module = setup.modules.as_ref().map(module).cloned();
        listener.connection_manager = bare.clone();
    };
    let node = pod(&format!("{name}-v1"), USUAL_LABELS)?;
    Ok(Workload::sidecar(name, node)
        .listener("inbound", |listener| load(listener, |all| &all.inbound))
        .listener("outbound", |listener| load(listener, |all| &all.outbound)))
}
