//! The short form of the soak: four workers, hundreds of callers.

use std::num::NonZeroUsize;

use anyhow::Result;
use envoy_test::Lab;
use envoy_test::soak::{self, Options};
use envoy_test::traffic::Plan;

envoy_test::stories!(hundreds_of_callers_are_distinguished);

const SEED: u64 = 4;
const PEERS: NonZeroUsize = NonZeroUsize::new(300).unwrap();

async fn hundreds_of_callers_are_distinguished(lab: &Lab) -> Result<()> {
    let options = Options {
        requests: 20_000,
        ..Options::default()
    };

    let report = soak::run(lab, options, Plan::of_peers(SEED, PEERS)).await?;

    println!("{report}");
    assert_eq!(report.faults(), [""; 0]);
    Ok(())
}
