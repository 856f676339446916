//! A story under load: phases, each with a change, and what becomes of requests
//! while the change goes on and then.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::cluster::{Cluster, target, until};
use super::pod::Pod;
use super::traffic::{Count, Load};

/// How long a phase lasts at least when all has changed: thirty requests.
const AT_LEAST: Duration = Duration::from_secs(1);

/// What is expected of the names in access logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Expected {
    /// Nobody is named in the end.
    Unnamed,
    /// Both sides are named in the end.
    Named,
    /// Both sides are named all the time.
    StaysNamed,
}

/// Where headers of the exchange may reach an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Leaks {
    No,
    /// Until the change is done.
    WhileChanging,
    /// They must, or what is said of the wrong order is not true.
    Yes,
}

/// A phase of a story.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// What was done.
    pub what: String,
    expected: Expected,
    leaks: Leaks,
    /// The requests from the change on until every proxy had it.
    pub changing: Count,
    /// Those from then on.
    pub then: Count,
}

/// A story and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Its name.
    pub story: String,
    /// The phases, in order.
    pub phases: Vec<Phase>,
    /// What is wrong beyond the counts.
    pub other_faults: Vec<String>,
}

/// Runs a story, phase by phase.
pub(super) struct Runner<'c> {
    pub(super) cluster: &'c Cluster,
    pub(super) client: Pod,
    pub(super) server: Pod,
    load: Load,
    each: Duration,
    outcome: Outcome,
}

impl<'c> Runner<'c> {
    /// Starts with the first phase, in which nothing is changed.
    pub(super) fn new(
        cluster: &'c Cluster,
        story: &str,
        [client, server]: [Pod; 2],
        each: Duration,
    ) -> Self {
        let load = Load::start(
            &target(client, server),
            &cluster.seen,
            &path(story, 0, "idle"),
        );
        Self {
            cluster,
            client,
            server,
            load,
            each,
            outcome: Outcome {
                story: story.to_owned(),
                phases: Vec::new(),
                other_faults: Vec::new(),
            },
        }
    }

    pub(super) fn fault(&mut self, fault: String) {
        self.outcome.other_faults.push(fault);
    }

    /// A phase: `change` ends when the control plane and all proxies have done their
    /// part.
    pub(super) async fn phase(
        &mut self,
        what: &str,
        expected: Expected,
        change: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        self.phase_with(what, expected, Leaks::No, change).await
    }

    /// The same where headers reach an app.
    pub(super) async fn leaking_phase(
        &mut self,
        what: &str,
        expected: Expected,
        change: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        self.phase_with(what, expected, Leaks::Yes, change).await
    }

    /// A phase that ends leaks.
    pub(super) async fn phase_after_leaks(
        &mut self,
        what: &str,
        expected: Expected,
        change: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let leaks = Leaks::WhileChanging;
        self.phase_with(what, expected, leaks, change).await
    }

    async fn phase_with(
        &mut self,
        what: &str,
        expected: Expected,
        leaks: Leaks,
        change: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let began = Instant::now();
        let number = self.outcome.phases.len() + 1;
        let story = self.outcome.story.clone();
        let context = || format!("{story}: {what}");
        self.load.phase(&path(&story, number, "changing"));
        change.await.with_context(context)?;
        let pods = [self.client, self.server];
        let drained = self.cluster.until_drained(&pods).await;
        drained.with_context(context)?;
        self.load.phase(&path(&story, number, "then"));
        sleep_until((began + self.each).max(Instant::now() + AT_LEAST)).await;
        self.outcome.phases.push(Phase {
            what: what.to_owned(),
            expected,
            leaks,
            changing: Count::default(),
            then: Count::default(),
        });
        Ok(())
    }

    /// Ends the load, and judges.
    pub(super) async fn end(self) -> Result<Outcome> {
        let Self {
            cluster,
            client,
            server,
            load,
            mut outcome,
            ..
        } = self;
        load.stop().await?;
        for (number, phase) in outcome.phases.iter_mut().enumerate() {
            for (part, count) in [("changing", &mut phase.changing), ("then", &mut phase.then)] {
                let path = path(&outcome.story, number + 1, part);
                *count = until(&format!("all entries of {path}"), async || {
                    Ok(cluster.seen.of(&path, client, server))
                })
                .await?;
            }
        }
        Ok(outcome)
    }
}

fn path(story: &str, phase: usize, part: &str) -> String {
    format!("/{}/{phase}/{part}", story.replace(' ', "-"))
}

impl Phase {
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let Self {
            what,
            expected,
            leaks,
            changing,
            then,
        } = self;
        for count in [changing, then] {
            if count.failed > 0 {
                faults.push(format!(
                    "{what}: {} failed: {:?}",
                    count.failed, count.failures
                ));
            }
        }
        if then.requests == 0 {
            faults.push(format!("{what}: there were no requests"));
        }
        let is_expected = match leaks {
            Leaks::No => changing.leaked + then.leaked == 0,
            Leaks::WhileChanging => then.leaked == 0,
            Leaks::Yes => then.leaked > 0,
        };
        if !is_expected {
            let (changing, then) = (changing.leaked, then.leaked);
            faults.push(format!(
                "{what}: leaked: {changing} and {then}, not {leaks:?}"
            ));
        }
        let named = match expected {
            Expected::Unnamed => {
                then.unnamed_callees == then.requests && then.unnamed_callers == then.requests
            }
            Expected::Named => then.unnamed() == 0,
            Expected::StaysNamed => changing.unnamed() == 0 && then.unnamed() == 0,
        };
        if !named {
            faults.push(format!(
                "{what}: {expected:?} is expected, but of {} and {} requests {} and {} entries named nobody",
                changing.requests,
                then.requests,
                changing.unnamed(),
                then.unnamed()
            ));
        }
        faults
    }
}

impl Count {
    /// Entries of either side that name nobody.
    #[must_use]
    pub fn unnamed(&self) -> u64 {
        self.unnamed_callees + self.unnamed_callers
    }
}

impl Outcome {
    /// What is wrong.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let of_phases = self.phases.iter().flat_map(Phase::faults);
        let faults = of_phases.chain(self.other_faults.iter().cloned());
        faults
            .map(|fault| format!("{}: {fault}", self.story))
            .collect()
    }

    /// Answered, leaked and so on, of all phases.
    fn sum(&self, of: impl Fn(&Count) -> u64) -> u64 {
        let counts = self
            .phases
            .iter()
            .flat_map(|phase| [&phase.changing, &phase.then]);
        counts.map(of).sum()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:58} {:>8} {:>6} {:>6}  entries that name nobody: while it changes, then",
            self.story, "requests", "failed", "leaked"
        )?;
        for phase in &self.phases {
            let Phase {
                what,
                changing,
                then,
                ..
            } = phase;
            let sum = |of: fn(&Count) -> u64| of(changing) + of(then);
            writeln!(
                f,
                "  {what:56} {:>8} {:>6} {:>6}  {:>4} of {:<4} {:>4} of {}",
                sum(|count| count.requests),
                sum(|count| count.failed),
                sum(|count| count.leaked),
                changing.unnamed(),
                2 * changing.requests,
                then.unnamed(),
                2 * then.requests
            )?;
        }
        writeln!(
            f,
            "  {:56} {:>8} {:>6} {:>6}",
            "in all",
            self.sum(|count| count.requests),
            self.sum(|count| count.failed),
            self.sum(|count| count.leaked)
        )?;
        Ok(())
    }
}
