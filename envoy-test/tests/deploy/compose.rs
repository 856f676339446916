//! `deploy/compose`: both sidecars run as the compose file starts them, with the same bootstrap, and only their environments
//! differ.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use envoy_test::client::{Call, has_peer_headers};
use envoy_test::{Envoy, Lab, Workload, repository};
use serde_json::{Value, json};

use crate::read_one;
use crate::vm::{MODULE, address};

envoy_test::stories!(the_environment_alone_names_both_sides);

const COMPOSE: &str = "deploy/compose/docker-compose.yaml";
const SIDECAR: &str = "deploy/compose/sidecar.yaml";

/// The environment of a service; Docker adds `HOSTNAME`.
fn environment(compose: &Value, service: &str) -> Result<BTreeMap<String, String>> {
    let given = &compose["services"][service]["environment"];
    let given = given.as_object().context("no environment")?;
    let host = ("HOSTNAME".to_owned(), format!("{service}-container"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let given = given
        .iter()
        .map(|(name, value)| (name.clone(), text(value)));
    Ok(given.chain([host]).collect())
}

/// The sidecar of a service, which logs to `log`, with the addresses of its clusters.
async fn sidecar(
    lab: &Lab,
    compose: &Value,
    service: &str,
    log: &Path,
    clusters: &BTreeMap<&str, SocketAddr>,
) -> Result<Envoy> {
    let mut bootstrap = read_one(&repository(SIDECAR))?;
    assert_eq!(bootstrap.get("node"), None);
    bootstrap["admin"]["address"]["socket_address"]["port_value"] = 0.into();
    let resources = &mut bootstrap["static_resources"];
    for listener in resources["listeners"].as_array_mut().context("listeners")? {
        listener["address"] = address(SocketAddr::from(([127, 0, 0, 1], 0)));
        let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
        let config = &mut manager["http_filters"][0]["typed_config"]["config"];
        let file = &mut config["vm_config"]["code"]["local"]["filename"];
        assert_eq!(*file, MODULE);
        *file = json!(lab.module());
        let path = &mut manager["access_log"][0]["typed_config"]["path"];
        assert_eq!(*path, "/dev/stdout");
        *path = json!(log);
    }
    for cluster in resources["clusters"].as_array_mut().context("clusters")? {
        let name = cluster["name"].as_str().context("no name")?;
        let to = *clusters.get(name).context("a cluster without address")?;
        cluster["type"] = "STATIC".into();
        let endpoints = &mut cluster["load_assignment"]["endpoints"];
        endpoints[0]["lb_endpoints"][0]["endpoint"]["address"] = address(to);
    }
    lab.start_envoy_in(&environment(compose, service)?, &bootstrap)
        .await
}

async fn the_environment_alone_names_both_sides(lab: &Lab) -> Result<()> {
    let compose = read_one(&repository(COMPOSE))?;
    let apps = lab.start([Workload::bare("app")]).await?;
    let app = apps.address("app")?;
    let [of_web, of_ratings] = ["web", "ratings"].map(|name| lab.dir().join(format!("{name}.log")));
    let nowhere = [("app", app), ("ratings", app)].into();
    let ratings = sidecar(lab, &compose, "ratings", &of_ratings, &nowhere).await?;
    let inbound = ratings.listener("inbound").await?;
    let clusters = [("app", app), ("ratings", inbound)].into();
    let web = sidecar(lab, &compose, "web", &of_web, &clusters).await?;

    let reply = Call::new(web.listener("outbound").await?, "ratings")
        .send()
        .await?;

    assert!(!has_peer_headers(&reply.headers), "{reply:?}");
    for request in apps.app("app")?.received(&reply.call) {
        assert!(!has_peer_headers(&request.headers), "{request:?}");
    }
    for (log, reporter) in [(&of_web, "source"), (&of_ratings, "destination")] {
        let line: Value = serde_json::from_str(&lab.first_line(log).await?)?;
        for (key, expected) in [
            ("reporter", json!(reporter)),
            ("source", json!("web")),
            ("source_namespace", json!("shop")),
            ("source_version", json!("v1")),
            ("destination", json!("ratings")),
            ("destination_namespace", json!("shop")),
            ("destination_version", json!("v2")),
            ("status", json!(200)),
        ] {
            assert_eq!(line[key], expected, "{key} of {line}");
        }
    }
    let log = ratings.log().await?;
    assert!(log.contains("this proxy is \"ratings-container\""), "{log}");
    Ok(())
}

/// The names, ports and files of the bootstrap match the compose file.
#[test]
fn the_compose_file_fits_the_bootstrap() -> Result<()> {
    let compose = read_one(&repository(COMPOSE))?;
    let bootstrap = std::fs::read_to_string(repository(SIDECAR))?;
    for service in ["web", "ratings"] {
        let of_service = &compose["services"][service];
        let volumes = of_service["volumes"].as_array().context("no volumes")?;
        let mounted: Vec<_> = volumes
            .iter()
            .filter_map(|volume| volume.as_str()?.split(':').nth(1))
            .collect();
        assert_eq!(mounted, ["/etc/envoy/sidecar.yaml", MODULE]);
        let app = &compose["services"][format!("{service}-app")];
        assert_eq!(app["network_mode"], format!("service:{service}"));
        let passed = bootstrap
            .split_once("host_env_keys: [")
            .context("no variables")?;
        let passed = passed.1.split_once(']').context("no variables")?.0;
        for name in environment(&compose, service)?.into_keys() {
            assert!(passed.split(", ").any(|known| known == name), "{name}");
        }
    }
    let commands = compose.to_string();
    for address in ["Host: ratings", "127.0.0.1:15001", "-p 8081"] {
        assert!(commands.contains(address), "{address}");
    }
    for port in [
        "address: 127.0.0.1, port_value: 15001",
        "address: 127.0.0.1, port_value: 8081",
    ] {
        assert!(bootstrap.contains(port), "{port}");
    }
    Ok(())
}
