//! Turns a story into tests, one for each Envoy release, so that a failure
//! names the release; and common assertions.

use std::io::Write as _;

use anyhow::Result;

use crate::collector::{Entry, Side};
use crate::envoy::Release;
use crate::mesh::Lab;
use crate::node::Node;

/// Runs a story in a lab with that release. An error fails the test and prints
/// every Envoy's log.
///
/// If the environment names the only Envoy to use, the stories of older
/// releases are skipped, because they would repeat those of the newest. They
/// report this on standard error, which is shown even for a test that passes.
///
/// # Panics
/// If the story fails, or if it is skipped and `CI` is `true`.
pub async fn run(release: Release, story: impl AsyncFnOnce(&Lab) -> Result<()>) {
    if release.is_left_out() {
        let version = release.version();
        let is_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
        assert!(
            !is_ci,
            "not run: ENVOY names the only Envoy to use, which is not {version}; unset ENVOY in CI"
        );
        let test = std::thread::current();
        let test = test.name().unwrap_or("a story");
        // Unlike `eprintln!`, this is not captured for a test that passes.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED {test}: ENVOY names the only Envoy to use, which is not {version}"
        );
        return;
    }
    let lab = match release.binary() {
        Ok(binary) => Lab::new(&binary).await,
        Err(error) => Err(error),
    };
    let lab = lab.unwrap_or_else(|error| panic!("no lab: {error:#}"));
    if let Err(error) = story(&lab).await {
        panic!("Envoy {}: {error:#}", release.version());
    }
}

/// Asserts that the entry names `node` on that side, with all its metadata and
/// its id.
///
/// # Panics
/// If it does not.
pub fn assert_peer(entry: &Entry, side: Side, node: &Node) -> Result<()> {
    assert_eq!(
        entry.peer(side)?,
        Some(&node.as_peer()),
        "{} in {entry:?}",
        side.peer_key()
    );
    assert_eq!(entry.id(side)?, Some(node.id.as_str()));
    Ok(())
}

/// Makes each named story, an `async fn(&Lab) -> anyhow::Result<()>`, a test on
/// the oldest and a test on the newest Envoy.
#[macro_export]
macro_rules! stories {
    ($($story:ident),* $(,)?) => {
        $crate::stories!(@on oldest_envoy, Oldest, $($story),*);
        $crate::stories!(@on newest_envoy, Newest, $($story),*);
    };
    (@on $module:ident, $release:ident, $($story:ident),*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $story() {
                    $crate::scenario::run($crate::Release::$release, super::$story).await;
                }
            )*
        }
    };
}

/// Makes each named story a test on every Envoy of `releases.txt`, one after the
/// other.
#[macro_export]
macro_rules! stories_on_every_release {
    ($($story:ident),* $(,)?) => {
        mod every_envoy {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $story() {
                    for release in $crate::Release::all() {
                        $crate::scenario::run(release, super::$story).await;
                    }
                }
            )*
        }
    };
}
