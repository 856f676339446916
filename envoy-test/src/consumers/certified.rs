//! Callers with certificates, who send any header they like.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::{Value, json};

use super::example::Example;
use super::sidecar::{Plan, Sidecar};
use crate::bootstrap::{any_port, router, socket_address};
use crate::client::Call;
use crate::envoy::Envoy;
use crate::mesh::Lab;
use crate::tls::{self, Authority};

/// That of the sidecar.
const RATINGS: &str = "spiffe://cluster.local/ns/vms/sa/ratings";

/// Starts a sidecar that has a certificate, and callers of it by the URI SANs of theirs.
pub(super) async fn start(
    lab: &Lab,
    example: &Example,
    change: &(dyn Fn(&mut Value) -> Result<()> + Sync),
    uri_sans: &[&str],
) -> Result<(Sidecar, Callers)> {
    let authority = Authority::new()?;
    let plan = Plan {
        identity: Some((&authority, authority.certify(&[RATINGS])?)),
        change,
        ..Plan::new(example)
    };
    let sidecar = plan.start(lab).await?;
    let callers = Callers::start(lab, &authority, sidecar.inbound, uri_sans).await?;
    Ok((sidecar, callers))
}

/// An Envoy without the filter, through which each caller presents its own certificate.
pub(super) struct Callers {
    address: SocketAddr,
    /// It ends with the value.
    _envoy: Envoy,
}

impl Callers {
    /// Callers of the sidecar at `to`, by the URI SANs of their certificates.
    async fn start(
        lab: &Lab,
        authority: &Authority,
        to: SocketAddr,
        uri_sans: &[&str],
    ) -> Result<Self> {
        let mut hosts = Vec::new();
        let mut clusters = Vec::new();
        for uri_san in uri_sans {
            let name = name_of(uri_san);
            let identity = authority.certify(&[uri_san])?;
            hosts.push(json!({
                "name": name,
                "domains": [name],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": name } }],
            }));
            clusters.push(json!({
                "name": name,
                "transport_socket": tls::cluster(Some(&identity), Some(&authority.validation())),
                "load_assignment": {
                    "cluster_name": name,
                    "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket_address(to) } }] }],
                },
            }));
        }
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "callers",
            "http_filters": [router()],
            "route_config": { "virtual_hosts": hosts },
        });
        let bootstrap = json!({
            "admin": { "address": any_port() },
            "static_resources": {
                "listeners": [{
                    "name": "callers",
                    "address": any_port(),
                    "filter_chains": [{ "filters": [{
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }] }],
                }],
                "clusters": clusters,
            },
        });
        let envoy = lab.start_envoy(&bootstrap).await?;
        Ok(Self {
            address: envoy.listener("callers").await?,
            _envoy: envoy,
        })
    }

    /// A call by whom the certificate with that URI SAN was given to.
    pub(super) fn call(&self, uri_san: &str) -> Call {
        Call::new(self.address, &name_of(uri_san))
    }
}

fn name_of(uri_san: &str) -> String {
    uri_san.replace([':', '/'], "-")
}
