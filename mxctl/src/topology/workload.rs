//! A workload of the graph and its instances: pods and VMs.

use std::borrow::Cow;
use std::collections::BTreeMap;

use access_log::{Named, reporter};
use metadata_exchange::peer::Field;
use serde_json::{Map, Value};

use super::kind::{Kind, kind_of};
use super::snapshot::InstanceView;

/// The most instances that are kept of each workload.
const MAX_INSTANCES: usize = 64;
/// The longest name that is kept.
const MAX_NAME_BYTES: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Workload {
    pub(super) instances: BTreeMap<String, Instance>,
    pub(super) further_instances: u64,
}

#[derive(Debug)]
pub(super) struct Instance {
    certainty: u8,
    kind: Kind,
    id: Option<String>,
    metadata: Map<String, Value>,
}

impl Workload {
    pub(super) fn add(&mut self, name: String, node: &Named<'_>, has_room: bool) {
        let (certainty, kind) = kind_of(node);
        let is_full = self.instances.len() >= MAX_INSTANCES || !has_room;
        if let Some(known) = self.instances.get_mut(&name) {
            if certainty > known.certainty {
                (known.certainty, known.kind) = (certainty, kind);
            }
            if known.id.is_none() {
                known.id = node.id.map(str::to_owned);
            }
            // The report with more metadata is the node's own. Of two equal
            // ones the later counts, because a VM may come back with other
            // labels.
            if known.metadata.len() <= exchanged(node).count() {
                known.metadata = exchanged(node).collect();
            }
        } else if is_full {
            self.further_instances += 1;
        } else {
            let instance = Instance {
                certainty,
                kind,
                id: node.id.map(str::to_owned),
                metadata: exchanged(node).collect(),
            };
            self.instances.insert(name, instance);
        }
    }

    /// What its instances run on, if known of any.
    pub(super) fn kind(&self) -> Kind {
        let kinds = self.instances.values().map(|instance| instance.kind);
        let mut known = kinds.filter(|kind| *kind != Kind::Unknown);
        match known.next() {
            None => Kind::Unknown,
            Some(first) if known.all(|kind| kind == first) => first,
            Some(_) => Kind::Mixed,
        }
    }

    pub(super) fn views(&self) -> Vec<InstanceView> {
        let view = |(name, instance): (&String, &Instance)| InstanceView {
            name: name.clone(),
            kind: instance.kind,
            id: instance.id.clone(),
            metadata: instance.metadata.clone(),
        };
        self.instances.iter().map(view).collect()
    }
}

/// The part of a node's metadata that is kept.
fn exchanged(node: &Named<'_>) -> impl Iterator<Item = (String, Value)> {
    let kept = reporter::exchanged(&node.metadata);
    kept.map(|(key, value)| (key.to_owned(), value.clone()))
}

/// Whether proxies exchange more of it than is kept.
pub(super) fn is_cut(node: &Named<'_>) -> bool {
    let sent = Field::ALL
        .into_iter()
        .filter(|field| node.metadata.get(field.key()).is_some());
    sent.count() > reporter::exchanged(&node.metadata).count()
}

/// The name, or its start if it is longer than any that Kubernetes allows.
pub(super) fn cut(name: &str) -> Cow<'_, str> {
    if name.len() <= MAX_NAME_BYTES {
        return Cow::Borrowed(name);
    }
    let start = name.get(..name.floor_char_boundary(MAX_NAME_BYTES));
    Cow::Owned(format!("{}\u{2026}", start.unwrap_or_default()))
}
