//! Reading a secret: from the terminal without showing it, or from whatever standard input is.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use anyhow::{Context as _, bail};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use stream_server::Secret;

/// A token or password is one line; a longer one is something else.
const SECRET_MAX_BYTES: u64 = 64 << 10;

/// The terminal as it was, to be restored.
struct Echo {
    before: Termios,
}

impl Echo {
    /// Stops showing what is typed. The line break is shown, as a sign that it was taken.
    fn off() -> anyhow::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd()).context("cannot ask the terminal how it is set")?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        quiet.local_modes.insert(LocalModes::ECHONL);
        // What was typed ahead was visible; it shall not count.
        tcsetattr(stdin.as_fd(), OptionalActions::Flush, &quiet)
            .context("cannot make the terminal hide what is typed")?;
        Ok(Self { before })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.before);
    }
}

/// Whether somebody can be asked.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks for a secret at the terminal, or reads the first line of standard input. With `again`, somebody at a terminal
/// has to type it twice.
///
/// # Errors
/// If there is none, or the two differ.
pub(crate) async fn read_secret(prompt: &str, again: bool) -> anyhow::Result<Secret> {
    if !is_interactive() {
        return usable(read_line().await?);
    }
    let first = ask_hidden(prompt).await?;
    if again && ask_hidden("Again: ").await? != first {
        bail!("the two differ; nothing was changed");
    }
    usable(first)
}

/// Asks for a line that may be seen.
///
/// # Errors
/// If there is none.
pub(crate) async fn read_visible(prompt: &str) -> anyhow::Result<String> {
    show(prompt)?;
    let line = read_line().await?;
    Ok(line.expose().trim().to_owned())
}

async fn ask_hidden(prompt: &str) -> anyhow::Result<Secret> {
    // Before the prompt: who sees it may type. Restored also when the command is interrupted, for then this is dropped.
    let _hidden = Echo::off()?;
    show(prompt)?;
    read_line().await
}

fn show(prompt: &str) -> anyhow::Result<()> {
    let mut err = io::stderr();
    err.write_all(prompt.as_bytes()).and_then(|()| err.flush()).context("cannot ask at the terminal")
}

/// Reads on a thread that nobody waits for at the end: it may be stuck until somebody presses Enter.
async fn read_line() -> anyhow::Result<Secret> {
    let (done, line) = tokio::sync::oneshot::channel();
    let read = move || {
        let mut text = String::new();
        let read = io::stdin().lock().take(SECRET_MAX_BYTES + 1).read_line(&mut text);
        // Whoever asked may have left.
        let _ = done.send(read.map(|_| Secret::from(text)));
    };
    std::thread::Builder::new().name("standard input".to_owned()).spawn(read).context("cannot start a thread")?;
    let line = line.await.context("standard input cannot be read")?.context("cannot read standard input")?;
    if line.expose().len() as u64 > SECRET_MAX_BYTES {
        bail!("standard input has a longer line than any secret");
    }
    Ok(line.expose().trim_end_matches(['\r', '\n']).into())
}

fn usable(secret: Secret) -> anyhow::Result<Secret> {
    if secret.is_empty() {
        bail!("there is no secret; type it, or give it on standard input");
    }
    if secret.expose().chars().any(char::is_control) {
        bail!("the secret holds a control character, which cannot be sent");
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_secrets_are_refused_without_showing_them() {
        assert_eq!(usable("right horse".into()).unwrap().expose(), "right horse");
        for secret in ["", "hunter2\x1b[A"] {
            let error = usable(secret.into()).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
