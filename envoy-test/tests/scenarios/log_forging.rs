//! Peers' texts reach access logs unescaped: no caller may end a line and begin
//! another.

use std::path::Path;

use anyhow::Result;
use envoy_test::bootstrap::text_log;
use envoy_test::client::{Call, PEER_HEADERS};
use envoy_test::peer::header;
use envoy_test::{Lab, Mesh, Node, Side, Workload};
use hyper::StatusCode;
use serde_json::json;

use crate::{assert_no_peer, counter};

envoy_test::stories!(
    a_text_log_takes_any_text,
    a_caller_forges_no_line,
    other_characters_pass,
);

const FORGED: &str = "200 paid-by-somebody-else";

/// Characters that could end, hide or overwrite a line for some reader.
const CONTROL_CHARACTERS: [char; 10] = [
    '\n',     // a new line
    '\r',     // back to the start of the line
    '\0',     // the end of a text
    '\u{8}',  // one back
    '\u{b}',  // a line further
    '\u{1b}', // commands of a terminal
    '\u{7f}', // delete
    '\u{80}', // the first of C1
    '\u{85}', // a new line of C1
    '\u{9b}', // commands of a terminal, of C1
];

/// Envoy escapes nothing in a text log, here a text of the operator.
async fn a_text_log_takes_any_text(lab: &Lab) -> Result<()> {
    let path = lab.dir().join("access.log");
    let node = Node::vm_server()?.with("NOTE", format!("x\n{FORGED}").into());
    let mesh = with_log(lab, node, &path, "%CEL(xds.node.metadata.NOTE)%").await?;

    mesh.call("outsider", "ratings")?.send().await?;

    assert_eq!(lab.lines(&path, 2).await?, ["x", FORGED]);
    Ok(())
}

async fn a_caller_forges_no_line(lab: &Lab) -> Result<()> {
    let path = lab.dir().join("access.log");
    let format = "%RESPONSE_CODE% %CEL(filter_state['wasm.downstream_peer'].workload_name)%";
    let mesh = with_log(lab, Node::vm_server()?, &path, format).await?;

    for control in CONTROL_CHARACTERS {
        let call = call_from(&mesh, &format!("x{control}{FORGED}"))?;
        let reply = call.send().await?;

        assert_eq!(reply.status, StatusCode::OK);
        let inbound = lab.entry("ratings/inbound", &reply.call).await?;
        assert_no_peer(&inbound, Side::Downstream)?;
    }
    call_from(&mesh, "honest")?.send().await?;

    let mut expected = vec!["200 -"; CONTROL_CHARACTERS.len()];
    expected.push("200 honest");
    assert_eq!(lab.lines(&path, expected.len()).await?, expected);
    let refused = CONTROL_CHARACTERS.len();
    let envoy = mesh.envoy("ratings")?;
    assert_eq!(
        counter(envoy, "refused_control_character", refused).await?,
        refused
    );
    Ok(())
}

/// Unicode's line separators and direction marks pass like other characters:
/// they end no line of a log, although a viewer may show them so.
async fn other_characters_pass(lab: &Lab) -> Result<()> {
    let path = lab.dir().join("access.log");
    let format = "%CEL(filter_state['wasm.downstream_peer'].workload_name)%";
    let mesh = with_log(lab, Node::vm_server()?, &path, format).await?;

    let names = ["x\u{2028}y", "x\u{202e}y", "x\\ny", "x\" y"];
    for name in names {
        call_from(&mesh, name)?.send().await?;
    }

    assert_eq!(lab.lines(&path, names.len()).await?, names);
    Ok(())
}

async fn with_log(lab: &Lab, node: Node, path: &Path, format: &str) -> Result<Mesh> {
    lab.start([
        Workload::bare("outsider"),
        Workload::sidecar("ratings", node).listener("inbound", |listener| {
            listener.access_logs.push(text_log(path, format));
        }),
    ])
    .await
}

/// A call with metadata of the workload `name`.
fn call_from(mesh: &Mesh, name: &str) -> Result<Call> {
    let metadata_of = json!({ "WORKLOAD_NAME": name });
    let [metadata, _] = PEER_HEADERS;
    mesh.call("outsider", "ratings")?
        .header(metadata, &header(&metadata_of))
}
