//! Names a node's service by `SkyWalking`'s rule, so that a node and the peer
//! that others store for it are the same service there.

use std::collections::BTreeMap;
use std::fmt;

use prost_types::value::Kind;
use prost_types::{Struct, Value};

use super::Note;
use crate::peer::{Field, Peer, SERVICE_LABELS, names_service};

/// The key that names a node's service if no label does.
const SERVICE: &str = "SERVICE";

/// A service. A part that is not named is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The first of [`SERVICE_LABELS`] that is a text, or else `SERVICE`.
    pub name: Option<String>,
    /// `NAMESPACE`.
    pub namespace: Option<String>,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [name, namespace] =
            [&self.name, &self.namespace].map(|part| part.as_deref().unwrap_or("-"));
        write!(f, "{name}.{namespace}")
    }
}

impl Service {
    /// The service of a node, whose keys `SkyWalking` accepts in any case. Only
    /// texts count.
    #[inline(never)]
    pub(super) fn of_node(metadata: &Struct) -> Self {
        let labels = match find(&metadata.fields, Field::Labels.key()) {
            Some(Kind::StructValue(labels)) => named_by_label(&labels.fields),
            _ => None,
        };
        let named = |key| find(&metadata.fields, key).and_then(text);
        Self {
            name: labels.or_else(|| named(SERVICE)),
            namespace: named(Field::Namespace.key()),
        }
    }

    /// The service of a peer.
    #[must_use]
    #[inline(never)]
    pub fn of_peer(peer: &Peer) -> Self {
        let namespace = peer.namespace.clone();
        Self {
            name: peer.service_name().map(str::to_owned),
            namespace: namespace.filter(|namespace| !namespace.is_empty()),
        }
    }
}

/// Converts the keys of a node's metadata to upper case, as receivers expect them.
pub(super) fn settle_keys(metadata: &mut Struct) {
    // An upper-case key sorts before other cases of the same key, and so wins.
    for (key, value) in std::mem::take(&mut metadata.fields) {
        let mut fields = Field::ALL.into_iter().map(Field::key);
        let field = fields.find(|field| field.eq_ignore_ascii_case(&key));
        let key = field.map_or(key, str::to_owned);
        metadata.fields.entry(key).or_insert(value);
    }
}

/// Converts a node's metadata to the form that receivers expect: keys in upper
/// case, and a label if only `SERVICE` names the service. A name of the service
/// that is not a text is noted.
pub(super) fn settle(metadata: &mut Struct, notes: &mut Vec<Note>) {
    settle_keys(metadata);
    for key in [Field::Name, Field::Namespace, Field::WorkloadName].map(Field::key) {
        if metadata.fields.get(key).is_some_and(is_no_text) {
            let key = key.to_owned();
            notes.push(Note::NoText { key });
        }
    }
    let service = Service::of_node(metadata).name;
    let Some(labels) = labels_of(metadata, service.is_some()) else {
        return;
    };
    for (key, value) in labels.iter().filter(|(key, _)| names_service(key)) {
        if is_no_text(value) {
            let key = format!("{}.{key}", Field::Labels.key());
            notes.push(Note::NoText { key });
        }
    }
    if let (None, Some(service)) = (named_by_label(labels), service) {
        let kind = Some(Kind::StringValue(service));
        let [label, ..] = SERVICE_LABELS;
        labels.insert(label.to_owned(), Value { kind });
    }
}

/// Bools and numbers, which YAML makes of unquoted `yes` or `007`.
fn is_no_text(value: &Value) -> bool {
    matches!(value.kind, Some(Kind::NumberValue(_) | Kind::BoolValue(_)))
}

/// The labels, which are created if absent; `None` if they are not a map.
fn labels_of(metadata: &mut Struct, make: bool) -> Option<&mut BTreeMap<String, Value>> {
    let fields = &mut metadata.fields;
    let key = Field::Labels.key();
    if make && !fields.contains_key(key) {
        let kind = Some(Kind::StructValue(Struct::default()));
        fields.insert(key.to_owned(), Value { kind });
    }
    match &mut fields.get_mut(key)?.kind {
        Some(Kind::StructValue(labels)) => Some(&mut labels.fields),
        _ => None,
    }
}

/// The first label that names a service by a text.
#[inline(never)]
fn named_by_label(labels: &BTreeMap<String, Value>) -> Option<String> {
    let mut keys = SERVICE_LABELS.iter();
    keys.find_map(|key| find(labels, key).and_then(text))
}

/// The value of `key`, in whatever case.
#[inline(never)]
fn find<'f>(fields: &'f BTreeMap<String, Value>, key: &str) -> Option<&'f Kind> {
    let exact = fields.get_key_value(key);
    let mut alike = fields
        .iter()
        .filter(|(other, _)| other.eq_ignore_ascii_case(key));
    let (_, value) = exact.or_else(|| alike.next())?;
    value.kind.as_ref()
}

fn text(kind: &Kind) -> Option<String> {
    match kind {
        Kind::StringValue(text) if !text.is_empty() => Some(text.clone()),
        _ => None,
    }
}
