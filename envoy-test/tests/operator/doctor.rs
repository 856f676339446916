//! `mxctl doctor` with real Envoys that have one problem each.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use envoy_test::bootstrap::{FILTER, lua_filter, pass_through, text_log};
use envoy_test::client::PEER_HEADERS;
use envoy_test::{FailurePolicy, Lab, Listener, Mesh, Node, Plugin, Workload, until};
use serde_json::{Value, json};

use crate::tool::{Done, run};

envoy_test::stories!(
    nothing_is_wrong,
    an_answer_ends_with_its_connection,
    a_filter_is_missing,
    a_filter_is_disabled,
    a_listener_has_no_direction,
    filters_stand_in_the_wrong_order,
    keys_are_not_logged,
    keys_of_one_side_are_not_logged,
    the_native_exchange_is_on_too,
    an_observer_in_the_wrong_position_is_found,
    a_node_has_no_metadata,
    peers_are_refused,
    a_configuration_is_refused,
    a_first_configuration_is_refused,
    a_discovered_module_is_missing,
    configurations_come_as_text_or_bytes,
    a_vm_died,
    a_vm_died_for_good,
    another_module_runs,
    the_admin_is_at_a_unix_socket,
    a_refused_listener_leaves_no_json,
    a_bootstrap_is_read_from_a_file,
    the_collector_is_away,
    the_collector_is_not_spoken_to_in_http2,
);

const NATIVE: &str = "istio.metadata_exchange";

/// A stand-in for Istio's own exchange, which only Istio's Envoy has, with its name.
fn native() -> Value {
    named(NATIVE)
}

fn named(name: &str) -> Value {
    let mut filter = lua_filter("function envoy_on_request(handle) end");
    filter["name"] = name.into();
    filter
}

/// A correct sidecar.
fn sidecar() -> Result<Workload> {
    Ok(sound(Workload::sidecar("ratings", Node::pod_server()?)))
}

fn sound(workload: Workload) -> Workload {
    let headers = json!({
        "request_headers_to_remove": PEER_HEADERS,
        "response_headers_to_remove": PEER_HEADERS,
    });
    ["inbound", "outbound"]
        .into_iter()
        .fold(workload, |workload, name| {
            workload.listener(name, |listener| {
                listener.plugin.failure_policy = FailurePolicy::Open;
                if name == "inbound" {
                    listener.virtual_host = headers.clone();
                }
            })
        })
}

/// Starts the workload, and one without a proxy that can call it.
async fn start(lab: &Lab, workload: Workload) -> Result<Mesh> {
    lab.start([Workload::bare("outsider"), workload]).await
}

fn doctor(mesh: &Mesh) -> Result<Done> {
    run(
        &["doctor", "--json", &mesh.envoy("ratings")?.admin_url()],
        b"",
    )
}

/// Each finding as `code place`.
fn findings(done: &Done) -> Result<Vec<String>> {
    let reports = done.json()?;
    let findings = reports[0]["findings"].as_array().context("no findings")?;
    let line = |finding: &Value| {
        let text = |key: &str| finding[key].as_str().context("no text");
        ensure!(
            !text("message")?.is_empty() && !text("remedy")?.is_empty(),
            "{finding}"
        );
        Ok(format!("{} {}", text("code")?, text("place")?))
    };
    findings.iter().map(line).collect()
}

/// Asserts that the doctor finds exactly `expected`.
fn assert_found(mesh: &Mesh, expected: &[&str]) -> Result<()> {
    let done = doctor(mesh)?;
    assert_eq!(findings(&done)?, expected, "{done:?}");
    let found = done.json()?[0]["findings"].take();
    let mut found = found.as_array().into_iter().flatten();
    let status = i32::from(found.any(|finding| finding["severity"] == "error"));
    assert_eq!(done.status.code(), Some(status), "{done:?}");
    Ok(())
}

/// Asserts that the doctor finds exactly `expected` in an otherwise correct workload.
async fn assert_finds(
    lab: &Lab,
    listener: &str,
    change: impl Fn(&mut Listener),
    expected: &[&str],
) -> Result<()> {
    let mesh = start(lab, sidecar()?.listener(listener, change)).await?;
    assert_found(&mesh, expected)
}

async fn nothing_is_wrong(lab: &Lab) -> Result<()> {
    let mesh = start(lab, sidecar()?).await?;
    mesh.call("outsider", "ratings")?.send().await?;
    assert_found(&mesh, &[])?;
    let url = mesh.envoy("ratings")?.admin_url();
    let address = url.trim_start_matches("http://");
    let done = run(&["doctor", address], b"")?;
    assert_eq!(done.stdout, format!("{address}: nothing is wrong\n"));

    // An unreachable Envoy does not hide the others.
    let done = run(&["doctor", "--json", "https://nowhere", address], b"")?;
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    let reports = done.json()?;
    assert!(reports[0]["error"].is_string(), "{reports}");
    assert_eq!(reports[1]["findings"], json!([]));
    Ok(())
}

/// Answers each request with the JSON that `answer` returns for its path and closes the connection,
/// until `answer` returns none.
fn closing(answer: impl Fn(&str) -> Option<String> + Send + 'static) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || -> Result<()> {
        loop {
            let (stream, _) = listener.accept()?;
            let mut lines = BufReader::new(&stream).lines();
            let first = lines.next().context("no request")??;
            for line in lines {
                if line?.is_empty() {
                    break;
                }
            }
            let path = first.split(' ').nth(1).context("no path")?;
            let Some(json) = answer(path) else {
                return Ok(());
            };
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
            (&stream).write_all(format!("{head}{json}").as_bytes())?;
        }
    });
    Ok(address)
}

/// As behind a proxy that does not keep connections open.
async fn an_answer_ends_with_its_connection(lab: &Lab) -> Result<()> {
    let mesh = start(lab, sidecar()?).await?;
    let admin = mesh.envoy("ratings")?.admin_url();
    let mut answers = BTreeMap::new();
    for path in [
        "/config_dump",
        "/stats?format=json",
        "/server_info",
        "/clusters?format=json",
    ] {
        answers.insert(path, mxctl::admin::get(&admin, path).await?.to_string());
    }
    let address = closing(move |path| answers.get(path).cloned())?.to_string();
    let done = run(&["doctor", &address], b"")?;
    assert_eq!(done.stdout, format!("{address}: nothing is wrong\n"));
    let done = run(&["encode", "--admin", &address], b"")?;
    assert!(done.stdout.contains("x-envoy-peer-metadata: "), "{done:?}");
    Ok(())
}

#[test]
fn only_an_envoy_is_examined() -> Result<()> {
    for json in [r#"{"status":"ok"}"#, "[]", "null"] {
        let address = closing(move |_| Some(json.to_owned()))?.to_string();
        let done = run(&["doctor", "--json", &address], b"")?;
        assert_eq!(done.status.code(), Some(2), "{done:?}");
        let error = &done.json()?[0]["error"];
        let error = error.as_str().context("no error")?;
        assert!(
            error.contains("not the config_dump or bootstrap") || error.contains("not an Envoy"),
            "{error}"
        );
    }
    Ok(())
}

async fn a_filter_is_missing(lab: &Lab) -> Result<()> {
    // Another Wasm filter does not count.
    let other = |listener: &mut Listener| {
        "other".clone_into(&mut listener.plugin.filter);
        "other".clone_into(&mut listener.plugin.name);
    };
    assert_finds(lab, "inbound", other, &["filter_missing inbound"]).await?;
    let mesh = start(lab, sidecar()?.listener("outbound", other)).await?;
    let url = mesh.envoy("ratings")?.admin_url();
    let done = run(&["doctor", &url, "--filter", "other", "--json"], b"")?;
    assert_eq!(findings(&done)?, ["filter_missing inbound"]);

    let plugin = |listener: &mut Listener| {
        "extensions.istio.io/wasmplugin/shop.my-plugin".clone_into(&mut listener.plugin.filter);
        "shop.my-plugin".clone_into(&mut listener.plugin.name);
    };
    let workload = sidecar()?.listener("inbound", plugin);
    let mesh = start(lab, workload.listener("outbound", plugin)).await?;
    assert_found(
        &mesh,
        &["filter_missing inbound", "filter_missing outbound"],
    )?;
    let url = mesh.envoy("ratings")?.admin_url();
    for name in ["my-plugin", "my_plugin"] {
        let done = run(&["doctor", "--json", &url, "--filter", name], b"")?;
        assert_eq!(findings(&done)?, [""; 0], "{name}");
    }
    Ok(())
}

async fn a_filter_is_disabled(lab: &Lab) -> Result<()> {
    let mesh = start(lab, sidecar()?.watching_listeners()).await?;
    let found = async |change: &dyn Fn(&mut Value), expected: &[&str]| {
        mesh.change_listeners("ratings", |listener| {
            if listener["name"] == "inbound" {
                change(manager(listener));
            }
        })
        .await?;
        until(&format!("{expected:?}"), async || {
            let mut found = findings(&doctor(&mesh)?)?;
            found.retain(|finding| !finding.ends_with(ERRORS));
            Ok((found == expected).then_some(()))
        })
        .await
    };
    let missing = ["filter_missing inbound"];
    let disable = |manager: &mut Value| manager["http_filters"][0]["disabled"] = true.into();
    found(&disable, &missing).await?;
    let [metadata, id] = PEER_HEADERS;
    let call = async || {
        let call = mesh
            .call("outsider", "ratings")?
            .header(metadata, "no base64!")?;
        anyhow::Ok(call.header(id, "any")?.send().await?)
    };
    call().await?;
    let done = doctor(&mesh)?;
    assert!(done.stdout.contains("no route enables it"), "{done:?}");
    // The filter would have refused it.
    assert_eq!(findings(&done)?, missing);

    let enabled = json!({ "metadata_exchange": {
        "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
        "config": {},
    } });
    found(
        &|manager| manager["route_config"]["typed_per_filter_config"] = enabled.clone(),
        &[],
    )
    .await?;
    call().await?;
    let refused = "wasmcustom.metadata_exchange.refused_base64";
    mesh.envoy("ratings")?.counts(refused, 1).await?;
    let refused = format!("peers_refused {refused}");
    assert_found(&mesh, &[&refused])?;

    // One of two routes enables it.
    found(
        &|manager| {
            let routes = &mut manager["route_config"];
            routes["typed_per_filter_config"] = json!({});
            let routes = &mut routes["virtual_hosts"][0]["routes"];
            let mut first = routes[0].clone();
            first["match"] = json!({ "prefix": "/some" });
            first["typed_per_filter_config"] = enabled.clone();
            *routes = json!([first, routes[0]]);
        },
        &["filter_missing inbound", &refused],
    )
    .await?;
    assert_eq!(first_severity(&mesh)?, "warning");

    // A disabled filter does not matter.
    found(
        &|manager| {
            let mut other = named("other");
            other["disabled"] = true.into();
            let mut ours = manager["http_filters"][0].clone();
            ours["disabled"] = false.into();
            manager["http_filters"] = json!([other, ours, manager["http_filters"][1]]);
        },
        &[&refused],
    )
    .await
}

/// Configures the plugin of this listener, which then needs its own name.
fn configure_alone(listener: &mut Listener, configuration: Value) {
    "of_one_listener".clone_into(&mut listener.plugin.name);
    listener.plugin.configuration = configuration;
}

async fn a_listener_has_no_direction(lab: &Lab) -> Result<()> {
    let without = |listener: &mut Listener| listener.direction = None;
    assert_finds(lab, "inbound", without, &["no_direction inbound"]).await?;
    let configured = |listener: &mut Listener| {
        listener.direction = None;
        configure_alone(listener, json!({ "direction": "gateway" }));
    };
    let role = ["node_id_role node"];
    assert_finds(lab, "outbound", configured, &role).await
}

async fn filters_stand_in_the_wrong_order(lab: &Lab) -> Result<()> {
    let ahead = |listener: &mut Listener| listener.before.push(named("other"));
    assert_finds(lab, "inbound", ahead, &["wrong_order inbound"]).await?;
    assert_finds(lab, "outbound", ahead, &[]).await?;
    let behind = |listener: &mut Listener| listener.behind.push(named("other"));
    assert_finds(lab, "inbound", behind, &[]).await?;
    assert_finds(lab, "outbound", behind, &["wrong_order outbound"]).await
}

/// A gRPC log that names these keys.
fn grpc_log(keys: &[&str]) -> Value {
    json!({
        "name": "envoy.access_loggers.http_grpc",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            "common_config": {
                "log_name": "any",
                "transport_api_version": "V3",
                "grpc_service": { "envoy_grpc": { "cluster_name": "app" } },
                "filter_state_objects_to_log": keys,
            },
        },
    })
}

async fn keys_are_not_logged(lab: &Lab) -> Result<()> {
    let mesh = start(lab, sidecar()?.watching_listeners()).await?;
    // Each step changes the findings, so that no step passes with the previous ones.
    let log = async |listener: &str, logs: &[&Value], expected: &str| {
        mesh.change_listeners("ratings", |json| {
            if json["name"] == listener {
                manager(json)["access_log"] = json!(logs);
            }
        })
        .await?;
        until(&format!("{expected:?} of {logs:?}"), async || {
            let done = doctor(&mesh)?;
            let findings = done.json()?[0]["findings"].clone();
            let is_it = match findings.as_array().context("no findings")?.as_slice() {
                [] => expected == SOUND,
                [finding] => {
                    let text = |key: &str| finding[key].as_str().unwrap_or_default();
                    let what = text("message").split(':').next().unwrap_or_default();
                    text("code") == "keys_not_logged"
                        && text("place") == listener
                        && format!("{}: {what}", text("severity")) == expected
                }
                _ => false,
            };
            Ok(is_it.then_some(()))
        })
        .await
    };
    let text = |format: &str| text_log(Path::new("/dev/null"), format);
    let of_caller = text("%FILTER_STATE(wasm.downstream_peer_id:PLAIN)%");
    let of_callee = text("%CEL(filter_state['wasm.upstream_peer'].workload_name)%");
    let status = text("%RESPONSE_CODE%");
    let [down, down_id] = ["wasm.downstream_peer", "wasm.downstream_peer_id"];
    let [up, up_id] = ["wasm.upstream_peer", "wasm.upstream_peer_id"];
    let no_keys = grpc_log(&[]);

    let none = "error: no access log names wasm.downstream_peer";
    log("inbound", &[], none).await?;
    log("inbound", &[&of_caller], SOUND).await?;
    log("inbound", &[&status, &of_callee], none).await?;
    // SkyWalking does not read the text log.
    let lacks =
        "error: the gRPC access log does not name wasm.downstream_peer, wasm.downstream_peer_id";
    log("inbound", &[&no_keys, &of_caller], lacks).await?;
    log("inbound", &[&no_keys, &grpc_log(&[down, down_id])], SOUND).await?;
    log("inbound", &[&grpc_log(&[up, up_id])], lacks).await?;
    let no_id = "warning: the gRPC access log does not name wasm.downstream_peer_id";
    log("inbound", &[&grpc_log(&[down, up])], no_id).await?;
    let lacks = "error: the gRPC access log does not name wasm.downstream_peer";
    log("inbound", &[&grpc_log(&[down_id])], lacks).await?;
    log("inbound", &[&grpc_log(&[down, down_id])], SOUND).await?;

    let none = "error: no access log names wasm.upstream_peer";
    log("outbound", &[&status, &of_caller], none).await?;
    log("outbound", &[&of_callee], SOUND).await?;
    let no_id = "warning: the gRPC access log does not name wasm.upstream_peer_id";
    log("outbound", &[&no_keys, &grpc_log(&[up])], no_id).await?;
    log("outbound", &[&grpc_log(&[up, up_id])], SOUND).await
}

/// What the doctor reports for a correct Envoy.
const SOUND: &str = "nothing";

/// On a gateway, the filter stores peers of both sides.
async fn keys_of_one_side_are_not_logged(lab: &Lab) -> Result<()> {
    let [down, down_id] = ["wasm.downstream_peer", "wasm.downstream_peer_id"];
    let one_side = |listener: &mut Listener| {
        listener.logged_keys = vec![down, down_id];
        configure_alone(listener, json!({ "direction": "gateway" }));
    };
    let found = ["keys_not_logged outbound", "node_id_role node"];
    assert_finds(lab, "outbound", one_side, &found).await
}

fn manager(listener: &mut Value) -> &mut Value {
    &mut listener["filter_chains"][0]["filters"][0]["typed_config"]
}

async fn the_native_exchange_is_on_too(lab: &Lab) -> Result<()> {
    let ahead = |listener: &mut Listener| listener.before.push(native());
    assert_finds(lab, "inbound", ahead, &["native_exchange inbound"]).await?;
    let behind = |listener: &mut Listener| listener.behind.push(native());
    assert_finds(lab, "outbound", behind, &["native_exchange outbound"]).await
}

async fn an_observer_in_the_wrong_position_is_found(lab: &Lab) -> Result<()> {
    let observing = || anyhow::Ok(sidecar()?.configured(&json!({ "mode": "observe" })));
    let ahead = |listener: &mut Listener| listener.before.push(native());
    let behind = |listener: &mut Listener| listener.behind.push(native());
    for (workload, expected) in [
        (
            observing()?
                .listener("inbound", behind)
                .listener("outbound", ahead),
            vec![],
        ),
        (
            observing()?
                .listener("inbound", ahead)
                .listener("outbound", behind),
            vec!["wrong_order inbound", "wrong_order outbound"],
        ),
        (
            observing()?.listener("inbound", behind),
            vec!["nothing_to_observe outbound"],
        ),
    ] {
        assert_found(&start(lab, workload).await?, &expected)?;
    }
    Ok(())
}

async fn a_node_has_no_metadata(lab: &Lab) -> Result<()> {
    let node = Node {
        id: "\u{1b}[2J".to_owned(),
        metadata: json!({ "NAME": "ratings" }),
    };
    let mesh = start(lab, sound(Workload::sidecar("ratings", node))).await?;
    assert_found(&mesh, &["no_node_metadata node"])?;
    let done = run(&["doctor", &mesh.envoy("ratings")?.admin_url()], b"")?;
    assert!(
        done.stdout
            .contains("node.metadata has no NAMESPACE, LABELS"),
        "{done:?}"
    );
    assert!(done.stdout.contains("remedy: "), "{done:?}");
    Ok(())
}

async fn peers_are_refused(lab: &Lab) -> Result<()> {
    let mesh = start(lab, sidecar()?).await?;
    let [metadata, _] = PEER_HEADERS;
    let call = mesh.call("outsider", "ratings")?;
    call.header(metadata, "no base64!")?.send().await?;
    let refused = "wasmcustom.metadata_exchange.refused_base64";
    mesh.envoy("ratings")?.counts(refused, 1).await?;
    assert_found(&mesh, &[&format!("peers_refused {refused}")])
}

fn watched(configuration: Value) -> Plugin {
    Plugin {
        name: "watched".to_owned(),
        failure_policy: FailurePolicy::Open,
        configuration,
        watched: true,
        ..Plugin::default()
    }
}

const ERRORS: &str = "wasmcustom.metadata_exchange.configuration_errors";
const REFUSED: &str = "extension_config_discovery.http_filter.metadata_exchange.update_rejected";

async fn a_configuration_is_refused(lab: &Lab) -> Result<()> {
    let put = |listener: &mut Listener| listener.plugin = watched(json!({}));
    let mesh = start(lab, sidecar()?.listener("inbound", put)).await?;
    assert_found(&mesh, &[])?;
    // A configuration that has served is in force, so the next one is an update.
    mesh.call("outsider", "ratings")?.send().await?;
    mesh.reconfigure("ratings", &watched(json!({ "mode": "x" })))
        .await?;
    mesh.envoy("ratings")?.counts(REFUSED, 1).await?;
    mesh.envoy("ratings")?.counts(ERRORS, 1).await?;
    let refused = "configuration_refused metadata_exchange";
    let counted = format!("configuration_refused {ERRORS}");
    assert_found(&mesh, &[refused, &counted])?;
    assert_eq!(first_severity(&mesh)?, "error");

    // A corrected problem is still reported, because Envoy's counter keeps its value.
    mesh.reconfigure("ratings", &watched(json!({ "accept_own": true })))
        .await?;
    until("the corrected configuration", async || {
        Ok((first_severity(&mesh)? == "warning").then_some(()))
    })
    .await?;
    assert_found(&mesh, &[&counted, refused])
}

fn first_severity(mesh: &Mesh) -> Result<Value> {
    Ok(doctor(mesh)?.json()?[0]["findings"][0]["severity"].clone())
}

/// An invalid first configuration leaves the filter idle.
async fn a_first_configuration_is_refused(lab: &Lab) -> Result<()> {
    let put = |listener: &mut Listener| listener.plugin = watched(json!({ "mode": "x" }));
    let mesh = start(lab, sidecar()?.listener("inbound", put)).await?;
    mesh.call("outsider", "ratings")?.send().await?;
    let expected = [
        "filter_idle wasmcustom.metadata_exchange.configuration_idle",
        "configuration_refused metadata_exchange",
    ];
    until("an idle filter", async || {
        let found = findings(&doctor(&mesh)?)?;
        Ok((found.get(..2) == Some(&expected.map(str::to_owned))).then_some(()))
    })
    .await
}

/// A discovered module that does not exist, with and without a stand-in filter.
async fn a_discovered_module_is_missing(lab: &Lab) -> Result<()> {
    for default_config in [None, Some(pass_through())] {
        let put = |listener: &mut Listener| {
            listener.plugin = Plugin {
                module: Some("/etc/envoy/missing.wasm".into()),
                default_config: default_config.clone(),
                ..watched(json!({}))
            };
        };
        let mesh = start(lab, sidecar()?.listener("inbound", put)).await?;
        mesh.envoy("ratings")?.counts(REFUSED, 1).await?;
        assert_found(&mesh, &["configuration_refused metadata_exchange"])?;
    }
    Ok(())
}

async fn configurations_come_as_text_or_bytes(lab: &Lab) -> Result<()> {
    let mesh = start(lab, sidecar()?.watching_listeners()).await?;
    let given = async |kind: &str, value: Value, expected: &[&str]| {
        let kind = format!("type.googleapis.com/google.protobuf.{kind}");
        let configuration = json!({ "@type": kind, "value": value });
        mesh.change_listeners("ratings", |listener| {
            if listener["name"] == "inbound" {
                let plugin = &mut manager(listener)["http_filters"][0]["typed_config"]["config"];
                plugin["name"] = "of_one_listener".into();
                plugin["configuration"] = configuration.clone();
            }
        })
        .await?;
        until(&format!("{expected:?} of {configuration}"), async || {
            Ok((findings(&doctor(&mesh)?)? == expected).then_some(()))
        })
        .await
    };
    let observing = ["nothing_to_observe inbound"];
    // {"mode":"observe"} and {}
    given("BytesValue", json!("eyJtb2RlIjoib2JzZXJ2ZSJ9"), &observing).await?;
    given("BytesValue", json!("e30="), &[]).await?;
    given("StringValue", json!(r#"{"mode":"observe"}"#), &observing).await?;
    // Envoy does not convert it to JSON. The filter refuses it, or is idle.
    mesh.change_listeners("ratings", |listener| {
        if listener["name"] == "inbound" {
            let plugin = &mut manager(listener)["http_filters"][0]["typed_config"]["config"];
            let kind = "type.googleapis.com/google.protobuf.Struct";
            plugin["configuration"] = json!({ "@type": kind, "value": { "mode": "exchange" } });
        }
    })
    .await?;
    let refused = ["inbound", FILTER].map(|place| format!("configuration_refused {place}"));
    until("the Struct to be refused", async || {
        let found = findings(&doctor(&mesh)?)?;
        let is_refused = found.iter().any(|finding| refused.contains(finding));
        Ok(is_refused.then_some(()))
    })
    .await
}

/// Another module in place of the filter, from this text.
fn other_module(lab: &Lab, wat: &str, policy: FailurePolicy) -> Result<impl Fn(&mut Listener)> {
    let path = lab.dir().join("other.wasm");
    std::fs::write(&path, wat::parse_str(wat)?)?;
    Ok(move |listener: &mut Listener| {
        "other".clone_into(&mut listener.plugin.vm_id);
        listener.plugin.module = Some(path.clone());
        listener.plugin.failure_policy = policy;
    })
}

/// A module that dies on request, and counts seconds from its first request until then.
const MORTAL: &str = include_str!("../../../envoy-test/tests/scenarios/mortal.wat");

async fn a_vm_died(lab: &Lab) -> Result<()> {
    let mortal = other_module(lab, MORTAL, FailurePolicy::Reload)?;
    let mesh = start(lab, sidecar()?.listener("inbound", mortal)).await?;
    assert_found(&mesh, &["not_fail_open metadata_exchange"])?;
    let call = mesh.call("outsider", "ratings")?;
    call.header("x-kill", "now")?.send().await?;
    until("the VM to be reloaded", async || {
        // A request makes Envoy reload it.
        mesh.call("outsider", "ratings")?.send().await?;
        let stats = mesh.envoy("ratings")?.stats().await?;
        let reloads = stats.get("wasm.metadata_exchange.vm_reload_success");
        Ok(reloads.filter(|count| **count > 0).map(|_| ()))
    })
    .await?;
    let found = [
        "vm_failed metadata_exchange",
        "not_fail_open metadata_exchange",
    ];
    assert_found(&mesh, &found)
}

/// A death that Envoy does not count.
async fn a_vm_died_for_good(lab: &Lab) -> Result<()> {
    let mortal = other_module(lab, MORTAL, FailurePolicy::Open)?;
    let workload = sidecar()?.listener("inbound", &mortal);
    let mesh = start(lab, workload.listener("outbound", &mortal)).await?;
    mesh.call("outsider", "ratings")?.send().await?;
    let envoy = mesh.envoy("ratings")?;
    envoy
        .counts("wasmcustom.metadata_exchange.ticks", 1)
        .await?;
    assert_found(&mesh, &[])?;
    let call = mesh.call("outsider", "ratings")?;
    call.header("x-kill", "now")?.send().await?;
    assert_found(&mesh, &["vm_failed wasmcustom"])
}

async fn another_module_runs(lab: &Lab) -> Result<()> {
    let idle = r#"(module
        (memory (export "memory") 2)
        (func (export "proxy_abi_version_0_2_1"))
        (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
        (func (export "proxy_on_context_create") (param i32 i32)))"#;
    let idle = other_module(lab, idle, FailurePolicy::Open)?;
    let workload = sidecar()?.listener("inbound", &idle);
    let mesh = start(lab, workload.listener("outbound", &idle)).await?;
    assert_found(&mesh, &["vm_failed wasmcustom"])
}

/// As in Kuma.
async fn the_admin_is_at_a_unix_socket(lab: &Lab) -> Result<()> {
    let mesh = start(lab, sidecar()?).await?;
    let admin = mesh.envoy("ratings")?.admin();
    let path = lab.dir().join("admin.sock");
    let listener = tokio::net::UnixListener::bind(&path)?;
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut to = tokio::net::TcpStream::connect(admin).await?;
                tokio::io::copy_bidirectional(&mut from, &mut to).await
            });
        }
    });
    let url = format!("unix:{}", path.display());
    for arguments in [
        ["doctor", &url],
        ["doctor", &url.replace("unix:", "unix://")],
    ] {
        let arguments = arguments.map(str::to_owned);
        let done = tokio::task::spawn_blocking(move || {
            run(&arguments.each_ref().map(String::as_str), b"")
        });
        let done = done.await??;
        ensure!(done.stdout.ends_with(": nothing is wrong\n"), "{done:?}");
    }
    Ok(())
}

/// A listener with a type that this Envoy lacks, as a control plane sends it: in protobuf, because
/// Envoy cannot read an unknown type from JSON.
async fn a_refused_listener_leaves_no_json(lab: &Lab) -> Result<()> {
    use envoy_types::pb::envoy::config::core::v3::address::Address as Kind;
    use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
    use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress};
    use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
    use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener};
    use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
    use envoy_types::pb::google::protobuf::Any;
    use prost::Message as _;
    let any = |kind: &str, value: Vec<u8>| Any {
        type_url: format!("type.googleapis.com/{kind}"),
        value,
    };
    let unknown = any("envoy.tcp.metadataexchange.config.MetadataExchange", vec![]);
    let filter = Filter {
        name: "istio.metadata_exchange".to_owned(),
        config_type: Some(ConfigType::TypedConfig(unknown)),
    };
    let address = SocketAddress {
        address: "127.0.0.1".to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(0)),
        ..SocketAddress::default()
    };
    let listener = Listener {
        name: "virtualInbound".to_owned(),
        address: Some(Address {
            address: Some(Kind::SocketAddress(address)),
        }),
        filter_chains: vec![FilterChain {
            filters: vec![filter],
            ..FilterChain::default()
        }],
        ..Listener::default()
    };
    let listener = any(
        "envoy.config.listener.v3.Listener",
        listener.encode_to_vec(),
    );
    let response = DiscoveryResponse {
        resources: vec![listener],
        ..DiscoveryResponse::default()
    };
    let path = lab.dir().join("listeners.pb");
    std::fs::write(&path, response.encode_to_vec())?;
    let envoy = lab
        .start_envoy(&json!({
            "node": { "id": "sidecar~1", "cluster": "a", "metadata": {
                "NAME": "a", "NAMESPACE": "b", "LABELS": { "app": "a" },
            } },
            "admin": {
                "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
            },
            "dynamic_resources": { "lds_config": { "path_config_source": { "path": path } } },
        }))
        .await?;

    let done = until("the listener to be refused", async || {
        let done = run(&["doctor", "--json", &envoy.admin_url()], b"")?;
        let is_there = findings(&done)?.len() > 1;
        Ok(is_there.then_some(done))
    })
    .await?;

    assert_eq!(
        findings(&done)?
            .into_iter()
            .filter(|finding| finding.starts_with("configuration_refused"))
            .collect::<Vec<_>>(),
        [
            "configuration_refused /config_dump",
            "configuration_refused virtualInbound"
        ],
        "{done:?}"
    );
    let encoded = run(&["encode", "--admin", &envoy.admin_url()], b"")?;
    ensure!(
        encoded
            .stdout
            .contains("x-envoy-peer-metadata-id: sidecar~1"),
        "{encoded:?}"
    );
    Ok(())
}

async fn a_bootstrap_is_read_from_a_file(lab: &Lab) -> Result<()> {
    let mesh = start(lab, sidecar()?).await?;
    let dump = mxctl::admin::get(&mesh.envoy("ratings")?.admin_url(), "/config_dump").await?;
    let of_file = |document: &Value| -> Result<Vec<String>> {
        let path = lab.dir().join("envoy.json");
        std::fs::write(&path, document.to_string())?;
        let path = path.display().to_string();
        findings(&run(&["doctor", "--json", "--file", &path], b"")?)
    };
    assert_eq!(of_file(&dump)?, [""; 0]);
    assert_eq!(of_file(&dump["configs"][0])?, [""; 0]);
    let mut bootstrap = dump["configs"][0]["bootstrap"].clone();
    assert_eq!(of_file(&bootstrap)?, [""; 0]);
    bootstrap["static_resources"]["listeners"][0]["traffic_direction"] = "OUTBOUND".into();
    assert_eq!(of_file(&bootstrap)?[0], "wrong_direction inbound");
    let done = run(&["doctor", "--file", "-"], bootstrap.to_string().as_bytes())?;
    assert!(
        done.stdout
            .starts_with("-: error wrong_direction: inbound\n"),
        "{done:?}"
    );
    Ok(())
}

#[test]
fn unreadable_input_is_reported() -> Result<()> {
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let done = run(&["doctor", &free], b"")?;
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    ensure!(done.stdout.contains("\"Envoy does not start\""), "{done:?}");
    let done = run(&["doctor", "unix:/nowhere/admin.sock"], b"")?;
    ensure!(done.stdout.contains("\"Envoy does not start\""), "{done:?}");
    let done = run(&["doctor", "--file", "-"], b"")?;
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert_eq!(done.stdout, "-: it is empty\n");
    let done = run(&["doctor"], b"")?;
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    Ok(())
}

async fn the_collector_is_away(lab: &Lab) -> Result<()> {
    let mesh = start(lab, sidecar()?).await?;
    mesh.call("outsider", "ratings")?.send().await?;
    assert_found(&mesh, &[])?;
    lab.collector().go_away().await?;
    let mut report = Value::Null;
    let found = until("the failed connection", async || {
        // An entry makes Envoy connect again.
        mesh.call("outsider", "ratings")?.send().await?;
        let done = doctor(&mesh)?;
        report = done.json()?;
        let found = findings(&done)?;
        let is_it = found.contains(&"collector_unreachable access-log-collector".to_owned());
        Ok(is_it.then_some(()))
    })
    .await;
    found.with_context(|| report.to_string())
}

async fn the_collector_is_not_spoken_to_in_http2(lab: &Lab) -> Result<()> {
    let http1 = json!({ "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http_protocol_options": {} },
        },
    } });
    let workload = sidecar()?.cluster("outsider", http1).watching_listeners();
    let mesh = start(lab, workload).await?;
    let mut log = grpc_log(&["wasm.downstream_peer", "wasm.downstream_peer_id"]);
    log["typed_config"]["common_config"]["grpc_service"]["envoy_grpc"]["cluster_name"] =
        "outsider".into();
    mesh.change_listeners("ratings", |json| {
        if json["name"] == "inbound" {
            manager(json)["access_log"] = json!([log]);
        }
    })
    .await?;
    until("the finding", async || {
        let found = findings(&doctor(&mesh)?)?;
        Ok((found == ["collector_not_http2 outsider"]).then_some(()))
    })
    .await
}
