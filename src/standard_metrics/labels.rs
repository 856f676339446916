//! The name of a metric with its labels, from which the `stats_tags` of Envoy's bootstrap make tags:
//!
//! ```text
//! reporter=.=source;.;source_workload=.=cart-v1;.;…;.;istio_requests_total
//! ```
//!
//! This is how Istio's own Wasm plugin wrote them, and Istio's bootstrap makes such a tag of each of its
//! `extraStatTags`.

use crate::peer::flat;

/// Istio's word for a label without a value.
pub(super) const UNKNOWN: &str = "unknown";

/// The longest value of a label, in characters; the rest is cut off.
const MAX_VALUE_CHARACTERS: usize = 256;

/// The labels of a workload, without `source_` and `destination_`.
const WORKLOAD: [&str; 7] = [
    "_workload",
    "_workload_namespace",
    "_cluster",
    "_app",
    "_version",
    "_canonical_service",
    "_canonical_revision",
];

/// The labels of a service.
const SERVICE: [&str; 3] = [
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
];

/// What separates the values of several labels. No peer has it in a text.
const SEPARATOR: char = '\0';

/// The values of the labels of a workload, which is stored as `flat`; empty if that is malformed.
pub(super) fn of_workload(flat: &[u8]) -> String {
    let Ok(node) = flat::verify(flat) else {
        return String::new();
    };
    let label = |key: &str| {
        let mut labels = node.labels()?.iter();
        labels.find(|label| label.key() == key)?.value()
    };
    let values = [
        node.workload_name(),
        node.namespace(),
        node.cluster_id(),
        label("app"),
        label("version"),
        label("service.istio.io/canonical-name"),
        label("service.istio.io/canonical-revision"),
    ];
    join(&values.map(Option::unwrap_or_default))
}

/// The values of a service's labels.
#[must_use]
pub fn of_service(host: &str, name: &str, namespace: &str) -> String {
    join(&[host, name, namespace])
}

fn join(values: &[&str]) -> String {
    let mut joined = String::new();
    for value in values {
        joined.push_str(value);
        joined.push(SEPARATOR);
    }
    joined
}

/// A name that is being written.
#[derive(Debug, Default)]
pub(super) struct Name(String);

impl Name {
    /// Adds a label. `unknown` stands for an empty value.
    pub(super) fn label(&mut self, key: &str, value: &str) {
        self.optional_label(key, if value.is_empty() { UNKNOWN } else { value });
    }

    /// Adds a label that may be empty.
    pub(super) fn optional_label(&mut self, key: &str, value: &str) {
        self.0.push_str(key);
        self.0.push_str("=.=");
        for character in value.chars().take(MAX_VALUE_CHARACTERS) {
            // What separates labels would forge others.
            let is_safe = !matches!(character, ';' | '=') && !character.is_ascii_control();
            self.0.push(if is_safe { character } else { '_' });
        }
        self.0.push_str(";.;");
    }

    /// Adds the labels of a workload, as of [`of_workload`], and of its principal.
    pub(super) fn workload(&mut self, side: &str, workload: &str, principal: &str) {
        let mut values = workload.split(SEPARATOR);
        for key in WORKLOAD {
            self.label(&[side, key].concat(), values.next().unwrap_or_default());
        }
        self.label(&[side, "_principal"].concat(), principal);
    }

    /// Adds the labels of a service, as of [`of_service`].
    pub(super) fn service(&mut self, service: &str) {
        let mut values = service.split(SEPARATOR);
        for key in SERVICE {
            self.label(key, values.next().unwrap_or_default());
        }
    }

    /// The name of the metric `name` with these labels.
    pub(super) fn of_metric(&self, name: &str) -> String {
        [&self.0, name].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_forge_a_label_or_grow_without_bound() {
        let mut name = Name::default();
        name.label("reporter", "a;.;reporter=.=b\n");
        name.label("app", "");
        name.optional_label("status", "");
        name.label("long", &"ä".repeat(1000));
        let name = name.of_metric("total");
        let long = "ä".repeat(MAX_VALUE_CHARACTERS);
        assert_eq!(
            name,
            format!(
                "reporter=.=a_._reporter_._b_;.;app=.=unknown;.;status=.=;.;long=.={long};.;total"
            )
        );
    }
}
