//! Timing commands, cold caches, and what numbers say together.

use std::fs;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Serialize;

/// The middle value; of an even number, the mean of the two in the middle. Not a number when there is none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (length, middle) if length % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        (_, middle) => sorted[middle],
    }
}

/// A measure over all runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// The middle one.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The most.
    pub(crate) max: f64,
}

impl Spread {
    /// Of all `values`; `None` when there is none.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let min = values.iter().copied().min_by(f64::total_cmp)?;
        let max = values.iter().copied().max_by(f64::total_cmp)?;
        Some(Self { median: median(values), min, max })
    }
}

/// Drops page cache, dentries and inodes of the whole machine.
pub(crate) fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the page cache")
}

/// Waits for the end of `child` without polling, which would round its time; ends its process group at the deadline.
pub(crate) fn wait(child: &mut Child, what: &str, deadline: Duration) -> Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a child has a number")?;
    let handle = pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("watching {what}"))?;
    let start = Instant::now();
    loop {
        let left = deadline.saturating_sub(start.elapsed());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)) {
            Ok(0) if left.is_zero() => {
                end_group(child);
                bail!("{what} did not end within {} s", deadline.as_secs());
            }
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return child.wait().with_context(|| format!("waiting for {what}")),
            Err(e) => return Err(e).with_context(|| format!("waiting for {what}")),
        }
    }
}

/// Kills a child that leads its process group, with the group.
pub(crate) fn end_group(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended.
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Runs `command` to its end and gives its time and what it printed. It must succeed within the deadline.
pub(crate) fn timed(command: &mut Command, what: &str, deadline: Duration) -> Result<(f64, String)> {
    // Files instead of pipes: what goes on in the background would keep a pipe open.
    let mut out = tempfile::tempfile().context("a temporary file")?;
    let mut errors = tempfile::tempfile().context("a temporary file")?;
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(errors.try_clone()?).process_group(0);
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {what}"))?;
    let status = wait(&mut child, what, deadline)?;
    let took = start.elapsed().as_secs_f64();
    let text = |file: &mut fs::File| -> Result<String> {
        let mut bytes = Vec::new();
        std::io::Seek::rewind(file)?;
        std::io::Read::read_to_end(file, &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    if !status.success() {
        let how = status.signal().map_or_else(|| status.to_string(), |s| format!("signal {s}"));
        let errors = text(&mut errors)?;
        let lines: Vec<&str> = errors.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        bail!("{what} failed ({how}): {}", lines[lines.len().saturating_sub(3)..].join(" / "));
    }
    Ok((took, text(&mut out)?))
}

/// The most memory that a process had, in bytes.
pub(crate) fn peak_memory(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
        assert_eq!(Spread::of(&[2.0, 5.0, 1.0]), Some(Spread { median: 2.0, min: 1.0, max: 5.0 }));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn a_command_that_fails_says_why() {
        let error = timed(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), "it", Duration::from_secs(20));
        assert!(format!("{:#}", error.unwrap_err()).contains("why"));
        let (_, said) = timed(Command::new("echo").arg("yes"), "it", Duration::from_secs(20)).unwrap();
        assert_eq!(said, "yes\n");
    }

    #[test]
    fn a_command_that_hangs_is_ended() {
        let error = timed(Command::new("sleep").arg("600"), "sleeping", Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
    }
}
