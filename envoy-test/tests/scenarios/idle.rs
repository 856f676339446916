//! Invalid plugin configurations: the first one leaves the filter idle, an update is refused, and no request is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use envoy_test::bootstrap::{FILTER, filter_resource};
use envoy_test::client::{Call, METADATA_OF_NAME_X, PEER_HEADERS};
use envoy_test::{Envoy, FailurePolicy, Lab, Mesh, Node, Plugin, Side, Workload, until};
use hyper::StatusCode;
use serde_json::{Value, json};

use crate::failure_policy::mortal_module;
use crate::istio_plugin::statistic;
use crate::{assert_clean, counter};

envoy_test::stories!(
    invalid_and_valid_configurations_alternate_by_ecds,
    invalid_and_valid_configurations_alternate_by_lds,
    a_bootstrap_with_a_good_and_a_bad_listener,
    a_bad_listener_comes_beside_a_good_one,
    removed_and_created_again_by_ecds,
    removed_and_created_again_by_lds,
);

fn bad() -> Value {
    json!({ "trsut": "mtls" })
}

fn another_bad() -> Value {
    json!({ "max_labels": -1 })
}

fn good() -> Value {
    json!({})
}

/// How a configuration reaches a running Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// In an extension configuration that the listener names.
    Ecds,
    /// In the listener.
    Lds,
}

/// The effect of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Accepted, and peers are stored.
    Exchanges,
    /// Accepted, and the filter does nothing.
    Idle,
    /// Refused: the previous one stays in force.
    Refused,
}

async fn invalid_and_valid_configurations_alternate_by_ecds(lab: &Lab) -> Result<()> {
    invalid_and_valid_configurations_alternate(lab, Way::Ecds).await
}

async fn invalid_and_valid_configurations_alternate_by_lds(lab: &Lab) -> Result<()> {
    invalid_and_valid_configurations_alternate(lab, Way::Lds).await
}

async fn invalid_and_valid_configurations_alternate(lab: &Lab, way: Way) -> Result<()> {
    for policy in [FailurePolicy::Open, FailurePolicy::Closed] {
        let rollout = Rollout::start(lab, way, policy, bad()).await?;
        rollout.lies("bad, first", Fate::Idle).await?;
        // Also for requests that run in the background.
        let done = AtomicBool::new(false);
        let load = async || {
            while !done.load(Ordering::Relaxed) {
                let reply = rollout.mesh.call("productpage", "ratings")?.send().await?;
                assert_eq!(reply.status, StatusCode::OK);
            }
            anyhow::Ok(())
        };
        let changes = async {
            for (what, configuration, fate) in [
                ("another bad", another_bad(), Fate::Idle),
                ("good", good(), Fate::Exchanges),
                ("a third bad", json!({ "mode": "both" }), Fate::Refused),
                ("the first bad", bad(), Fate::Idle),
                ("good again", good(), Fate::Exchanges),
                ("no object", json!([]), Fate::Refused),
                ("another good", json!({ "max_labels": 9 }), Fate::Exchanges),
            ] {
                rollout.bring(configuration, fate).await?;
                rollout.lies(what, fate).await?;
            }
            done.store(true, Ordering::Relaxed);
            anyhow::Ok(())
        };
        tokio::try_join!(load(), load(), changes)?;
    }
    Ok(())
}

/// A callee whose inbound plugin receives one configuration after the other.
struct Rollout<'a> {
    lab: &'a Lab,
    mesh: Mesh,
    way: Way,
    policy: FailurePolicy,
}

impl<'a> Rollout<'a> {
    async fn start(lab: &'a Lab, way: Way, policy: FailurePolicy, first: Value) -> Result<Self> {
        let ratings = Workload::sidecar("ratings", Node::vm_server()?).workers(2);
        let ratings = ratings.listener("inbound", |listener| {
            listener.plugin.configuration = first.clone();
            listener.plugin.watched = way == Way::Ecds;
            listener.plugin.failure_policy = policy;
        });
        let ratings = match way {
            Way::Ecds => ratings,
            Way::Lds => ratings.watching_listeners(),
        };
        let productpage = Workload::sidecar("productpage", Node::pod_client()?);
        let mesh = lab.start([productpage, ratings]).await?;
        Ok(Self {
            lab,
            mesh,
            way,
            policy,
        })
    }

    /// Delivers a configuration; returns once Envoy has accepted or refused it.
    async fn bring(&self, configuration: Value, fate: Fate) -> Result<()> {
        let outcome = match fate {
            Fate::Refused => "update_rejected",
            Fate::Exchanges | Fate::Idle => "update_success",
        };
        let outcome = match self.way {
            Way::Ecds => statistic(FILTER, outcome),
            Way::Lds => format!("listener_manager.lds.{outcome}"),
        };
        let envoy = self.mesh.envoy("ratings")?;
        let before = envoy.stats().await?.get(&outcome).copied();
        let plugin = self.plugin(configuration);
        match self.way {
            Way::Ecds => self.mesh.reconfigure("ratings", &plugin).await?,
            Way::Lds => {
                let resource = filter_resource(&plugin, self.lab.module());
                let config = &resource["resources"][0]["typed_config"];
                let change = |filter: &mut Value| filter["typed_config"] = config.clone();
                change_filter(&self.mesh, change).await?;
            }
        }
        envoy
            .counts(&outcome, before.unwrap_or_default() + 1)
            .await?;
        Ok(())
    }

    fn plugin(&self, configuration: Value) -> Plugin {
        Plugin {
            configuration,
            root_id: "inbound".to_owned(),
            failure_policy: self.policy,
            ..Plugin::default()
        }
    }

    /// Waits until the callee behaves as expected.
    async fn lies(&self, what: &str, fate: Fate) -> Result<()> {
        let exchanges = fate != Fate::Idle;
        until_exchanging(self.lab, &self.mesh, exchanges).await?;
        let envoy = self.mesh.envoy("ratings")?;
        until_idle(&self.mesh, "ratings", !exchanges).await?;
        let version = envoy.version().await?;
        println!(
            "{version} | {:?} | {:?} | {what} | {fate:?} | 200 | peers stored: {exchanges}",
            self.way, self.policy
        );
        Ok(())
    }
}

/// Changes the plugin in the callee's watched listener.
async fn change_filter(mesh: &Mesh, change: impl Fn(&mut Value)) -> Result<()> {
    mesh.change_listeners("ratings", |listener| {
        if listener["name"] == "inbound" {
            http_filters(listener)
                .iter_mut()
                .filter(|filter| filter["name"] == FILTER)
                .for_each(&change);
        }
    })
    .await
}

fn http_filters(listener: &mut Value) -> &mut Vec<Value> {
    let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
    manager["http_filters"]
        .as_array_mut()
        .expect("HTTP filters")
}

/// Calls until the callee's entries name the caller, or no longer do. An idle filter leaves all headers unchanged.
async fn until_exchanging(lab: &Lab, mesh: &Mesh, exchanges: bool) -> Result<()> {
    until(&format!("peers to be stored: {exchanges}"), async || {
        let reply = mesh.call("productpage", "ratings")?.send().await?;
        assert_eq!(reply.status, StatusCode::OK);
        let entries = lab.entries("ratings/inbound", &reply.call, 1).await?;
        let [inbound] = entries.as_slice() else {
            // Repeated after a reset, maybe through another listener.
            return Ok(None);
        };
        let attempts = mesh.app("ratings")?.received(&reply.call).len();
        if attempts != 1 || inbound.peer(Side::Downstream)?.is_some() != exchanges {
            return Ok(None);
        }
        if exchanges {
            assert_clean(mesh, "ratings", &reply)?;
        }
        Ok(Some(()))
    })
    .await
}

/// Waits for the gauge that shows an idle filter. While a replaced listener drains, requests distinguish it from the
/// new one.
async fn until_idle(mesh: &Mesh, workload: &str, is_idle: bool) -> Result<()> {
    let name = "wasmcustom.metadata_exchange.configuration_idle";
    until(&format!("{name} to show {is_idle}"), async || {
        let reply = mesh.call("productpage", "ratings")?.send().await?;
        assert_eq!(reply.status, StatusCode::OK);
        let stats = mesh.envoy(workload)?.stats().await?;
        let gauge = stats.get(name).context("there is no such gauge")?;
        Ok(((*gauge > 0) == is_idle).then_some(()))
    })
    .await
}

/// Also if both have the same name.
async fn a_bootstrap_with_a_good_and_a_bad_listener(lab: &Lab) -> Result<()> {
    for policy in [FailurePolicy::Open, FailurePolicy::Closed] {
        let named = |name: &'static str, configuration: Value| {
            move |listener: &mut envoy_test::Listener| {
                listener.plugin.configuration = configuration.clone();
                listener.plugin.failure_policy = policy;
                name.clone_into(&mut listener.plugin.root_id);
            }
        };
        let ratings = Workload::sidecar("ratings", Node::vm_server()?)
            .workers(2)
            .listener("inbound", named("one", bad()))
            .listener("outbound", named("one", good()));
        let productpage = Workload::sidecar("productpage", Node::pod_client()?)
            .workers(2)
            .listener("inbound", named("one", good()))
            .listener("outbound", named("another", bad()));
        let mesh = lab.start([productpage, ratings]).await?;
        // Longer than the good one needs to mark itself as in force.
        for name in ["ratings", "productpage"] {
            until_idle(&mesh, name, true).await?;
        }

        for _ in 0..10 {
            let reply = mesh.call("productpage", "ratings")?.send().await?;
            assert_eq!(reply.status, StatusCode::OK);
            let inbound = lab.entry("ratings/inbound", &reply.call).await?;
            assert_eq!(inbound.peer(Side::Downstream)?, None);

            let reply = mesh.call("ratings", "productpage")?.send().await?;
            assert_eq!(reply.status, StatusCode::OK);
            let inbound = lab.entry("productpage/inbound", &reply.call).await?;
            assert!(inbound.peer(Side::Downstream)?.is_some());
            let outbound = lab.entry("ratings/outbound", &reply.call).await?;
            assert!(outbound.peer(Side::Upstream)?.is_some());
        }
        // The filter answers and removes nothing.
        let [header, _] = PEER_HEADERS;
        let call = Call::new(mesh.address("ratings")?, "ratings");
        let reply = call.header(header, METADATA_OF_NAME_X)?.send().await?;
        assert_eq!(reply.status, StatusCode::OK);
        assert!(!reply.headers.contains_key(header));
        let received = mesh.app("ratings")?.received(&reply.call);
        assert!(received[0].headers.contains_key(header));

        let envoy = mesh.envoy("ratings")?;
        assert!(counter(envoy, "configuration_errors", 1).await? >= 1);
        let log = envoy.log().await?;
        let is_error = |line: &&str| line.contains("[error]") && line.contains("trsut");
        let error = log
            .lines()
            .find(is_error)
            .context("the error is not logged")?;
        assert!(error.contains("the filter is idle"), "{error}");
    }
    Ok(())
}

/// By LDS, to an Envoy whose other listener has been serving for a while. Listeners with the same plugin name are
/// indistinguishable: the new one is refused like an update.
async fn a_bad_listener_comes_beside_a_good_one(lab: &Lab) -> Result<()> {
    let productpage = Workload::sidecar("productpage", Node::pod_client()?);
    let ratings = Workload::sidecar("ratings", Node::vm_server()?).watching_listeners();
    let mesh = lab.start([productpage, ratings]).await?;
    until_exchanging(lab, &mesh, true).await?;
    let envoy = mesh.envoy("ratings")?;

    let come = async |name: &str, root_id: &str, configuration: &Value| {
        mesh.change_listeners("ratings", |listener| {
            if listener["name"] == "inbound" {
                return;
            }
            listener["name"] = name.into();
            for filter in http_filters(listener) {
                if filter["name"] == FILTER {
                    let config = &mut filter["typed_config"]["config"];
                    config["root_id"] = root_id.into();
                    config["configuration"]["value"] = configuration.to_string().into();
                }
            }
        })
        .await
    };

    come("named-apart", "named-apart", &bad()).await?;
    let address = until("the new listener", async || {
        Ok(envoy.listener("named-apart").await.ok())
    })
    .await?;
    let reply = Call::new(address, "productpage").send().await?;
    assert_eq!(reply.status, StatusCode::OK);
    let inbound = lab.entry("productpage/inbound", &reply.call).await?;
    assert_eq!(inbound.peer(Side::Downstream)?, None);
    until_exchanging(lab, &mesh, true).await?;

    come("named-alike", "inbound", &another_bad()).await?;
    envoy
        .counts("listener_manager.lds.update_rejected", 1)
        .await?;
    assert!(envoy.listener("named-alike").await.is_err());
    until_exchanging(lab, &mesh, true).await?;

    come("named-alike", "inbound", &good()).await?;
    let address = until("the corrected listener", async || {
        Ok(envoy.listener("named-alike").await.ok())
    })
    .await?;
    let reply = Call::new(address, "productpage").send().await?;
    assert_eq!(reply.status, StatusCode::OK);
    let inbound = lab.entry("productpage/inbound", &reply.call).await?;
    assert!(inbound.peer(Side::Downstream)?.is_some());
    Ok(())
}

async fn removed_and_created_again_by_ecds(lab: &Lab) -> Result<()> {
    removed_and_created_again(lab, Way::Ecds).await
}

async fn removed_and_created_again_by_lds(lab: &Lab) -> Result<()> {
    removed_and_created_again(lab, Way::Lds).await
}

/// Without a `vm_id`, as in Istio, so that another plugin keeps the shared data alive.
async fn removed_and_created_again(lab: &Lab, way: Way) -> Result<()> {
    let other = Plugin {
        filter: "other".to_owned(),
        name: "other".to_owned(),
        vm_id: String::new(),
        module: Some(mortal_module(lab)?),
        ..Plugin::default()
    };
    let other = filter_resource(&other, lab.module())["resources"][0].clone();
    let other = json!({ "name": "other", "typed_config": other["typed_config"] });
    let plugin = |configuration: Value| Plugin {
        vm_id: String::new(),
        watched: way == Way::Ecds,
        configuration,
        failure_policy: FailurePolicy::Open,
        ..Plugin::default()
    };
    let ratings = Workload::sidecar("ratings", Node::vm_server()?)
        .watching_listeners()
        .draining_for(Duration::from_secs(1))
        .listener("inbound", |listener| {
            listener.behind.push(other.clone());
            listener.plugin = plugin(good());
        })
        .listener("outbound", |listener| {
            "apart".clone_into(&mut listener.plugin.vm_id);
        });
    // Envoy closes the connections of a drained listener even if a request is in flight.
    let retries = json!({ "retry_policy": { "retry_on": "reset" } });
    let productpage =
        Workload::sidecar("productpage", Node::pod_client()?).listener("outbound", |listener| {
            listener.route_action = retries.clone();
        });
    let mesh = lab.start([productpage, ratings]).await?;
    let envoy = mesh.envoy("ratings")?;
    until_exchanging(lab, &mesh, true).await?;
    let with_it = active_vms(envoy).await?;

    for (first, fate) in [(bad(), Fate::Idle), (good(), Fate::Exchanges)] {
        let removed = std::sync::Mutex::new(None);
        mesh.change_listeners("ratings", |listener| {
            if listener["name"] == "inbound" {
                let filters = http_filters(listener);
                let place = filters.iter().position(|filter| filter["name"] == FILTER);
                let filter = place.map(|place| filters.remove(place));
                *removed.lock().expect("one at a time") = filter;
            }
        })
        .await?;
        let mut filter = removed.into_inner()?.context("there was no filter")?;
        until_exchanging(lab, &mesh, false).await?;
        until("its VMs to end", async || {
            Ok((active_vms(envoy).await? < with_it).then_some(()))
        })
        .await?;

        match way {
            Way::Ecds => mesh.reconfigure("ratings", &plugin(first)).await?,
            Way::Lds => {
                let configuration = &mut filter["typed_config"]["config"]["configuration"];
                configuration["value"] = first.to_string().into();
            }
        }
        mesh.change_listeners("ratings", |listener| {
            if listener["name"] == "inbound" {
                http_filters(listener).insert(0, filter.clone());
            }
        })
        .await?;
        until_idle(&mesh, "ratings", fate == Fate::Idle).await?;
        for _ in 0..3 {
            until_exchanging(lab, &mesh, fate == Fate::Exchanges).await?;
        }
    }
    Ok(())
}

async fn active_vms(envoy: &Envoy) -> Result<u64> {
    let stats = envoy.stats().await?;
    let vms = stats.get("wasm.envoy.wasm.runtime.v8.active");
    vms.copied().context("Envoy counts no VMs")
}
