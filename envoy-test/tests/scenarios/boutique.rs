//! A whole mesh: the topology from its access logs equals its call graph.

use anyhow::Result;
use envoy_test::{Release, boutique};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topology_is_the_call_graph() -> Result<()> {
    let envoy = Release::Newest.binary()?;
    let report = boutique::run(&envoy, 10, |step| println!("- {step}")).await?;
    assert_eq!(report.faults(), Vec::<String>::new(), "{report}");
    for phase in &report.phases {
        assert!(phase.journeys > 0, "{report}");
        // 16 calls, one of them to the outside and one from there.
        for edges in [&phase.client, &phase.server] {
            assert_eq!((edges.expected, edges.found), (16, 16), "{report}");
        }
        if let Some(database) = &phase.database {
            assert!(database.client > 0 && database.server > 0, "{report}");
        }
    }
    Ok(())
}
