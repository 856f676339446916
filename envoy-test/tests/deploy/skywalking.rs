//! `examples/skywalking`: both sidecars run as its compose file starts them, with a real OAP, and with a collector that applies the OAP's rules.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use access_log::{Each, Entry, Limits, Server};
use anyhow::{Context as _, Result, ensure};
use envoy_test::skywalking::{Calls, Drawn, Named, Oap, Questions, Sides};
use envoy_test::{Lab, Node, Release, Workload, repository, until};
use mxctl::naming::Naming;
use mxctl::topology::{Reading, Snapshot, Topology};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::vm::{MODULE, PRODUCTPAGE, Vm, address, bootstrap};
use crate::{parse, read_one};

envoy_test::stories!(both_sidecars_are_drawn);

const EXAMPLE: &str = "examples/skywalking/docker-compose.yaml";

/// The analyser's topology of the entries so far.
#[derive(Clone)]
struct Analyser(Arc<Mutex<Topology>>);

impl Analyser {
    fn topology(&self) -> MutexGuard<'_, Topology> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshot(&self) -> Snapshot {
        self.topology().snapshot()
    }
}

/// The bootstrap's node with the overrides in the command of a service.
fn node_over(service: &Value, node: &Value) -> Result<Value> {
    let command = service["command"].as_array().context("no command")?;
    let [flag, over] = command.as_slice() else {
        anyhow::bail!("{command:?}");
    };
    ensure!(flag == "--config-yaml", "{flag}");
    let over = parse(over.as_str().context("no text")?)?.remove(0)["node"].take();
    // Envoy merges by key; all keys are given, so that no value of the other
    // node remains.
    for (key, _) in node["metadata"].as_object().context("no metadata")? {
        ensure!(over["metadata"].get(key).is_some(), "{key} of the VM stays");
    }
    Ok(over)
}

/// Starts both sidecars as the compose file does, logging to `oap`; the first
/// calls the second.
async fn sidecars(lab: &Lab, oap: SocketAddr) -> Result<[Vm; 2]> {
    let services = read_one(&repository(EXAMPLE))?["services"].take();
    let node = node_over(&services["productpage"], &bootstrap()?["node"])?;
    let log_to_oap = |bootstrap: &mut Value| {
        let clusters = bootstrap["static_resources"]["clusters"].as_array_mut();
        let cluster = clusters
            .into_iter()
            .flatten()
            .find(|cluster| cluster["name"] == "skywalking");
        let endpoints = &mut cluster.context("no such cluster")?["load_assignment"]["endpoints"];
        endpoints[0]["lb_endpoints"][0]["endpoint"]["address"] = address(oap);
        Ok(())
    };
    let bare = Workload::bare("productpage");
    let callee = Vm::calling(lab, bare, Node::pod_server()?, |bootstrap| {
        bootstrap["node"] = node;
        log_to_oap(bootstrap)
    });
    let callee = callee.await?;
    let inbound = callee.envoy.listener("inbound").await?;
    let bare = Workload::bare("productpage").served_at(inbound);
    let caller = Vm::calling(lab, bare, callee.node.clone(), log_to_oap).await?;
    Ok([caller, callee])
}

async fn both_sidecars_are_drawn(lab: &Lab) -> Result<()> {
    let naming = Naming::default();
    let analyser = Topology::new(naming, Reading::Skywalking);
    let analyser = Analyser(Arc::new(Mutex::new(analyser)));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let recording = analyser.clone();
    let sink = Each(move |entry: &Entry| recording.topology().record(entry));
    let oap = Server::start(listener, Limits::default(), sink)?;

    let [caller, callee] = sidecars(lab, oap.address).await?;
    let called = caller.calls(PRODUCTPAGE).await?;
    callee.assert_clean("own-app", &called)?;

    let expected = ["ratings.vms -> productpage.default, seen by both"];
    let seen = until("both sides to be drawn", async || {
        let seen = edges(&analyser.snapshot());
        Ok((seen == expected).then_some(()))
    });
    let in_time = seen.await;
    assert_eq!(edges(&analyser.snapshot()), expected);
    in_time
}

/// A real OAP with the settings of the compose file draws what the README says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_oap_draws_both_sidecars() -> Result<()> {
    const CALLS: u64 = 3;
    let Some(named) = Named::for_test()? else {
        return Ok(());
    };
    let services = read_one(&repository(EXAMPLE))?["services"].take();
    let settings = services["oap"]["environment"].as_object();
    let settings = settings.context("no settings")?.iter().map(|(key, value)| {
        let value = value
            .as_str()
            .with_context(|| format!("{key} is not a string"))?;
        Ok((key.clone(), value.to_owned()))
    });
    let oap = Oap::with_settings(&named, settings.collect::<Result<_>>()?).await?;
    let questions = Questions::from_now(oap.queries).await?;
    assert!(questions.version().await?.starts_with("10.4."));
    let lab = Lab::new(&Release::Newest.binary()?).await?;

    let [caller, callee] = sidecars(&lab, oap.grpc).await?;
    for _ in 0..CALLS {
        let called = caller.calls(PRODUCTPAGE).await?;
        callee.assert_clean("own-app", &called)?;
    }

    let edge = ("ratings.vms".to_owned(), "productpage.default".to_owned());
    let is_ours = |name: &str| name == edge.0 || name == edge.1;
    let expected = Drawn {
        edges: [(edge.clone(), Sides::both(Calls::all(CALLS)))].into(),
        listed: [edge.1.clone()].into(),
        in_layer: [edge.clone()].into(),
    };
    let drawn = questions.until_drawn(is_ours, |drawn| *drawn == expected);
    drawn.await.inspect_err(|_| eprintln!("{}", oap.log()))?;
    Ok(())
}

fn edges(snapshot: &Snapshot) -> Vec<String> {
    let name = |number: usize| &snapshot.workloads[number].name;
    let line = |edge: &mxctl::topology::EdgeView| {
        let (from, to) = (name(edge.from), name(edge.to));
        format!("{from} -> {to}, seen by {}", edge.seen_by())
    };
    snapshot.edges.iter().map(line).collect()
}

/// The bootstrap's names, ports and files match the compose file.
#[test]
fn the_compose_file_matches_the_bootstrap() -> Result<()> {
    let services = read_one(&repository(EXAMPLE))?["services"].take();
    let bootstrap = bootstrap()?;
    let socket = |cluster: &str| -> Result<Value> {
        let clusters = bootstrap["static_resources"]["clusters"].as_array();
        let cluster = clusters
            .into_iter()
            .flatten()
            .find(|one| one["name"] == cluster);
        let cluster = cluster.context("no such cluster")?;
        let endpoint = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
        Ok(endpoint["address"]["socket_address"].clone())
    };
    for (service, cluster) in [("oap", "skywalking"), ("productpage", "productpage")] {
        let aliases = &services[service]["networks"]["default"]["aliases"];
        assert_eq!(aliases[0], socket(cluster)?["address"], "{service}");
    }
    assert_eq!(socket("skywalking")?["port_value"], 11800);
    let listener = |name: &str| {
        let listeners = bootstrap["static_resources"]["listeners"].as_array();
        let mut listeners = listeners.into_iter().flatten();
        let listener = listeners.find(|listener| listener["name"] == name);
        listener.map(|listener| &listener["address"]["socket_address"]["port_value"])
    };
    assert_eq!(
        Some(&socket("productpage")?["port_value"]),
        listener("inbound")
    );

    let app = services["productpage-app"]["command"].to_string();
    assert!(app.contains(&format!("127.0.0.1:{}", socket("app")?["port_value"])));
    let caller = services["ratings-app"]["command"].to_string();
    let outbound = listener("outbound").context("no listener outbound")?;
    assert!(caller.contains(&format!("http://127.0.0.1:{outbound}/")));
    assert!(caller.contains(&format!("Host: {PRODUCTPAGE}")));

    for sidecar in ["ratings", "productpage"] {
        let entrypoint = &services[sidecar]["entrypoint"];
        assert_eq!(entrypoint[1], "--config-path");
        let mounts = services[sidecar]["volumes"]
            .as_array()
            .context("no files")?;
        let mounted = |at: &str| {
            let here = mounts.iter().filter_map(Value::as_str).find_map(|mount| {
                let (here, there) = mount.strip_suffix(":ro")?.split_once(':')?;
                (there == at).then_some(here)
            });
            let here = here.with_context(|| format!("{sidecar} has no {at}"))?;
            anyhow::Ok(repository("examples/skywalking").join(here))
        };
        let config = mounted(entrypoint[2].as_str().context("no path")?)?;
        let deployed = repository("deploy/envoy/sidecar.yaml");
        assert_eq!(config.canonicalize()?, deployed.canonicalize()?);
        let module = repository("dist/metadata_exchange.wasm");
        assert_eq!(mounted(MODULE)?.canonicalize()?, module.canonicalize()?);
    }
    Ok(())
}
