//! Stories of every kind, told to a real OAP.

use anyhow::Result;
use envoy_test::Release;
use envoy_test::skywalking::{self, Named};

/// What waits for callees that are named whatever becomes of their calls, and for
/// nodes that are sent under the name that they have.
const PENDING: [&str; 11] = [
    "NOT EXPECTED: ",
    "SERVICE alone",
    "keys in lower case: ",
    "share: minimal, ",
    "timeouts (UT): ",
    "the client leaves (DC): ",
    "no healthy host (UH): ",
    "overflow (UO): ",
    "a fault injected (FI): ",
    "no route (NR): ",
    "services listed in layer MESH: missing: ingress.noroute",
];

/// One test, for one OAP: it takes half a minute to start, and half a gigabyte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_drawn_is_what_was_called() -> Result<()> {
    let Some(named) = Named::for_test()? else {
        return Ok(());
    };
    let envoy = Release::Newest.binary()?;
    let (_oap, report) = skywalking::run(&named, &envoy, 10, |step| println!("- {step}")).await?;
    println!("{report}");
    let mut faults = report.faults();
    faults.retain(|fault| !PENDING.iter().any(|pending| fault.starts_with(pending)));
    assert_eq!(faults, Vec::<String>::new());
    assert!(report.edges.len() > 40, "{report}");
    Ok(())
}
