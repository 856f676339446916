//! Runs all stories against a real OAP.

use anyhow::Result;
use envoy_test::Release;
use envoy_test::skywalking::{self, Named};

/// A single test with a single OAP, which takes half a minute to start, and
/// half a gigabyte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oap_draws_the_calls_that_were_made() -> Result<()> {
    let Some(named) = Named::for_test()? else {
        return Ok(());
    };
    let envoy = Release::Newest.binary()?;
    let (_oap, report) = skywalking::run(&named, &envoy, 10, |step| println!("- {step}")).await?;
    println!("{report}");
    assert_eq!(report.faults(), Vec::<String>::new());
    assert!(report.edges.len() > 40, "{report}");
    Ok(())
}
