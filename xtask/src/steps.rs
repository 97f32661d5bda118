//! Running one thing after another: how long each took, how many tests passed, what failed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Runs a command, which must succeed.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        bail!("{shown} failed: {status}");
    }
    Ok(())
}

/// What a command prints, which must succeed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {shown}"))?;
    if !output.status.success() {
        bail!("{shown} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).with_context(|| format!("{shown} did not print text"))
}

/// How many tests passed and failed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

/// The steps of one run. A failing step does not keep the next from running: one run shows everything.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    done: Vec<(String, Duration, Count)>,
}

impl Steps {
    /// A step that is one check: it passes or fails.
    pub(crate) fn check(&mut self, name: &str, work: impl FnOnce() -> Result<()>) {
        self.count(name, || {
            work()?;
            Ok(Count { passed: 1, failed: 0 })
        });
    }

    /// A step that runs many tests.
    pub(crate) fn count(&mut self, name: &str, work: impl FnOnce() -> Result<Count>) {
        println!("\n=== {name}");
        let start = Instant::now();
        let count = work().unwrap_or_else(|error| {
            eprintln!("{name}: {error:#}");
            Count { passed: 0, failed: 1 }
        });
        let took = start.elapsed();
        println!("=== {name}: {} passed, {} failed, {:.1} s", count.passed, count.failed, took.as_secs_f64());
        self.done.push((name.to_owned(), took, count));
    }

    /// Whether anything failed so far.
    pub(crate) fn failed(&self) -> bool {
        self.done.iter().any(|(_, _, count)| count.failed > 0)
    }

    /// Prints what was done, and as last line the sum, which continuous integration reads.
    pub(crate) fn finish(self) -> Result<()> {
        let mut sum = Count::default();
        println!();
        for (name, took, count) in &self.done {
            sum.passed += count.passed;
            sum.failed += count.failed;
            let mark = if count.failed > 0 { "FAILED" } else { "ok" };
            println!("{:>8.1} s  {mark:<6}  {name}", took.as_secs_f64());
        }
        println!("{} passed, {} failed", sum.passed, sum.failed);
        std::io::stdout().flush().context("cannot write to standard output")?;
        if sum.failed > 0 {
            // The line above is the message; nothing may follow it on standard output.
            bail!("{} of {} failed", sum.failed, sum.passed + sum.failed);
        }
        Ok(())
    }
}

/// Runs `cargo test` or alike, shows what it prints, and sums the results of its test programs.
pub(crate) fn run_tests(command: &mut Command) -> Result<Count> {
    let shown = format!("{command:?}");
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {shown}"))?;
    let mut count = Count::default();
    let mut ignored = 0;
    let out = child.stdout.take().context("standard output is piped")?;
    for line in BufReader::new(out).split(b'\n') {
        let line = line.with_context(|| format!("cannot read what {shown} prints"))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        if let Some((passed, failed, skipped)) = parse_result(&line) {
            count.passed += passed;
            count.failed += failed;
            ignored += skipped;
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for {shown}"))?;
    if ignored > 0 {
        eprintln!("{ignored} tests were ignored: a test that cannot run must fail");
        count.failed += ignored;
    }
    if !status.success() && count.failed == 0 {
        eprintln!("{shown} failed without a failed test: {status}");
        count.failed = 1;
    }
    Ok(count)
}

/// Reads `test result: ok. 3 passed; 1 failed; 2 ignored; ...` as (3, 1, 2).
fn parse_result(line: &str) -> Option<(u64, u64, u64)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        counts.split(';').find_map(|part| part.trim().strip_suffix(word)).and_then(|n| n.trim().parse::<u64>().ok())
    };
    Some((number("passed")?, number("failed")?, number("ignored")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_test_programs_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.01s";
        assert_eq!(parse_result(line), Some((12, 3, 1)));
        assert_eq!(parse_result("test tests::a ... ok"), None);
    }

    #[test]
    fn a_crash_without_results_is_a_failure() {
        let count = run_tests(
            Command::new("sh").args(["-c", "echo 'test result: ok. 2 passed; 0 failed; 0 ignored;'; exit 3"]),
        );
        assert_eq!(count.unwrap(), Count { passed: 2, failed: 1 });
    }
}
