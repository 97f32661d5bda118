//! What a service manager (systemd) hands over and wants to be told: sockets that listen, and how the service is.

use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::settings::process_environment;

/// How the service is, in the words of `sd_notify(3)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It serves.
    Ready,
    /// It reads its settings again.
    Reloading,
    /// It is about to end.
    Stopping,
}

/// The sockets that were handed over to this process. To be called once.
pub(crate) fn sockets() -> Result<Vec<Arc<TcpListener>>, stream_server::ServeError> {
    // SAFETY: this is called once, by a command that has opened nothing on a descriptor of its own choice.
    let sockets = unsafe { stream_server::activated(process_environment) }?;
    Ok(sockets.into_iter().map(Arc::new).collect())
}

/// Tells the service manager, if one asked to be told. It is no failure if it does not listen.
pub(crate) fn tell(state: State) {
    let Some(socket) = process_environment("NOTIFY_SOCKET") else { return };
    let words = match state {
        State::Ready => "READY=1\n".to_owned(),
        State::Stopping => "STOPPING=1\n".to_owned(),
        // It wants to know when, lest an answer to an earlier reload is taken for this one's.
        State::Reloading => {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            // Neither is negative, and the second is below a thousand million.
            let microseconds = Duration::new(now.tv_sec as u64, now.tv_nsec as u32).as_micros();
            format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\n")
        }
    };
    if let Err(error) = send(socket.as_bytes(), words.as_bytes()) {
        tracing::debug!(%error, "cannot tell the service manager");
    }
}

fn send(socket: &[u8], words: &[u8]) -> std::io::Result<()> {
    let address = match socket.strip_prefix(b"@") {
        Some(name) => abstract_name(name)?,
        None => SocketAddr::from_pathname(Path::new(std::ffi::OsStr::from_bytes(socket)))?,
    };
    UnixDatagram::unbound()?.send_to_addr(words, &address)?;
    Ok(())
}

#[cfg(target_os = "linux")]
fn abstract_name(name: &[u8]) -> std::io::Result<SocketAddr> {
    std::os::linux::net::SocketAddrExt::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_name(_: &[u8]) -> std::io::Result<SocketAddr> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Allows this process as many open files as it may allow itself: each connection is one, and each answer another.
pub(crate) fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_arrive_whether_the_name_is_a_path_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("streamfs-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&abstract_name(name.as_bytes()).unwrap()).unwrap();
        for (manager, socket) in [(by_path, path.to_str().unwrap().to_owned()), (by_name, format!("@{name}"))] {
            send(socket.as_bytes(), b"READY=1\n").unwrap();
            let mut words = [0; 64];
            let length = manager.recv(&mut words).unwrap();
            assert_eq!(&words[..length], b"READY=1\n");
        }
        assert!(send(b"/nowhere/notify", b"READY=1\n").is_err());
    }

    #[test]
    fn open_files_are_raised_as_far_as_they_may_be() {
        raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
