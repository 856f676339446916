//! The operator's tool, see `mxctl --help`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    mxctl::cli::main().await
}
