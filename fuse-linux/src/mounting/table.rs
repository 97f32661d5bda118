//! The kernel's mount table: which mounts of ours there are, and which of them are dead.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::{MountError, Result, SUBTYPE, executor, kernel};

/// How long a living mount may take to answer for its root.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// The kernel's number of this mount; unique while it exists.
    pub mount_id: u64,
    /// Device numbers (major, minor) of the file system: equal for all mounts of one connection.
    pub device: (u32, u32),
    /// Where it stands, as this process sees it.
    pub dir: PathBuf,
    /// Type, e.g. `fuse.streamfs`.
    pub fs_type: String,
    /// Source: `package@version` for ours.
    pub source: String,
}

/// All mounts of this process's namespace.
pub(crate) fn all_mounts() -> io::Result<Vec<MountEntry>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(table.split(|b| *b == b'\n').filter_map(parse_line).collect())
}

/// All streamfs mounts of this process's namespace.
pub fn streamfs_mounts() -> io::Result<Vec<MountEntry>> {
    let ours = format!("fuse.{SUBTYPE}");
    Ok(all_mounts()?.into_iter().filter(|mount| mount.fs_type == ours).collect())
}

/// The line of one mount.
pub(crate) fn find(mount_id: u64) -> io::Result<Option<MountEntry>> {
    Ok(all_mounts()?.into_iter().find(|mount| mount.mount_id == mount_id))
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue` (proc_pid_mountinfo(5)).
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let mount_id = number(fields.next()?)?;
    let _parent = fields.next()?;
    let mut device = fields.next()?.split(|b| *b == b':');
    let device = (number(device.next()?)?, number(device.next()?)?);
    let _root = fields.next()?;
    let dir = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let (fs_type, source) = (text(rest.next()?), text(rest.next()?));
    Some(MountEntry { mount_id, device, dir, fs_type, source })
}

fn number<N: std::str::FromStr>(digits: &[u8]) -> Option<N> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The kernel writes space, tab, newline, backslash and # as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|d| first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal {
            Some(digits) => {
                out.push(digits.iter().fold(0_u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &after[3..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    out
}

/// Whether the process behind a mount still answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It answers for its root.
    Alive,
    /// It is gone: every access fails with ENOTCONN.
    Dead,
    /// It holds the connection but did not answer in time.
    Unresponsive,
}

/// Asks the mount on `dir` for its root's attributes, for at most `deadline`.
///
/// The question is asked by a thread of its own, which stays behind, blocked, if the mount hangs.
pub fn liveness(dir: &Path, deadline: Duration) -> Liveness {
    let (answer, answered) = mpsc::channel();
    let path = dir.to_owned();
    let asked = thread::Builder::new().name("streamfs-alive".into()).spawn(move || {
        // FORCE_SYNC: the kernel's remembered attributes say nothing about the process.
        let flags = rustix::fs::AtFlags::STATX_FORCE_SYNC;
        let result = rustix::fs::statx(rustix::fs::CWD, path, flags, rustix::fs::StatxFlags::BASIC_STATS);
        // The asker may have given up; then nobody wants to know.
        let _ = answer.send(result.map(drop));
    });
    if asked.is_err() {
        return Liveness::Unresponsive;
    }
    match answered.recv_timeout(deadline) {
        Ok(Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED)) => Liveness::Dead,
        Ok(_) => Liveness::Alive,
        Err(_) => Liveness::Unresponsive,
    }
}

/// Whether the process behind the mount on `dir` is gone.
pub fn is_dead(dir: &Path) -> bool {
    liveness(dir, ANSWER_DEADLINE) == Liveness::Dead
}

/// Removes the streamfs mount on `dir`, whoever made it and whether or not it is in use: meant for dead ones.
pub fn clean(dir: &Path) -> Result<()> {
    let top = kernel::top_mount_id(dir).map_err(|error| MountError::system("unmount", dir, error))?;
    let ours = streamfs_mounts().map_err(|error| MountError::system("unmount", dir, error))?;
    if !ours.iter().any(|mount| mount.mount_id == top && mount.dir == dir) {
        return Err(MountError::NotMounted { dir: dir.to_owned() });
    }
    executor::remove(dir, top, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_escapes_optional_fields_and_a_subtype_is_read() {
        let line =
            br"641 29 0:52 / /mnt/a\040b\134c ro,nosuid shared:1 master:2 - fuse.streamfs gimp@2.10 ro,user_id=0";
        let entry = parse_line(line).unwrap();
        assert_eq!(entry.mount_id, 641);
        assert_eq!(entry.device, (0, 52));
        assert_eq!(entry.dir, Path::new(r"/mnt/a b\c"));
        assert_eq!((entry.fs_type.as_str(), entry.source.as_str()), ("fuse.streamfs", "gimp@2.10"));
        assert_eq!(parse_line(b""), None);
        assert_eq!(parse_line(b"641 29 0:52 / /mnt"), None);
    }

    #[test]
    fn the_root_of_this_system_is_in_the_table_and_alive() {
        assert!(all_mounts().unwrap().iter().any(|mount| mount.dir == Path::new("/")));
        assert_eq!(liveness(Path::new("/"), ANSWER_DEADLINE), Liveness::Alive);
        assert!(matches!(clean(Path::new("/")), Err(MountError::NotMounted { .. })));
    }
}
