//! Carries out what a worker asks for: in the supervisor, or in the worker itself when there is none.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::table::{self, Liveness, liveness};
use super::{MountError, MountSpec, Result, SUBTYPE, fusermount, kernel, path_bytes, using_processes};

/// How long the mount that is in the way may take to show that it lives.
const LIVENESS_DEADLINE: Duration = Duration::from_millis(500);

/// What a worker asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// A new connection, for a mount on `dir` that takes the place of `replaces` if there is such a mount.
    Create {
        #[serde(with = "path_bytes")]
        dir: PathBuf,
        spec: MountSpec,
        replaces: Option<u64>,
        lazy: bool,
    },
    /// Puts the mount of the last `Create` in place. Only after [`Done::Detached`].
    Attach {
        #[serde(with = "path_bytes")]
        dir: PathBuf,
        replaces: Option<u64>,
        lazy: bool,
    },
    /// Shows the mount `mount_id`, seen at `from`, also on `dir`.
    Copy {
        mount_id: u64,
        #[serde(with = "path_bytes")]
        from: PathBuf,
        #[serde(with = "path_bytes")]
        dir: PathBuf,
        nonempty: bool,
    },
    /// Removes the mount `mount_id` from `dir`.
    Unmount {
        mount_id: u64,
        #[serde(with = "path_bytes")]
        dir: PathBuf,
        lazy: bool,
    },
    /// The worker serves; whoever waits for that may go on.
    Ready,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Done {
    /// The connection comes along; the mount waits for `Attach`.
    Detached,
    /// The mount is seen. After `Create` the connection comes along.
    Attached { mount_id: u64 },
    /// This user cannot copy mounts: a second connection is needed.
    NeedsOwnConnection,
    /// Nothing to tell.
    Nothing,
}

/// Mounts and remembers what it mounted.
#[derive(Debug, Default)]
pub(crate) struct Executor {
    /// Made by `Create`, not yet in place.
    detached: Option<OwnedFd>,
    /// What stands where, by mount number.
    attached: Vec<(u64, PathBuf)>,
}

impl Executor {
    /// Does what `request` says.
    pub(crate) fn execute(&mut self, request: Request) -> Result<(Done, Option<OwnedFd>)> {
        match request {
            Request::Create { dir, spec, replaces, lazy } => {
                self.create(&dir, &spec, replaces, lazy).map(|(done, device)| (done, Some(device)))
            }
            Request::Attach { dir, replaces, lazy } => Ok((self.attach(&dir, replaces, lazy)?, None)),
            Request::Copy { mount_id, from, dir, nonempty } => Ok((self.copy(mount_id, &from, &dir, nonempty)?, None)),
            Request::Unmount { mount_id, dir, lazy } => {
                remove(&dir, mount_id, lazy)?;
                self.attached.retain(|(id, _)| *id != mount_id);
                Ok((Done::Nothing, None))
            }
            Request::Ready => Ok((Done::Nothing, None)),
        }
    }

    fn create(&mut self, dir: &Path, spec: &MountSpec, replaces: Option<u64>, lazy: bool) -> Result<(Done, OwnedFd)> {
        self.detached = None;
        match replaces {
            Some(old) => check_top(dir, old)?,
            None => check_free(dir, spec.nonempty)?,
        }
        if kernel::may_mount() {
            let device = kernel::open_device()?;
            if let Some(mount) = kernel::detached(&device, spec, dir)? {
                self.detached = Some(mount);
                return Ok((Done::Detached, device));
            }
            self.make_room(dir, replaces, lazy)?;
            kernel::mount_at(&device, spec, dir)?;
            return Ok((self.attached_on(dir)?, device));
        }
        self.make_room(dir, replaces, lazy)?;
        let device = fusermount::mount(spec, dir)?;
        Ok((self.attached_on(dir)?, device))
    }

    fn attach(&mut self, dir: &Path, replaces: Option<u64>, lazy: bool) -> Result<Done> {
        let Some(mount) = self.detached.take() else {
            return Err(MountError::Protocol { reason: "attach was asked for before create".into() });
        };
        let mount_id = kernel::mount_id_of(&mount).map_err(|error| MountError::system("mount on", dir, error))?;
        match replaces {
            None => kernel::attach(&mount, dir)?,
            Some(old) => self.replace(&mount, dir, old, lazy)?,
        }
        self.attached.push((mount_id, dir.to_owned()));
        Ok(Done::Attached { mount_id })
    }

    /// Without a gap where the kernel can; otherwise only if nobody uses the old mount (or `lazy`).
    fn replace(&mut self, mount: &OwnedFd, dir: &Path, old: u64, lazy: bool) -> Result<()> {
        check_top(dir, old)?;
        if kernel::attach_beneath(mount, dir)? {
            // Looked at again: what is detached must be the old one, whatever happened meanwhile.
            check_top(dir, old)?;
            kernel::detach(dir, true).map_err(|errno| MountError::system("detach the old mount from", dir, errno))?;
            self.attached.retain(|(id, _)| *id != old);
            return Ok(());
        }
        self.make_room(dir, Some(old), lazy)?;
        kernel::attach(mount, dir)
    }

    fn make_room(&mut self, dir: &Path, replaces: Option<u64>, lazy: bool) -> Result<()> {
        if let Some(old) = replaces {
            remove(dir, old, lazy)?;
            self.attached.retain(|(id, _)| *id != old);
        }
        Ok(())
    }

    fn copy(&mut self, mount_id: u64, from: &Path, dir: &Path, nonempty: bool) -> Result<Done> {
        check_free(dir, nonempty)?;
        if !kernel::may_mount() {
            return Ok(Done::NeedsOwnConnection);
        }
        check_top(from, mount_id)?;
        let copy = kernel::copy_of(from)?;
        let mount_id = kernel::mount_id_of(&copy).map_err(|error| MountError::system("mount on", dir, error))?;
        kernel::attach(&copy, dir)?;
        self.attached.push((mount_id, dir.to_owned()));
        Ok(Done::Attached { mount_id })
    }

    fn attached_on(&mut self, dir: &Path) -> Result<Done> {
        let mount_id = kernel::top_mount_id(dir).map_err(|error| MountError::system("mount on", dir, error))?;
        self.attached.push((mount_id, dir.to_owned()));
        Ok(Done::Attached { mount_id })
    }

    /// Removes all that is still mounted, used or not, so that no directory answers ENOTCONN for ever. Returns what
    /// could not be removed.
    pub(crate) fn remove_all(&mut self) -> Vec<MountError> {
        self.detached = None;
        let mut failed = Vec::new();
        for (mount_id, dir) in self.attached.drain(..) {
            // The directory may have been moved; the table knows where the mount is now. Not there: unmounted.
            let now = match table::find(mount_id) {
                Ok(Some(entry)) => entry.dir,
                Ok(None) => continue,
                Err(_) => dir,
            };
            if let Err(error) = remove(&now, mount_id, true) {
                failed.push(error);
            }
        }
        failed
    }
}

/// Removes the mount `mount_id`, which must be what is seen at `dir`.
pub(crate) fn remove(dir: &Path, mount_id: u64, lazy: bool) -> Result<()> {
    check_top(dir, mount_id)?;
    if !kernel::may_mount() {
        return fusermount::unmount(dir, lazy);
    }
    kernel::detach(dir, lazy).map_err(|errno| match errno {
        Errno::BUSY => MountError::Busy { dir: dir.to_owned(), users: using_processes(dir) },
        Errno::INVAL => MountError::NotMounted { dir: dir.to_owned() },
        other => MountError::system("unmount", dir, other),
    })
}

fn check_top(dir: &Path, mount_id: u64) -> Result<()> {
    match kernel::top_mount_id(dir) {
        Ok(top) if top == mount_id => Ok(()),
        Ok(_) => Err(MountError::NotMounted { dir: dir.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(MountError::NotMounted { dir: dir.to_owned() }),
        Err(error) => Err(MountError::system("look at", dir, error)),
    }
}

/// Whether a new mount may be put on `dir`. The table is asked first: looking into a dead mount fails, and into a
/// hanging one hangs.
fn check_free(dir: &Path, nonempty: bool) -> Result<()> {
    let mounts = table::all_mounts().map_err(|error| MountError::system("mount on", dir, error))?;
    if let Some(there) = mounts.iter().rfind(|mount| mount.dir == dir) {
        let ours = there.fs_type == format!("fuse.{SUBTYPE}");
        if ours && liveness(dir, LIVENESS_DEADLINE) == Liveness::Dead {
            return Err(MountError::Stale { dir: dir.to_owned() });
        }
        if ours || !nonempty {
            let what = format!("{} ({})", there.source, there.fs_type);
            return Err(MountError::AlreadyMounted { dir: dir.to_owned(), what });
        }
    }
    kernel::check_directory(dir, nonempty)
}

/// The path as the mount table writes it. A dead mount on `dir` does not hinder: only links on the way are read.
pub(crate) fn resolve(dir: &Path) -> Result<PathBuf> {
    fs::canonicalize(dir).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => MountError::NoDirectory { dir: dir.to_owned() },
        io::ErrorKind::NotADirectory => MountError::NotADirectory { dir: dir.to_owned() },
        _ => MountError::system("find", dir, error),
    })
}
