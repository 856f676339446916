//! Logs: the same calls in each log.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use hyper::StatusCode;
use serde_json::Value;

use super::example::Example;
use super::fluentd;
use super::otlp;
use super::report::Counts;
use super::sidecar::{PAYMENTS, PRODUCTPAGE, Plan, Sidecar, as_from, workload};
use crate::client::Call;
use crate::mesh::Lab;
use crate::wait::until;

/// What a log says of a call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    /// `source` or `destination`.
    reporter: String,
    source: End,
    destination: End,
    path: String,
    code: String,
}

/// A workload, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    instance: Option<String>,
    workload: Option<String>,
    namespace: Option<String>,
    service: Option<String>,
    revision: Option<String>,
}

impl End {
    fn of(name: &str, namespace: &str, instance: &str, revision: &str) -> Self {
        Self {
            instance: Some(instance.to_owned()),
            workload: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            service: Some(name.to_owned()),
            revision: Some(revision.to_owned()),
        }
    }

    /// As [`workload`] has it.
    fn of_workload(name: &str, namespace: &str) -> Self {
        Self::of(name, namespace, &format!("{name}-1"), "v2")
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            &self.workload,
            &self.namespace,
            &self.instance,
            &self.service,
            &self.revision,
        ];
        if all.iter().all(|text| text.is_none()) {
            return f.write_str("unknown");
        }
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
        write!(f, "{}.{}", text(&self.workload), text(&self.namespace))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.reporter.as_str() {
            "source" => "the caller's log",
            "destination" => "the callee's log",
            other => other,
        };
        write!(
            f,
            "{} -> {} {} {}, {side}",
            self.source, self.destination, self.path, self.code
        )
    }
}

impl Line {
    /// By the fields of the JSON log.
    fn of(field: impl Fn(&str) -> Option<String>) -> Self {
        let known = |name: &str| field(name).filter(|text| !text.is_empty() && text != "-");
        let end = |end: &str| End {
            instance: known(&format!("{end}_instance_name")),
            workload: known(&format!("{end}_workload")),
            namespace: known(&format!("{end}_namespace")),
            service: known(&format!("{end}_canonical_service")),
            revision: known(&format!("{end}_canonical_revision")),
        };
        Self {
            reporter: field("reporter").unwrap_or_default(),
            source: end("source"),
            destination: end("destination"),
            path: field("path").unwrap_or_default(),
            code: field("response_code").unwrap_or_default(),
        }
    }
}

/// A VM, the bootstrap's own node, calls a pod; both run the bootstrap.
struct Pair {
    vm: Sidecar,
    pod: Sidecar,
}

impl Pair {
    /// `receiver` is the cluster to which the log goes.
    async fn start(
        lab: &Lab,
        example: &Example,
        receiver: Option<(&str, SocketAddr)>,
    ) -> Result<Self> {
        let pod = Plan {
            node: Some(workload("productpage", "default")),
            clusters: receiver.into_iter().collect(),
            ..Plan::new(example)
        };
        let pod = pod.start(lab).await?;
        let called = [("productpage", pod.inbound)];
        let vm = Plan {
            clusters: receiver.into_iter().chain(called).collect(),
            ..Plan::new(example)
        };
        let vm = vm.start(lab).await?;
        Ok(Self { vm, pod })
    }

    /// Makes calls of every kind, and returns what logs are to say of them.
    async fn make_calls(&self) -> Result<Vec<Line>> {
        let vm = End::of("ratings", "vms", "ratings-vm-1", "v1");
        let pod = End::of_workload("productpage", "default");
        let checkout = workload("checkout", "shop");
        let mut lines = Vec::new();
        let mut logged =
            |reporter: &str, source: &End, destination: &End, path: &str, code: u16| {
                lines.push(Line {
                    reporter: reporter.to_owned(),
                    source: source.clone(),
                    destination: destination.clone(),
                    path: path.to_owned(),
                    code: code.to_string(),
                });
            };
        for (path, code, times) in [("/details", 200, 3), ("/status/503", 503, 2)] {
            for _ in 0..times {
                let call = Call::new(self.vm.outbound, PRODUCTPAGE).path(path);
                expect(call, code).await?;
                logged("source", &vm, &pod, path, code);
                logged("destination", &vm, &pod, path, code);
            }
        }
        for _ in 0..2 {
            let call = Call::new(self.vm.inbound, "ratings").path("/ratings");
            expect(as_from(call, &checkout)?, 200).await?;
            logged(
                "destination",
                &End::of_workload("checkout", "shop"),
                &vm,
                "/ratings",
                200,
            );
        }
        expect(
            Call::new(self.pod.inbound, "productpage").path("/unknown"),
            200,
        )
        .await?;
        logged("destination", &End::default(), &pod, "/unknown", 200);
        // Outside the mesh: nobody is named.
        expect(Call::new(self.vm.outbound, PAYMENTS).path("/pay"), 200).await?;
        logged("source", &vm, &End::default(), "/pay", 200);
        Ok(lines)
    }
}

async fn expect(call: Call, code: u16) -> Result<()> {
    let reply = call.send().await?;
    ensure!(reply.status == StatusCode::from_u16(code)?, "{reply:?}");
    Ok(())
}

/// Makes the calls, and waits until a log has as many as were made.
async fn reconcile(
    pair: &Pair,
    mut lines: impl AsyncFnMut() -> Result<Vec<Line>>,
) -> Result<Counts> {
    let made = pair.make_calls().await?;
    let settled = until("the log to have all calls", async || {
        let found = lines().await?;
        Ok((found.len() >= made.len()).then_some(()))
    });
    let in_time = settled.await;
    let mut counts = Counts::default();
    for line in &made {
        counts.made(line);
    }
    for line in lines().await? {
        if made.contains(&line) {
            counts.found(&line);
        } else {
            // With all that is wrong in it.
            counts.found(&format!("{line}: {line:?}"));
        }
    }
    if let Err(error) = in_time {
        // The counts say more.
        eprintln!("{error:#}");
    }
    Ok(counts)
}

pub(super) async fn json(lab: &Lab, example: &Example) -> Result<Counts> {
    let pair = Pair::start(lab, example, None).await?;
    let logs = [&pair.vm, &pair.pod].map(|sidecar| sidecar.files.join("access.log"));
    let lines = async || {
        let mut lines = Vec::new();
        for log in &logs {
            for line in lab.lines(log, 0).await? {
                let line: Value = serde_json::from_str(&line)?;
                lines.push(Line::of(|name| match &line[name] {
                    Value::Null => None,
                    Value::String(text) => Some(text.clone()),
                    other => Some(other.to_string()),
                }));
            }
        }
        Ok(lines)
    };
    reconcile(&pair, lines).await
}

/// The calls of the OTLP log, whose records go to `collector`: for the operator's tool. What they are held to is that
/// `ratings.vms` calls `productpage.default` five times, and `checkout.shop` calls `ratings.vms` twice. The sidecars end
/// with the value.
pub async fn log_by_otlp(lab: &Lab, collector: SocketAddr) -> Result<impl Sized> {
    let example = Example::read(super::Consumer::OtlpLog.file())?;
    let pair = Pair::start(lab, &example, Some(("otlp", collector))).await?;
    pair.make_calls().await?;
    Ok(pair)
}

pub(super) async fn otlp(lab: &Lab, example: &Example) -> Result<Counts> {
    let collector = otlp::Collector::start().await?;
    let pair = Pair::start(lab, example, Some(("otlp", collector.address))).await?;
    let lines = async || {
        let records = collector.records();
        Ok(records
            .iter()
            .map(|record| Line::of(|name| attribute(record, name)))
            .collect())
    };
    reconcile(&pair, lines).await
}

/// An attribute of the OTLP log by the name of the JSON log's field.
fn attribute(record: &BTreeMap<String, String>, name: &str) -> Option<String> {
    let name = match name {
        "path" => "url.path".to_owned(),
        "response_code" => "http.response.status_code".to_owned(),
        other => format!("istio.{other}"),
    };
    record.get(&name).cloned()
}

pub(super) async fn fluentd(lab: &Lab, example: &Example) -> Result<Counts> {
    let receiver = fluentd::Receiver::start().await?;
    let pair = Pair::start(lab, example, Some(("fluentd", receiver.address))).await?;
    let lines = async || {
        let records = receiver.records()?;
        Ok(records
            .iter()
            .map(|record| Line::of(|name| record.get(name).cloned()))
            .collect())
    };
    reconcile(&pair, lines).await
}
