//! Texts with references, as the plugin configuration writes them: `${env:POD_NAME:-${node:/id}}`.
//!
//! The syntax is that of the OpenTelemetry Collector's configuration: `${SOURCE:ARGUMENT}`, with a
//! default after `:-`, which may contain references itself; `$$` is a dollar sign. A reference that
//! gives an empty text gives nothing, so that unset and empty are alike.

use std::fmt;

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
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Env => "env",
            Self::Node => "node",
        }
    }

    /// The reference as errors show it.
    fn usage(self) -> &'static str {
        match self {
            Self::Env => "${env:NAME}",
            Self::Node => "${node:/POINTER}",
        }
    }

    fn accepts(self, argument: &str) -> bool {
        match self {
            Self::Env => is_variable(argument),
            Self::Node => pointer::is_valid(argument),
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

/// Why a text is not a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyntaxError {
    /// A `$` that begins no reference.
    Dollar,
    /// A reference without its `}`.
    Unclosed,
    /// References nested too deeply in defaults.
    TooDeep,
    /// A source other than these, or an argument that its source does not accept.
    Reference(&'static [Source]),
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dollar => f.write_str("a $ begins a reference; write $$ for a dollar sign"),
            Self::Unclosed => f.write_str("a reference lacks its }"),
            Self::TooDeep => write!(f, "more than {MAX_DEPTH} references inside each other"),
            Self::Reference(allowed) => {
                f.write_str("allowed are text")?;
                for source in *allowed {
                    write!(f, ", {}", source.usage())?;
                }
                f.write_str(" and a default: ${...:-default}")
            }
        }
    }
}

impl std::error::Error for SyntaxError {}

impl Template {
    /// Parses `written`, whose references may read only `allowed` sources.
    pub fn parse(written: String, allowed: &'static [Source]) -> Result<Self, SyntaxError> {
        let mut parser = Parser {
            rest: &written,
            allowed,
        };
        let parts = parser.parts(0)?;
        Ok(Self { written, parts })
    }

    /// The text as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// Every reference, also those in defaults.
    pub fn for_each(&self, see: &mut dyn FnMut(&Reference)) {
        for_each(&self.parts, see);
    }

    /// The text with what `read` gives for its references; `None` if a reference and its default
    /// give nothing.
    pub fn resolve(&self, read: &mut dyn FnMut(&Reference) -> Option<String>) -> Option<String> {
        resolve(&self.parts, read)
    }
}

fn for_each(parts: &[Part], see: &mut dyn FnMut(&Reference)) {
    for part in parts {
        if let Part::Reference(reference, default) = part {
            see(reference);
            for_each(default.as_deref().unwrap_or_default(), see);
        }
    }
}

fn resolve(parts: &[Part], read: &mut dyn FnMut(&Reference) -> Option<String>) -> Option<String> {
    let mut resolved = String::new();
    for part in parts {
        match part {
            Part::Text(text) => resolved.push_str(text),
            Part::Reference(reference, default) => {
                let read_text = read(reference).filter(|text| !text.is_empty());
                match (read_text, default) {
                    (Some(text), _) => resolved.push_str(&text),
                    (None, Some(default)) => resolved.push_str(&resolve(default, read)?),
                    (None, None) => return None,
                }
            }
        }
    }
    Some(resolved)
}

struct Parser<'t> {
    rest: &'t str,
    allowed: &'static [Source],
}

impl Parser<'_> {
    /// Parses to the end, or inside a default to its `}`.
    fn parts(&mut self, depth: usize) -> Result<Vec<Part>, SyntaxError> {
        let mut parts = Vec::new();
        let mut text = String::new();
        loop {
            match self.next() {
                Some('$') => match self.next() {
                    Some('$') => text.push('$'),
                    Some('{') => {
                        if !text.is_empty() {
                            parts.push(Part::Text(std::mem::take(&mut text)));
                        }
                        parts.push(self.reference(depth)?);
                    }
                    _ => return Err(SyntaxError::Dollar),
                },
                Some('}') if depth > 0 => break,
                Some(char) => text.push(char),
                None if depth > 0 => return Err(SyntaxError::Unclosed),
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
            return Err(SyntaxError::TooDeep);
        }
        let (reference, rest) = self.rest.split_once('}').ok_or(SyntaxError::Unclosed)?;
        let refused = SyntaxError::Reference(self.allowed);
        let (name, argument) = reference.split_once(':').ok_or(refused)?;
        let mut allowed = self.allowed.iter();
        let source = *allowed
            .find(|source| source.name() == name)
            .ok_or(refused)?;
        let (argument, has_default) = match argument.split_once(":-") {
            Some((argument, _)) => (argument, true),
            None => (argument, false),
        };
        if !source.accepts(argument) {
            return Err(refused);
        }
        let argument = argument.to_owned();
        let default = if has_default {
            // The first `}` may be that of a reference in the default.
            let default = self.rest.split_once(":-");
            self.rest = default.map(|(_, default)| default).unwrap_or_default();
            Some(self.parts(depth)?)
        } else {
            self.rest = rest;
            None
        };
        Ok(Part::Reference(Reference { source, argument }, default))
    }

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

    const BOTH: &[Source] = &[Source::Env, Source::Node];

    fn parse(text: &str) -> Result<Template, SyntaxError> {
        Template::parse(text.to_owned(), BOTH)
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
    fn only_used_references_are_read_and_all_are_seen() {
        let template = parse("${env:A:-${env:B}}").unwrap();
        let mut used = Vec::new();
        template.resolve(&mut |reference| {
            used.push(reference.argument.clone());
            read(reference)
        });
        assert_eq!(used, ["A"]);
        let mut seen = Vec::new();
        template.for_each(&mut |reference| seen.push(reference.argument.clone()));
        assert_eq!(seen, ["A", "B"]);
        assert_eq!(template.as_str(), "${env:A:-${env:B}}");
    }

    #[test]
    fn a_mistake_is_refused_with_what_is_allowed() {
        let refused = SyntaxError::Reference(BOTH);
        for (text, error) in [
            ("$", SyntaxError::Dollar),
            ("$A", SyntaxError::Dollar),
            ("a$", SyntaxError::Dollar),
            ("$$$", SyntaxError::Dollar),
            ("${env:A:-$}", SyntaxError::Dollar),
            ("${", SyntaxError::Unclosed),
            ("${env:A", SyntaxError::Unclosed),
            ("${env:A:-b", SyntaxError::Unclosed),
            ("${env:A:-${env:B}", SyntaxError::Unclosed),
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
            ("${node:/a~2}", refused),
            ("${env:B:-${evn:A}}", refused),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
        let env_only = Template::parse("${node:/id}".into(), &[Source::Env]);
        assert_eq!(
            env_only.unwrap_err().to_string(),
            "allowed are text, ${env:NAME} and a default: ${...:-default}"
        );
        assert_eq!(
            refused.to_string(),
            "allowed are text, ${env:NAME}, ${node:/POINTER} and a default: ${...:-default}"
        );
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth| "${env:B:-".repeat(depth) + "b" + &"}".repeat(depth);
        let deepest = parse(&nested(MAX_DEPTH)).unwrap();
        assert_eq!(deepest.resolve(&mut read).as_deref(), Some("b"));
        assert_eq!(parse(&nested(MAX_DEPTH + 1)), Err(SyntaxError::TooDeep));
        assert_eq!(parse(&nested(100_000)), Err(SyntaxError::TooDeep));
    }
}
