//! The worker: takes a cache, listens, hosts mounts, and ends when nobody needs it.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use fs_core::config::OriginTable;
use fs_core::mount::host::{Host, HostSettings};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::cache_lock::CacheLock;
use super::log_file::{self, RotatingLog};
use super::mounts::Mounting;
use super::protocol::to_line;
use super::registry::{self, AgentDescription, AgentFiles};
use super::session;
use super::start::Readiness;
use super::table::Table;
use crate::commands::agent::AgentArguments;
use crate::interrupt::Interrupt;

/// Bytes that stay free on the cache's disk unless told otherwise; 5 % of a small disk is less.
const KEEP_FREE_MAX_BYTES: u64 = 1 << 30;

/// An agent that ends keeps its cache this long at most: it unmounts and closes the cache meanwhile.
const ENDING_DEADLINE: Duration = Duration::from_secs(5);

/// Pause between two tries to take the cache's lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Pause after a failure to accept (too many open files, say), so that it does not fill the log.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What requests and the main loop share.
pub(crate) struct Shared {
    pub(crate) table: Arc<Table>,
    pub(crate) description: AgentDescription,
    pub(crate) arguments: AgentArguments,
    /// Set to end the agent.
    pub(crate) end: watch::Sender<bool>,
    connections: AtomicUsize,
}

/// Runs the worker until it is told to end, or nobody has needed it for a while.
pub(crate) async fn run(arguments: &AgentArguments, interrupt: Interrupt) -> anyhow::Result<()> {
    if let Err(error) = start_logging(arguments) {
        // A full disk, most often: what is cached is served even so.
        let _ = writeln!(std::io::stderr(), "streamfs: going on without a log: {error:#}");
    }
    let started = start(arguments).await;
    let (listener, files, shared, _lock) = match started {
        Ok(started) => started,
        Err(error) => {
            let line = crate::report::error_line(&error).unwrap_or_default();
            tracing::error!("{line}");
            announce(&Readiness::Failed(line));
            return Err(error);
        }
    };
    if let Err(error) = shared.table.mounting().ready() {
        tracing::warn!(error = format!("{error:#}"), "going on without the supervisor knowing");
    }
    tracing::info!(pid = std::process::id(), version = env!("CARGO_PKG_VERSION"), "agent ready");
    announce(&Readiness::Ready);
    serve(&listener, &shared, interrupt).await;
    // Nobody shall find us from here on; a command that still does is told by the closed connection to start anew.
    files.remove();
    drop(listener);
    shared.table.unmount_all().await;
    shared.table.host().close().await;
    tracing::info!("agent ends");
    Ok(())
}

async fn start(arguments: &AgentArguments) -> anyhow::Result<(UnixListener, AgentFiles, Arc<Shared>, CacheLock)> {
    let cache_dir = super::start::prepare_cache_dir(&arguments.cache)?;
    let lock = take_lock(&cache_dir).await?;
    let keep_free_bytes = match arguments.keep_free_bytes {
        Some(bytes) => bytes,
        None => {
            let disk = rustix::fs::statvfs(&cache_dir)
                .with_context(|| format!("cannot ask for the size of the disk of {}", cache_dir.display()))?;
            (disk.f_blocks.saturating_mul(disk.f_frsize) / 20).min(KEEP_FREE_MAX_BYTES)
        }
    };
    let origins = OriginTable::default();
    let settings = HostSettings {
        cache_dir: cache_dir.clone(),
        cache_size_bytes: arguments.cache_size_bytes,
        keep_free_bytes,
        memory_bytes: arguments.memory_bytes,
        poll_interval: Duration::from_millis(arguments.poll_interval_ms),
        origins: origins.clone(),
    };
    let host = Host::open(settings).await.with_context(|| format!("cannot open the cache {}", cache_dir.display()))?;
    host.resume_loads();
    let mounting = Mounting::open()?;
    let files = registry::files(&registry::runtime_dir()?, &cache_dir)?;
    let cannot_listen = || format!("cannot listen at {}", files.socket.display());
    // We hold the cache's lock, so whoever left a socket is dead.
    match std::fs::remove_file(&files.socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).with_context(cannot_listen),
        _ => {}
    }
    let listener = UnixListener::bind(&files.socket).with_context(cannot_listen)?;
    std::fs::set_permissions(&files.socket, PermissionsExt::from_mode(0o600)).with_context(cannot_listen)?;
    let description = AgentDescription {
        cache_dir: cache_dir.as_path().into(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    files.describe(&description).with_context(cannot_listen)?;
    let shared = Arc::new(Shared {
        table: Table::new(host, mounting, origins),
        description,
        arguments: arguments.clone(),
        end: watch::Sender::new(false),
        connections: AtomicUsize::new(0),
    });
    Ok((listener, files, shared, lock))
}

/// Takes the cache's lock, waiting a little for an agent that is just ending.
async fn take_lock(cache_dir: &std::path::Path) -> anyhow::Result<CacheLock> {
    let end = tokio::time::Instant::now() + ENDING_DEADLINE;
    loop {
        match CacheLock::take(cache_dir) {
            Err(_) if tokio::time::Instant::now() < end => tokio::time::sleep(LOCK_PAUSE).await,
            result => return result,
        }
    }
}

/// Accepts connections until a signal, a shutdown request, or `idle_exit` without mounts and connections.
async fn serve(listener: &UnixListener, shared: &Arc<Shared>, interrupt: Interrupt) {
    let idle_exit = Duration::from_millis(shared.arguments.idle_exit_ms);
    let mut end = shared.end.subscribe();
    let mut activity = shared.table.activity();
    loop {
        activity.mark_unchanged();
        let idle = shared.connections.load(Ordering::Acquire) == 0 && shared.table.is_empty();
        let long_idle = async { if idle { tokio::time::sleep(idle_exit).await } else { std::future::pending().await } };
        tokio::select! {
            biased;
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => admit(stream, shared),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            signal = interrupt.wait() => {
                tracing::info!(?signal, "ending on a signal");
                return;
            }
            () = shared.table.mounting().supervisor_gone() => {
                tracing::error!("the supervisor is gone; unmounting everything");
                return;
            }
            _ = end.wait_for(|end| *end) => return,
            // Something was mounted, unmounted, or a connection ended: look again.
            _ = activity.changed() => {}
            () = long_idle => {
                // What is being loaded goes on without anybody.
                if !shared.table.host().is_loading() {
                    return;
                }
            }
        }
    }
}

/// Starts a session for a peer of the same user (or root).
fn admit(stream: UnixStream, shared: &Arc<Shared>) {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == rustix::process::geteuid().as_raw() || peer.uid() == 0 => {}
        Ok(peer) => return tracing::warn!(user = peer.uid(), "a connection of another user was refused"),
        Err(error) => return tracing::warn!(%error, "a connection whose user is unknown was refused"),
    }
    shared.connections.fetch_add(1, Ordering::AcqRel);
    let shared = shared.clone();
    tokio::spawn(async move {
        session::run(stream, &shared).await;
        shared.connections.fetch_sub(1, Ordering::AcqRel);
        shared.table.note_activity();
    });
}

/// Tells whoever started us, if anybody listens.
fn announce(readiness: &Readiness) {
    let mut out = std::io::stdout();
    let _ = out.write_all(&to_line(readiness)).and_then(|()| out.flush());
}

fn start_logging(arguments: &AgentArguments) -> anyhow::Result<()> {
    use tracing_subscriber::EnvFilter;
    let path = log_file::path(&arguments.cache);
    let log = RotatingLog::open(path.clone()).with_context(|| format!("cannot write {}", path.display()))?;
    let filter = EnvFilter::try_from_env("STREAMFS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Arc::new(log));
    // What cannot be logged is lost. Told on standard error, which is the same file, it would end the process.
    let log = log.log_internal_errors(false);
    // Fails only if a test already set one up.
    let _ = log.try_init();
    Ok(())
}
