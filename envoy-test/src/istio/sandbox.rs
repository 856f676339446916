//! A run has network, mount and process namespaces of its own: no name in it meets
//! another run's, it reaches no network, and the kernel ends all that is in it with
//! its first process, however that ends.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::process::bound_to_us;

/// The namespaces, as arguments of `unshare`.
pub(super) const NAMESPACES: [&str; 6] = [
    "--net",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child=KILL",
    "--mount-proc",
];

/// `program` in namespaces of its own. It ends with us.
pub(super) fn command<A: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = bound_to_us(Path::new("unshare"), "KILL", None);
    command.args(NAMESPACES).arg(program).args(arguments);
    command
}

/// Whether this process is the first of its namespace. Elsewhere nothing here may
/// change the network.
pub(super) fn check_inside() -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "this is no process namespace of its own"
    );
    Ok(())
}

/// The id, outside, of the first process in the namespaces of `unshare`, whose id
/// is given.
pub(super) fn first_process(unshare: u32) -> Result<u32> {
    let children = format!("/proc/{unshare}/task/{unshare}/children");
    let children = std::fs::read_to_string(&children).context(children)?;
    let first = children.split_whitespace().next();
    Ok(first.context("it has no child")?.parse()?)
}
