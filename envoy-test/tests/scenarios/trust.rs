//! Which peers a proxy believes, over real TLS: callers by `trust`, callees by
//! `upstream_trust`.

use anyhow::Result;
use envoy_test::bootstrap::file_log;
use envoy_test::tls::{self, Authority, Callers, Identity};
use envoy_test::{Lab, Mesh, Node, Side, Workload};
use hyper::StatusCode;
use serde_json::{Value, json};

use crate::{assert_clean, assert_no_peer, assert_peer, counter};

envoy_test::stories!(
    callers_are_believed_by_their_certificate,
    callees_are_believed_by_their_certificate,
    a_known_peer_is_refused_over_another_certificate,
    metadata_without_namespace_is_not_vouched_for,
    attributes_show_who_presented_a_certificate,
    the_first_of_several_uri_sans_counts,
    other_meshes_vouch_for_workloads_and_name_silent_peers,
    a_listener_that_accepts_untrusted_certificates_makes_trust_worthless,
    a_listener_without_validation_believes_nobody,
    a_cluster_without_validation_makes_upstream_trust_worthless,
);

/// A peer with a certificate, and the trust settings that accept it for the
/// namespace `default`.
struct Peer {
    name: &'static str,
    /// The URI SAN, if it presents a certificate.
    uri_san: Option<&'static str>,
    believed_by: &'static [&'static str],
}

const PEERS: [Peer; 4] = [
    Peer {
        name: "right",
        uri_san: Some("spiffe://cluster.local/ns/default/sa/shop"),
        believed_by: &["any", "mtls", "spiffe", "spiffe-here"],
    },
    Peer {
        name: "of-another-trust-domain",
        uri_san: Some("spiffe://elsewhere.test/ns/default/sa/shop"),
        believed_by: &["any", "mtls", "spiffe"],
    },
    Peer {
        name: "of-another-namespace",
        uri_san: Some("spiffe://cluster.local/ns/kube-system/sa/shop"),
        believed_by: &["any", "mtls"],
    },
    Peer {
        name: "without-certificate",
        uri_san: None,
        believed_by: &["any"],
    },
];

/// Workloads with each value of `key`, and the counter of their refusals.
fn believers(key: &str) -> [(&'static str, Value, Option<&'static str>); 5] {
    let here = json!({ key: "spiffe", "trust_domains": ["cluster.local"] });
    [
        ("any", json!({ key: "any" }), None),
        ("mtls", json!({ key: "mtls" }), Some("refused_trust_mtls")),
        (
            "spiffe",
            json!({ key: "spiffe" }),
            Some("refused_trust_spiffe"),
        ),
        ("spiffe-here", here, Some("refused_trust_spiffe")),
        ("none", json!({ key: "none" }), Some("refused_trust_none")),
    ]
}

/// The certificate of a callee where it does not matter.
const SERVER: &str = "spiffe://cluster.local/ns/default/sa/ratings";

async fn callers_are_believed_by_their_certificate(lab: &Lab) -> Result<()> {
    let (client, server) = (Node::pod_client()?, Node::vm_server()?);
    let (authority, stranger) = (Authority::new()?, Authority::new()?);
    let takes_any = listener(&authority, Callers::Any)?;
    let callees = believers("trust").map(|(name, trust, _)| {
        let callee = Workload::sidecar(name, server.clone());
        secured(callee, &takes_any).configured(&trust)
    });
    let caller = |name: &str, identity: Option<&Identity>| {
        let socket = tls::cluster(identity, Some(&authority.validation()));
        let caller = Workload::sidecar(name, client.clone());
        believers("trust")
            .iter()
            .fold(caller, |caller, (callee, ..)| {
                caller.cluster(callee, json!({ "transport_socket": socket }))
            })
    };
    let mut workloads = Vec::from(callees);
    for peer in &PEERS {
        let identity = peer
            .uri_san
            .map(|uri| authority.certify(&[uri]))
            .transpose()?;
        workloads.push(caller(peer.name, identity.as_ref()));
    }
    let unknown = stranger.certify(&["spiffe://cluster.local/ns/default/sa/shop"])?;
    workloads.push(caller("of-unknown-authority", Some(&unknown)));
    let mesh = lab.start(workloads).await?;

    for (callee, ..) in believers("trust") {
        for peer in &PEERS {
            let believed = peer.believed_by.contains(&callee);
            let reply = mesh.call(peer.name, callee)?.send().await?;

            assert_eq!(reply.status, StatusCode::OK);
            assert_clean(&mesh, callee, &reply)?;
            let inbound = lab.entry(&format!("{callee}/inbound"), &reply.call).await?;
            let outbound = lab
                .entry(&format!("{}/outbound", peer.name), &reply.call)
                .await?;
            if believed {
                assert_peer(&inbound, Side::Downstream, &client)?;
                assert_peer(&outbound, Side::Upstream, &server)?;
            } else {
                assert_no_peer(&inbound, Side::Downstream)?;
                assert_no_peer(&outbound, Side::Upstream)?;
            }
        }
        // TLS itself rejects this one, whatever the filter trusts.
        let reply = mesh.call("of-unknown-authority", callee)?.send().await?;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(mesh.app(callee)?.received(&reply.call).is_empty());
    }
    refusals_are_counted(&mesh, "trust").await
}

/// Asserts that each refusal is counted by its reason.
async fn refusals_are_counted(mesh: &Mesh, key: &str) -> Result<()> {
    for (believer, _, reason) in believers(key) {
        let refused = PEERS
            .iter()
            .filter(|peer| !peer.believed_by.contains(&believer));
        let without_certificate = |peer: &&Peer| peer.uri_san.is_none();
        let envoy = mesh.envoy(believer)?;
        let Some(reason) = reason else {
            continue;
        };
        let (reason, refused) = if reason == "refused_trust_spiffe" {
            // Without a certificate there is nothing to compare.
            let missing = refused.clone().filter(without_certificate).count();
            assert_eq!(
                counter(envoy, "refused_trust_mtls", missing).await?,
                missing
            );
            (
                reason,
                refused.filter(|peer| !without_certificate(peer)).count(),
            )
        } else {
            (reason, refused.count())
        };
        assert_eq!(
            counter(envoy, reason, refused).await?,
            refused,
            "{believer}"
        );
    }
    Ok(())
}

async fn callees_are_believed_by_their_certificate(lab: &Lab) -> Result<()> {
    let (client, server) = (Node::pod_client()?, Node::vm_server()?);
    // The namespace of this node is also `default`.
    let authority = Authority::new()?;
    let mut callers = believers("upstream_trust")
        .map(|(name, trust, _)| Workload::sidecar(name, client.clone()).configured(&trust));
    let mut workloads = Vec::new();
    for peer in &PEERS {
        let mut callee = Workload::sidecar(peer.name, server.clone());
        if let Some(uri_san) = peer.uri_san {
            let identity = authority.certify(&[uri_san])?;
            let validation = authority.validation();
            let socket = tls::listener(&identity, Callers::Any, Some(&validation));
            callee = secured(callee, &socket);
            let socket = tls::cluster(None, Some(&validation));
            callers = callers
                .map(|caller| caller.cluster(peer.name, json!({ "transport_socket": socket })));
        }
        workloads.push(callee);
    }
    workloads.extend(callers);
    let mesh = lab.start(workloads).await?;

    for (caller, ..) in believers("upstream_trust") {
        for peer in &PEERS {
            let believed = peer.believed_by.contains(&caller);
            let reply = mesh.call(caller, peer.name)?.send().await?;

            assert_eq!(reply.status, StatusCode::OK);
            assert_clean(&mesh, peer.name, &reply)?;
            let outbound = lab
                .entry(&format!("{caller}/outbound"), &reply.call)
                .await?;
            if believed {
                assert_peer(&outbound, Side::Upstream, &server)?;
            } else {
                assert_no_peer(&outbound, Side::Upstream)?;
            }
            // `upstream_trust` does not change what is sent.
            let inbound = lab
                .entry(&format!("{}/inbound", peer.name), &reply.call)
                .await?;
            assert_peer(&inbound, Side::Downstream, &client)?;
        }
    }
    refusals_are_counted(&mesh, "upstream_trust").await
}

/// The request's own connection decides, although the peer is in the cache.
async fn a_known_peer_is_refused_over_another_certificate(lab: &Lab) -> Result<()> {
    let node = Node::pod_client()?;
    let authority = Authority::new()?;
    let validation = authority.validation();
    let caller = |name, uri_san| -> Result<Workload> {
        let identity = authority.certify(&[uri_san])?;
        let socket = tls::cluster(Some(&identity), Some(&validation));
        let caller = Workload::sidecar(name, node.clone());
        Ok(caller.cluster("ratings", json!({ "transport_socket": socket })))
    };
    let callee = Workload::sidecar("ratings", Node::vm_server()?);
    let mesh = lab
        .start([
            caller("honest", "spiffe://cluster.local/ns/default/sa/shop")?,
            caller("copy", "spiffe://cluster.local/ns/kube-system/sa/shop")?,
            secured(callee, &listener(&authority, Callers::Certified)?)
                .configured(&json!({ "trust": "spiffe" })),
        ])
        .await?;

    for name in ["honest", "copy", "honest", "copy"] {
        let reply = mesh.call(name, "ratings")?.send().await?;

        assert_eq!(reply.status, StatusCode::OK);
        let inbound = lab.entry("ratings/inbound", &reply.call).await?;
        if name == "honest" {
            assert_peer(&inbound, Side::Downstream, &node)?;
        } else {
            assert_no_peer(&inbound, Side::Downstream)?;
        }
    }
    let envoy = mesh.envoy("ratings")?;
    assert_eq!(counter(envoy, "cache_hit", 3).await?, 3);
    assert_eq!(counter(envoy, "refused_trust_spiffe", 2).await?, 2);
    Ok(())
}

async fn metadata_without_namespace_is_not_vouched_for(lab: &Lab) -> Result<()> {
    let authority = Authority::new()?;
    let node = Node::pod_client()?.with("NAMESPACE", Value::Null);
    let identity = authority.certify(&["spiffe://cluster.local/ns/default/sa/shop"])?;
    let socket = tls::cluster(Some(&identity), Some(&authority.validation()));
    let callee = Workload::sidecar("ratings", Node::vm_server()?);
    let mesh = lab
        .start([
            Workload::sidecar("nowhere", node)
                .cluster("ratings", json!({ "transport_socket": socket })),
            secured(callee, &listener(&authority, Callers::Certified)?)
                .configured(&json!({ "trust": "spiffe" })),
        ])
        .await?;

    let reply = mesh.call("nowhere", "ratings")?.send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_no_peer(&inbound, Side::Downstream)?;
    counter(mesh.envoy("ratings")?, "refused_trust_spiffe", 1).await?;
    Ok(())
}

/// The attributes on which `mtls` and `spiffe` depend.
async fn attributes_show_who_presented_a_certificate(lab: &Lab) -> Result<()> {
    let (seen_by_caller, seen_by_callee) = (
        lab.dir().join("outbound.log"),
        lab.dir().join("inbound.log"),
    );
    let of_callee = json!({
        "certificate": "%CEL(upstream.sha256_peer_certificate_digest)%",
        "uri_san": "%CEL(upstream.uri_san_peer_certificate)%",
    });
    let of_caller = json!({
        "certificate": "%CEL(connection.mtls)%",
        "uri_san": "%CEL(connection.uri_san_peer_certificate)%",
    });
    let authority = Authority::new()?;
    let client = authority.certify(&["spiffe://cluster.local/ns/default/sa/shop"])?;
    let socket = tls::cluster(Some(&client), Some(&authority.validation()));
    let caller = Workload::sidecar("productpage", Node::pod_client()?)
        .cluster("ratings", json!({ "transport_socket": socket }))
        .listener("outbound", |listener| {
            listener
                .access_logs
                .push(file_log(&seen_by_caller, &of_callee));
        });
    let logged = |workload: Workload| {
        workload.listener("inbound", |listener| {
            listener
                .access_logs
                .push(file_log(&seen_by_callee, &of_caller));
        })
    };
    let ratings = Workload::sidecar("ratings", Node::vm_server()?);
    let plain = Workload::sidecar("plain", Node::vm_server()?);
    let mesh = lab
        .start([
            caller,
            logged(secured(ratings, &listener(&authority, Callers::Certified)?)),
            logged(plain),
        ])
        .await?;

    mesh.call("productpage", "ratings")?.send().await?;
    let [of_callee] = lines(lab, &seen_by_caller).await?;
    assert_eq!(of_callee["uri_san"], SERVER);
    assert_eq!(of_callee["certificate"].as_str().map(str::len), Some(64));
    let [of_caller] = lines(lab, &seen_by_callee).await?;
    let uri_san = "spiffe://cluster.local/ns/default/sa/shop";
    assert_eq!(
        of_caller,
        json!({ "certificate": "true", "uri_san": uri_san })
    );

    mesh.call("productpage", "plain")?.send().await?;
    let [_, of_callee] = lines(lab, &seen_by_caller).await?;
    assert_eq!(of_callee, json!({ "certificate": null, "uri_san": null }));
    let [_, of_caller] = lines(lab, &seen_by_callee).await?;
    assert_eq!(
        of_caller,
        json!({ "certificate": "false", "uri_san": null })
    );
    Ok(())
}

/// The first lines of a log.
async fn lines<const COUNT: usize>(lab: &Lab, path: &std::path::Path) -> Result<[Value; COUNT]> {
    let lines = lab.lines(path, COUNT).await?;
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line))
        .collect::<Result<_, _>>()?;
    lines
        .try_into()
        .map_err(|lines| anyhow::anyhow!("not {COUNT} lines: {lines:?}"))
}

/// Such a listener requests a certificate and accepts any: with a self-signed
/// one, a client can claim every namespace.
async fn a_listener_that_accepts_untrusted_certificates_makes_trust_worthless(
    lab: &Lab,
) -> Result<()> {
    let authority = Authority::new()?;
    let mesh = with_forger(lab, &authority, Some(&authority.lax_validation())).await?;

    let reply = mesh.call("forger", "ratings")?.send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&inbound, Side::Downstream, &Node::pod_client()?)
}

/// Such a listener requests no certificate, although it requires one: nobody is
/// believed.
async fn a_listener_without_validation_believes_nobody(lab: &Lab) -> Result<()> {
    let mesh = with_forger(lab, &Authority::new()?, None).await?;

    let reply = mesh.call("forger", "ratings")?.send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_no_peer(&inbound, Side::Downstream)?;
    counter(mesh.envoy("ratings")?, "refused_trust_mtls", 1).await?;
    Ok(())
}

/// A caller with a self-signed certificate, and a callee with `trust: spiffe`
/// that verifies certificates by `validation`.
async fn with_forger(lab: &Lab, authority: &Authority, validation: Option<&Value>) -> Result<Mesh> {
    let forged = Authority::new()?.certify(&["spiffe://cluster.local/ns/default/sa/shop"])?;
    let socket = tls::cluster(Some(&forged), Some(&authority.validation()));
    let forger = Workload::sidecar("forger", Node::pod_client()?);
    let server = authority.certify(&[SERVER])?;
    let callee = Workload::sidecar("ratings", Node::vm_server()?).configured(&json!({
        "trust": "spiffe",
        "trust_domains": ["cluster.local"],
    }));
    let lax = tls::listener(&server, Callers::Certified, validation);
    lab.start([
        forger.cluster("ratings", json!({ "transport_socket": socket })),
        secured(callee, &lax),
    ])
    .await
}

/// Such a cluster verifies no certificate: a server at the address can claim
/// every namespace.
async fn a_cluster_without_validation_makes_upstream_trust_worthless(lab: &Lab) -> Result<()> {
    let server = Node::vm_server()?;
    let forger = Authority::new()?;
    let callee = Workload::sidecar("ratings", server.clone());
    let socket = tls::cluster(None, None);
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?)
                .cluster("ratings", json!({ "transport_socket": socket }))
                .configured(&json!({
                    "upstream_trust": "spiffe",
                    "trust_domains": ["cluster.local"],
                })),
            secured(callee, &listener(&forger, Callers::Any)?),
        ])
        .await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_peer(&outbound, Side::Upstream, &server)?;
    Ok(())
}

/// Identities have one URI SAN each; if there are several, Envoy reports the
/// first.
async fn the_first_of_several_uri_sans_counts(lab: &Lab) -> Result<()> {
    let authority = Authority::new()?;
    let right = "spiffe://cluster.local/ns/default/sa/shop";
    let other = "spiffe://cluster.local/ns/kube-system/sa/shop";
    let caller = |name, uri_sans: [&str; 2]| -> Result<Workload> {
        let identity = authority.certify(&uri_sans)?;
        let socket = tls::cluster(Some(&identity), Some(&authority.validation()));
        let caller = Workload::sidecar(name, Node::pod_client()?);
        Ok(caller.cluster("ratings", json!({ "transport_socket": socket })))
    };
    let callee = Workload::sidecar("ratings", Node::vm_server()?);
    let mesh = lab
        .start([
            caller("right-first", [right, other])?,
            caller("other-first", [other, right])?,
            secured(callee, &listener(&authority, Callers::Certified)?)
                .configured(&json!({ "trust": "spiffe" })),
        ])
        .await?;

    let reply = mesh.call("right-first", "ratings")?.send().await?;
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&inbound, Side::Downstream, &Node::pod_client()?)?;
    let reply = mesh.call("other-first", "ratings")?.send().await?;
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_no_peer(&inbound, Side::Downstream)
}

/// Certificates in Consul's form: of callers that send metadata, of one that sends none, and of such a callee.
async fn other_meshes_vouch_for_workloads_and_name_silent_peers(lab: &Lab) -> Result<()> {
    let consul =
        |service: &str| format!("spiffe://11111111.consul/ns/default/dc/dc1/svc/{service}");
    let authority = Authority::new()?;
    let validation = authority.validation();
    let client = Node::pod_client()?;
    let workload = client.metadata["WORKLOAD_NAME"]
        .as_str()
        .unwrap_or_default();
    let by_certificate = json!({
        "name_from_certificate": true,
        "spiffe_patterns": ["spiffe://{trust_domain}/ns/{NAMESPACE}/dc/{_}/svc/{WORKLOAD_NAME}"],
    });
    let with = |key: &str, value: &str| {
        let mut configuration = by_certificate.clone();
        configuration[key] = json!(value);
        configuration
    };
    let silent = json!({ "max_sent_bytes": 0 });
    let caller = |name, service: &str, configuration: &Value| -> Result<Workload> {
        let identity = authority.certify(&[&consul(service)])?;
        let socket = tls::cluster(Some(&identity), Some(&validation));
        let caller = Workload::sidecar(name, client.clone()).configured(configuration);
        let cluster = json!({ "transport_socket": socket });
        Ok(caller
            .cluster("ratings", cluster.clone())
            .cluster("quiet", cluster))
    };
    let callee = |name, configuration: &Value| -> Result<Workload> {
        let identity = authority.certify(&[&consul(name)])?;
        let socket = tls::listener(&identity, Callers::Certified, Some(&validation));
        let callee = Workload::sidecar(name, Node::vm_server()?);
        Ok(secured(callee, &socket).configured(configuration))
    };
    let mesh = lab
        .start([
            caller("right", workload, &with("upstream_trust", "mtls"))?,
            caller("impostor", "other", &json!({}))?,
            caller("silent", "silent", &silent)?,
            callee("ratings", &with("trust", "spiffe"))?,
            callee("quiet", &silent)?,
        ])
        .await?;
    let of_certificate = |name: &str| {
        json!({
            "NAME": name, "WORKLOAD_NAME": name, "NAMESPACE": "default",
            "LABELS": { "service.istio.io/canonical-name": name },
        })
    };

    for name in ["right", "impostor", "silent"] {
        let reply = mesh.call(name, "ratings")?.send().await?;
        assert_eq!(reply.status, StatusCode::OK);
        let inbound = lab.entry("ratings/inbound", &reply.call).await?;
        match name {
            "right" => assert_peer(&inbound, Side::Downstream, &client)?,
            "impostor" => assert_no_peer(&inbound, Side::Downstream)?,
            _ => {
                let peer = inbound.peer(Side::Downstream)?.cloned();
                assert_eq!(peer, Some(of_certificate("silent")));
                assert_eq!(inbound.id(Side::Downstream)?, None);
            }
        }
    }
    let envoy = mesh.envoy("ratings")?;
    counter(envoy, "refused_trust_spiffe", 1).await?;
    counter(envoy, "downstream_peer_from_certificate", 1).await?;

    let reply = mesh.call("right", "quiet")?.send().await?;
    let outbound = lab.entry("right/outbound", &reply.call).await?;
    let peer = outbound.peer(Side::Upstream)?.cloned();
    assert_eq!(peer, Some(of_certificate("quiet")), "{outbound:?}");
    counter(mesh.envoy("right")?, "upstream_peer_from_certificate", 1).await?;
    Ok(())
}

/// The transport socket of a listener whose certificate is [`SERVER`].
fn listener(authority: &Authority, callers: Callers) -> Result<Value> {
    let identity = authority.certify(&[SERVER])?;
    Ok(tls::listener(
        &identity,
        callers,
        Some(&authority.validation()),
    ))
}

fn secured(callee: Workload, socket: &Value) -> Workload {
    callee.listener("inbound", |listener| {
        listener.transport_socket = Some(socket.clone());
    })
}
