//! Mounting as an ordinary user, through the setuid helper `fusermount3`.
//!
//! The helper mounts and sends the connection's descriptor over the socket that `_FUSE_COMMFD` names (here its
//! standard input, which needs no unsafe hand-over). It decides by itself what the user may mount on.

use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

use super::{MountError, MountSpec, Result, SUBTYPE};

const HELPER: &str = "fusermount3";

/// Mounts on `dir` and returns the connection. The kernel has queued INIT by then.
pub(crate) fn mount(spec: &MountSpec, dir: &Path) -> Result<OwnedFd> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| MountError::system("mount on", dir, errno))?;
    let child = {
        let mut helper = Command::new(HELPER);
        helper.arg("-o").arg(options(spec)).arg("--").arg(dir);
        helper
            .env("_FUSE_COMMFD", "0")
            .env("LC_ALL", "C")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        helper.spawn().map_err(|error| start_error(dir, error))?
        // The command's copy of the helper's end is closed here, so that its death reads as the end below.
    };
    let received = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(|error| MountError::system("mount on", dir, error))?;
    match received {
        Ok(Some(device)) if output.status.success() => Ok(device),
        Ok(_) => Err(refusal("mount on", dir, &output)),
        Err(error) => Err(MountError::system("mount on", dir, error)),
    }
}

/// Unmounts `dir`.
pub(crate) fn unmount(dir: &Path, lazy: bool) -> Result<()> {
    let mut helper = Command::new(HELPER);
    helper.arg("-u").args(lazy.then_some("-z")).arg("--").arg(dir).env("LC_ALL", "C").stdin(Stdio::null());
    let output = helper.output().map_err(|error| start_error(dir, error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(refusal("unmount", dir, &output))
}

fn options(spec: &MountSpec) -> OsString {
    let mut options = format!("ro,nosuid,nodev,default_permissions,subtype={SUBTYPE},fsname={}", escape(&spec.source));
    if spec.allow_other {
        options.push_str(",allow_other");
    }
    options.into()
}

/// Commas separate options, so the helper takes a backslash before those that do not.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

fn start_error(dir: &Path, error: io::Error) -> MountError {
    if error.kind() == io::ErrorKind::NotFound {
        MountError::FusermountMissing
    } else {
        MountError::system("start fusermount3 for", dir, error)
    }
}

fn refusal(action: &str, dir: &Path, output: &Output) -> MountError {
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    let dir = dir.to_owned();
    let (action, reason) = (action.to_owned(), said);
    if reason.contains("busy") {
        MountError::Busy { users: super::using_processes(&dir), dir }
    } else if reason.contains("allow_other") {
        MountError::NotPermitted { action, dir, reason: format!("{reason} (an administrator can allow it there)") }
    } else if reason.contains("modprobe fuse") || reason.contains("device not found") {
        MountError::DeviceMissing
    } else if ["ermission", "not permitted", "no write access"].iter().any(|word| reason.contains(word)) {
        MountError::NotPermitted { action, dir, reason }
    } else {
        MountError::System { action, dir, reason }
    }
}

/// One byte with the descriptor beside it; `None` if the helper ended without.
fn receive_descriptor(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8; 1];
    loop {
        let received = recvmsg(socket, &mut [io::IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC);
        match received {
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => break,
        }
    }
    let mut device = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            device = descriptors.last();
        }
    }
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_with_commas_stays_one_option() {
        let spec = MountSpec { source: r"a,allow_other\b".into(), uid: 1, gid: 1, allow_other: false, nonempty: false };
        assert!(options(&spec).to_str().unwrap().ends_with(r"fsname=a\,allow_other\\b"));
    }
}
