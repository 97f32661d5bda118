//! Mounting with CAP_SYS_ADMIN: the kernel is asked directly.
//!
//! The new mount API (Linux 5.2) makes a mount that stands nowhere yet, so that its process can be up before anybody
//! sees it; MOVE_MOUNT_BENEATH (Linux 6.5) puts it under another one without a gap.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

use super::{MountError, MountSpec, Result, SUBTYPE};

/// CAP_SYS_ADMIN in the kernel's numbering.
const CAP_SYS_ADMIN_BIT: u32 = 21;

/// Whether this process may mount by itself.
pub(crate) fn may_mount() -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else {
        return rustix::process::geteuid().is_root();
    };
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|bits| bits & (1 << CAP_SYS_ADMIN_BIT) != 0)
}

/// Opens a connection that nothing is mounted from yet.
pub(crate) fn open_device() -> Result<OwnedFd> {
    let device = Path::new("/dev/fuse");
    rustix::fs::open(device, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => MountError::DeviceMissing,
        other => MountError::system("open", device, other),
    })
}

/// Makes a mount that stands nowhere. The kernel queues INIT at once; whoever holds `device` can answer it.
///
/// `None`: this kernel cannot do it, use [`mount_at`].
pub(crate) fn detached(device: &OwnedFd, spec: &MountSpec, dir: &Path) -> Result<Option<OwnedFd>> {
    let context = match fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => context,
        Err(Errno::NOSYS) => return Ok(None),
        Err(Errno::NODEV) => return Err(MountError::DeviceMissing),
        Err(errno) => return Err(MountError::system("mount on", dir, errno)),
    };
    configure(&context, device, spec).map_err(|errno| MountError::system("mount on", dir, errno))?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map(Some)
        .map_err(|errno| MountError::system("mount on", dir, errno))
}

fn configure(context: &OwnedFd, device: &OwnedFd, spec: &MountSpec) -> rustix::io::Result<()> {
    fsconfig_set_string(context, "source", spec.source.as_str())?;
    fsconfig_set_string(context, "subtype", SUBTYPE)?;
    fsconfig_set_flag(context, "ro")?;
    for (key, value) in options(device, spec) {
        match value {
            Some(value) => fsconfig_set_string(context, key, value)?,
            None => fsconfig_set_flag(context, key)?,
        }
    }
    fsconfig_create(context)
}

/// The options that only FUSE knows.
fn options(device: &OwnedFd, spec: &MountSpec) -> Vec<(&'static str, Option<String>)> {
    let mut options = vec![
        ("fd", Some(device.as_raw_fd().to_string())),
        // Octal; only the type counts: attributes come from the worker.
        ("rootmode", Some("40000".to_owned())),
        ("user_id", Some(spec.uid.to_string())),
        ("group_id", Some(spec.gid.to_string())),
        ("default_permissions", None),
    ];
    if spec.allow_other {
        options.push(("allow_other", None));
    }
    options
}

/// mount(2), for kernels before 5.2.
pub(crate) fn mount_at(device: &OwnedFd, spec: &MountSpec, dir: &Path) -> Result<()> {
    let options: Vec<String> = options(device, spec)
        .into_iter()
        .map(|(key, value)| value.map_or_else(|| key.to_owned(), |value| format!("{key}={value}")))
        .collect();
    // Every option is ours and free of NUL, being made of digits and literals.
    let options = CString::new(options.join(",")).expect("mount options contain no NUL");
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(spec.source.as_str(), dir, format!("fuse.{SUBTYPE}"), flags, Some(options.as_c_str()))
        .map_err(|errno| MountError::system("mount on", dir, errno))
}

/// Puts a detached mount on `dir`.
pub(crate) fn attach(mount: &OwnedFd, dir: &Path) -> Result<()> {
    move_mount(mount, "", CWD, dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| MountError::system("mount on", dir, errno))
}

/// Puts a detached mount under the one on `dir`. `Ok(false)`: this kernel, or this place, does not allow it.
pub(crate) fn attach_beneath(mount: &OwnedFd, dir: &Path) -> Result<bool> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_BENEATH;
    match move_mount(mount, "", CWD, dir, flags) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(MountError::system("mount beneath", dir, errno)),
    }
}

/// A detached copy of the mount on `dir`: the same connection, seen at one more place.
pub(crate) fn copy_of(dir: &Path) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, dir, flags).map_err(|errno| match errno {
        Errno::NOSYS => {
            MountError::Unsupported { what: "showing a mount at a second directory needs Linux 5.2 or newer".into() }
        }
        other => MountError::system("copy the mount on", dir, other),
    })
}

/// Removes what is on top of `dir`. `EBUSY` is told apart by the caller.
pub(crate) fn detach(dir: &Path, lazy: bool) -> rustix::io::Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if lazy {
        flags |= UnmountFlags::DETACH;
    }
    unmount(dir, flags)
}

/// The mount that is on top at `dir`. Asks the path only, never the file system behind it.
pub(crate) fn top_mount_id(dir: &Path) -> io::Result<u64> {
    let handle = rustix::fs::open(dir, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    mount_id_of(&handle)
}

/// The mount that `handle` lies on.
pub(crate) fn mount_id_of(handle: impl AsFd) -> io::Result<u64> {
    let fdinfo = format!("/proc/self/fdinfo/{}", handle.as_fd().as_raw_fd());
    let text = fs::read_to_string(fdinfo)?;
    text.lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .and_then(|id| id.trim().parse().ok())
        .ok_or_else(|| io::Error::other("the kernel's fdinfo names no mount"))
}

/// Whether `dir` is an existing empty directory (or may be any directory).
pub(crate) fn check_directory(dir: &Path, nonempty: bool) -> Result<()> {
    let stat = rustix::fs::statx(CWD, dir.as_os_str().as_bytes(), AtFlags::empty(), StatxFlags::TYPE);
    match stat {
        Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.stx_mode.into()).is_dir() => {}
        Ok(_) | Err(Errno::NOTDIR) => return Err(MountError::NotADirectory { dir: dir.to_owned() }),
        Err(Errno::NOENT) => return Err(MountError::NoDirectory { dir: dir.to_owned() }),
        Err(errno) => return Err(MountError::system("mount on", dir, errno)),
    }
    if !nonempty {
        let mut entries = fs::read_dir(dir).map_err(|error| MountError::system("list", dir, error))?;
        if entries.next().is_some() {
            return Err(MountError::NotEmpty { dir: dir.to_owned() });
        }
    }
    Ok(())
}
