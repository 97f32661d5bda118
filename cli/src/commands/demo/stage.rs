//! Where the demo plays: a temporary folder, a server, an agent of its own, and the applications it starts.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::Instant;

use super::sample;
use crate::agent::client::AgentConnection;
use crate::agent::protocol::Request;
use crate::agent::registry;

/// Nothing here takes this long unless it hangs.
const STEP_DEADLINE: Duration = Duration::from_secs(60);

/// Pause between two looks at the status.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Prints a line, or not.
pub(super) type Say<'a> = &'a (dyn Fn(String) -> anyhow::Result<()> + Sync);

/// The folder, and what runs in it.
pub(super) struct Stage {
    folder: TempDir,
    server: Option<Child>,
}

impl Stage {
    pub(super) fn set() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("streamfs-demo-").tempdir()?;
        for name in ["v1", "v2", "content", "cache", "mnt"] {
            std::fs::create_dir(folder.path().join(name))?;
        }
        registry::private_dir(&folder.path().join("run"))?;
        Ok(Self { folder, server: None })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// This program with folders of the demo's own, so that nothing of the user's is touched.
    fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("cannot find this program's own file")?);
        command.args(arguments).arg("--json").arg("--quiet");
        for (variable, name) in [
            ("STREAMFS_CACHE", "cache"),
            ("STREAMFS_KEYS", "keys"),
            ("XDG_RUNTIME_DIR", "run"),
            ("XDG_CONFIG_HOME", "config"),
        ] {
            command.env(variable, self.path(name));
        }
        for variable in ["STREAMFS_CONFIG", "STREAMFS_TOKEN", "STREAMFS_HTTP_USER", "STREAMFS_HTTP_PASSWORD"] {
            command.env_remove(variable);
        }
        // The server is on this machine: no proxy stands between.
        command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
        command.stdin(Stdio::null()).kill_on_drop(true);
        Ok(command)
    }

    /// Runs a command of this program and gives what it printed.
    pub(super) async fn streamfs(&self, arguments: &[&str], say: Say<'_>) -> anyhow::Result<Value> {
        say(format!("  $ streamfs {}", arguments.join(" ")))?;
        self.ask(arguments).await
    }

    async fn ask(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let what = || format!("streamfs {}", arguments.join(" "));
        let output = self.command(arguments)?.output();
        let output = tokio::time::timeout(STEP_DEADLINE, output)
            .await
            .with_context(|| format!("{} did not end within {} s", what(), STEP_DEADLINE.as_secs()))?
            .with_context(what)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{} failed: {}", what(), said.trim().trim_start_matches("streamfs: "));
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("{} printed no JSON", what()))
    }

    /// Starts the server; gives its URL.
    pub(super) async fn serve(&mut self, content: &str, say: Say<'_>) -> anyhow::Result<String> {
        let arguments = ["serve", content, "--listen", "127.0.0.1:0"];
        say(format!("  $ streamfs {} &", arguments.join(" ")))?;
        let mut child = self.command(&arguments)?.stdout(Stdio::piped()).spawn().context("cannot start the server")?;
        let stdout = child.stdout.take().context("the server's output is not connected")?;
        self.server = Some(child);
        let line = next_line(&mut BufReader::new(stdout).lines()).await.context("the server did not start")?;
        let told: Value = serde_json::from_str(&line).context("the server told no address")?;
        let url = told["url"].as_str().context("the server told no address")?.to_owned();
        say(format!("    {url}"))?;
        Ok(url)
    }

    /// What is mounted at `dir`, as `status` tells it.
    pub(super) async fn mounts(&self, dir: &str) -> anyhow::Result<Vec<Value>> {
        let status = self.ask(&["status", dir]).await?;
        let agents = status["agents"].as_array().cloned().unwrap_or_default();
        Ok(agents.iter().flat_map(|agent| agent["mounts"].as_array().cloned().unwrap_or_default()).collect())
    }

    /// Waits until the status of `dir` is as it `should_be`; tells whether that came.
    pub(super) async fn wait_for(
        &self,
        dir: &str,
        deadline: Duration,
        should_be: impl Fn(&[Value]) -> bool,
    ) -> anyhow::Result<bool> {
        let end = Instant::now() + deadline;
        while !should_be(&self.mounts(dir).await?) {
            if Instant::now() >= end {
                return Ok(false);
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        Ok(true)
    }

    /// Ends the agent and the server, and removes the folder.
    pub(super) async fn clear(mut self) -> anyhow::Result<()> {
        let ended = self.end_agent().await;
        if let Some(mut server) = self.server.take() {
            // It may have ended by the same Ctrl-C.
            let _ = server.kill().await;
        }
        let removed = self.folder.close().context("cannot remove the demo's folder");
        ended.and(removed)
    }

    async fn end_agent(&self) -> anyhow::Result<()> {
        let cache = std::fs::canonicalize(self.path("cache"))?;
        let files = registry::files(&self.path("run/streamfs"), &cache)?;
        let Some(mut agent) = AgentConnection::connect(&files).await? else { return Ok(()) };
        agent.request::<()>(&Request::Shutdown {}, |_, _, _| {}).await?;
        // It still writes its last words into the folder; its lock tells when it is gone.
        let end = Instant::now() + STEP_DEADLINE;
        while crate::agent::is_running(&cache) {
            ensure!(Instant::now() < end, "the demo's agent does not end");
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        Ok(())
    }
}

/// One start of the sample application.
pub(super) struct Application {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Application {
    /// Starts it in `dir`, where its package is mounted.
    pub(super) async fn start(dir: &str, say: Say<'_>) -> anyhow::Result<Self> {
        say(format!("  $ cd {dir} && ./{} &", sample::PROGRAM))?;
        let mut child = Command::new(PathBuf::from(dir).join(sample::PROGRAM))
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the application")?;
        let stdin = child.stdin.take().context("the application's input is not connected")?;
        let stdout = child.stdout.take().context("the application's output is not connected")?;
        Ok(Self { child, stdin, lines: BufReader::new(stdout).lines() })
    }

    /// Reads its next line, which must be `line`.
    pub(super) async fn expect(&mut self, line: &str) -> anyhow::Result<()> {
        let said = next_line(&mut self.lines).await.context("the application broke off")?;
        ensure!(said == line, "the application should say {line:?}, but says {said:?}");
        Ok(())
    }

    /// Lets it go on to its end: it reads its parts only now.
    pub(super) async fn finish(mut self, version: &str) -> anyhow::Result<()> {
        self.stdin.write_all(b"go\n").await.context("the application does not listen")?;
        for index in 0..sample::PARTS {
            self.expect(&sample::first_line(index, version)).await?;
        }
        self.expect(&format!("finished {version}")).await?;
        let status =
            tokio::time::timeout(STEP_DEADLINE, self.child.wait()).await.context("the application hangs")??;
        ensure!(status.success(), "the application ended with {status}");
        Ok(())
    }
}

async fn next_line(lines: &mut Lines<BufReader<ChildStdout>>) -> anyhow::Result<String> {
    let line = tokio::time::timeout(STEP_DEADLINE, lines.next_line()).await;
    let line = line.with_context(|| format!("nothing came for {} s", STEP_DEADLINE.as_secs()))??;
    line.context("it ended without saying what was expected")
}
