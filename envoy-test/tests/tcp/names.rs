//! Who is named without any frame, from the other sources.

use anyhow::{Context as _, Result};
use envoy_test::tcp::{Route, sidecar};
use envoy_test::tls::{self, Authority, Callers};
use envoy_test::{Direction, Envoy, Lab, Node, Side};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::ends::{End, Server};
use crate::{LINK, entry, start_sidecar};

envoy_test::stories!(
    each_source_names_the_callee,
    a_callee_that_cannot_be_reached_is_named,
    a_silent_connection_names_its_callee,
    a_certificate_names_the_caller,
);

/// The kinds of sources.
const SOURCES: [&str; 5] = ["endpoint", "rules", "cluster", "cluster_name", "external"];

/// A listener whose callee only one source names, and what that callee is.
fn source(name: &str, to: std::net::SocketAddr) -> (Route, Value) {
    let mut route = Route::new(name, Direction::Outbound, to);
    let mysql = json!({
        "NAMESPACE": "shop",
        "LABELS": { "service.istio.io/canonical-name": "mysql" },
    });
    let workload = json!({
        "NAME": "mysql-v1",
        "NAMESPACE": "shop",
        "WORKLOAD_NAME": "mysql-v1",
        "LABELS": { "service.istio.io/canonical-name": "mysql-v1" },
    });
    let named = match name {
        "endpoint" => {
            route.endpoint_metadata =
                json!({ "istio": { "workload": "mysql-v1;shop;mysql;v1;east" } });
            json!({
                "CLUSTER_ID": "east",
                "NAME": "mysql-v1",
                "NAMESPACE": "shop",
                "WORKLOAD_NAME": "mysql-v1",
                "LABELS": {
                    "service.istio.io/canonical-name": "mysql",
                    "service.istio.io/canonical-revision": "v1",
                },
            })
        }
        "rules" => {
            route.endpoint_metadata = json!({ "lab": { "of": "mysql-v1", "in": "shop" } });
            let rule = json!({
                "WORKLOAD_NAME": "${endpoint:/lab/of}",
                "NAMESPACE": "${endpoint:/lab/in}",
            });
            route = route.configured(&json!({ "callee": [rule] }));
            workload
        }
        "cluster" => {
            let service = json!({ "host": "mysql.shop.svc.cluster.local", "name": "mysql", "namespace": "shop" });
            route.overrides = of_istio(&json!({ "services": [service] }));
            mysql
        }
        "cluster_name" => {
            "outbound|3306||mysql.shop.svc.cluster.local".clone_into(&mut route.cluster);
            mysql
        }
        _ => {
            let service =
                json!({ "host": "db.example.com", "name": "db.example.com", "namespace": "shop" });
            route.overrides = of_istio(&json!({ "external": true, "services": [service] }));
            route.endpoint_metadata =
                json!({ "istio": { "workload": "db-network-0;shop;db-network-0;;east" } });
            json!({ "LABELS": { "service.istio.io/canonical-name": "db.example.com" } })
        }
    };
    (route, named)
}

fn of_istio(metadata: &Value) -> Value {
    json!({ "metadata": { "filter_metadata": { "istio": metadata } } })
}

async fn client_of(lab: &Lab, routes: &[(Route, Value)]) -> Result<Envoy> {
    let routes: Vec<Route> = routes.iter().map(|(route, _)| route.clone()).collect();
    let bootstrap = sidecar(lab, &Node::pod_client()?, &routes);
    lab.start_envoy(&bootstrap).await
}

/// Asserts that the single connection of each listener names its callee, without an id, and nobody else.
async fn assert_named(lab: &Lab, routes: &[(Route, Value)]) -> Result<()> {
    for (route, named) in routes {
        let entry = entry(lab, &route.name, 0).await?;
        assert_eq!(entry.peer(Side::Upstream)?, Some(named), "{entry:?}");
        assert_eq!(entry.id(Side::Upstream)?, None, "{entry:?}");
        assert_eq!(entry.peer(Side::Downstream)?, None, "{entry:?}");
    }
    Ok(())
}

async fn each_source_names_the_callee(lab: &Lab) -> Result<()> {
    let server = Server::start().await?;
    let routes = SOURCES.map(|name| source(name, server.address));
    let envoy = client_of(lab, &routes).await?;

    for (route, _) in &routes {
        let mut client = End::connect(envoy.listener(&route.name).await?).await?;
        let mut server = server.accept().await?;
        client.says(b"query").await?;
        server.hears(b"query").await?;
        server.says(b"answer").await?;
        client.hears(b"answer").await?;
        client.ends().await?;
        // No byte was added, nor is one at the end.
        server.is_closed().await?;
    }
    assert_named(lab, &routes).await
}

async fn a_callee_that_cannot_be_reached_is_named(lab: &Lab) -> Result<()> {
    let nobody = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let routes = SOURCES.map(|name| source(name, nobody));
    let envoy = client_of(lab, &routes).await?;

    for (route, _) in &routes {
        let mut client = End::connect(envoy.listener(&route.name).await?).await?;
        client.is_closed().await?;
        let entry = entry(lab, &route.name, 0).await?;
        assert!(entry.flags.iter().any(|flag| flag == "UF"), "{entry:?}");
    }
    assert_named(lab, &routes).await
}

async fn a_silent_connection_names_its_callee(lab: &Lab) -> Result<()> {
    let server = Server::start().await?;
    let routes = SOURCES.map(|name| source(name, server.address));
    let envoy = client_of(lab, &routes).await?;

    for (route, _) in &routes {
        let client = End::connect(envoy.listener(&route.name).await?).await?;
        let mut server = server.accept().await?;
        drop(client);
        server.is_closed().await?;
    }
    assert_named(lab, &routes).await
}

/// Once with bytes, and once without.
async fn a_certificate_names_the_caller(lab: &Lab) -> Result<()> {
    let authority = Authority::new()?;
    let validation = authority.validation();
    let server = Server::start().await?;
    let mut inbound =
        Route::new("inbound", Direction::Inbound, server.address).configured(&json!({
            "trust": "spiffe",
            "name_from_certificate": true,
            "spiffe_patterns": ["spiffe://{trust_domain}/ns/{NAMESPACE}/dc/{_}/svc/{WORKLOAD_NAME}"],
        }));
    let identity = authority.certify(&["spiffe://one.consul/ns/shop/dc/dc1/svc/mysql"])?;
    let socket = tls::listener(&identity, Callers::Certified, Some(&validation));
    inbound.transport_socket = Some(socket);
    let server_envoy = start_sidecar(lab, &Node::pod_server()?, inbound).await?;

    let identity = authority.certify(&["spiffe://one.consul/ns/shop/dc/dc1/svc/orders"])?;
    let socket = tls::cluster(Some(&identity), Some(&validation));
    let at = server_envoy.listener("inbound").await?;
    let mut outbound = Route::new(LINK, Direction::Outbound, at).without_filter();
    outbound.overrides = json!({ "transport_socket": socket });
    let client_envoy = start_sidecar(lab, &Node::pod_client()?, outbound).await?;

    for (number, says) in [b"query".as_slice(), b""].into_iter().enumerate() {
        let mut client = End::connect(client_envoy.listener(LINK).await?).await?;
        let mut server = server.accept().await?;
        client.says(says).await?;
        server.hears(says).await?;
        drop(client);
        server.is_closed().await?;
        drop(server);

        let entry = entry(lab, "inbound", number).await?;
        let caller = entry.peer(Side::Downstream)?.context("nobody is named")?;
        assert_eq!(
            *caller,
            json!({
                "NAME": "orders",
                "NAMESPACE": "shop",
                "WORKLOAD_NAME": "orders",
                "LABELS": { "service.istio.io/canonical-name": "orders" },
            })
        );
        assert_eq!(entry.id(Side::Downstream)?, None);
    }
    Ok(())
}
