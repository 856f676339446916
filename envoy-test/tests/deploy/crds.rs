//! Istio's CRDs as schemas that reject unknown fields, which an API server
//! would only drop.
//!
//! CEL rules (`x-kubernetes-validations`) are not evaluated.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use jsonschema::Validator;
use serde_json::{Value, json};

use crate::{read_one, yaml_files};

/// Validators by `apiVersion` and `kind`.
pub(crate) struct Crds(BTreeMap<(String, String), Validator>);

impl Crds {
    /// Loads `testdata/crds`.
    pub(crate) fn load() -> Result<Self> {
        let mut validators = BTreeMap::new();
        for path in yaml_files("testdata/crds")? {
            let crd = read_one(&path)?;
            let group = text(&crd["spec"]["group"])?;
            let kind = text(&crd["spec"]["names"]["kind"])?;
            let versions = crd["spec"]["versions"].as_array().context("no versions")?;
            for version in versions.iter().filter(|version| version["served"] == true) {
                let api_version = format!("{group}/{}", text(&version["name"])?);
                let schema = with_object_fields(version["schema"]["openAPIV3Schema"].clone());
                let validator = jsonschema::validator_for(&strict(schema))?;
                validators.insert((api_version, kind.to_owned()), validator);
            }
        }
        // The only built-in kind of Kubernetes that is used, without further
        // fields.
        let account = jsonschema::validator_for(&strict(with_object_fields(json!({}))))?;
        validators.insert(("v1".to_owned(), "ServiceAccount".to_owned()), account);
        Ok(Self(validators))
    }

    /// Checks an object against the CRD of its kind.
    pub(crate) fn check(&self, object: &Value) -> Result<()> {
        let of = (text(&object["apiVersion"])?, text(&object["kind"])?);
        let key = (of.0.to_owned(), of.1.to_owned());
        let Some(validator) = self.0.get(&key) else {
            bail!("no CRD serves {} {}", of.0, of.1);
        };
        let errors: Vec<String> = validator
            .iter_errors(object)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        ensure!(
            errors.is_empty(),
            "{} {}: {errors:#?}",
            of.1,
            object["metadata"]["name"]
        );
        Ok(())
    }
}

fn text(value: &Value) -> Result<&str> {
    value
        .as_str()
        .with_context(|| format!("{value} is not a string"))
}

/// Adds the fields that every object has to a CRD's schema.
fn with_object_fields(mut schema: Value) -> Value {
    let texts = json!({ "type": "object", "additionalProperties": { "type": "string" } });
    let text = json!({ "type": "string", "minLength": 1 });
    let properties = &mut schema["properties"];
    properties["apiVersion"] = text.clone();
    properties["kind"] = text.clone();
    properties["metadata"] = json!({
        "type": "object",
        "properties": { "name": text, "namespace": text, "labels": texts, "annotations": texts },
        "required": ["name"],
    });
    schema
}

/// Makes a structural schema reject fields that it does not name.
fn strict(mut schema: Value) -> Value {
    let keeps_unknown = schema["x-kubernetes-preserve-unknown-fields"] == true;
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for property in properties.values_mut() {
            *property = strict(property.take());
        }
        if !keeps_unknown {
            schema["additionalProperties"] = false.into();
        }
    }
    for below in ["items", "additionalProperties"] {
        if let Some(schema) = schema.get_mut(below).filter(|below| below.is_object()) {
            *schema = strict(schema.take());
        }
    }
    if schema["nullable"] == true {
        schema["type"] = json!([schema["type"], "null"]);
    }
    schema
}

fn plugin() -> Value {
    json!({
        "apiVersion": "extensions.istio.io/v1alpha1",
        "kind": "WasmPlugin",
        "metadata": { "name": "x" },
        "spec": { "url": "oci://x", "phase": "AUTHN", "pluginConfig": { "any": { "thing": 1 } } },
    })
}

#[test]
fn a_mistake_is_refused() -> Result<()> {
    let crds = Crds::load()?;
    crds.check(&plugin())?;
    for (pointer, key, value, complaint) in [
        ("/spec", "failStrateyg", json!("FAIL_OPEN"), "failStrateyg"),
        ("/spec", "phase", json!("FIRST"), "FIRST"),
        ("/spec", "priority", json!("10"), "integer"),
        (
            "/spec",
            "match",
            json!([{ "mode": "CLIENT", "port": 1 }]),
            "port",
        ),
        ("/metadata", "nam", json!("x"), "nam"),
        ("", "specs", json!({}), "specs"),
        ("", "apiVersion", json!("extensions.istio.io/v1"), "no CRD"),
    ] {
        let mut wrong = plugin();
        wrong.pointer_mut(pointer).context("no such place")?[key] = value;
        let error = crds.check(&wrong).expect_err(key).to_string();
        assert!(error.contains(complaint), "{error}");
    }
    let mut without_url = plugin();
    without_url["spec"]
        .as_object_mut()
        .context("spec")?
        .remove("url");
    assert!(crds.check(&without_url).is_err());
    Ok(())
}
