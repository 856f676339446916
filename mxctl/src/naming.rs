//! Names the service of a node by `SkyWalking`'s rule, which is configured by
//! its `metadata-service-mapping.yaml`.

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;

/// `SkyWalking`'s own rule.
const DEFAULT: &str = r#"
serviceName: ${LABELS."service.istio.io/canonical-name",LABELS."app.kubernetes.io/name",LABELS.app,LABELS.k8s-app,SERVICE}.${NAMESPACE}
serviceInstanceName: ${NAME}
"#;

/// The placeholder for a part that a node lacks.
const MISSING: &str = "-";

/// How nodes are named.
#[derive(Clone, Debug)]
pub struct Naming {
    service: Format,
    instance: Format,
    /// How many characters of a name are kept; `None` keeps all.
    length: Option<usize>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rules {
    service_name: String,
    service_instance_name: String,
}

impl Naming {
    /// Reads a `metadata-service-mapping.yaml`.
    pub fn of_yaml(yaml: &str) -> Result<Self> {
        let rules: Rules = serde_saphyr::from_str(yaml).context("not a service mapping")?;
        let read =
            |key: &str, text: &str| Format::parse(text).with_context(|| format!("{key}: {text:?}"));
        Ok(Self {
            service: read("serviceName", &rules.service_name)?,
            instance: read("serviceInstanceName", &rules.service_instance_name)?,
            length: None,
        })
    }

    /// The same naming, truncated to that many characters as Java counts them.
    #[must_use]
    pub fn cut_to(self, length: usize) -> Self {
        Self {
            length: Some(length),
            ..self
        }
    }

    /// The service of a node with this metadata.
    #[must_use]
    pub fn service(&self, metadata: &Value) -> String {
        self.cut(self.service.apply(metadata))
    }

    /// Which keys name the service of such a node, such as `LABELS.app,
    /// NAMESPACE`; a part that no key names is `nothing`.
    #[must_use]
    pub fn named_by(&self, metadata: &Value) -> String {
        self.service.sources(metadata).join(", ")
    }

    /// The instance of that service: the pod or VM.
    #[must_use]
    pub fn instance(&self, metadata: &Value) -> String {
        self.cut(self.instance.apply(metadata))
    }

    fn cut(&self, name: String) -> String {
        let Some(mut left) = self.length else {
            return name;
        };
        let is_kept = |char: &char| {
            let rest = left.checked_sub(char.len_utf16());
            left = rest.unwrap_or(0);
            rest.is_some()
        };
        name.chars().take_while(is_kept).collect()
    }

    /// The name of a node without any metadata.
    #[must_use]
    pub fn nameless(&self) -> String {
        self.service(&Value::Null)
    }
}

impl Default for Naming {
    /// # Panics
    /// Never: a test parses the rule.
    fn default() -> Self {
        Self::of_yaml(DEFAULT).expect("SkyWalking's rule is a rule")
    }
}

/// A template with properties, such as `${A,B.c}.${D}`.
#[derive(Clone, Debug)]
struct Format(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    /// The first of these paths that exists and is not empty.
    Property(Vec<Vec<String>>),
}

impl Format {
    fn parse(text: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let Some((property, after)) = after.split_once('}') else {
                bail!("a ${{ without }}");
            };
            parts.push(Part::Text(before.to_owned()));
            let paths: Vec<_> = property.split(',').map(path).collect();
            if paths.iter().any(Vec::is_empty) {
                bail!("an empty property in ${{{property}}}");
            }
            parts.push(Part::Property(paths));
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }

    fn apply(&self, metadata: &Value) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Property(paths) => {
                let mut texts = paths.iter().filter_map(|path| text_at(metadata, path));
                texts.next().unwrap_or(MISSING).to_owned()
            }
        };
        self.0.iter().map(part).collect()
    }
}

impl Format {
    /// The property that each part is taken from.
    fn sources(&self, metadata: &Value) -> Vec<String> {
        let source = |part: &Part| match part {
            Part::Text(_) => None,
            Part::Property(paths) => {
                let path = paths.iter().find(|path| text_at(metadata, path).is_some());
                Some(path.map_or_else(|| "nothing".to_owned(), |path| path.join(".")))
            }
        };
        self.0.iter().filter_map(source).collect()
    }
}

/// The segments of a path, separated by dots outside quotes.
fn path(text: &str) -> Vec<String> {
    let mut segments = vec![String::new()];
    let mut is_quoted = false;
    for char in text.trim().chars() {
        match (char, segments.last_mut()) {
            ('"', _) => is_quoted = !is_quoted,
            ('.', _) if !is_quoted => segments.push(String::new()),
            (char, Some(segment)) => segment.push(char),
            (_, None) => {}
        }
    }
    segments.retain(|segment| !segment.is_empty());
    segments
}

fn text_at<'m>(metadata: &'m Value, path: &[String]) -> Option<&'m str> {
    let mut value = metadata;
    for segment in path {
        value = field(value, segment)?;
    }
    value
        .as_str()
        .filter(|text| !text.is_empty() && *text != MISSING)
}

/// A field by its name in any case, as newer `SkyWalking` releases look it up.
fn field<'m>(value: &'m Value, name: &str) -> Option<&'m Value> {
    let object = value.as_object()?;
    object.get(name).or_else(|| {
        let mut fields = object.iter();
        let field = fields.find(|(key, _)| key.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_naming_label_names_the_service() {
        let naming = Naming::default();
        let service = |labels: Value| {
            naming.service(&json!({ "NAMESPACE": "shop", "SERVICE": "s", "LABELS": labels }))
        };
        let all = json!({
            "service.istio.io/canonical-name": "a", "app.kubernetes.io/name": "b",
            "app": "c", "k8s-app": "d",
        });
        let mut labels = all.clone();
        for (key, name) in [
            ("service.istio.io/canonical-name", "a.shop"),
            ("app.kubernetes.io/name", "b.shop"),
            ("app", "c.shop"),
            ("k8s-app", "d.shop"),
        ] {
            assert_eq!(service(labels.clone()), name);
            labels[key] = json!("");
        }
        assert_eq!(service(labels), "s.shop");
    }

    #[test]
    fn missing_parts_are_dashes() {
        let naming = Naming::default();
        assert_eq!(naming.nameless(), "-.-");
        assert_eq!(naming.instance(&json!({ "NAME": 7 })), "-");
        assert_eq!(naming.service(&json!({ "LABELS": { "app": "a" } })), "a.-");
    }

    #[test]
    fn the_keys_of_newer_istio_releases_are_read() {
        let metadata = json!({ "namespace": "n", "labels": { "app": "a" }, "name": "a-1" });
        let naming = Naming::default();
        assert_eq!(naming.service(&metadata), "a.n");
        assert_eq!(naming.instance(&metadata), "a-1");
    }

    #[test]
    fn names_are_cut_as_java_counts_characters() {
        let naming = Naming::default().cut_to(4);
        let named = |name: &str| naming.instance(&json!({ "NAME": name }));
        assert_eq!(named("abcd"), "abcd");
        assert_eq!(named("abcde"), "abcd");
        assert_eq!(named("\u{e9}\u{6f22}bcd"), "\u{e9}\u{6f22}bc");
        assert_eq!(named("abc\u{1f600}d"), "abc");
    }

    #[test]
    fn the_label_that_names_a_service_is_reported() {
        let naming = Naming::default();
        let metadata = json!({ "NAMESPACE": "n", "LABELS": { "k8s-app": "a" } });
        assert_eq!(naming.named_by(&metadata), "LABELS.k8s-app, NAMESPACE");
        assert_eq!(
            naming.named_by(&json!({ "SERVICE": "s" })),
            "SERVICE, nothing"
        );
    }

    #[test]
    fn a_custom_rule_is_applied() {
        let yaml =
            "serviceName: \"${CLUSTER_ID}::${LABELS.\\\"x.y\\\"}\"\nserviceInstanceName: i-${NAME}";
        let naming = Naming::of_yaml(yaml).unwrap();
        let metadata = json!({ "CLUSTER_ID": "c", "NAME": "n", "LABELS": { "x.y": "z" } });
        assert_eq!(naming.service(&metadata), "c::z");
        assert_eq!(naming.instance(&metadata), "i-n");
    }

    #[test]
    fn a_broken_rule_is_refused_with_its_key() {
        for yaml in [
            "serviceName: ${A\nserviceInstanceName: ${NAME}",
            "serviceName: ${}\nserviceInstanceName: ${NAME}",
            "serviceName: ${A,}\nserviceInstanceName: ${NAME}",
        ] {
            let error = format!("{:#}", Naming::of_yaml(yaml).unwrap_err());
            assert!(error.starts_with("serviceName: "), "{error}");
        }
        assert!(Naming::of_yaml("serviceName: a").is_err());
        assert!(Naming::of_yaml("[]").is_err());
    }
}
