//! Other readers of the peer: formatters of a file access log.

use anyhow::{Context as _, Result};
use envoy_test::bootstrap::file_log;
use envoy_test::{Lab, Node, Workload};
use serde_json::{Value, json};

envoy_test::stories!(a_file_log_names_the_caller);

async fn a_file_log_names_the_caller(lab: &Lab) -> Result<()> {
    let path = lab.dir().join("access.log");
    let format = json!({
        "id": "%FILTER_STATE(wasm.downstream_peer_id:PLAIN)%",
        "typed": "%FILTER_STATE(wasm.downstream_peer:TYPED)%",
        "workload": "%CEL(filter_state['wasm.downstream_peer'].workload_name)%",
        "app": "%CEL(filter_state['wasm.downstream_peer'].labels['app'].value)%",
    });
    let client = Node::pod_client()?;
    let mesh = lab
        .start([
            Workload::sidecar("productpage", client.clone()),
            Workload::sidecar("ratings", Node::vm_server()?).listener("inbound", |listener| {
                listener.access_logs.push(file_log(&path, &format));
            }),
        ])
        .await?;

    mesh.call("productpage", "ratings")?.send().await?;

    let line = lab.first_line(&path).await?;
    let line: Value = serde_json::from_str(&line).context(line)?;
    assert_eq!(line["id"], client.id);
    assert_eq!(line["workload"], "productpage-v1");
    assert_eq!(line["app"], "productpage");
    assert!(line["typed"].to_string().contains("BytesValue"), "{line}");
    Ok(())
}
