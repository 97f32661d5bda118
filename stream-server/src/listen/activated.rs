//! Sockets that a service manager opened (`sd_listen_fds(3)`): a port below 1024 for an ordinary user, and no moment at
//! which nobody listens while the server restarts.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::fs::FileType;
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::ServeError;

/// The first descriptor that is handed over; the others follow.
const FIRST: i32 = 3;
/// More than anybody hands over; a higher number is not of a service manager.
const COUNT_MAX: i32 = 256;

/// Takes the sockets that were handed over to this process, if any were.
///
/// # Errors
/// [`ServeError::Activation`] if they are not sockets that listen.
///
/// # Safety
/// To be called once, before the process opens anything else on descriptors of its own choice: what it takes must not
/// be owned by anybody yet.
pub unsafe fn activated(
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<TcpListener>, ServeError> {
    let number = |name: &str| environment(name)?.to_str()?.parse::<i32>().ok();
    // Variables that are inherited from a parent that was started so are not meant for this process.
    let own = number("LISTEN_PID").is_some_and(|pid| pid == rustix::process::getpid().as_raw_pid());
    let count = number("LISTEN_FDS").filter(|count| own && (1..=COUNT_MAX).contains(count)).unwrap_or(0);
    (FIRST..FIRST + count)
        .map(|descriptor| {
            // SAFETY: the service manager says that it opened this descriptor for this very process, and by this
            // function's contract nobody has taken it yet.
            let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
            check(&socket).map_err(|reason| ServeError::Activation { descriptor, reason })?;
            Ok(TcpListener::from(socket))
        })
        .collect()
}

/// Whether it is a socket that listens for TCP, and of no use to programs that are started from here.
fn check(socket: &OwnedFd) -> Result<(), String> {
    let failed = |error: rustix::io::Errno| error.to_string();
    let kind = FileType::from_raw_mode(rustix::fs::fstat(socket).map_err(failed)?.st_mode);
    if kind != FileType::Socket {
        return Err("it is not a socket".to_owned());
    }
    let family = sockopt::socket_domain(socket).map_err(failed)?;
    if !matches!(family, AddressFamily::INET | AddressFamily::INET6)
        || sockopt::socket_type(socket).map_err(failed)? != SocketType::STREAM
    {
        return Err("it is not a TCP socket; use ListenStream= with a port".to_owned());
    }
    if !sockopt::socket_acceptconn(socket).map_err(failed)? {
        return Err("it does not listen; leave Accept=no".to_owned());
    }
    rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::CLOEXEC).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_that_listen_for_tcp_are_taken() {
        let listener: OwnedFd = TcpListener::bind("127.0.0.1:0").unwrap().into();
        check(&listener).unwrap();
        let address = TcpListener::from(listener).local_addr().unwrap();
        assert!(address.port() > 0);
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        assert!(check(&file).unwrap_err().contains("not a socket"));
        let datagrams: OwnedFd = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into();
        assert!(check(&datagrams).unwrap_err().contains("not a TCP"));
        let local: OwnedFd = std::os::unix::net::UnixStream::pair().unwrap().0.into();
        assert!(check(&local).unwrap_err().contains("not a TCP"));
    }

    #[test]
    fn what_is_meant_for_another_process_is_left_alone() {
        for (pid, count) in [("1", "1"), ("", "1"), ("x", "1")] {
            let environment = |name: &str| Some(if name == "LISTEN_PID" { pid } else { count }.into());
            // SAFETY: nothing is taken, since the process is another.
            let taken = unsafe { activated(environment) };
            assert!(taken.unwrap().is_empty(), "{pid}");
        }
        // SAFETY: nothing is taken, since nothing says that anything was handed over.
        assert!(unsafe { activated(|_| None) }.unwrap().is_empty());
    }
}
