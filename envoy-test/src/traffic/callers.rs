//! Honest callers: pods of many sizes, some without an id, some relabelled under
//! the same id all the time, some that share an id with another.

use metadata_exchange::peer::{Peer, Text};

use super::Message;

/// How often a caller that changes does so before it is again what it was.
const CHANGES: usize = 4;

/// What the caller `number` says, in turn.
#[must_use]
pub fn honest(number: usize) -> Vec<Message> {
    let (own, own_id) = (peer(number, 0), id(number));
    match number % 10 {
        0 => (0..CHANGES)
            .map(|change| Message::of("changing", &peer(number, change), Some(&own_id)))
            .collect(),
        1 => vec![Message::of("without an id", &own, None)],
        // Speaks under the id of the caller that changes.
        2 => vec![Message::of(
            "under another's id",
            &own,
            Some(&id(number - 2)),
        )],
        3 => vec![id_alone(&own_id)],
        4 => vec![Message::silent()],
        _ => vec![Message::of("steady", &own, Some(&own_id))],
    }
}

fn id_alone(id: &str) -> Message {
    let mut message = Message::silent();
    message.kind = "an id alone";
    message.ids = vec![id.as_bytes().to_vec()];
    message.expected.id = Some(id.as_bytes().to_vec());
    message
}

/// The node id of a caller.
#[must_use]
pub fn id(number: usize) -> String {
    format!(
        "sidecar~10.1.{}.{}~caller-{number}.shop~shop.svc.cluster.local",
        number / 250,
        number % 250
    )
}

/// The metadata of a caller; no two callers have the same, and no two changes of
/// one have.
#[must_use]
pub fn peer(number: usize, change: usize) -> Peer<'static> {
    let text = |text: String| Some(Text::from(text));
    let mut labels = vec![
        ("app".into(), format!("caller-{number}").into()),
        ("version".into(), format!("v{change}").into()),
    ];
    // From 3 to 40 labels, so that the callers' metadata differ in length, too.
    labels.extend((0..=number % 38).map(|label| {
        let key = format!("example.com/label-{label:02}");
        (key.into(), format!("{number}-{change}-{label}").into())
    }));
    labels.sort();
    Peer {
        app_containers: text(format!("main-{number},istio-proxy")),
        cluster_id: text(format!("cluster-{}", number % 3)),
        instance_ips: text(format!(
            "10.1.{}.{},fe80::{number:x}",
            number / 250,
            number % 250
        )),
        istio_version: text(format!("1.{}.0", 14 + number % 10)),
        labels: Some(labels),
        mesh_id: text("mesh".to_owned()),
        name: text(format!("caller-{number}-{change}")),
        namespace: text(format!("shop-{}", number % 7)),
        owner: text(format!(
            "kubernetes://apis/apps/v1/namespaces/shop/deployments/caller-{number}"
        )),
        platform_metadata: (number.is_multiple_of(4))
            .then(|| vec![("gcp_location".into(), format!("europe-{number}").into())]),
        workload_name: text(format!("caller-{number}")),
    }
}
