//! Queries an OAP for its topology and the calls of each edge.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use super::graphql::ask;
use super::{INTERVAL, PATIENCE};
use crate::wait::until_within;

/// How many edges are queried at a time: the OAP limits the complexity of a query.
const AT_A_TIME: usize = 4;
/// The metrics of each side of an edge: calls per minute, and the share that succeeded.
const METRICS: [(&str, &str); 4] = [
    ("client", "cpm"),
    ("client", "call_sla"),
    ("server", "cpm"),
    ("server", "call_sla"),
];

/// Caller and callee, by the names of services.
pub type Edge = (String, String);

/// Calls that one side of an edge has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// How many.
    pub calls: u64,
    /// How many of these succeeded.
    pub succeeded: u64,
}

impl Calls {
    /// Calls that all succeeded.
    #[must_use]
    pub fn all(calls: u64) -> Self {
        Self {
            calls,
            succeeded: calls,
        }
    }
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, succeeded } = self;
        if *calls == 0 {
            return f.pad("-");
        }
        #[allow(clippy::cast_precision_loss)] // The calls of a test are few.
        let rate = *succeeded as f64 * 100.0 / *calls as f64;
        f.pad(&format!("{calls} {}%", (rate * 100.0).round() / 100.0))
    }
}

/// Bytes of connections, from the client and to it: the average of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// From the client.
    pub received: u64,
    /// To the client.
    pub sent: u64,
}

/// Calls that each side has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sides {
    /// The caller's proxy.
    pub client: Calls,
    /// The callee's proxy.
    pub server: Calls,
}

impl Sides {
    /// The same calls on both sides.
    #[must_use]
    pub fn both(calls: Calls) -> Self {
        Self {
            client: calls,
            server: calls,
        }
    }

    /// Calls that only the caller's proxy has seen.
    #[must_use]
    pub fn client(calls: Calls) -> Self {
        Self {
            client: calls,
            ..Self::default()
        }
    }

    /// Calls that only the callee's proxy has seen.
    #[must_use]
    pub fn server(calls: Calls) -> Self {
        Self {
            server: calls,
            ..Self::default()
        }
    }
}

/// The topology of a time range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Drawn {
    /// All edges.
    #[serde(skip)]
    pub edges: BTreeMap<Edge, Sides>,
    /// The edges that the topology of the layer `MESH` has.
    pub in_layer: BTreeSet<Edge>,
    /// The services that are listed in the layer `MESH`.
    pub listed: BTreeSet<String>,
}

/// Queries an OAP about the time since the start of a run.
#[derive(Clone, Copy, Debug)]
pub struct Questions {
    oap: SocketAddr,
    /// The start by the OAP's clock, in milliseconds since 1970.
    since: i64,
    /// The offset of the OAP's time zone.
    offset: UtcOffset,
}

impl Questions {
    /// Queries about the time from now on.
    pub async fn from_now(oap: SocketAddr) -> Result<Self> {
        let mut questions = Self {
            oap,
            since: 0,
            offset: UtcOffset::UTC,
        };
        (questions.since, questions.offset) = questions.clock().await?;
        Ok(questions)
    }

    /// The OAP's version.
    pub async fn version(&self) -> Result<String> {
        let data = ask(self.oap, "{ version }", &json!({})).await?;
        Ok(data["version"].as_str().unwrap_or_default().to_owned())
    }

    /// The topology of the services for which `is_ours` holds.
    pub async fn drawn(&self, is_ours: impl Fn(&str) -> bool) -> Result<Drawn> {
        const TOPOLOGY: &str = "query ($duration: Duration!) {
            all: getGlobalTopology(duration: $duration) { ...edges }
            mesh: getGlobalTopology(duration: $duration, layer: \"MESH\") { ...edges }
            services: listServices(layer: \"MESH\") { name }
        }
        fragment edges on Topology { nodes { id name } calls { source target } }";
        let data = self.ask(TOPOLOGY).await?;
        let is_drawn = |edge: &Edge| is_ours(&edge.0) || is_ours(&edge.1);
        let mut edges = edges(&data["all"])?;
        edges.retain(is_drawn);
        let mut in_layer = self::edges(&data["mesh"])?;
        in_layer.retain(is_drawn);
        let mut listed = names(&data["services"]);
        listed.retain(|name| is_ours(name));
        Ok(Drawn {
            edges: self.calls(edges).await?,
            in_layer,
            listed,
        })
    }

    /// Polls until the topology of the services for which `is_ours` holds satisfies `is_enough`. An
    /// error contains the last topology.
    pub async fn until_drawn(
        &self,
        is_ours: impl Fn(&str) -> bool,
        is_enough: impl Fn(&Drawn) -> bool,
    ) -> Result<Drawn> {
        let mut latest = Drawn::default();
        let enough = until_within(PATIENCE, INTERVAL, "it to be drawn", async || {
            latest = self.drawn(&is_ours).await?;
            Ok(is_enough(&latest).then_some(()))
        });
        let in_time = enough.await;
        in_time.with_context(|| format!("{latest:?}"))?;
        Ok(latest)
    }

    /// The instances of a service.
    pub async fn instances(&self, service: &str) -> Result<BTreeSet<String>> {
        let service = text(service);
        let instances = format!(
            "query ($duration: Duration!) {{ found: listInstancesByName(duration: $duration, \
             service: {{ serviceName: {service}, layer: \"MESH\" }}) {{ name }} }}"
        );
        Ok(names(&self.ask(&instances).await?["found"]))
    }

    /// The endpoints of a service.
    pub async fn endpoints(&self, service: &str) -> Result<BTreeSet<String>> {
        let service = text(service);
        let endpoints = format!(
            "query ($duration: Duration!) {{ found: findEndpointByName(keyword: \"\", limit: 100, \
             duration: $duration, service: {{ serviceName: {service}, layer: \"MESH\" }}) {{ name }} }}"
        );
        Ok(names(&self.ask(&endpoints).await?["found"]))
    }

    async fn calls(&self, edges: BTreeSet<Edge>) -> Result<BTreeMap<Edge, Sides>> {
        let edges: Vec<_> = edges.into_iter().collect();
        let mut drawn = BTreeMap::new();
        for some in edges.chunks(AT_A_TIME) {
            let questions = some.iter().enumerate().flat_map(|(number, (from, to))| {
                let [from, to] = [from, to].map(|name| text(name));
                let ask = move |(side, metric): (&str, &str)| {
                    format!(
                        "{side}_{metric}_{number}: execExpression(\
                         expression: \"service_relation_{side}_{metric}\", \
                         entity: {{ serviceName: {from}, normal: true, \
                         destServiceName: {to}, destNormal: true }}, duration: $duration) \
                         {{ error results {{ values {{ id value }} }} }}"
                    )
                };
                METRICS.into_iter().map(ask)
            });
            let questions = questions.collect::<Vec<_>>().join(" ");
            let query = format!("query ($duration: Duration!) {{ {questions} }}");
            let data = self.ask(&query).await?;
            for (number, edge) in some.iter().enumerate() {
                let side = |side: &str| -> Result<Calls> {
                    let of = |metric: &str| by_minute(&data[format!("{side}_{metric}_{number}")]);
                    Ok(sum(&of("cpm")?, &of("call_sla")?))
                };
                let sides = Sides {
                    client: side("client")?,
                    server: side("server")?,
                };
                drawn.insert(edge.clone(), sides);
            }
        }
        Ok(drawn)
    }

    /// The bytes of an edge's connections, as the caller's proxy and the callee's have reported them. All must be of one
    /// minute.
    pub async fn bytes(&self, (from, to): &Edge) -> Result<[Bytes; 2]> {
        let [from, to] = [from, to].map(|name| text(name));
        let ask = |metric: &str| {
            format!(
                "{metric}: execExpression(expression: \"service_relation_{metric}\", \
                 entity: {{ serviceName: {from}, normal: true, \
                 destServiceName: {to}, destNormal: true }}, duration: $duration) \
                 {{ error results {{ values {{ id value }} }} }}"
            )
        };
        let metrics = [
            "client_received",
            "client_sent",
            "server_received",
            "server_sent",
        ];
        let questions = metrics.map(ask).join(" ");
        let query = format!("query ($duration: Duration!) {{ {questions} }}");
        let data = self.ask(&query).await?;
        let [from_client, to_client, from_callee, to_callee] =
            metrics.map(|metric| Ok::<_, anyhow::Error>(by_minute(&data[metric])?.values().sum()));
        Ok([
            Bytes {
                received: from_client?,
                sent: to_client?,
            },
            Bytes {
                received: from_callee?,
                sent: to_callee?,
            },
        ])
    }

    async fn ask(&self, query: &str) -> Result<Value> {
        let (now, _) = self.clock().await?;
        // The minute after this one, because entries are counted by their start time.
        let start = minute(self.since, self.offset)?;
        let end = minute(now + 60_000, self.offset)?;
        let variables = json!({ "duration": { "start": start, "end": end, "step": "MINUTE" } });
        ask(self.oap, query, &variables).await
    }

    async fn clock(&self) -> Result<(i64, UtcOffset)> {
        let query = "{ time: getTimeInfo { timezone currentTimestamp } }";
        let data = ask(self.oap, query, &json!({})).await?;
        let time = &data["time"];
        let now = time["currentTimestamp"].as_i64().context("no time")?;
        // In the form +0530.
        let zone: i32 = time["timezone"].as_str().context("no zone")?.parse()?;
        let seconds = (zone / 100 * 60 + zone % 100) * 60;
        Ok((now, UtcOffset::from_whole_seconds(seconds)?))
    }
}

/// A string literal in a query.
fn text(text: &str) -> String {
    Value::from(text).to_string()
}

/// A time in milliseconds since 1970, as a minute of the form `2026-11-27 2130`.
fn minute(time: i64, offset: UtcOffset) -> Result<String> {
    let format = format_description!("[year]-[month]-[day] [hour][minute]");
    let time = OffsetDateTime::from_unix_timestamp(time.div_euclid(1000))?;
    Ok(time.to_offset(offset).format(format)?)
}

fn names(found: &Value) -> BTreeSet<String> {
    let found = found.as_array().into_iter().flatten();
    let names = found.filter_map(|one| one["name"].as_str());
    names.map(str::to_owned).collect()
}

fn edges(topology: &Value) -> Result<BTreeSet<Edge>> {
    let nodes = topology["nodes"].as_array().context("no nodes")?;
    let name = |id: &Value| -> Result<String> {
        let node = nodes.iter().find(|node| node["id"] == *id);
        let name = node.and_then(|node| node["name"].as_str());
        Ok(name.context("an edge to no node")?.to_owned())
    };
    let calls = topology["calls"].as_array().context("no calls")?;
    let edge = |call: &Value| Ok((name(&call["source"])?, name(&call["target"])?));
    calls.iter().map(edge).collect()
}

/// The values of a metric by minute. Minutes without a value are absent.
fn by_minute(answer: &Value) -> Result<BTreeMap<String, u64>> {
    let error = &answer["error"];
    ensure!(error.is_null(), "{error}");
    let values = answer["results"][0]["values"].as_array();
    let values = values.into_iter().flatten().filter_map(|value| {
        let minute = value["id"].as_str()?.to_owned();
        Some((minute, value["value"].as_str()?.parse().ok()?))
    });
    Ok(values.collect())
}

/// Sums calls by minute and the successful ones, by rates in 1/10,000.
fn sum(calls: &BTreeMap<String, u64>, rates: &BTreeMap<String, u64>) -> Calls {
    let mut sum = Calls::default();
    for (minute, calls) in calls {
        let rate = rates.get(minute).copied().unwrap_or_default();
        sum.calls += calls;
        // The OAP truncates the rate to an integer.
        sum.succeeded += (calls * rate).div_ceil(10_000);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_have_the_format_of_the_oap() -> Result<()> {
        let time = 1_795_814_882_376;
        assert_eq!(minute(time, UtcOffset::UTC)?, "2026-11-27 2128");
        assert_eq!(
            minute(time, UtcOffset::from_hms(5, 30, 0)?)?,
            "2026-11-28 0258"
        );
        Ok(())
    }

    #[test]
    fn successes_are_computed_from_rates() {
        let values = |values: &[(&str, u64)]| {
            let values = values.iter();
            values
                .map(|(minute, value)| ((*minute).to_owned(), *value))
                .collect()
        };
        let calls = values(&[("1", 3), ("2", 7), ("3", 2)]);
        let rates = values(&[("1", 6666), ("2", 10_000)]);
        let expected = Calls {
            calls: 12,
            succeeded: 9,
        };
        assert_eq!(sum(&calls, &rates), expected);
    }
}
