//! What is printed, and what the exit status says.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use fs_core::ErrorKind;
use serde::Serialize;

use crate::child::Unsuccessful;
use crate::interrupt::Interrupted;

/// Whoever read our standard output has left (`streamfs versions … | head -1`): the work is done as far as anybody
/// wanted it.
#[derive(Debug)]
struct OutputClosed;

impl fmt::Display for OutputClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reader of the output left")
    }
}

impl std::error::Error for OutputClosed {}

/// Prints one line to standard output.
pub(crate) fn line(text: impl fmt::Display) -> anyhow::Result<()> {
    write(&format!("{text}\n"))
}

/// Prints text of whole lines to standard output.
pub(crate) fn text(text: &str) -> anyhow::Result<()> {
    write(text)
}

/// Prints `value` as one line of JSON to standard output.
pub(crate) fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    write(&(serde_json::to_string(value)? + "\n"))
}

fn write(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        Err(e) => Err(anyhow::Error::new(e).context("cannot write to standard output")),
    }
}

/// Prints a remark to standard error.
pub(crate) fn note(text: impl fmt::Display) {
    // A remark is not worth failing for.
    let _ = io::stderr().write_all(format!("streamfs: {text}\n").as_bytes());
}

/// Prints a warning to standard error, also where no remarks are wanted.
pub(crate) fn warn(text: impl fmt::Display) {
    note(format_args!("warning: {text}"));
}

/// The error in one line: what was tried, then why, without saying anything twice. `None` if there is nothing to say.
pub(crate) fn error_line(error: &anyhow::Error) -> Option<String> {
    if error.is::<OutputClosed>() || error.is::<Interrupted>() || error.is::<Unsuccessful>() {
        return None;
    }
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // Many errors already end with their cause's words.
        if line.contains(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    // One line is one line, whatever a server put into its message.
    Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The exit status for `error`.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<OutputClosed>() {
        return 0;
    }
    if let Some(Interrupted(signal)) = error.downcast_ref::<Interrupted>() {
        return signal.exit_code();
    }
    if let Some(Unsuccessful { code }) = error.downcast_ref::<Unsuccessful>() {
        return *code;
    }
    match error.downcast_ref::<fs_core::Error>().map(fs_core::Error::kind) {
        Some(ErrorKind::Cancelled) => 130,
        _ => 1,
    }
}

/// Lets log messages through to standard error: warnings, or more with each `-v`. `STREAMFS_LOG` decides if set.
pub(crate) fn start_logging(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let default = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("STREAMFS_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    // A file or a pipe wants no colours, and neither does whoever says so (https://no-color.org).
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours);
    // Fails only if a test already set one up.
    let _ = log.without_time().try_init();
}

/// Bytes for people: `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;
    use crate::interrupt::Signal;

    #[test]
    fn errors_are_one_line_without_repetition() {
        let io = io::Error::new(io::ErrorKind::PermissionDenied, "permission denied");
        let core = fs_core::Error::local("open", "/x", io);
        let error = Err::<(), _>(core).context("cannot mount /a/b at /mnt").unwrap_err();
        assert_eq!(error_line(&error).unwrap(), "cannot mount /a/b at /mnt: cannot open /x: permission denied");
        assert_eq!(error_line(&anyhow!("two\nlines  here")).unwrap(), "two lines here");
    }

    #[test]
    fn exit_codes_follow_the_cause() {
        assert_eq!(exit_code(&anyhow!("x")), 1);
        assert_eq!(exit_code(&Interrupted(Signal::Interrupt).into()), 130);
        assert_eq!(exit_code(&Interrupted(Signal::Terminate).into()), 143);
        assert_eq!(exit_code(&anyhow::Error::new(fs_core::Error::Cancelled).context("cannot publish")), 130);
        assert_eq!(exit_code(&anyhow::Error::new(OutputClosed)), 0);
        assert_eq!(error_line(&anyhow::Error::new(OutputClosed)), None);
    }
}
