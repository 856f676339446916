//! Compares `mxctl topology --as skywalking` with what a real OAP has drawn from the same messages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use envoy_test::repository;
use envoy_test::skywalking::Recording;
use mxctl::topology::{Snapshot, TallyView};

/// How many characters of a service's name the table of cases keeps, and of an instance's.
const SERVICE: usize = 60;
const INSTANCE: usize = 30;

/// An edge as reported by one side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Side {
    calls: u64,
    /// In 1/10,000.
    rate: u64,
}

/// Calls by the client's and the server's side.
type Edges = BTreeMap<(String, String), [Side; 2]>;

fn file(name: &str) -> PathBuf {
    repository("testdata/skywalking").join(name)
}

/// The topology of a recording.
async fn read(recording: &str) -> Result<Snapshot> {
    Recording::read(&file(recording))?.as_read().await
}

fn edges(snapshot: &Snapshot) -> Edges {
    let name = |number: usize| as_in_the_table(&snapshot.workloads[number].name, SERVICE);
    let side = |tally: &Option<TallyView>| {
        let tally = tally.as_ref();
        let rate = tally
            .and_then(|tally| tally.success_rate)
            .unwrap_or_default();
        Side {
            calls: tally.map_or(0, |tally| tally.calls),
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // At most 10,000.
            rate: (rate * 100.0).round() as u64,
        }
    };
    let edges = snapshot.edges.iter().map(|edge| {
        let ends = (name(edge.from), name(edge.to));
        (ends, [side(&edge.client), side(&edge.server)])
    });
    edges.collect()
}

/// A name as in the table of cases.
fn as_in_the_table(name: &str, length: usize) -> String {
    let one_line = name.replace('\n', " ");
    one_line.chars().take(length).collect()
}

/// The edges of `cases.tsv`, and the instances of each service.
fn drawn() -> Result<(Edges, BTreeMap<String, BTreeSet<String>>)> {
    let table = std::fs::read_to_string(file("cases.tsv"))?;
    let (mut edges, mut instances) = (Edges::new(), BTreeMap::<_, BTreeSet<_>>::new());
    let mut cases = 0;
    for line in table.lines() {
        cases += 1;
        let drawn = line.split('\t').nth(2).context("no third column")?;
        for edge in drawn.split(" ;; ").filter(|edge| *edge != "NOTHING") {
            let context = || format!("{edge:?}");
            let (ends, rest) = edge.split_once(" client=").with_context(context)?;
            let (from, to) = ends.split_once(" -> ").with_context(context)?;
            let (client, rest) = rest.split_once(" server=").with_context(context)?;
            let (server, rest) = rest.split_once(" sla=").with_context(context)?;
            let (rates, rest) = rest.split_once(" [").with_context(context)?;
            let (client_rate, server_rate) = rates.split_once('/').with_context(context)?;
            let side = |calls: &str, rate: &str| -> Result<Side> {
                let rate = rate.trim_matches(['[', ']', '\'']);
                Ok(Side {
                    calls: calls.parse()?,
                    rate: if rate.is_empty() { 0 } else { rate.parse()? },
                })
            };
            let sides = [side(client, client_rate)?, side(server, server_rate)?];
            edges.insert((from.to_owned(), to.to_owned()), sides);
            let (_, seen) = rest.split_once("inst=['").with_context(context)?;
            let seen = seen.trim_end_matches("']").split("', '");
            for pair in seen {
                let (source, target) = pair.split_once('>').with_context(context)?;
                for (service, instance) in [(from, source), (to, target)] {
                    let known = instances.entry(service.to_owned()).or_default();
                    known.insert(instance.to_owned());
                }
            }
        }
    }
    assert_eq!(cases, 94);
    Ok((edges, instances))
}

#[tokio::test]
async fn all_94_handmade_cases_equal_the_oap() -> Result<()> {
    let snapshot = read("cases.jsonl").await?;
    let (expected, instances) = drawn()?;
    let mut found = edges(&snapshot);
    // The table lacks this one, whose name contains a NUL; the OAP that `judge` runs draws it.
    let nul = ("l-5u2.t".to_owned(), "p-5u2\0x.t".to_owned());
    assert!(found.remove(&nul).is_some());
    let differences: Vec<_> = expected
        .keys()
        .chain(found.keys())
        .filter(|edge| expected.get(edge) != found.get(edge))
        .map(|edge| (edge, expected.get(edge), found.get(edge)))
        .collect();
    assert!(differences.is_empty(), "{differences:#?}");
    for workload in &snapshot.workloads {
        let service = as_in_the_table(&workload.name, SERVICE);
        // The unknown caller has no node.
        if service == "UNKNOWN" || service.contains("5u2") {
            continue;
        }
        let names = workload.instances.iter();
        let found: BTreeSet<_> = names
            .map(|one| as_in_the_table(&one.name, INSTANCE))
            .collect();
        assert_eq!(Some(&found), instances.get(&service), "{service}");
    }
    Ok(())
}

#[tokio::test]
async fn every_count_of_the_boutique_equals_the_oap() -> Result<()> {
    let table = std::fs::read_to_string(file("boutique.tsv"))?;
    let mut expected = BTreeMap::new();
    for line in table.lines().skip(1) {
        let columns: Vec<_> = line.split('\t').collect();
        let [from, to, client, server] = columns.as_slice() else {
            anyhow::bail!("{line:?}");
        };
        let calls: [u64; 2] = [client.parse()?, server.parse()?];
        expected.insert(((*from).to_owned(), (*to).to_owned()), calls);
    }
    let edges = edges(&read("boutique.jsonl.gz").await?);
    let found: BTreeMap<_, _> = edges
        .into_iter()
        .map(|(edge, sides)| (edge, sides.map(|side| side.calls)))
        .collect();
    assert_eq!(found, expected);
    Ok(())
}
