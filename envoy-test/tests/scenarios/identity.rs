//! Who a proxy is, if the plugin configuration says so: from its environment, and from Envoy's node.

use anyhow::Result;
use envoy_test::{Lab, Listener, Node, Side, Workload};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::callees::replying_filter;
use crate::{assert_no_peer, assert_peer, counter};

envoy_test::stories!(the_environment_alone_names_a_proxy, a_mesh_of_equal_ids,);
envoy_test::stories_on_every_release!(one_vm_has_the_environment_of_the_first_plugin);

/// The node of a bootstrap that names no workload.
fn nameless(id: &str) -> Node {
    Node {
        id: id.to_owned(),
        metadata: json!({}),
    }
}

/// What `name` says of itself by [`stated`].
fn named(name: &str) -> Node {
    Node {
        id: format!("{name}-1"),
        metadata: json!({
            "NAME": format!("{name}-1"), "NAMESPACE": "shop", "WORKLOAD_NAME": name,
            "LABELS": { "app": name, "version": "v1" },
        }),
    }
}

fn stated() -> Value {
    json!({
        "local_peer": true,
        "node": {
            "id": "${env:POD_NAME}", "NAME": "${env:POD_NAME}", "NAMESPACE": "${env:NAMESPACE}",
            "WORKLOAD_NAME": "${env:APP}",
            "LABELS": { "app": "${env:APP}", "version": "${env:VERSION:-v1}" },
        },
    })
}

/// A sidecar whose Envoy and VM have these names in their environment.
fn of_environment(name: &str) -> Workload {
    let with_environment = |listener: &mut Listener| {
        listener.plugin.environment = json!({
            "host_env_keys": ["POD_NAME", "APP", "VERSION"],
            "key_values": { "NAMESPACE": "shop" },
        });
    };
    Workload::sidecar(name, nameless("test-id"))
        .configured(&stated())
        .listener("inbound", with_environment)
        .listener("outbound", with_environment)
        .env("POD_NAME", &format!("{name}-1"))
        .env("APP", name)
}

/// A log of the local side.
fn local_log(path: &std::path::Path) -> Value {
    let format = "%CEL(filter_state['wasm.local_peer'].name)% \
                  %CEL(filter_state['wasm.local_peer'].labels['app'].value)%\n";
    json!({
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": { "text_format_source": { "inline_string": format } },
        },
    })
}

async fn the_environment_alone_names_a_proxy(lab: &Lab) -> Result<()> {
    let path = lab.dir().join("local.log");
    let ratings = of_environment("ratings").listener("inbound", |listener| {
        listener.access_logs.push(local_log(&path));
        listener.before.push(replying_filter("x-ahead"));
    });
    let mesh = lab.start([of_environment("productpage"), ratings]).await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;

    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_peer(&outbound, Side::Upstream, &named("ratings"))?;
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&inbound, Side::Downstream, &named("productpage"))?;
    // Also if a filter ahead of ours replies, so that ours sees only the end of the stream.
    let refused = mesh
        .call("productpage", "ratings")?
        .header("x-ahead", "1")?;
    refused.send().await?;
    // Also if Envoy replies before any filter: a request without host.
    let inbound = mesh.envoy("ratings")?.listener("inbound").await?;
    let mut connection = TcpStream::connect(inbound).await?;
    connection.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
    assert_eq!(lab.lines(&path, 3).await?, ["ratings-1 ratings"; 3]);
    let log = mesh.envoy("ratings")?.log().await?;
    assert!(
        log.contains(r#"this proxy is "ratings-1", LABELS={app="ratings""#),
        "{log}"
    );
    let nameless = "wasmcustom.metadata_exchange.node_without_name";
    let stats = mesh.envoy("ratings")?.stats().await?;
    assert_eq!(stats.get(nameless).copied().unwrap_or_default(), 0);
    Ok(())
}

/// Envoy 1.36 finds a VM by its id and code, Envoy 1.40 also by its environment.
async fn one_vm_has_the_environment_of_the_first_plugin(lab: &Lab) -> Result<()> {
    let is_left_out = lab.version().await?.starts_with("1.36.");
    for (vm_id, is_shared) in [("any_vm", is_left_out), ("another_vm", false)] {
        let name_of = |name: &'static str, vm_id: &'static str| {
            move |listener: &mut Listener| {
                vm_id.clone_into(&mut listener.plugin.vm_id);
                listener.plugin.environment = json!({ "key_values": { "NAME": name } });
                listener.plugin.configuration = json!({ "node": { "NAME": "${env:NAME}" } });
            }
        };
        let mesh = lab
            .start([
                Workload::sidecar("productpage", Node::pod_client()?),
                Workload::sidecar("ratings", nameless("ratings"))
                    .listener("inbound", name_of("first", "any_vm"))
                    .listener("outbound", name_of("second", vm_id)),
            ])
            .await?;

        let reply = mesh.call("productpage", "ratings")?.send().await?;
        let answered = lab.entry("productpage/outbound", &reply.call).await?;
        let reply = mesh.call("ratings", "productpage")?.send().await?;
        let called = lab.entry("productpage/inbound", &reply.call).await?;

        let of_name = |name: &str| Node {
            metadata: json!({ "NAME": name }),
            ..nameless("ratings")
        };
        assert_peer(&answered, Side::Upstream, &of_name("first"))?;
        let second = if is_shared { "first" } else { "second" };
        assert_peer(&called, Side::Downstream, &of_name(second))?;
    }
    Ok(())
}

/// Emissary gives all its proxies one id. With one name, too, they take each other for themselves.
async fn a_mesh_of_equal_ids(lab: &Lab) -> Result<()> {
    for (name, is_known) in [("${env:POD_NAME}", true), ("web", false)] {
        let workload = |service: &str| {
            of_environment(service)
                .configured(&json!({ "node": { "NAME": name, "LABELS": { "app": "web" } } }))
        };
        let mesh = lab.start([workload("a"), workload("b")]).await?;

        let reply = mesh.call("a", "b")?.send().await?;

        let inbound = lab.entry("b/inbound", &reply.call).await?;
        let warning = "neither id nor NAME has a source that differs";
        let log = mesh.envoy("b")?.log().await?;
        if is_known {
            let caller = Node {
                metadata: json!({ "NAME": "a-1", "LABELS": { "app": "web" } }),
                ..nameless("test-id")
            };
            assert_peer(&inbound, Side::Downstream, &caller)?;
            assert!(!log.contains(warning), "{log}");
        } else {
            assert_no_peer(&inbound, Side::Downstream)?;
            assert_eq!(counter(mesh.envoy("b")?, "own", 1).await?, 1);
            assert!(log.contains(warning), "{log}");
        }
    }
    Ok(())
}
