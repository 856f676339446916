//! Names a callee by the rules of the configuration, which say where a control plane writes who it is: `callee`.

use prost::Message as _;

use super::Exchange;
use super::clusters::Metadata;
use super::side::Side;
use crate::config::callee::Rule;
use crate::counters::Counter;
use crate::host::{Host, Property};
use crate::local::identity::Stated;
use crate::peer::{Field, Peer, Slot, text};
use crate::pointer;
use crate::template::{Reference, Source};

/// What the sources that the rules use say in a stream.
struct Sources(Vec<(Source, Vec<u8>)>);

impl Exchange {
    /// Stores the callee by the rules of the configuration. Returns whether it is stored.
    pub(super) fn store_by_rules(&self, host: &impl Host) -> bool {
        if self.config.callee.is_empty() {
            return false;
        }
        let read = |source: &Source| {
            let bytes = host.property(property(*source)).ok().flatten();
            (*source, bytes.unwrap_or_default())
        };
        let sources = Sources(self.rule_sources.iter().map(read).collect());
        let counter = Counter::UpstreamPeerFromRules;
        self.store_from(host, Side::Upstream, &sources.key(), counter, &|| {
            let mut peers = self.config.callee.iter().map(|rule| sources.peer(rule));
            peers.find(Peer::names_workload)
        })
    }
}

/// The sources that `rules` use, each once.
pub(super) fn sources_of(rules: &[Rule]) -> Vec<Source> {
    let mut sources = Vec::new();
    for Stated { text, .. } in rules.iter().flatten() {
        text.for_each_reference(&mut |reference| {
            if !sources.contains(&reference.source) {
                sources.push(reference.source);
            }
        });
    }
    sources
}

fn property(source: Source) -> Property {
    match source {
        Source::Endpoint => Property::EndpointMetadata,
        Source::EndpointLocality => Property::EndpointLocalityMetadata,
        Source::Cluster => Property::ClusterMetadata,
        Source::Route => Property::RouteMetadata,
        Source::Listener => Property::ListenerMetadata,
        // Rules have no other source.
        Source::ClusterName | Source::Env | Source::Node => Property::ClusterName,
    }
}

impl Sources {
    /// All of it, for the cache.
    fn key(&self) -> Vec<u8> {
        let mut key = Vec::new();
        for (_, bytes) in &self.0 {
            key.extend(bytes.len().to_le_bytes());
            key.extend(bytes);
        }
        key
    }

    fn peer(&self, rule: &Rule) -> Peer {
        let mut peer = Peer::default();
        for Stated { path, field, text } in rule {
            let resolved = text.resolve(&mut |reference| self.read(reference));
            if let (Some(resolved), Some(field)) = (resolved, field) {
                set(&mut peer, *field, path, resolved);
            }
        }
        match peer.workload_name.clone() {
            Some(workload) => peer.with_workload(workload),
            None => peer,
        }
    }

    fn read(&self, reference: &Reference) -> Option<String> {
        let mut sources = self.0.iter();
        let (source, bytes) = sources.find(|(source, _)| *source == reference.source)?;
        let text = if *source == Source::ClusterName {
            String::from_utf8(bytes.clone()).ok()?
        } else {
            let metadata = Metadata::decode(bytes.as_slice()).ok()?;
            let (filter, pointer) = pointer::split_first(&reference.argument)?;
            pointer::find(metadata.of_filter(&filter)?, pointer)?
        };
        (!text.is_empty() && !text::has_control_character(&text)).then_some(text)
    }
}

/// Sets a field, or adds the entry of a map, whose path is `LABELS.app`. The configuration is sorted by keys.
fn set(peer: &mut Peer, field: Field, path: &str, text: String) {
    match peer.slot(field) {
        Slot::Text(slot) | Slot::Names(slot) => *slot = Some(text),
        Slot::Map(map) => {
            let (_, key) = path.split_once('.').unwrap_or_default();
            map.get_or_insert_default().push((key.to_owned(), text));
        }
    }
}
