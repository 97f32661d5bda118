//! What does a launch cost at the kernel's boundary, beside the same launch from the local file system?
//!
//! `cargo run --release -p benches --bin launch-local -- --tree DIR [--user UID] [--runs N] [--json FILE]
//! [--variant NAME:SETTING=VALUE,...]... -- COMMAND ARG...`, as root.
//!
//! COMMAND is started in DIR's copy and in mounts of it; `{}` in its arguments and in those given by `--env NAME=VALUE`
//! stands for the directory. The cache on disk holds what the launch reads, and the origin is a folder: the network
//! plays no part here. *Warm* is a launch with page caches dropped, and a server and a mount made anew; *hot* is one
//! after it; *settled* is one after the mount was told that the launch is over. All sides take turns in every run, and
//! the table gives medians and their ratios (mount / local: 1 is as fast as local, more is slower).
//!
//! What the launch reads is recorded first, from a mount that refuses what the kernel reads ahead.
//!
//! Settings of a variant: `open=passthrough|zero-message`, `push-max=BYTES`, `read-ahead=KIB`, `launch-read-ahead=KIB`,
//! `threads=N`, `declining=nothing`.

mod arguments;
mod serve;
mod turns;

use anyhow::{Context, Result, ensure};
use arguments::Options;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|first| first == serve::SUBCOMMAND).is_some() {
        return serve::serve(arguments);
    }
    let options = Options::parse(arguments)?;
    ensure!(rustix::process::geteuid().is_root(), "dropping the page cache needs root");
    // Not in memory: both sides shall read from the same disk.
    let dir = tempfile::Builder::new().prefix("launch-local-").tempdir_in("/var/tmp")?;
    let bench = turns::Bench::prepare(dir.path(), &options).context("preparing")?;
    let sides = bench.run()?;
    turns::report(&sides, &options)
}
