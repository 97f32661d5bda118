//! `cargo xtask test`: everything that is checked before a change goes in.

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::steps::{Steps, run_tests, succeed};
use crate::{cargo, deny, fuzz, setup, trees};

/// How much is tested.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, ValueEnum)]
pub(crate) enum Tier {
    /// A few minutes: format, lints, unit tests and the quick end-to-end tests
    Quick,
    /// What continuous integration runs
    #[default]
    Normal,
    /// With long fuzzing and soak tests
    Full,
}

#[derive(Debug, Default, Args)]
pub(crate) struct TestArguments {
    /// Same as --tier quick
    #[arg(long)]
    quick: bool,
    /// How much is tested
    #[arg(long, value_enum, default_value_t = Tier::Normal, conflicts_with = "quick")]
    tier: Tier,
}

/// What is not built unless asked for, because it needs C headers, is tested like the rest; in all steps, so that nothing
/// is built twice.
const FEATURES: &str = "--features=kerberos";

/// End-to-end tests that need the real trees or minutes.
const SLOW_TESTS: [&str; 3] = ["real_trees::", "scale::", "soak::"];

/// Runs all steps; the last line printed is the sum.
pub(crate) fn run(arguments: &TestArguments) -> Result<()> {
    let tier = if arguments.quick { Tier::Quick } else { arguments.tier };
    let tier_name = match tier {
        Tier::Quick => "quick",
        Tier::Normal => "normal",
        Tier::Full => "full",
    };
    let mut steps = Steps::default();
    steps.check("system packages", setup::run);
    if steps.failed() {
        return steps.finish();
    }
    steps.check("format", || succeed(&mut cargo(["fmt", "--all", "--check"])));
    steps.check("lints", || {
        succeed(&mut cargo([
            "clippy",
            "--workspace",
            "--all-targets",
            FEATURES,
            "--locked",
            "--quiet",
            "--",
            "--deny",
            "warnings",
        ]))
    });
    if tier > Tier::Quick {
        steps.check("real trees", trees::run);
    }
    // End-to-end tests run the program that lies beside them. With the tests in one go nothing is built twice for
    // another choice of features, and both cores are busy to the end.
    steps.check("build", || {
        succeed(&mut cargo(["build", "--workspace", "--all-targets", FEATURES, "--locked", "--quiet"]))
    });
    steps.count("tests", || {
        let mut command = cargo(["test", "--workspace", FEATURES, "--locked", "--no-fail-fast", "--quiet"]);
        command.env("STREAMFS_TEST_TIER", tier_name);
        if tier == Tier::Quick {
            // Doc tests take a compiler run each.
            command.args(["--lib", "--bins", "--tests", "--"]);
            command.args(SLOW_TESTS.iter().flat_map(|name| ["--skip", name]));
        }
        run_tests(&mut command)
    });
    if tier > Tier::Quick {
        // Without --bench among its arguments, criterion runs each benchmark once, to see that it works.
        steps.check("benches, once each", || {
            // With the whole workspace, because one package alone would have its dependencies built anew with other
            // features.
            succeed(&mut cargo(["test", "--workspace", "--bench", "micro", FEATURES, "--locked", "--quiet"]))
        });
        fuzz_steps(&mut steps, if tier == Tier::Full { 600 } else { 10 });
        steps.check("dependencies: licences, bans, sources", deny::check_offline_parts);
        steps.check("dependencies: advisories", deny::check_advisories);
    }
    steps.finish()
}

fn fuzz_steps(steps: &mut Steps, seconds: u32) {
    let mut programs = None;
    steps.check("fuzz targets, build", || {
        programs = Some(fuzz::build()?);
        Ok(())
    });
    let Some(programs) = programs else { return };
    match fuzz::targets() {
        Ok(names) => {
            for name in names {
                steps.check(&format!("fuzz {name}"), || fuzz::fuzz(&programs, &name, seconds));
            }
        }
        Err(error) => steps.check("fuzz targets", || Err(error)),
    }
}
