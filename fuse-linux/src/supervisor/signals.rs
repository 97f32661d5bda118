//! Signals as something to poll for, so that one thread can wait for them beside its socket.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::{Pid, Signal, getpgid, getpgrp, kill_process};

/// What ends an agent.
const CAUGHT: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The signals that end an agent, blocked and readable.
pub(crate) struct Signals {
    descriptor: OwnedFd,
    before: libc::sigset_t,
}

impl Signals {
    /// From now on the calling thread reads these signals instead of dying of them.
    pub(crate) fn catch() -> io::Result<Self> {
        let set = set_of(&CAUGHT);
        let mut before = MaybeUninit::uninit();
        // SAFETY: `set` is initialised and `before` is written by the call when it succeeds.
        let before = unsafe {
            let failed = libc::pthread_sigmask(libc::SIG_BLOCK, &set, before.as_mut_ptr());
            if failed != 0 {
                return Err(io::Error::from_raw_os_error(failed));
            }
            before.assume_init()
        };
        // SAFETY: `set` is initialised; -1 asks for a new descriptor.
        let descriptor = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and nobody else has it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Signals { descriptor, before })
    }

    /// Sends each waiting signal to `worker`.
    pub(crate) fn pass_on(&self, worker: Pid) -> io::Result<()> {
        while let Some((number, from_terminal)) = self.next()? {
            // Ctrl-C reaches the whole foreground group, the worker included; twice would mean "at once" to it.
            if from_terminal && getpgid(Some(worker)).is_ok_and(|group| group == getpgrp()) {
                continue;
            }
            if let Some(signal) = Signal::from_named_raw(number) {
                match kill_process(worker, signal) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Ok(())
    }

    fn next(&self) -> io::Result<Option<(i32, bool)>> {
        let mut raw = [0_u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.descriptor, &mut raw) {
            Ok(n) if n == raw.len() => {}
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        // SAFETY: the kernel filled all bytes, and every bit pattern is a valid siginfo (integers only).
        let info: libc::signalfd_siginfo = unsafe { std::mem::transmute(raw) };
        let from_terminal = info.ssi_code == libc::SI_KERNEL;
        Ok(i32::try_from(info.ssi_signo).ok().map(|number| (number, from_terminal)))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: `before` was filled by the kernel in `catch`.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut());
        }
    }
}

/// Unblocks every signal of the calling thread. Async-signal-safe.
pub(crate) fn unblock_all() -> io::Result<()> {
    let none = set_of(&[]);
    // SAFETY: `none` is initialised; no old mask is asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) } {
        0 => Ok(()),
        failed => Err(io::Error::from_raw_os_error(failed)),
    }
}

fn set_of(signals: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set; the numbers are valid signals, so sigaddset cannot fail.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

#[cfg(test)]
pub(crate) fn block_caught() -> io::Result<()> {
    let set = set_of(&CAUGHT);
    // SAFETY: `set` is initialised; no old mask is asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
        0 => Ok(()),
        failed => Err(io::Error::from_raw_os_error(failed)),
    }
}
