//! Frames that arrive in pieces, from a client and from a server that speak them without a proxy.

use anyhow::Result;
use envoy_test::tcp::Route;
use envoy_test::{Direction, Lab, Node, Side};
use metadata_exchange::peer::frame::Frame;
use serde_json::json;

use crate::ends::{End, Server};
use crate::{LINK, entry, start_sidecar};

envoy_test::stories!(
    a_callers_frame_may_be_cut_anywhere,
    a_callees_frame_may_arrive_byte_by_byte,
);

/// A peer that names its workload and no more.
fn frame() -> Vec<u8> {
    let text = |text: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
    };
    let fields = [("NAMESPACE", "shop"), ("WORKLOAD_NAME", "peer")];
    let fields = fields.map(|(key, value)| (key.to_owned(), text(value)));
    let metadata = prost_types::Struct {
        fields: fields.into(),
    };
    let frame = Frame {
        metadata: prost::Message::encode_to_vec(&metadata),
        id: b"sidecar~peer".to_vec(),
    };
    frame.encode()
}

async fn a_callers_frame_may_be_cut_anywhere(lab: &Lab) -> Result<()> {
    let server = Server::start().await?;
    let inbound = Route::new(LINK, Direction::Inbound, server.address);
    let callee = start_sidecar(lab, &Node::pod_server()?, inbound).await?;
    let frame = frame();
    for cut in 1..frame.len() {
        let (first, second) = frame.split_at(cut);
        let mut client = End::connect(callee.listener(LINK).await?).await?;
        let mut server = server.accept().await?;
        client.says(first).await?;
        // So that the pieces do not arrive together.
        tokio::task::yield_now().await;
        client.says(&[second, b"query"].concat()).await?;
        server.hears(b"query").await?;
        server.says(b"answer").await?;
        drop(server);
        let heard = client.rest().await?;
        let answer = heard.strip_suffix(b"answer").unwrap_or_default();
        assert!(answer.starts_with(b"=#\x04g"), "{cut}: {heard:?}");
        drop(client);
        let inbound = entry(lab, LINK, cut - 1).await?;
        let stored = inbound.peer(Side::Downstream)?;
        let expected = json!({ "NAMESPACE": "shop", "WORKLOAD_NAME": "peer" });
        assert_eq!(stored, Some(&expected), "{cut}");
    }
    Ok(())
}

async fn a_callees_frame_may_arrive_byte_by_byte(lab: &Lab) -> Result<()> {
    let server = Server::start().await?;
    let outbound = Route::new(LINK, Direction::Outbound, server.address)
        .configured(&json!({ "tcp_clusters": [LINK] }));
    let caller = start_sidecar(lab, &Node::pod_client()?, outbound).await?;
    let mut client = End::connect(caller.listener(LINK).await?).await?;
    let mut server = server.accept().await?;
    client.says(b"query").await?;
    for byte in [frame(), b"answer".to_vec()].concat() {
        server.says(&[byte]).await?;
        tokio::task::yield_now().await;
    }
    client.hears(b"answer").await?;
    drop((client, server));
    let outbound = entry(lab, LINK, 0).await?;
    let expected = json!({ "NAMESPACE": "shop", "WORKLOAD_NAME": "peer" });
    assert_eq!(outbound.peer(Side::Upstream)?, Some(&expected));
    Ok(())
}
