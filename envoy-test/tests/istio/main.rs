//! What `deploy/istio` holds, loaded by a real Istio.

use std::path::Path;

use anyhow::Result;
use envoy_test::istio::{Home, Run};

/// One test, for one Istio: it takes half a minute to start, and nine Envoys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_overlay_works_in_a_real_istio_as_documented() -> Result<()> {
    if Home::for_test()?.is_none() {
        return Ok(());
    }
    let program = Path::new(env!("CARGO_BIN_EXE_envoy-test"));
    let mut run = Run::start(program, &["--seconds=60".to_owned()])?;
    assert!(run.wait().await?, "see what it has printed");
    Ok(())
}
