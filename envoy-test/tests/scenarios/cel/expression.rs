//! CEL expressions over a stored peer, each as text for formatters and as a tree for RBAC. Envoy disables
//! comprehensions (`exists`, `all`) in both.

use serde_json::{Value, json};

/// An expression in both forms.
#[derive(Clone, Debug)]
pub(crate) struct Expression {
    pub(crate) text: String,
    /// `google.api.expr.v1alpha1.Expr` as JSON.
    pub(crate) tree: Value,
}

/// Every expression over the peer that filter state holds under `key`.
pub(crate) fn over(key: &str) -> Vec<Expression> {
    let peer = name("filter_state").at(&text(key));
    let id = name("filter_state").at(&text(&format!("{key}_id")));
    let mut all = vec![
        peer.clone(),
        id,
        text(key).is_in(&name("filter_state")),
        peer.select("no_such_field"),
        peer.has("no_such_field"),
        peer.at(&text("name")),
    ];
    for field in [
        "name",
        "namespace",
        "owner",
        "workload_name",
        "istio_version",
        "mesh_id",
        "cluster_id",
        "identity",
    ] {
        all.extend([
            peer.select(field),
            peer.has(field),
            peer.select(field).size(),
        ]);
    }
    for field in ["labels", "platform_metadata"] {
        let map = peer.select(field);
        let entry = map.at(&text("app"));
        all.extend([
            map.clone(),
            peer.has(field),
            map.size(),
            entry.clone(),
            entry.select("key"),
            entry.select("value"),
            entry.has("value"),
            map.at(&text("")),
            map.at(&text("no such key")).select("value"),
            map.at(&number(0)),
            map.select("app"),
            map.select("app").select("value"),
            map.has("app"),
            text("app").is_in(&map),
            text("no such key").is_in(&map),
            map.equals(&map),
        ]);
    }
    for field in ["app_containers", "instance_ips"] {
        let list = peer.select(field);
        all.extend([
            list.clone(),
            peer.has(field),
            list.size(),
            list.at(&number(0)),
            list.at(&number(99)),
            list.at(&number(-1)),
            list.at(&text("a")),
            text("a").is_in(&list),
            list.equals(&list),
        ]);
    }
    all
}

fn name(name: &str) -> Expression {
    Expression {
        text: name.to_owned(),
        tree: json!({ "ident_expr": { "name": name } }),
    }
}

fn text(text: &str) -> Expression {
    Expression {
        text: format!("'{text}'"),
        tree: json!({ "const_expr": { "string_value": text } }),
    }
}

fn number(number: i64) -> Expression {
    Expression {
        text: number.to_string(),
        tree: json!({ "const_expr": { "int64_value": number.to_string() } }),
    }
}

fn call(function: &str, arguments: &[&Value]) -> Value {
    json!({ "call_expr": { "function": function, "args": arguments } })
}

impl Expression {
    fn at(&self, index: &Self) -> Self {
        Self {
            text: format!("{}[{}]", self.text, index.text),
            tree: call("_[_]", &[&self.tree, &index.tree]),
        }
    }

    fn select(&self, field: &str) -> Self {
        Self {
            text: format!("{}.{field}", self.text),
            tree: json!({ "select_expr": { "operand": self.tree, "field": field } }),
        }
    }

    fn has(&self, field: &str) -> Self {
        Self {
            text: format!("has({}.{field})", self.text),
            tree: json!({ "select_expr": { "operand": self.tree, "field": field, "test_only": true } }),
        }
    }

    fn size(&self) -> Self {
        Self {
            text: format!("size({})", self.text),
            tree: call("size", &[&self.tree]),
        }
    }

    fn is_in(&self, container: &Self) -> Self {
        Self {
            text: format!("{} in {}", self.text, container.text),
            tree: call("@in", &[&self.tree, &container.tree]),
        }
    }

    fn equals(&self, other: &Self) -> Self {
        Self {
            text: format!("{} == {}", self.text, other.text),
            tree: call("_==_", &[&self.tree, &other.tree]),
        }
    }
}
