//! Finds the resources in the doctor's input: an admin interface's
//! `/config_dump`, whole or in parts, a bootstrap, resources as xDS sends them,
//! or istiod's own dump.

use serde_json::Value;

use super::json::{list, text, type_of};

/// The resources of one Envoy, from all documents.
#[derive(Default)]
pub(super) struct Resources<'a> {
    /// The bootstrap.
    pub(super) bootstrap: Option<&'a Value>,
    /// The listeners; `None` if no document covers them.
    pub(super) listeners: Option<Vec<&'a Value>>,
    /// Listeners whose last update was refused, and why.
    pub(super) refused_listeners: Vec<(&'a str, &'a str)>,
    /// The clusters; `None` if no document covers them.
    pub(super) clusters: Option<Vec<&'a Value>>,
    /// The route configurations that have a name of their own.
    pub(super) routes: Vec<&'a Value>,
    /// The extension configurations that were discovered.
    pub(super) extensions: Vec<&'a Value>,
    /// Whether the input is a dump, and not only a bootstrap.
    is_dump: bool,
    /// Whether the static listeners, which the bootstrap repeats, were found.
    has_static_listeners: bool,
    has_static_clusters: bool,
}

impl<'a> Resources<'a> {
    /// Collects the resources in `documents`.
    pub(super) fn read(documents: &'a [Value]) -> Self {
        let mut resources = Self::default();
        for document in documents {
            resources.add(document);
        }
        resources.add_static_resources();
        resources
    }

    /// Whether no resource of an Envoy was found.
    pub(super) fn is_empty(&self) -> bool {
        self.bootstrap.is_none()
            && self.listeners.is_none()
            && self.clusters.is_none()
            && self.routes.is_empty()
            && self.extensions.is_empty()
    }

    /// The node, if the bootstrap is known.
    pub(super) fn node(&self) -> Option<&'a Value> {
        self.bootstrap.map(|bootstrap| &bootstrap["node"])
    }

    /// The extension configurations that were discovered. Only a whole dump
    /// proves that there are none; a part, or istiod's dump, does not.
    pub(super) fn known_extensions(&self) -> Option<&[&'a Value]> {
        let is_whole = self.bootstrap.is_some() && self.is_dump;
        (is_whole || !self.extensions.is_empty()).then_some(self.extensions.as_slice())
    }

    fn add(&mut self, value: &'a Value) {
        if let Value::Array(values) = value {
            for value in values {
                self.add(value);
            }
            return;
        }
        let kind = type_of(value).rsplit('.').next().unwrap_or_default();
        let has =
            |keys: &[&str]| kind.is_empty() && keys.iter().any(|key| value.get(key).is_some());
        match kind {
            "BootstrapConfigDump" => {
                self.add_bootstrap(&value["bootstrap"]);
                // Its clusters have their own section.
                self.has_static_clusters = true;
            }
            "Bootstrap" => self.add_bootstrap(value),
            "StaticListener" => self.add_static_listener(&value["listener"]),
            "DynamicListener" => self.add_dynamic_listener(value),
            "Listener" => self.listeners.get_or_insert_default().push(value),
            "StaticCluster" => self.add_static_cluster(&value["cluster"]),
            "DynamicCluster" => self.add_cluster(&value["cluster"]),
            "Cluster" => self.add_cluster(value),
            "StaticRouteConfig" | "DynamicRouteConfig" => self.routes.push(&value["route_config"]),
            "RouteConfiguration" => self.routes.push(value),
            "EcdsFilterConfig" => self.extensions.push(&value["ecds_filter"]),
            "TypedExtensionConfig" => self.extensions.push(value),
            _ if has(&["bootstrap"]) => self.add_bootstrap(&value["bootstrap"]),
            _ if has(&["static_resources", "dynamic_resources", "admin", "node"]) => {
                self.add_bootstrap(value);
            }
            _ if has(&["filter_chains", "default_filter_chain"]) => {
                self.listeners.get_or_insert_default().push(value);
            }
            _ => self.add_lists(value, kind),
        }
    }

    fn add_lists(&mut self, value: &'a Value, kind: &str) {
        let each = |key: &str| list(&value[key]);
        // Envoy omits an empty list.
        if kind == "ListenersConfigDump" {
            self.is_dump = true;
            self.listeners.get_or_insert_default();
            self.has_static_listeners = true;
        }
        if kind == "ClustersConfigDump" {
            self.clusters.get_or_insert_default();
            self.has_static_clusters = true;
        }
        each("static_listeners").for_each(|one| self.add_static_listener(&one["listener"]));
        each("dynamic_listeners").for_each(|one| self.add_dynamic_listener(one));
        each("static_clusters").for_each(|one| self.add_static_cluster(&one["cluster"]));
        for key in ["dynamic_active_clusters", "dynamic_warming_clusters"] {
            each(key).for_each(|one| self.add_cluster(&one["cluster"]));
        }
        for key in ["static_route_configs", "dynamic_route_configs"] {
            self.routes
                .extend(each(key).map(|one| &one["route_config"]));
        }
        self.extensions
            .extend(each("ecds_filters").map(|one| &one["ecds_filter"]));
        for key in ["configs", "resources", "listeners", "clusters"] {
            each(key).for_each(|one| self.add(one));
        }
    }

    /// istiod's dump of a proxy has an empty bootstrap.
    fn add_bootstrap(&mut self, bootstrap: &'a Value) {
        if bootstrap
            .as_object()
            .is_some_and(|fields| !fields.is_empty())
        {
            self.bootstrap = Some(bootstrap);
        }
    }

    fn add_static_listener(&mut self, listener: &'a Value) {
        self.has_static_listeners = true;
        self.listeners.get_or_insert_default().push(listener);
    }

    fn add_static_cluster(&mut self, cluster: &'a Value) {
        self.has_static_clusters = true;
        self.add_cluster(cluster);
    }

    fn add_cluster(&mut self, cluster: &'a Value) {
        self.clusters.get_or_insert_default().push(cluster);
    }

    fn add_dynamic_listener(&mut self, listener: &'a Value) {
        let listeners = self.listeners.get_or_insert_default();
        if let Some(active) = listener["active_state"].get("listener") {
            listeners.push(active);
        }
        let error = &listener["error_state"];
        let Some(details) = error["details"].as_str() else {
            return;
        };
        // Envoy writes it twice, once without the listener's name.
        let named = listener.get("name");
        let name = text(named.unwrap_or(&error["failed_configuration"]["name"]));
        let refused = &mut self.refused_listeners;
        refused.retain(|(other, why)| *why != details || !other.is_empty());
        let is_known =
            |(other, why): &(&str, &str)| *why == details && (*other == name || name.is_empty());
        if !refused.iter().any(is_known) {
            refused.push((name, details));
        }
    }

    /// Adds the static resources of a bootstrap. If listeners or clusters are
    /// discovered later, only the static ones are known.
    fn add_static_resources(&mut self) {
        let Some(bootstrap) = self.bootstrap else {
            return;
        };
        let fixed = |key: &str| list(&bootstrap["static_resources"][key]);
        let is_discovered = |key: &str| {
            let dynamic = &bootstrap["dynamic_resources"];
            dynamic.get(key).is_some()
        };
        if !self.has_static_listeners {
            let mut listeners = fixed("listeners").peekable();
            if listeners.peek().is_some() || !is_discovered("lds_config") {
                self.listeners.get_or_insert_default().extend(listeners);
            }
        }
        if !self.has_static_clusters && !is_discovered("cds_config") {
            self.clusters
                .get_or_insert_default()
                .extend(fixed("clusters"));
        }
    }
}
