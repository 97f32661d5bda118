//! Development tasks: `cargo xtask test` is what continuous integration runs, and what to run before submitting.
//!
//! Everything that is built, downloaded or cached stays below the target directory.

mod bench_apps;
mod debian;
mod demo;
mod deny;
mod fuzz;
mod setup;
mod steps;
mod test;
mod trees;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

/// Development tasks of streamfs.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install the system packages that tests need (as root), or say which are missing
    Setup,
    /// Build a release and show the whole story on a sample
    Demo,
    /// Check everything: format, lints, tests, benches, fuzzing, dependencies
    Test(test::TestArguments),
    /// What continuous integration runs: `test` as it is
    Ci,
    /// Build the real application trees that tests publish
    Trees,
    /// Build the application trees, and the other programs, that `first-launch` compares
    BenchApps(bench_apps::BenchAppsArguments),
    /// Run the benchmarks; arguments after -- go to criterion
    Bench {
        /// For criterion: a filter, --save-baseline and so on
        #[arg(last = true)]
        criterion: Vec<String>,
    },
    /// Fuzz parsers, guided by coverage, with the stable compiler
    Fuzz(fuzz::FuzzArguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Setup => setup::run(),
        Task::Demo => demo::run(),
        Task::Test(arguments) => test::run(&arguments),
        Task::Ci => test::run(&test::TestArguments::default()),
        Task::Trees => setup::run().and_then(|()| trees::run()),
        Task::BenchApps(arguments) => bench_apps::run(&arguments),
        Task::Bench { criterion } => bench(&criterion),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(criterion: &[String]) -> Result<()> {
    steps::succeed(cargo(["bench", "--package", "benches", "--"]).args(criterion))
}

/// Root of the checkout.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}

/// The target directory, also when the environment names another.
fn target_dir() -> Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => std::path::absolute(folder).context("cannot tell what CARGO_TARGET_DIR means"),
        None => Ok(root().join("target")),
    }
}

/// The cargo that runs this, in the checkout's root.
fn cargo<const N: usize>(arguments: [&str; N]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root()).args(arguments);
    command
}
