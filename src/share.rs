//! What of the local node is sent.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use crate::config::{patterns, strings};
use crate::json::Json;
use crate::peer::{Field, Peer};

/// A name, or the start of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// This name only.
    Exact(String),
    /// Every name that starts so.
    Prefix(String),
}

impl Pattern {
    /// Reads a name, or a prefix with `*` at its end; `None` if a `*` stands
    /// elsewhere.
    #[must_use]
    pub fn parse(pattern: &str) -> Option<Self> {
        let prefix = pattern.strip_suffix('*');
        if prefix.unwrap_or(pattern).contains('*') {
            return None;
        }
        Some(match prefix {
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None => Self::Exact(pattern.to_owned()),
        })
    }

    /// Whether `name` is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => name == exact,
            Self::Prefix(prefix) => name.starts_with(prefix),
        }
    }
}

/// Which fields and labels are sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Share {
    /// All eleven fields and all labels.
    #[default]
    All,
    /// The fields and labels that Istio's native filter sends since 1.24: name,
    /// namespace, workload, cluster and owner (any owner, as it is), and the
    /// labels of [`MINIMAL_LABELS`], with `app.kubernetes.io/name` and
    /// `/version` sent as `app` and `version`.
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

/// The labels of the preset `minimal`.
pub const MINIMAL_LABELS: [&str; 4] = [
    "app",
    "service.istio.io/canonical-name",
    "service.istio.io/canonical-revision",
    "version",
];

impl Share {
    /// Reads the configuration's value; `None` if it is not allowed.
    pub(crate) fn parse(value: &Json) -> Option<Self> {
        if let Some(preset) = value.as_str() {
            return match preset {
                "all" => Some(Self::All),
                "minimal" => Some(Self::Minimal),
                _ => None,
            };
        }
        let (mut fields, mut labels) = (None, None);
        for (key, value) in value.as_object()? {
            match key.as_str() {
                "fields" => {
                    let keys = strings(value)?;
                    let known = keys.iter().map(|key| Field::of_key(key.as_bytes()));
                    fields = Some(known.collect::<Option<_>>()?);
                }
                "labels" => labels = Some(patterns(value)?),
                _ => return None,
            }
        }
        Some(Self::Only { fields, labels })
    }

    /// Takes out of `peer` what is not shared.
    pub fn apply(&self, peer: &mut Peer<'_>) {
        match self {
            Self::All => {}
            Self::Minimal => {
                rename_label(peer, "app.kubernetes.io/name", "app");
                rename_label(peer, "app.kubernetes.io/version", "version");
                retain_fields(peer, &MINIMAL_FIELDS);
                peer.retain_labels(|key| MINIMAL_LABELS.contains(&key));
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

fn retain_fields(peer: &mut Peer<'_>, fields: &[Field]) {
    for field in Field::ALL {
        if !fields.contains(&field) {
            peer.clear(field);
        }
    }
}

/// Gives the label `to` the value of the label `from`, if there is one.
fn rename_label(peer: &mut Peer<'_>, from: &str, to: &'static str) {
    let Some(labels) = &mut peer.labels else {
        return;
    };
    let Some((_, value)) = labels.iter().find(|(key, _)| &**key == from).cloned() else {
        return;
    };
    match labels.binary_search_by(|(key, _)| (**key).cmp(to)) {
        Ok(found) => {
            if let Some((_, old)) = labels.get_mut(found) {
                *old = value;
            }
        }
        Err(place) => labels.insert(place, (to.into(), value)),
    }
}
