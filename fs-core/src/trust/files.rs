//! Files that are whole or absent, whatever happens while they are written.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// What names of unfinished files begin with. A leading dot keeps them out of the name space of objects.
pub(super) const UNFINISHED: &str = ".trust-";

/// Who may read a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// As the process's umask says.
    Usual,
    /// Only its owner.
    Private,
}

/// Writes `bytes` to `path`: to a new file beside it, flushed to the disk, then renamed over it.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8], access: Access) -> Result<()> {
    let name = path.file_name().expect("callers name a file").to_string_lossy();
    let temporary = path.with_file_name(format!("{UNFINISHED}{name}-{:016x}", rand::random::<u64>()));
    let written = write_new(&temporary, bytes, access).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(e) = written {
        // It is gone already, or a later `remove_unfinished` finds it.
        let _ = std::fs::remove_file(&temporary);
        return Err(Error::local("write", path, e));
    }
    sync_dir(path.parent().unwrap_or(Path::new(".")));
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if access == Access::Private {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    // Elsewhere a user's own folders are private by inheritance.
    #[cfg(not(unix))]
    let _ = access;
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a rename last through a power cut. Some file systems cannot; the rename is atomic even so.
fn sync_dir(dir: &Path) {
    #[cfg(unix)]
    if let Ok(dir) = File::open(dir) {
        let _ = dir.sync_all();
    }
    #[cfg(not(unix))]
    let _ = dir;
}

/// Creates `dir` and what is above it.
pub(crate) fn create_dir(dir: &Path, access: Access) -> Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    if access == Access::Private {
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    }
    #[cfg(not(unix))]
    let _ = access;
    builder.create(dir).map_err(|e| Error::local("create the folder", dir, e))
}

/// Removes what interrupted writers left in `dir`. Only for a folder whose lock is held.
pub(crate) fn remove_unfinished(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Reads a file that may be absent.
pub(super) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::local("read", path, e)),
    }
}

/// Takes the lock file at `path` exclusively, waiting up to `patience`. It is released when the file is dropped, and
/// by the system when the process dies.
pub(crate) fn lock(path: PathBuf, access: Access, patience: Duration, holder: &str) -> Result<File> {
    let opened = match access {
        Access::Private => crate::platform::open_private(&path),
        Access::Usual => OpenOptions::new().create(true).truncate(false).write(true).open(&path),
    };
    let file = opened.map_err(|e| Error::local("open the lock file", &path, e))?;
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Error::Busy {
                    what: path.display().to_string(),
                    reason: format!("{holder} has held it for {} s; try again when it is done", patience.as_secs()),
                });
            }
            Err(std::fs::TryLockError::Error(e)) => return Err(Error::local("lock", &path, e)),
        }
    }
}

/// Runs blocking file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    // The join fails only when the runtime shuts down: the work does not panic.
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Cancelled))
}
