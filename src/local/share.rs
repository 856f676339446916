//! Which parts of the local node are sent.

use crate::pattern::Pattern;
use crate::peer::{Field, Peer, names_service};

/// Which fields and labels are sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Share {
    /// All eleven fields and all labels.
    #[default]
    All,
    /// The fields and labels that Istio's native filter sends since 1.24: name,
    /// namespace, workload, cluster and owner (any owner, unchanged), and the
    /// labels of [`MINIMAL_LABELS`], with `app.kubernetes.io/name` and
    /// `/version` sent as `app` and `version`; in addition, every other label
    /// that names a service.
    Minimal,
    /// These only.
    Only {
        /// Fields; `None` is all.
        fields: Option<Vec<Field>>,
        /// Labels; `None` is all.
        labels: Option<Vec<Pattern>>,
    },
}

const MINIMAL_FIELDS: [Field; 6] = [
    Field::ClusterId,
    Field::Labels,
    Field::Name,
    Field::Namespace,
    Field::Owner,
    Field::WorkloadName,
];

const KUBERNETES_NAME: &str = "app.kubernetes.io/name";

/// The labels of the preset `minimal`.
pub const MINIMAL_LABELS: [&str; 4] = [
    "app",
    "service.istio.io/canonical-name",
    "service.istio.io/canonical-revision",
    "version",
];

impl Share {
    /// Removes from `peer` what is not shared.
    pub fn apply(&self, peer: &mut Peer) {
        match self {
            Self::All => {}
            Self::Minimal => {
                rename_label(peer, KUBERNETES_NAME, "app");
                rename_label(peer, "app.kubernetes.io/version", "version");
                retain_fields(peer, &MINIMAL_FIELDS);
                // A label that is sent under another key is not sent twice.
                let is_kept = |key: &str| names_service(key) && key != KUBERNETES_NAME;
                peer.retain_labels(|key| MINIMAL_LABELS.contains(&key) || is_kept(key));
            }
            Self::Only { fields, labels } => {
                if let Some(fields) = fields {
                    retain_fields(peer, fields);
                }
                if let Some(labels) = labels {
                    peer.retain_labels(|key| labels.iter().any(|label| label.matches(key)));
                }
            }
        }
    }
}

fn retain_fields(peer: &mut Peer, fields: &[Field]) {
    for field in Field::ALL {
        if !fields.contains(&field) {
            peer.clear(field);
        }
    }
}

/// Sets the label `to` to the value of the label `from`, if that is not empty.
fn rename_label(peer: &mut Peer, from: &str, to: &'static str) {
    let Some(labels) = &mut peer.labels else {
        return;
    };
    let is_it = |(key, value): &&(String, String)| key == from && !value.is_empty();
    let Some((_, value)) = labels.iter().find(is_it).cloned() else {
        return;
    };
    match labels.binary_search_by(|(key, _)| key.as_str().cmp(to)) {
        Ok(found) => {
            if let Some((_, old)) = labels.get_mut(found) {
                *old = value;
            }
        }
        Err(index) => labels.insert(index, (to.to_owned(), value)),
    }
}
