//! The key `node` of the configuration: what this proxy says of itself, field by field over what
//! the bootstrap says.

use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

use super::node::Node;
use super::{Note, service};
use crate::peer::{Field, text};
use crate::pointer;
use crate::template::{Allowed, Reference, Source, Template};

/// The id that a control plane gives to all its proxies (Emissary).
const COMMON_ID: &[u8] = b"test-id";

/// What the configuration says of this proxy; empty leaves the node as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity(pub Vec<Stated>);

/// What the configuration says of the id, a field, or an entry of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated {
    /// The keys that lead to it: `id`, `NAME` or `LABELS.app`.
    pub path: String,
    /// The field; `None` for the id.
    pub field: Option<Field>,
    /// The value.
    pub text: Template,
}

/// Reads references, and remembers whether they differ between the proxies of a mesh.
struct Reader<'a> {
    node: &'a Node,
    metadata: &'a Struct,
    env: &'a dyn Fn(&str) -> Option<String>,
    differs: bool,
}

impl Identity {
    /// The sources that references may have.
    pub const SOURCES: &'static Allowed = &Allowed {
        sources: &[Source::Env, Source::Node],
        usage: "allowed are text, ${env:NAME}, and ${node:/POINTER} to id, cluster, \
                locality/region, zone or sub_zone, or metadata/KEY; each may have a default: \
                ${env:NAME:-default}",
    };

    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `node` with what this says over it. `env` reads an environment variable. A value whose
    /// sources give nothing is noted, and the node's own stays.
    #[must_use]
    #[inline(never)]
    pub fn over(
        &self,
        node: &Node,
        env: &dyn Fn(&str) -> Option<String>,
        notes: &mut Vec<Note>,
    ) -> Node {
        let mut over = node.clone();
        if self.is_empty() {
            return over;
        }
        let metadata = node.metadata(notes);
        let mut stated = node.metadata(&mut Vec::new());
        service::settle_keys(&mut stated);
        let mut id_differs = !matches!(node.id.as_slice(), b"" | COMMON_ID);
        let mut name_differs = stated.fields.contains_key(Field::Name.key());
        for Stated { path, field, text } in &self.0 {
            let mut reader = Reader {
                node,
                metadata: &metadata,
                env,
                differs: false,
            };
            match text.resolve(&mut |reference| reader.read(reference)) {
                None => notes.push(Note::Absent {
                    key: path.clone(),
                    template: text.as_str().to_owned(),
                }),
                Some(text) if text.is_empty() => {}
                Some(text) if field.is_some() => {
                    set(&mut stated, path, text);
                    if *field == Some(Field::Name) {
                        name_differs = reader.differs;
                    }
                }
                Some(id) => {
                    over.id = id.into();
                    id_differs = reader.differs;
                }
            }
        }
        if !id_differs && !name_differs {
            notes.push(Note::SameEverywhere);
        }
        over.metadata = stated.encode_to_vec();
        over
    }
}

impl Reader<'_> {
    fn read(&mut self, reference: &Reference) -> Option<String> {
        let argument = reference.argument.as_str();
        let (text, differs) = match reference.source {
            Source::Env => ((self.env)(argument), true),
            Source::Node => (
                self.node.text_at(self.metadata, argument),
                match argument {
                    "/id" => self.node.id != COMMON_ID,
                    _ => argument.starts_with("/metadata/"),
                },
            ),
            // `SOURCES` has no others.
            _ => return None,
        };
        let text = text.filter(|text| !text.is_empty() && !text::has_control_character(text))?;
        self.differs |= differs;
        Some(text)
    }
}

impl Node {
    /// The text at a JSON Pointer into the node, with its decoded `metadata`.
    fn text_at(&self, metadata: &Struct, at: &str) -> Option<String> {
        let locality = self.locality.as_ref();
        let bytes = match at {
            "/id" => &self.id,
            "/cluster" => &self.cluster,
            "/locality/region" => &locality?.region,
            "/locality/zone" => &locality?.zone,
            "/locality/sub_zone" => &locality?.sub_zone,
            _ => return pointer::find(metadata, at.strip_prefix("/metadata")?),
        };
        String::from_utf8(bytes.clone()).ok()
    }
}

/// Sets a field, or the entry of a map to which `path` leads.
fn set(metadata: &mut Struct, path: &str, text: String) {
    let mut fields = &mut metadata.fields;
    let mut last = path;
    if let Some((map, key)) = path.split_once('.') {
        last = key;
        let map = fields.entry(map.to_owned()).or_default();
        if !matches!(map.kind, Some(Kind::StructValue(_))) {
            map.kind = Some(Kind::StructValue(Struct::default()));
        }
        let Some(Kind::StructValue(map)) = &mut map.kind else {
            return;
        };
        fields = &mut map.fields;
    }
    let kind = Some(Kind::StringValue(text));
    fields.insert(last.to_owned(), Value { kind });
}
