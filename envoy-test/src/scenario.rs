//! How a story becomes tests: one per Envoy release, so that a failure names
//! the release; and what all stories assert.

use anyhow::Result;

use crate::collector::{Entry, Side};
use crate::envoy::{Release, named_by_environment};
use crate::mesh::Lab;
use crate::node::Node;

/// Tells a story in a lab of that release. An error fails the test; every
/// Envoy's log is shown.
///
/// If the environment names the only Envoy to use, the stories of the oldest
/// release are left out, for they would only repeat those of the newest.
///
/// # Panics
/// If the story fails.
pub async fn tell(release: Release, story: impl AsyncFnOnce(&Lab) -> Result<()>) {
    if release == Release::Oldest && named_by_environment().is_some() {
        println!("left out: the environment names the only Envoy");
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

/// The entry names `node` on that side, with all its metadata and its id.
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
        $crate::stories!(@on envoy_1_36, Oldest, $($story),*);
        $crate::stories!(@on envoy_1_40, Newest, $($story),*);
    };
    (@on $module:ident, $release:ident, $($story:ident),*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $story() {
                    $crate::scenario::tell($crate::Release::$release, super::$story).await;
                }
            )*
        }
    };
}
