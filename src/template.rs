//! Texts with references, as the plugin configuration writes them: `${env:POD_NAME:-${node:/id}}`.
//!
//! The syntax is that of the OpenTelemetry Collector's configuration: `${SOURCE:ARGUMENT}`, with a
//! default after `:-`, which may contain references itself; `$$` is a dollar sign. A reference that
//! gives an empty text gives nothing, so that unset and empty are alike.

use crate::pointer;

/// How deep references may be nested in defaults.
const MAX_DEPTH: usize = 8;

/// What a reference reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `env:NAME`: an environment variable.
    Env,
    /// `node:/POINTER`: a JSON Pointer into Envoy's node.
    Node,
    /// `endpoint:/FILTER/KEY`: a JSON Pointer into the filter metadata of the chosen endpoint.
    Endpoint,
    /// `endpoint_locality:/FILTER/KEY`: the same of the locality of that endpoint.
    EndpointLocality,
    /// `cluster:/FILTER/KEY`: the same of the cluster.
    Cluster,
    /// `route:/FILTER/KEY`: the same of the route.
    Route,
    /// `listener:/FILTER/KEY`: the same of the listener.
    Listener,
    /// `cluster_name:`: the name of the cluster.
    ClusterName,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Env => "env",
            Self::Node => "node",
            Self::Endpoint => "endpoint",
            Self::EndpointLocality => "endpoint_locality",
            Self::Cluster => "cluster",
            Self::Route => "route",
            Self::Listener => "listener",
            Self::ClusterName => "cluster_name",
        }
    }

    fn accepts(self, argument: &str) -> bool {
        match self {
            Self::Env => is_variable(argument),
            Self::Node => is_in_node(argument) && pointer::is_valid(argument),
            Self::ClusterName => argument.is_empty(),
            Self::Endpoint
            | Self::EndpointLocality
            | Self::Cluster
            | Self::Route
            | Self::Listener => pointer::is_valid(argument),
        }
    }
}

/// A letter or `_`, then letters, digits and `_`.
fn is_variable(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(is_inner)
}

/// Whether `pointer` points into the parts of Envoy's node that can be read.
fn is_in_node(pointer: &str) -> bool {
    const TEXTS: [&str; 5] = [
        "/id",
        "/cluster",
        "/locality/region",
        "/locality/zone",
        "/locality/sub_zone",
    ];
    TEXTS.contains(&pointer) || pointer.starts_with("/metadata/")
}

/// The sources that the references of a template may have.
#[derive(Debug)]
pub struct Allowed {
    /// The sources.
    pub sources: &'static [Source],
    /// What errors say of them.
    pub usage: &'static str,
}

/// A text with references.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    written: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Reference(Reference, Option<Vec<Part>>),
}

/// A reference without its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// What it reads.
    pub source: Source,
    /// The name of a variable, or a valid JSON Pointer.
    pub argument: String,
}

/// Why a text is not a template: what is wrong, or what is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyntaxError(pub &'static str);

const DOLLAR: SyntaxError = SyntaxError("a $ begins a reference; write $$ for a dollar sign");
const UNCLOSED: SyntaxError = SyntaxError("a reference lacks its }");
const TOO_DEEP: SyntaxError = SyntaxError("more than 8 references inside each other");

impl Template {
    /// Parses `written`, whose references may read only `allowed` sources.
    pub fn parse(written: &str, allowed: &'static Allowed) -> Result<Self, SyntaxError> {
        let mut parser = Parser {
            rest: written,
            allowed,
        };
        Ok(Self {
            parts: parser.parts(0)?,
            written: written.to_owned(),
        })
    }

    /// The text as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// Every reference, also those in defaults.
    pub fn for_each_reference(&self, see: &mut dyn FnMut(&Reference)) {
        for_each_reference(&self.parts, see);
    }

    /// The text with what `read` gives for its references; `None` if a reference and its default
    /// give nothing.
    pub fn resolve(&self, read: &mut dyn FnMut(&Reference) -> Option<String>) -> Option<String> {
        let mut text = String::new();
        resolve(&self.parts, read, &mut text).then_some(text)
    }
}

fn for_each_reference(parts: &[Part], see: &mut dyn FnMut(&Reference)) {
    for part in parts {
        if let Part::Reference(reference, default) = part {
            see(reference);
            for_each_reference(default.as_deref().unwrap_or_default(), see);
        }
    }
}

fn resolve(
    parts: &[Part],
    read: &mut dyn FnMut(&Reference) -> Option<String>,
    text: &mut String,
) -> bool {
    parts.iter().all(|part| {
        match part {
            Part::Text(part) => text.push_str(part),
            Part::Reference(reference, default) => match (read(reference), default) {
                (Some(read), _) if !read.is_empty() => text.push_str(&read),
                (_, Some(default)) => return resolve(default, read, text),
                (_, None) => return false,
            },
        }
        true
    })
}

/// One copy of the code, which is cold.
#[inline(never)]
fn push(text: &mut String, char: char) {
    text.push(char);
}

struct Parser<'t> {
    rest: &'t str,
    allowed: &'static Allowed,
}

impl Parser<'_> {
    /// Parses to the end, or inside a default to its `}`.
    fn parts(&mut self, depth: usize) -> Result<Vec<Part>, SyntaxError> {
        let mut parts = Vec::new();
        let mut text = String::new();
        loop {
            match self.next() {
                Some('$') => match self.next() {
                    Some('$') => push(&mut text, '$'),
                    Some('{') => {
                        if !text.is_empty() {
                            parts.push(Part::Text(std::mem::take(&mut text)));
                        }
                        parts.push(self.reference(depth)?);
                    }
                    _ => return Err(DOLLAR),
                },
                Some('}') if depth > 0 => break,
                Some(char) => push(&mut text, char),
                None if depth > 0 => return Err(UNCLOSED),
                None => break,
            }
        }
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Ok(parts)
    }

    /// Parses what follows a `${`.
    fn reference(&mut self, depth: usize) -> Result<Part, SyntaxError> {
        let depth = depth.saturating_add(1);
        if depth > MAX_DEPTH {
            return Err(TOO_DEEP);
        }
        let refused = SyntaxError(self.allowed.usage);
        let (name, rest) = self.rest.split_once(':').ok_or(refused)?;
        let mut allowed = self.allowed.sources.iter();
        let source = *allowed
            .find(|source| source.name() == name)
            .ok_or(refused)?;
        self.rest = rest;
        let mut argument = String::new();
        let has_default = loop {
            match self.next().ok_or(UNCLOSED)? {
                '}' => break false,
                ':' if self.rest.starts_with('-') => break true,
                char => push(&mut argument, char),
            }
        };
        if !source.accepts(&argument) {
            return Err(refused);
        }
        let default = if has_default {
            self.next(); // The -
            Some(self.parts(depth)?)
        } else {
            None
        };
        Ok(Part::Reference(Reference { source, argument }, default))
    }

    #[inline(never)]
    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let char = chars.next();
        self.rest = chars.as_str();
        char
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &Allowed = &Allowed {
        sources: &[Source::Env, Source::Node],
        usage: "allowed are both",
    };

    fn parse(text: &str) -> Result<Template, SyntaxError> {
        Template::parse(text, BOTH)
    }

    /// `A` is a, `EMPTY` is empty, the node's id is web-1.
    fn read(reference: &Reference) -> Option<String> {
        let value = match (reference.source, reference.argument.as_str()) {
            (Source::Env, "A") => "a",
            (Source::Env, "REFERENCE") => "${env:A}",
            (Source::Env, "EMPTY") => "",
            (Source::Node, "/id") => "web-1",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn references_give_what_they_read_or_their_default() {
        let resolved = |text| parse(text).unwrap().resolve(&mut read);
        for (text, expected) in [
            ("", Some("")),
            ("web", Some("web")),
            ("${env:A}", Some("a")),
            ("<${env:A}-${node:/id}>", Some("<a-web-1>")),
            ("${env:A:-b}", Some("a")),
            ("${env:B:-b}", Some("b")),
            ("${env:EMPTY:-b}", Some("b")),
            ("${env:B:-}", Some("")),
            ("v${env:B:-}", Some("v")),
            ("${env:B:-${node:/id}}", Some("web-1")),
            (
                "${env:B:-<${env:C:-${env:EMPTY:-${node:/id}}}>}!",
                Some("<web-1>!"),
            ),
            ("${env:B:-a:-b}", Some("a:-b")),
            ("${env:B:-$$5}", Some("$5")),
            ("$${env:A}", Some("${env:A}")),
            ("$$$${env:A}", Some("$${env:A}")),
            ("$$${env:A}", Some("$a")),
            ("}{", Some("}{")),
            // What was read is not read again.
            ("${env:REFERENCE}", Some("${env:A}")),
            ("ä${env:B:-日本}", Some("ä日本")),
            ("${env:B}", None),
            ("${env:EMPTY}", None),
            ("${env:A}-${env:B}", None),
            ("${env:B:-${env:C}}", None),
            ("${node:/metadata/a~1b~0c}", None),
        ] {
            assert_eq!(resolved(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn only_used_references_are_read() {
        let template = parse("${env:A:-${env:B}}").unwrap();
        let mut used = Vec::new();
        template.resolve(&mut |reference| {
            used.push(reference.argument.clone());
            read(reference)
        });
        assert_eq!(used, ["A"]);
        assert_eq!(template.as_str(), "${env:A:-${env:B}}");
    }

    #[test]
    fn a_mistake_is_refused_with_what_is_allowed() {
        const ENV: &Allowed = &Allowed {
            sources: &[Source::Env],
            usage: "allowed is env",
        };
        let refused = SyntaxError(BOTH.usage);
        for (text, error) in [
            ("$", DOLLAR),
            ("$A", DOLLAR),
            ("a$", DOLLAR),
            ("$$$", DOLLAR),
            ("${env:A:-$}", DOLLAR),
            ("${", refused),
            ("${env:A", UNCLOSED),
            ("${env:A:-b", UNCLOSED),
            ("${env:A:-${env:B}", UNCLOSED),
            ("${}", refused),
            ("${A}", refused),
            ("${A:-b}", refused),
            ("${ENV:A}", refused),
            ("${ env:A}", refused),
            ("${file:/etc/passwd}", refused),
            ("${cluster:/a}", refused),
            ("${env:}", refused),
            ("${env:-b}", refused),
            ("${env:1A}", refused),
            ("${env:A B}", refused),
            ("${env:A=B}", refused),
            ("${env:${env:A}}", refused),
            ("${node:}", refused),
            ("${node:id}", refused),
            ("${node:/metadata/a~2}", refused),
            ("${node:/metadata}", refused),
            ("${node:/id/a}", refused),
            ("${node:/locality}", refused),
            ("${node:/locality/a}", refused),
            ("${node:/user_agent_name}", refused),
            ("${env:B:-${evn:A}}", refused),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
        let refused = SyntaxError(ENV.usage);
        assert_eq!(Template::parse("${node:/id}", ENV), Err(refused));
        assert!(Template::parse("${env:A}", ENV).is_ok());
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth| "${env:B:-".repeat(depth) + "b" + &"}".repeat(depth);
        let deepest = parse(&nested(MAX_DEPTH)).unwrap();
        assert_eq!(deepest.resolve(&mut read).as_deref(), Some("b"));
        assert_eq!(parse(&nested(MAX_DEPTH + 1)), Err(TOO_DEEP));
        assert_eq!(parse(&nested(100_000)), Err(TOO_DEEP));
    }
}
