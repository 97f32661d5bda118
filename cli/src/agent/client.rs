//! A command's side of the connection to an agent.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::protocol::{PROTOCOL, REPLY_MAX_BYTES, Reply, ReplyLine, Request, RequestLine, next_line, to_line};
use super::registry::{self, AgentFiles};
use super::start;
use crate::settings::InForce;
use crate::trust_report::TrustReport;

/// An agent answers a ping at once, whatever else it does.
const PING_DEADLINE: Duration = Duration::from_secs(10);

/// How long another command may take to start the same agent.
const START_DEADLINE: Duration = Duration::from_secs(40);

/// Pause between two looks at a lock that another starting command holds.
const START_LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A connection to an agent. Dropping it cancels what was asked for.
pub(crate) struct AgentConnection {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    next_id: u64,
    on_begun: Box<OnBegun>,
}

/// Told of the version that long work begins on.
type OnBegun = dyn FnMut(&str, &TrustReport) + Send;

impl AgentConnection {
    /// Connects to the agent of `files`; `None` if there is none.
    pub(crate) async fn connect(files: &AgentFiles) -> anyhow::Result<Option<Self>> {
        let what = || format!("cannot talk to the agent at {}", files.socket.display());
        let stream = match UnixStream::connect(&files.socket).await {
            Ok(stream) => stream,
            // No socket, or one whose owner was killed: before we came, or while we waited to be accepted.
            Err(e) if is_nobody(&e) => return Ok(None),
            Err(e) => return Err(e).with_context(what),
        };
        let peer = stream.peer_cred().with_context(what)?.uid();
        if peer != rustix::process::geteuid().as_raw() && peer != 0 {
            bail!("{}: it belongs to user {peer}", what());
        }
        let (reader, writer) = stream.into_split();
        let mut connection = Self { reader: BufReader::new(reader), writer, next_id: 1, on_begun: Box::new(|_, _| {}) };
        // An agent that is just ending accepts connections without answering: then there is none.
        match tokio::time::timeout(PING_DEADLINE, connection.ask::<()>(&Request::Ping {}, |_, _, _| {})).await {
            Ok(Ok(())) => Ok(Some(connection)),
            Ok(Err(AskError::Closed)) => Ok(None),
            Ok(Err(AskError::Failed(error))) => Err(error).with_context(what),
            Err(_) => bail!("{}: it does not answer; end its process if that does not change", what()),
        }
    }

    /// Connects to the agent of the cache in force, starting it if it does not run.
    pub(crate) async fn connect_or_start(settings: &InForce) -> anyhow::Result<Self> {
        let cache_dir = start::prepare_cache_dir(settings.cache_dir()?)?;
        let files = registry::files(&registry::runtime_dir()?, &cache_dir)?;
        if let Some(connection) = Self::connect(&files).await? {
            return Ok(connection);
        }
        // Of several commands that find no agent, one starts it and the others use it.
        let _starting = StartLock::take(&files.socket.with_extension("start")).await?;
        if let Some(connection) = Self::connect(&files).await? {
            return Ok(connection);
        }
        start::start(&cache_dir, settings).await?;
        Self::connect(&files)
            .await?
            .ok_or_else(|| anyhow!("the agent of the cache {} ended as soon as it had started", cache_dir.display()))
    }

    /// Lets `told` know of the version that long work begins on, as soon as it is known.
    pub(crate) fn on_begun(&mut self, told: impl FnMut(&str, &TrustReport) + Send + 'static) {
        self.on_begun = Box::new(told);
    }

    /// Asks, passes progress (bytes done, bytes in all, what) on, and waits for the result.
    pub(crate) async fn request<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        on_progress: impl FnMut(u64, u64, &str),
    ) -> anyhow::Result<T> {
        self.ask(request, on_progress).await.map_err(|e| match e {
            AskError::Failed(error) => error,
            AskError::Closed => {
                anyhow!("the agent ended before it had answered; see log/agent.log in the cache folder")
            }
        })
    }

    async fn ask<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        mut on_progress: impl FnMut(u64, u64, &str),
    ) -> Result<T, AskError> {
        let id = self.next_id;
        self.next_id += 1;
        let request = serde_json::to_value(request).map_err(anyhow::Error::new)?;
        // A failure to write shows as the end of the stream below, unless an answer is already there.
        self.writer.write_all(&to_line(&RequestLine { v: PROTOCOL, id, request })).await.ok();
        loop {
            let line = match next_line(&mut self.reader, REPLY_MAX_BYTES).await {
                Ok(Some(line)) => line,
                Ok(None) => return Err(AskError::Closed),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(AskError::Closed),
                Err(e) => return Err(anyhow::Error::new(e).context("cannot read the agent's answer").into()),
            };
            let line: ReplyLine = serde_json::from_slice(&line)
                .context("the agent's answer cannot be understood; is it of another version?")?;
            if line.id != id {
                continue;
            }
            match line.reply {
                Reply::Progress { done, total, message } => on_progress(done, total, &message),
                Reply::Begun { version, trust } => (self.on_begun)(&version, &trust),
                Reply::Done { value } => {
                    return Ok(serde_json::from_value(value)
                        .context("the agent's answer lacks something; is it of another version?")?);
                }
                Reply::Failed { message } => return Err(anyhow!(message).into()),
            }
        }
    }
}

fn is_nobody(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset)
}

enum AskError {
    /// The agent closed the connection.
    Closed,
    /// It said no, or nonsense.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for AskError {
    fn from(error: anyhow::Error) -> Self {
        AskError::Failed(error)
    }
}

/// Lets one command at a time start the agent of a cache. Its file is removed with it.
struct StartLock {
    path: PathBuf,
    /// Holds the lock until it is closed, which is after the file was removed.
    _file: File,
}

impl Drop for StartLock {
    fn drop(&mut self) {
        // Whoever waits for it sees that the file is gone, and makes another.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl StartLock {
    /// Waits for the lock on `path`, without blocking a thread, so that an interrupt ends the wait.
    async fn take(path: &Path) -> anyhow::Result<Self> {
        loop {
            let file = lock(path).await?;
            let here = file.metadata().with_context(|| format!("cannot lock {}", path.display()))?;
            if std::fs::metadata(path).is_ok_and(|there| there.ino() == here.ino() && there.dev() == here.dev()) {
                return Ok(Self { path: path.to_owned(), _file: file });
            }
        }
    }
}

/// Opens and locks `path`, whatever becomes of the name meanwhile.
async fn lock(path: &Path) -> anyhow::Result<File> {
    let what = || format!("cannot lock {}", path.display());
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).with_context(what)?;
    let end = tokio::time::Instant::now() + START_DEADLINE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(e)) => return Err(e).with_context(what),
            Err(TryLockError::WouldBlock) if tokio::time::Instant::now() >= end => {
                bail!("another command has been starting the agent for {} s; try again", START_DEADLINE.as_secs())
            }
            Err(TryLockError::WouldBlock) => tokio::time::sleep(START_LOCK_PAUSE).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn one_at_a_time_starts_an_agent_and_no_file_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.start");
        let inside = Arc::new(AtomicUsize::new(0));
        let all = (0..8).map(|_| {
            let (path, inside) = (path.clone(), inside.clone());
            tokio::spawn(async move {
                for _ in 0..20 {
                    let _lock = StartLock::take(&path).await.unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold it");
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                }
            })
        });
        for one in all.collect::<Vec<_>>() {
            one.await.unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
