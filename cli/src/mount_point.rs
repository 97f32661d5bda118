//! Directories as mount points: named, resolved and checked before an agent is asked.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// `dir` as an absolute path without links, also if a dead mount stands there.
///
/// # Errors
/// If it does not exist.
pub(crate) fn resolve(dir: &Path) -> anyhow::Result<PathBuf> {
    match fs::canonicalize(dir) {
        Ok(path) => Ok(path),
        Err(e) if is_dead_mount(&e) => {
            // Nothing below a dead mount can be resolved, but its parent can.
            let absolute = std::path::absolute(dir)?;
            match (absolute.parent().map(fs::canonicalize), absolute.file_name()) {
                (Some(Ok(parent)), Some(name)) => Ok(parent.join(name)),
                _ => Ok(absolute),
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            bail!("there is no directory {}", dir.display())
        }
        Err(e) => Err(e).with_context(|| format!("cannot use {}", dir.display())),
    }
}

/// Checks that something can be mounted at `dir` (resolved): an empty directory, or a dead mount that the agent will
/// remove.
pub(crate) fn check_mountable(dir: &Path) -> anyhow::Result<()> {
    let mut entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if is_dead_mount(&e) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => bail!("{} is not a directory", dir.display()),
        Err(e) => return Err(e).with_context(|| format!("cannot look into {}", dir.display())),
    };
    match entries.next() {
        None => Ok(()),
        Some(Err(e)) if is_dead_mount(&e) => Ok(()),
        Some(Err(e)) => Err(e).with_context(|| format!("cannot look into {}", dir.display())),
        Some(Ok(_)) => bail!("the directory {} is not empty; choose an empty one", dir.display()),
    }
}

/// ENOTCONN: the process behind the mount is gone. ECONNABORTED: it is just going.
fn is_dead_mount(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotConnected | io::ErrorKind::ConnectionAborted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_empty_directories_are_mounted_on() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        let empty = base.join("empty");
        fs::create_dir(&empty).unwrap();
        check_mountable(&resolve(&empty).unwrap()).unwrap();
        assert!(check_mountable(&base).unwrap_err().to_string().contains("not empty"));
        let file = base.join("file");
        fs::write(&file, "").unwrap();
        assert!(check_mountable(&resolve(&file).unwrap()).unwrap_err().to_string().contains("not a directory"));
        assert!(resolve(&base.join("missing")).unwrap_err().to_string().contains("no directory"));
    }

    #[test]
    fn links_are_followed() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        fs::create_dir(base.join("real")).unwrap();
        std::os::unix::fs::symlink("real", base.join("link")).unwrap();
        assert_eq!(resolve(&base.join("link")).unwrap(), base.join("real"));
    }
}
