//! Names nodes by all that is known of them, where the metadata alone would
//! give dashes. `SkyWalking` uses the metadata only, see [`super::skywalking`].

use std::borrow::Cow;

use access_log::Named;
use serde_json::{Map, Value};

use crate::naming::Naming;

/// A node without metadata and id, which nothing distinguishes from others.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Nameless;

/// The service and the instance of a node.
pub(crate) fn of_node(naming: &Naming, node: &Named<'_>) -> Result<(String, String), Nameless> {
    let metadata = filled(node);
    let service = naming.service(&metadata);
    // Dashes replace missing parts.
    if service.contains(char::is_alphanumeric) {
        Ok((service, naming.instance(&metadata)))
    } else {
        Err(Nameless)
    }
}

/// The node's metadata, completed from its id: `NAME` and `NAMESPACE`, and as
/// `SERVICE`, which counts after all labels, the name of the workload or else
/// of the node.
pub(crate) fn filled<'n>(node: &'n Named<'_>) -> Cow<'n, Value> {
    let metadata = &*node.metadata;
    let text = |key: &str| {
        let text = metadata[key].as_str();
        text.filter(|text| !text.is_empty() && *text != "-")
    };
    let (pod, pods_namespace) = pod_of_id(node.id.unwrap_or_default());
    let name = text("NAME").or(pod);
    let all = [
        ("NAME", name),
        ("NAMESPACE", text("NAMESPACE").or(pods_namespace)),
        (
            "SERVICE",
            text("SERVICE").or(text("WORKLOAD_NAME")).or(name),
        ),
    ];
    let missing = all.into_iter().filter(|(key, _)| text(key).is_none());
    let missing: Map<_, _> = missing
        .filter_map(|(key, found)| Some((key.to_owned(), Value::from(found?))))
        .collect();
    if missing.is_empty() {
        return Cow::Borrowed(metadata);
    }
    let mut fields = metadata.as_object().cloned().unwrap_or_default();
    fields.extend(missing);
    Cow::Owned(Value::Object(fields))
}

/// The pod or VM and its namespace in `sidecar~IP~NAME.NAMESPACE~DOMAIN`; any
/// other id is itself the name.
fn pod_of_id(id: &str) -> (Option<&str>, Option<&str>) {
    if id.is_empty() {
        return (None, None);
    }
    match id.split('~').collect::<Vec<_>>()[..] {
        // A pod's name may have dots, a namespace has none.
        [_, _, pod, _] if !pod.is_empty() => match pod.rsplit_once('.') {
            Some((name, namespace)) if !name.is_empty() && !namespace.is_empty() => {
                (Some(name), Some(namespace))
            }
            _ => (Some(pod), None),
        },
        _ => (Some(id), None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn name(id: &str, metadata: &Value) -> Result<(String, String), Nameless> {
        let node = Named {
            id: (!id.is_empty()).then_some(id),
            metadata: Cow::Borrowed(metadata),
        };
        of_node(&Naming::default(), &node)
    }

    #[test]
    fn missing_metadata_is_taken_from_the_id() {
        let id = "sidecar~10.0.0.1~pay.v1-7.shop~shop.svc.cluster.local";
        for (id, metadata, service, instance) in [
            (id, json!({}), "pay.v1-7.shop", "pay.v1-7"),
            (id, Value::Null, "pay.v1-7.shop", "pay.v1-7"),
            (
                id,
                json!({ "LABELS": { "app": "pay" } }),
                "pay.shop",
                "pay.v1-7",
            ),
            (
                id,
                json!({ "WORKLOAD_NAME": "pay" }),
                "pay.shop",
                "pay.v1-7",
            ),
            (id, json!({ "NAME": "n", "NAMESPACE": "m" }), "n.m", "n"),
            ("node-a", json!({ "NAMESPACE": "m" }), "node-a.m", "node-a"),
            ("node-a", json!({}), "node-a.-", "node-a"),
            ("sidecar~10.0.0.1~vm~", json!({}), "vm.-", "vm"),
            ("", json!({ "LABELS": { "app": "a" } }), "a.-", "-"),
        ] {
            let expected = Ok((service.to_owned(), instance.to_owned()));
            assert_eq!(name(id, &metadata), expected, "{id} {metadata}");
        }
        assert_eq!(name("", &json!({})), Err(Nameless));
        assert_eq!(name("", &json!({ "CLUSTER_ID": "c" })), Err(Nameless));
    }
}
