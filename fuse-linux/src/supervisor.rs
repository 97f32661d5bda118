//! The small process that mounts for a worker and cleans up after it.
//!
//! An agent is two processes. The worker does everything that can fail: network, cache, answering the kernel. The
//! supervisor opens `/dev/fuse`, mounts, hands the connection over, and waits. When the worker dies, however it
//! dies, the supervisor removes its mounts, so that no directory is left that answers "Transport endpoint is not
//! connected". When the supervisor dies, the worker learns it ([`crate::Mounter::supervisor_gone`]) and removes its
//! mounts itself.
//!
//! The supervisor has one thread, reads nothing but its socket, and keeps no descriptor of a connection: if it did, a
//! dead worker's mounts would hang instead of failing.
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! let mut worker = std::process::Command::new(std::env::current_exe()?);
//! worker.arg("worker");
//! let status = fuse_linux::supervisor::run(worker, || println!("ready"))?;
//! # std::process::exit(status.code().unwrap_or(1));
//! # }
//! ```

pub(crate) mod protocol;
mod signals;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::mounting::executor::{Done, Executor, Request};
use crate::mounting::{MountError, Result};
use protocol::{receive, send};
use signals::Signals;

/// Names the descriptor of the worker's socket.
pub const SOCKET_VARIABLE: &str = "STREAMFS_SUPERVISOR_FD";

/// What the supervisor answers to a [`Request`].
pub(crate) type Answer = Result<Done>;

/// Starts `worker` and serves it until it ends; then removes what it left mounted and returns its status.
///
/// `on_ready` is called once, when the worker says that it serves ([`crate::Mounter::ready`]). SIGTERM, SIGINT and
/// SIGHUP are passed on to the worker, whose end ends this function. The signal mask of the calling thread is changed
/// meanwhile; there should be no other threads. Needs Linux 5.3.
pub fn run(mut worker: Command, on_ready: impl FnOnce()) -> io::Result<ExitStatus> {
    let signals = Signals::catch()?;
    let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    worker.env(SOCKET_VARIABLE, theirs.as_raw_fd().to_string());
    let inherited = theirs.as_raw_fd();
    // SAFETY: the closure runs between fork and exec and makes two system calls, both async-signal-safe; `inherited`
    // is open there, because `theirs` lives until after `spawn`.
    unsafe {
        worker.pre_exec(move || {
            signals::unblock_all()?;
            let descriptor = std::os::fd::BorrowedFd::borrow_raw(inherited);
            rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
            Ok(())
        });
    }
    let mut child = worker.spawn()?;
    drop((worker, theirs));
    let mut executor = Executor::default();
    let served = serve(&mut child, &socket, &signals, &mut executor, on_ready);
    if served.is_err() {
        // Without a supervisor that can see its end, the worker must not go on.
        let _ = child.kill();
    }
    let status = child.wait();
    for error in executor.remove_all() {
        tracing::warn!("after the worker's end: {error}");
    }
    served?;
    status
}

/// Until the worker has ended.
fn serve(
    child: &mut Child,
    socket: &OwnedFd,
    signals: &Signals,
    executor: &mut Executor,
    on_ready: impl FnOnce(),
) -> io::Result<()> {
    let mut on_ready = Some(on_ready);
    let pid = Pid::from_child(child);
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let mut listening = true;
    loop {
        let mut waiting = vec![PollFd::new(&process, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        if listening {
            waiting.push(PollFd::new(socket, PollFlags::IN));
        }
        match poll(&mut waiting, None) {
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
            Ok(_) => {}
        }
        let ended = !waiting[0].revents().is_empty();
        let signalled = !waiting[1].revents().is_empty();
        let asked = waiting.get(2).is_some_and(|socket| !socket.revents().is_empty());
        if signalled {
            signals.pass_on(pid)?;
        }
        if asked && !answer_one(socket, executor, &mut on_ready)? {
            // The worker closed its end, or can no longer be understood. Its process decides what happens next.
            listening = false;
        }
        // Last, so that what the worker asked for before its end is known when its mounts are removed.
        if ended && !asked {
            return Ok(());
        }
    }
}

/// Serves one request; false when there will be no more.
fn answer_one(socket: &OwnedFd, executor: &mut Executor, on_ready: &mut Option<impl FnOnce()>) -> io::Result<bool> {
    let request: Request = match receive(socket) {
        Ok(Some((request, _))) => request,
        Ok(None) => return Ok(false),
        Err(error) => {
            tracing::warn!("a request of the worker cannot be understood: {error}");
            return Ok(false);
        }
    };
    if request == Request::Ready {
        if let Some(on_ready) = on_ready.take() {
            on_ready();
        }
    }
    let (answer, device): (Answer, _) = match executor.execute(request) {
        Ok((done, device)) => (Ok(done), device),
        Err(error) => (Err(error), None),
    };
    match send(socket, &answer, device.as_ref().map(AsFd::as_fd)) {
        Ok(()) => Ok(true),
        // The worker died while waiting: its mounts are removed when its end is seen.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The worker's side of one request.
pub(crate) fn ask(socket: &OwnedFd, request: &Request) -> io::Result<Option<(Answer, Option<OwnedFd>)>> {
    match send(socket, request, None) {
        Ok(()) => receive(socket),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl From<io::Error> for MountError {
    fn from(error: io::Error) -> Self {
        MountError::Protocol { reason: error.to_string() }
    }
}
