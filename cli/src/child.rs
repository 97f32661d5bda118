//! Starting a program from a mount, waiting for it, and ending it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::interrupt::Interrupt;

/// Variable that tells a program where its package is mounted.
const MOUNT_VARIABLE: &str = "STREAMFS_MOUNT";
/// What stands for the mount in a program's arguments.
const MOUNT_MARK: &[u8] = b"{mount}";
/// How long a program that is asked to end may take for it.
const ENDING_MAX: Duration = Duration::from_secs(5);

/// A program ended with another status than 0: so does this one, and everything that is to be said was said by it.
#[derive(Debug)]
pub(crate) struct Unsuccessful {
    pub(crate) code: u8,
}

impl fmt::Display for Unsuccessful {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the program ended with status {}", self.code)
    }
}

impl std::error::Error for Unsuccessful {}

/// A program that runs.
pub(crate) struct Child {
    process: tokio::process::Child,
    began: Instant,
}

/// Why waiting for a program was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// It ended by itself.
    Ended(ExitStatus),
    /// This program was asked to end.
    Interrupted,
    /// It had run for as long as it was to.
    TimeUp,
}

/// The status that a shell would report.
pub(crate) fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(1)
}

/// `Ok` if the program succeeded, else the error that makes this program end with the same status.
pub(crate) fn check(status: ExitStatus) -> anyhow::Result<()> {
    if status.success() { Ok(()) } else { Err(Unsuccessful { code: code(status) }.into()) }
}

impl Child {
    /// Starts `command` for the package that is mounted at `mount`. `{mount}` in its words stands for that directory.
    /// A program named by a relative path with a slash is taken from the package if it is there; one without a slash
    /// is looked for in `PATH`; anything else is what it is.
    pub(crate) fn start(command: &[OsString], mount: &Path) -> anyhow::Result<Self> {
        let mut words = command.iter().map(|word| with_mount(word, mount));
        let program = words.next().context("there is nothing to run; name a program after --")?;
        let from_package = program.as_bytes().contains(&b'/') && Path::new(&program).is_relative();
        let inside = mount.join(&program);
        let program = if from_package && inside.exists() { inside.into_os_string() } else { program };
        let process = Command::new(&program)
            .args(words)
            .env(MOUNT_VARIABLE, mount)
            .spawn()
            .with_context(|| format!("cannot run {}", Path::new(&program).display()))?;
        Ok(Self { process, began: Instant::now() })
    }

    /// How long it has been running.
    pub(crate) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Waits for its end, passing on to it what signals this program gets.
    pub(crate) async fn wait_passing_signals(&mut self) -> anyhow::Result<ExitStatus> {
        let pid = self.pid();
        let listen = |kind| signal(kind).context("cannot handle signals");
        let (mut interrupt, mut quit) = (listen(SignalKind::interrupt())?, listen(SignalKind::quit())?);
        let (mut terminate, mut hang_up) = (listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
        let (mut user1, mut user2) = (listen(SignalKind::user_defined1())?, listen(SignalKind::user_defined2())?);
        loop {
            let (signal, by_keyboard) = tokio::select! {
                status = self.process.wait() => return status.context("cannot wait for the program"),
                _ = interrupt.recv() => (Signal::INT, true),
                _ = quit.recv() => (Signal::QUIT, true),
                _ = terminate.recv() => (Signal::TERM, false),
                _ = hang_up.recv() => (Signal::HUP, false),
                _ = user1.recv() => (Signal::USR1, false),
                _ = user2.recv() => (Signal::USR2, false),
            };
            // What is typed at a terminal reaches all of its foreground at once.
            if let Some(pid) = pid
                && !(by_keyboard && in_foreground())
            {
                // It may have ended in this moment.
                let _ = kill_process(pid, signal);
            }
        }
    }

    /// Waits for its end, an interrupt, or the end of `longest`.
    pub(crate) async fn wait(&mut self, longest: Option<Duration>, interrupt: &Interrupt) -> anyhow::Result<Over> {
        let time_up = async {
            match longest {
                Some(longest) => tokio::time::sleep(longest).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            status = self.process.wait() => Ok(Over::Ended(status.context("cannot wait for the program")?)),
            _ = interrupt.wait() => Ok(Over::Interrupted),
            () = time_up => Ok(Over::TimeUp),
        }
    }

    /// Asks it to end, and makes it end if it does not.
    pub(crate) async fn end(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(ENDING_MAX, self.process.wait()).await.is_err() {
            // It is killed for certain; failing means that it is gone.
            let _ = self.process.kill().await;
        }
    }

    fn pid(&self) -> Option<Pid> {
        self.process.id().and_then(|id| Pid::from_raw(id.cast_signed()))
    }
}

/// `word` with the mount's path in the place of each `{mount}`.
fn with_mount(word: &OsStr, mount: &Path) -> OsString {
    let mut rest = word.as_bytes();
    let mut whole = Vec::with_capacity(rest.len());
    while let Some(at) = rest.windows(MOUNT_MARK.len()).position(|w| w == MOUNT_MARK) {
        whole.extend_from_slice(&rest[..at]);
        whole.extend_from_slice(mount.as_os_str().as_bytes());
        rest = &rest[at + MOUNT_MARK.len()..];
    }
    whole.extend_from_slice(rest);
    OsString::from_vec(whole)
}

/// Whether this process belongs to the foreground of a terminal.
fn in_foreground() -> bool {
    std::fs::read_to_string("/proc/self/stat").is_ok_and(|stat| is_foreground(&stat))
}

/// See proc_pid_stat(5): after the name in brackets come state, parent, group, session, terminal, foreground group.
fn is_foreground(stat: &str) -> bool {
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    matches!(fields[..], [_, _, group, _, _, foreground, ..] if group == foreground)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_stands_where_it_is_marked() {
        let mount = Path::new("/run/m");
        for (word, expected) in [
            ("{mount}", "/run/m"),
            ("--lib={mount}/lib:{mount}/more", "--lib=/run/m/lib:/run/m/more"),
            ("plain", "plain"),
            ("{moun", "{moun"),
            ("", ""),
        ] {
            assert_eq!(with_mount(OsStr::new(word), mount), expected);
        }
        let odd = OsStr::from_bytes(b"\xff{mount}");
        assert_eq!(with_mount(odd, mount).as_bytes(), b"\xff/run/m");
    }

    #[test]
    fn the_foreground_of_a_terminal_is_recognised() {
        assert!(is_foreground("12 (a ) b) S 1 12 12 34816 12 4194304 0"));
        assert!(!is_foreground("12 (x) S 1 12 12 34816 99 4194304 0"));
        assert!(!is_foreground("12 (x) S 1 12 12 0 -1 4194304 0"));
        assert!(!is_foreground(""));
    }

    #[tokio::test]
    async fn programs_are_taken_from_the_package_and_told_where_it_is() {
        let mount = tempfile::tempdir().unwrap();
        let bin = mount.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        std::fs::copy("/bin/sh", bin.join("tool")).unwrap();
        let run = async |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(Into::into).collect();
            let status = Child::start(&words, mount.path())?.wait_passing_signals().await?;
            anyhow::Ok(code(status))
        };
        let same = "test \"$STREAMFS_MOUNT\" = \"$1\" && exit 7";
        assert_eq!(run(&["bin/tool", "-c", same, "x", "{mount}"]).await.unwrap(), 7);
        assert_eq!(run(&["sh", "-c", "kill -9 $$"]).await.unwrap(), 137);
        let error = run(&["bin/absent"]).await.unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot run bin/absent: "), "{error:#}");
        let error = run(&[]).await.unwrap_err();
        assert!(error.to_string().contains("after --"), "{error:#}");
    }

    #[tokio::test]
    async fn a_program_that_does_not_want_to_end_is_ended() {
        let words: Vec<OsString> = ["sleep", "1000"].map(Into::into).to_vec();
        let mut child = Child::start(&words, Path::new("/")).unwrap();
        let over = child.wait(Some(Duration::from_millis(1)), &Interrupt::listen(true).unwrap()).await.unwrap();
        assert_eq!(over, Over::TimeUp);
        child.end().await;
        assert_eq!(child.process.try_wait().unwrap().unwrap().signal(), Some(15));
    }
}
