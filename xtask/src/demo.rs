//! `cargo xtask demo`: the whole story on a sample, with a release build.

use anyhow::Result;

use crate::steps::succeed;
use crate::{cargo, setup, target_dir};

/// Builds and runs `streamfs demo`.
pub(crate) fn run() -> Result<()> {
    setup::run()?;
    succeed(&mut cargo(["build", "--release", "--package", "cli"]))?;
    succeed(std::process::Command::new(target_dir()?.join("release/streamfs")).arg("demo"))
}
