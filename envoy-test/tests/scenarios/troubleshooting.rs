//! `docs/troubleshooting.md`: each test causes a symptom and runs the document's command, whose output must match the document.

use std::collections::BTreeMap;
use std::convert::identity;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use envoy_test::bootstrap::{FILTER, collector_log, filter_resource, lua_filter};
use envoy_test::client::{METADATA_OF_NAME_X, PEER_HEADERS, Protocol, has_peer_headers};
use envoy_test::{Direction, Envoy, FailurePolicy, Lab, Mesh, Node, Plugin, Side, Workload, until};
use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use mxctl::doctor::{self, gather};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::failure_policy::{kill, with_mortal_plugin};
use crate::{assert_no_peer, assert_peer, counter};

envoy_test::stories!(
    a_healthy_mesh_shows_no_cause,
    the_log_names_other_keys_only,
    a_gateways_node_id_does_not_say_so,
    the_collector_is_away,
    there_is_no_filter,
    the_vm_has_died_open,
    the_vm_has_died_closed,
    the_other_side_sends_nothing,
    istios_exchange_strips_before_ours,
    a_peer_is_not_trusted,
    a_peer_is_over_a_limit,
    a_message_has_no_room,
    a_header_limit_is_passed,
    a_node_has_no_metadata,
    a_callee_is_outside_the_mesh,
    an_entry_has_both_kinds_of_keys,
    an_entry_names_both_sides,
    an_entry_names_both_sides_by_a_discovered_plugin,
    a_listener_has_two_logs,
    a_listener_has_no_direction,
    a_discovered_listener_has_no_direction,
    a_listener_has_the_wrong_direction,
    a_bootstrap_leaves_the_filter_idle,
    a_discovered_configuration_leaves_the_filter_idle,
    a_discovered_module_is_missing,
    there_is_no_module,
    envoy_lacks_the_runtime,
);

const DOCUMENT: &str = include_str!("../../../docs/troubleshooting.md");

/// A block of the document: a command and all that it prints.
struct Quote {
    command: String,
    printed: String,
}

/// The document's blocks `console NAME`, by name.
fn quotes() -> BTreeMap<&'static str, Quote> {
    let blocks = DOCUMENT.split("```console ").skip(1);
    let quote = |block: &'static str| {
        let (name, block) = block.split_once("\n$ ")?;
        let (command, printed) = block.split_once("```")?.0.split_once('\n')?;
        let quote = Quote {
            command: command.to_owned(),
            printed: trimmed(printed),
        };
        Some((name, quote))
    };
    blocks.filter_map(quote).collect()
}

impl Quote {
    fn of(name: &str) -> Result<Self> {
        let quote = quotes().remove(name);
        quote.with_context(|| format!("docs/troubleshooting.md has no block {name}"))
    }

    /// The command's output for the proxy whose files are in `dir`.
    async fn run(&self, dir: &Path, admin: Option<SocketAddr>) -> Result<String> {
        let mut command = self.command.clone();
        if let Some(admin) = admin {
            command = command.replace("localhost:9901", &admin.to_string());
        }
        let mut shell = Command::new("sh");
        let output = shell.arg("-c").arg(&command).current_dir(dir).output();
        let output = output.await?;
        ensure!(
            output.stderr.is_empty(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(trimmed(str::from_utf8(&output.stdout)?))
    }

    /// Whether `output` matches the quote; `...` stands for any text.
    fn is(&self, output: &str) -> bool {
        let Some((first, others)) = self.printed.split_once("...") else {
            return self.printed == output;
        };
        let Some(mut rest) = output.strip_prefix(first) else {
            return false;
        };
        let mut parts: Vec<&str> = others.split("...").collect();
        let last = parts.pop().unwrap_or_default();
        for part in parts {
            match rest.split_once(part) {
                Some((_, behind)) => rest = behind,
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

/// The lines of `text`, without their indentation.
fn trimmed(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join("\n").trim().to_owned()
}

/// Asserts that the command of the block `name` prints for `envoy` what the
/// document quotes.
async fn shows(envoy: &Envoy, name: &str) -> Result<()> {
    prints(&Quote::of(name)?, envoy.dir(), Some(envoy.admin())).await
}

/// Asserts that the doctor finds this cause in `envoy`, among others.
async fn finds(envoy: &Envoy, code: &str) -> Result<()> {
    let mut codes = Vec::new();
    let found = until("the doctor's finding", async || {
        codes = findings(envoy).await?;
        Ok(codes.contains(&code).then_some(()))
    })
    .await;
    found.with_context(|| format!("no {code}: {codes:?}"))
}

async fn findings(envoy: &Envoy) -> Result<Vec<&'static str>> {
    let evidence = gather::of_admin(&envoy.admin_url()).await?;
    let findings = doctor::examine(&evidence, doctor::FILTER)?;
    Ok(findings.iter().map(|finding| finding.code.name()).collect())
}

/// The same for the only Envoy of the lab, which has failed to start.
async fn showed(lab: &Lab, name: &str) -> Result<()> {
    let dirs = lab.envoy_dirs();
    ensure!(dirs.len() == 1, "not one Envoy: {dirs:?}");
    prints(&Quote::of(name)?, &dirs[0], None).await
}

/// Counters are published and logs are flushed with a delay.
async fn prints(quote: &Quote, dir: &Path, admin: Option<SocketAddr>) -> Result<()> {
    let mut output = String::new();
    let shown = until("what is quoted", async || {
        output = quote.run(dir, admin).await?;
        Ok(quote.is(&output).then_some(()))
    })
    .await;
    shown.with_context(|| format!("{} printed:\n{output}", quote.command))
}

#[test]
fn every_quoted_output_has_a_story() {
    let quotes = quotes();
    assert_eq!(quotes.len(), DOCUMENT.matches("```console").count());
    for name in quotes.keys() {
        let called = format!("\"{name}\")");
        assert!(
            include_str!("troubleshooting.rs").contains(&called),
            "{name}"
        );
    }
}

#[test]
fn dots_match_any_text() {
    let quote = |printed: &str| Quote {
        command: String::new(),
        printed: printed.to_owned(),
    };
    assert!(quote("a ... c").is("a b c"));
    assert!(quote("...c").is("a b c"));
    assert!(!quote("a ... b").is("a b c"));
    assert!(!quote("b ... c").is("a b c"));
    assert!(!quote("a ... d ... c").is("a b c"));
    assert!(!quote("").is("a b c"));
}

/// This shows that each command distinguishes its cause.
async fn a_healthy_mesh_shows_no_cause(lab: &Lab) -> Result<()> {
    let (productpage, ratings) = pair()?;
    let mesh = lab.start([productpage, ratings]).await?;
    for (from, to) in [("productpage", "ratings"), ("ratings", "productpage")] {
        called(&mesh, from, to).await?;
    }
    for name in ["productpage", "ratings"] {
        let envoy = mesh.envoy(name)?;
        for stored in ["downstream_peer_stored", "upstream_peer_stored"] {
            counter(envoy, stored, 1).await?;
        }
        for (cause, quote) in quotes() {
            let output = quote.run(envoy.dir(), Some(envoy.admin())).await?;
            assert!(!quote.is(&output), "{cause} at {name}: {output}");
        }
        // The harness leaves these open, so that problems of the filter show.
        let found = findings(envoy).await?;
        assert_eq!(found, ["not_fail_open", "headers_not_removed"], "{name}");
    }
    Ok(())
}

/// As in Istio's default since 1.24.
async fn the_log_names_other_keys_only(lab: &Lab) -> Result<()> {
    let (productpage, ratings) = pair()?;
    let ratings = ratings.listener("inbound", |listener| {
        listener.logged_keys = vec!["upstream_peer", "downstream_peer"];
    });
    let ratings = ratings.listener("outbound", |listener| listener.logged_keys.clear());
    let mesh = lab.start([productpage, ratings]).await?;

    let call = called(&mesh, "productpage", "ratings").await?;

    let inbound = lab.entry("ratings/inbound", &call).await?;
    assert_eq!(inbound.keys().count(), 0);
    let ratings = mesh.envoy("ratings")?;
    assert_eq!(counter(ratings, "downstream_peer_stored", 1).await?, 1);
    shows(ratings, "other-keys").await?;
    finds(ratings, "keys_not_logged").await
}

async fn a_gateways_node_id_does_not_say_so(lab: &Lab) -> Result<()> {
    let mut node = Node::gateway()?;
    "egress-v1".clone_into(&mut node.id);
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?).listener(
                "outbound",
                |listener| {
                    listener.via = vec![("ratings".to_owned(), "egress".to_owned())];
                },
            ),
            Workload::gateway("egress", node),
            Workload::sidecar("ratings", Node::vm_server()?),
        ])
        .await?;

    let call = called(&mesh, "productpage", "ratings").await?;

    let passed_on = lab.entry("egress/gateway", &call).await?;
    assert_eq!(passed_on.reporter.id, "egress-v1");
    assert_peer(&passed_on, Side::Downstream, &Node::pod_client()?)?;
    shows(mesh.envoy("egress")?, "node-id").await
}

async fn the_collector_is_away(lab: &Lab) -> Result<()> {
    let (productpage, ratings) = pair()?;
    let mesh = lab.start([productpage, ratings]).await?;
    lab.collector().go_away().await?;
    called(&mesh, "productpage", "ratings").await?;
    shows(mesh.envoy("ratings")?, "collector-away").await?;
    finds(mesh.envoy("ratings")?, "collector_unreachable").await
}

async fn there_is_no_filter(lab: &Lab) -> Result<()> {
    let envoy = lab
        .start_envoy(&json!({
            "admin": {
                "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
            },
        }))
        .await?;
    shows(&envoy, "no-filter").await?;
    finds(&envoy, "filter_missing").await
}

async fn the_vm_has_died_open(lab: &Lab) -> Result<()> {
    let mesh = with_mortal_plugin(lab, FailurePolicy::Open, json!({})).await?;
    kill(&mesh).await?;
    let [metadata, _] = PEER_HEADERS;
    let call = mesh.call("outsider", "ratings")?;
    let reply = call.header(metadata, METADATA_OF_NAME_X)?.send().await?;
    let received = mesh.app("ratings")?.received(&reply.call);
    assert!(
        received
            .iter()
            .any(|request| has_peer_headers(&request.headers))
    );
    shows(mesh.envoy("ratings")?, "vm-died").await
}

async fn the_vm_has_died_closed(lab: &Lab) -> Result<()> {
    let mesh = with_mortal_plugin(lab, FailurePolicy::Closed, json!({})).await?;
    kill(&mesh).await?;
    let reply = mesh.call("outsider", "ratings")?.send().await?;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_eq!(inbound.details, "wasm_fail_stream");
    shows(mesh.envoy("ratings")?, "vm-died").await
}

async fn the_other_side_sends_nothing(lab: &Lab) -> Result<()> {
    let (_, ratings) = pair()?;
    let mesh = lab.start([Workload::bare("legacy"), ratings]).await?;

    let call = called(&mesh, "legacy", "ratings").await?;

    let inbound = lab.entry("ratings/inbound", &call).await?;
    assert_no_peer(&inbound, Side::Downstream)?;
    shows(mesh.envoy("ratings")?, "nothing-received").await
}

/// A Lua filter stands in for Istio's.
async fn istios_exchange_strips_before_ours(lab: &Lab) -> Result<()> {
    let [metadata, id] = PEER_HEADERS;
    let mut native = lua_filter(&format!(
        "function envoy_on_request(request)
           request:headers():remove('{metadata}')
           request:headers():remove('{id}')
         end"
    ));
    native["name"] = "istio.metadata_exchange".into();
    let (productpage, ratings) = pair()?;
    let ratings = ratings.listener("inbound", |listener| listener.before.push(native.clone()));
    let mesh = lab.start([productpage, ratings]).await?;

    let call = called(&mesh, "productpage", "ratings").await?;

    let inbound = lab.entry("ratings/inbound", &call).await?;
    assert_no_peer(&inbound, Side::Downstream)?;
    shows(mesh.envoy("ratings")?, "native-first").await?;
    finds(mesh.envoy("ratings")?, "native_exchange").await
}

async fn a_peer_is_not_trusted(lab: &Lab) -> Result<()> {
    let inbound = refused(lab, &json!({ "trust": "mtls" })).await?;
    shows(inbound.envoy("ratings")?, "not-trusted").await?;
    finds(inbound.envoy("ratings")?, "peers_refused").await
}

async fn a_peer_is_over_a_limit(lab: &Lab) -> Result<()> {
    let inbound = refused(lab, &json!({ "max_received_bytes": 512 })).await?;
    shows(inbound.envoy("ratings")?, "over-limit").await?;
    finds(inbound.envoy("ratings")?, "peers_refused").await
}

/// A mesh whose callee has refused a caller because of its `configuration`.
async fn refused(lab: &Lab, configuration: &Value) -> Result<Mesh> {
    let (productpage, ratings) = pair()?;
    let ratings = ratings.configured(configuration);
    let mesh = lab.start([productpage, ratings]).await?;
    let call = called(&mesh, "productpage", "ratings").await?;
    let inbound = lab.entry("ratings/inbound", &call).await?;
    assert_eq!(inbound.peer(Side::Downstream)?, None);
    Ok(mesh)
}

async fn a_message_has_no_room(lab: &Lab) -> Result<()> {
    let (productpage, ratings) = pair()?;
    let mesh = lab.start([productpage, ratings]).await?;

    let call = mesh.call("productpage", "ratings")?;
    let reply = call.headers(headers(90)).send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_no_peer(&inbound, Side::Downstream)?;
    shows(mesh.envoy("productpage")?, "too-large-to-send").await?;
    finds(mesh.envoy("productpage")?, "header_limit").await
}

/// The filter is configured with higher limits than the path has.
async fn a_header_limit_is_passed(lab: &Lab) -> Result<()> {
    let (productpage, ratings) = pair()?;
    let productpage = productpage.configured(&json!({ "max_request_headers_count": 1000 }));
    let mesh = lab.start([productpage, ratings]).await?;

    // HTTP/2 has four pseudo-headers, of which HTTP/1.1 counts one, as `host`.
    for (protocol, count, status) in [(Protocol::Http1, 94, 431), (Protocol::Http2, 92, 503)] {
        let call = mesh.call("productpage", "ratings")?.protocol(protocol);
        let reply = call.headers(headers(count)).send().await?;
        assert_eq!(reply.status.as_u16(), status);
    }

    shows(mesh.envoy("ratings")?, "header-limit").await?;
    finds(mesh.envoy("ratings")?, "header_limit").await
}

/// This number of headers, close to a proxy's default limit.
fn headers(count: usize) -> HeaderMap {
    let name = |number: usize| HeaderName::try_from(format!("x-{number}"));
    let headers = (0..count).filter_map(|number| Some((name(number).ok()?, HeaderValue::from(1))));
    headers.collect()
}

async fn a_node_has_no_metadata(lab: &Lab) -> Result<()> {
    let (_, ratings) = pair()?;
    let mut node = Node::pod_client()?;
    node.metadata = json!({});
    let productpage = Workload::sidecar("productpage", node);
    let mesh = lab.start([productpage, ratings]).await?;

    let call = called(&mesh, "productpage", "ratings").await?;

    let inbound = lab.entry("ratings/inbound", &call).await?;
    assert_no_peer(&inbound, Side::Downstream)?;
    shows(mesh.envoy("ratings")?, "nothing-received").await?;
    shows(mesh.envoy("productpage")?, "no-metadata").await?;
    finds(mesh.envoy("productpage")?, "nameless_node").await
}

async fn a_callee_is_outside_the_mesh(lab: &Lab) -> Result<()> {
    let (productpage, ratings) = pair()?;
    let outside = json!({ "metadata": { "filter_metadata": { "istio": { "external": true } } } });
    let productpage = productpage.cluster("ratings", outside);
    let mesh = lab.start([productpage, ratings]).await?;

    let call = called(&mesh, "productpage", "ratings").await?;

    let outbound = lab.entry("productpage/outbound", &call).await?;
    assert_no_peer(&outbound, Side::Upstream)?;
    shows(mesh.envoy("productpage")?, "outside").await
}

/// Envoy's own filter stands in for Istio's, which writes the other kind.
async fn an_entry_has_both_kinds_of_keys(lab: &Lab) -> Result<()> {
    let native = json!({
        "name": "istio.metadata_exchange",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config",
            "on_request_headers": [{
                "object_key": "upstream_peer",
                "factory_key": "envoy.string",
                "format_string": { "text_format_source": { "inline_string": "native" } },
            }],
        },
    });
    let (productpage, ratings) = pair()?;
    let productpage = productpage.listener("outbound", |listener| {
        listener.before.push(native.clone());
        listener.logged_keys.push("upstream_peer");
    });
    let mesh = lab.start([productpage, ratings]).await?;

    let call = called(&mesh, "productpage", "ratings").await?;

    let outbound = lab.entry("productpage/outbound", &call).await?;
    let keys: Vec<&str> = outbound.keys().map(|(key, _)| key).collect();
    assert_eq!(
        keys,
        [
            "upstream_peer",
            "wasm.upstream_peer",
            "wasm.upstream_peer_id"
        ]
    );
    shows(mesh.envoy("productpage")?, "both-kinds").await?;
    finds(mesh.envoy("productpage")?, "both_keys_logged").await
}

async fn an_entry_names_both_sides(lab: &Lab) -> Result<()> {
    let (productpage, ratings) = pair()?;
    let recording = json!({ "record_local_node": true });
    let ratings = ratings.configured(&recording);
    let mesh = lab.start([productpage, ratings]).await?;

    let call = called(&mesh, "productpage", "ratings").await?;

    let inbound = lab.entry("ratings/inbound", &call).await?;
    assert_peer(&inbound, Side::Downstream, &Node::pod_client()?)?;
    assert_peer(&inbound, Side::Upstream, &Node::vm_server()?)?;
    shows(mesh.envoy("ratings")?, "both-sides").await?;
    finds(mesh.envoy("ratings")?, "local_node_logged").await
}

/// Istio's plugins are all discovered.
async fn an_entry_names_both_sides_by_a_discovered_plugin(lab: &Lab) -> Result<()> {
    let (_, ratings) = pair()?;
    let ratings = ratings.listener("inbound", |listener| {
        listener.plugin.configuration = json!({ "record_local_node": true });
        listener.plugin.watched = true;
    });
    let mesh = lab.start([ratings]).await?;
    let mut quote = Quote::of("both-sides")?;
    quote.command = quote.command.replace("static_listeners", "ecds_filters");
    // One listener has it, not two.
    quote.printed = quote.printed.replace("\n...", "");
    let ratings = mesh.envoy("ratings")?;
    prints(&quote, ratings.dir(), Some(ratings.admin())).await
}

async fn a_listener_has_two_logs(lab: &Lab) -> Result<()> {
    let (productpage, ratings) = pair()?;
    let ratings = ratings.listener("inbound", |listener| {
        let again = collector_log("ratings/inbound", 0, &listener.logged_keys);
        listener.access_logs.push(again);
    });
    let mesh = lab.start([productpage, ratings]).await?;

    let call = called(&mesh, "productpage", "ratings").await?;

    let entries = lab.entries("ratings/inbound", &call, 2).await?;
    assert_eq!(entries.len(), 2);
    shows(mesh.envoy("ratings")?, "two-logs").await?;
    finds(mesh.envoy("ratings")?, "logged_twice").await
}

async fn a_listener_has_no_direction(lab: &Lab) -> Result<()> {
    let mesh = directed(lab, None, identity).await?;
    shows(mesh.envoy("ratings")?, "no-direction").await?;
    finds(mesh.envoy("ratings")?, "no_direction").await
}

async fn a_listener_has_the_wrong_direction(lab: &Lab) -> Result<()> {
    let mesh = directed(lab, Some(Direction::Outbound), identity).await?;
    shows(mesh.envoy("ratings")?, "wrong-direction").await?;
    finds(mesh.envoy("ratings")?, "wrong_direction").await
}

/// The commands also work if a control plane sends the listeners.
async fn a_discovered_listener_has_no_direction(lab: &Lab) -> Result<()> {
    let mesh = directed(lab, None, Workload::watching_listeners).await?;
    let mut quote = Quote::of("no-direction")?;
    quote.command = quote
        .command
        .replace("static_listeners", "dynamic_listeners");
    let ratings = mesh.envoy("ratings")?;
    prints(&quote, ratings.dir(), Some(ratings.admin())).await
}

/// A mesh whose callee has an inbound listener with this direction and a
/// change. Its app sees headers.
async fn directed(
    lab: &Lab,
    direction: Option<Direction>,
    change: impl Fn(Workload) -> Workload,
) -> Result<Mesh> {
    let (productpage, ratings) = pair()?;
    let ratings = change(ratings).listener("inbound", |listener| listener.direction = direction);
    let mesh = lab.start([productpage, ratings]).await?;

    let call = called(&mesh, "productpage", "ratings").await?;

    let inbound = lab.entry("ratings/inbound", &call).await?;
    // As an outbound listener, it does not read the caller; without a direction, it believes only a caller with a
    // certificate.
    assert_eq!(inbound.peer(Side::Downstream)?, None);
    let refused = usize::from(direction.is_none());
    let envoy = mesh.envoy("ratings")?;
    assert_eq!(
        counter(envoy, "refused_no_direction", refused).await?,
        refused
    );
    let received = mesh.app("ratings")?.received(&call);
    assert!(
        received
            .iter()
            .all(|request| has_peer_headers(&request.headers))
    );
    Ok(mesh)
}

async fn a_bootstrap_leaves_the_filter_idle(lab: &Lab) -> Result<()> {
    let (_, ratings) = pair()?;
    let ratings = ratings.configured(&json!({ "trsut": "mtls" }));
    let mesh = lab.start([ratings]).await?;
    shows(mesh.envoy("ratings")?, "configuration-refused").await?;
    shows(mesh.envoy("ratings")?, "configuration-idle").await?;
    finds(mesh.envoy("ratings")?, "filter_idle").await
}

async fn a_discovered_configuration_leaves_the_filter_idle(lab: &Lab) -> Result<()> {
    let refused = Plugin {
        configuration: json!({ "trsut": "mtls" }),
        ..discovered()
    };
    let (productpage, ratings) = pair()?;
    let ratings = ratings.listener("inbound", |listener| listener.plugin = refused.clone());
    let mesh = lab.start([productpage, ratings]).await?;
    let call = called(&mesh, "productpage", "ratings").await?;
    let inbound = lab.entry("ratings/inbound", &call).await?;
    assert_no_peer(&inbound, Side::Downstream)?;
    shows(mesh.envoy("ratings")?, "configuration-refused").await?;
    shows(mesh.envoy("ratings")?, "configuration-idle").await?;
    finds(mesh.envoy("ratings")?, "filter_idle").await
}

async fn a_discovered_module_is_missing(lab: &Lab) -> Result<()> {
    let refused = Plugin {
        module: Some(PathBuf::from(MISSING)),
        ..discovered()
    };
    let mesh = with_refused(lab, refused).await?;
    shows(mesh.envoy("ratings")?, "no-module").await
}

fn discovered() -> Plugin {
    Plugin {
        watched: true,
        failure_policy: FailurePolicy::Open,
        ..Plugin::default()
    }
}

/// A mesh whose callee has refused the first discovered `plugin`.
async fn with_refused(lab: &Lab, plugin: Plugin) -> Result<Mesh> {
    let (productpage, ratings) = pair()?;
    let ratings = ratings.listener("inbound", |listener| listener.plugin = plugin.clone());
    let mesh = lab.start([productpage, ratings]).await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;

    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    let ratings = mesh.envoy("ratings")?;
    shows(ratings, "update-rejected").await?;
    finds(ratings, "configuration_refused").await?;
    Ok(mesh)
}

/// A path without a module.
const MISSING: &str = "/etc/envoy/missing.wasm";

async fn there_is_no_module(lab: &Lab) -> Result<()> {
    let (_, ratings) = pair()?;
    let ratings = ratings.listener("inbound", |listener| {
        listener.plugin.module = Some(PathBuf::from(MISSING));
    });
    lab.start([ratings]).await.err().context("Envoy started")?;
    showed(lab, "no-module").await
}

/// The harness's Envoys lack Wasmtime.
async fn envoy_lacks_the_runtime(lab: &Lab) -> Result<()> {
    let mut resource = filter_resource(&Plugin::default(), lab.module());
    let mut config = resource["resources"][0]["typed_config"].take();
    config["config"]["vm_config"]["runtime"] = "envoy.wasm.runtime.wasmtime".into();
    let filter = json!({ "name": FILTER, "typed_config": config });
    let (_, ratings) = pair()?;
    let ratings = ratings.listener("inbound", |listener| listener.before.push(filter.clone()));
    lab.start([ratings]).await.err().context("Envoy started")?;
    showed(lab, "no-runtime").await
}

/// Two workloads that know each other after a call.
fn pair() -> Result<(Workload, Workload)> {
    Ok((
        Workload::sidecar("productpage", Node::pod_client()?),
        Workload::sidecar("ratings", Node::vm_server()?),
    ))
}

/// Makes a call, which must be answered.
async fn called(mesh: &Mesh, from: &str, to: &str) -> Result<String> {
    let reply = mesh.call(from, to)?.send().await?;
    assert_eq!(reply.status, StatusCode::OK);
    Ok(reply.call)
}
