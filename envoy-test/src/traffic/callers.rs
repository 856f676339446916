//! Honest callers: pods with metadata of many sizes, some without an id, some
//! that change their labels under the same id, and some that share an id with
//! another.

use serde_json::{Map, Value, json};

use super::Message;

/// The number of variants of a caller that changes, after which they repeat.
const CHANGES: usize = 4;

/// The messages of the caller `number`, in turn.
#[must_use]
pub fn honest(number: usize) -> Vec<Message> {
    let (steady, steady_id) = (peer(number, 0), id(number));
    match number % 10 {
        0 => (0..CHANGES)
            .map(|change| Message::of("changing", &peer(number, change), Some(&steady_id)))
            .collect(),
        1 => vec![Message::of("without an id", &steady, None)],
        // Uses the id of the caller that changes.
        2 => vec![Message::of(
            "under another's id",
            &steady,
            Some(&id(number - 2)),
        )],
        3 => vec![id_alone(&steady_id)],
        4 => vec![Message::silent()],
        _ => vec![Message::of("steady", &steady, Some(&steady_id))],
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

/// The metadata of a caller, different for each caller and each of its changes.
#[must_use]
pub fn peer(number: usize, change: usize) -> Value {
    // Between 3 and 40 labels, so that the metadata also differ in length.
    let further = (0..=number % 38).map(|label| {
        let key = format!("example.com/label-{label:02}");
        (key, json!(format!("{number}-{change}-{label}")))
    });
    let mut labels: Map<String, Value> = further.collect();
    labels.insert("app".to_owned(), json!(format!("caller-{number}")));
    labels.insert("version".to_owned(), json!(format!("v{change}")));
    let mut peer = json!({
        "APP_CONTAINERS": format!("main-{number},istio-proxy"),
        "CLUSTER_ID": format!("cluster-{}", number % 3),
        "INSTANCE_IPS": format!("10.1.{}.{},fe80::{number:x}", number / 250, number % 250),
        "ISTIO_VERSION": format!("1.{}.0", 14 + number % 10),
        "LABELS": labels,
        "MESH_ID": "mesh",
        "NAME": format!("caller-{number}-{change}"),
        "NAMESPACE": format!("shop-{}", number % 7),
        "OWNER": format!("kubernetes://apis/apps/v1/namespaces/shop/deployments/caller-{number}"),
        "WORKLOAD_NAME": format!("caller-{number}"),
    });
    if number.is_multiple_of(4) {
        peer["PLATFORM_METADATA"] = json!({ "gcp_location": format!("europe-{number}") });
    }
    peer
}
