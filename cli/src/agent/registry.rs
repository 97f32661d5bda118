//! Where agents are found: a socket and a description for each in the user's runtime folder.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use fs_core::package::Hash;
use serde::{Deserialize, Serialize};

use super::protocol::WirePath;

/// Longest path of a Unix socket on Linux, without the NUL at its end.
const SOCKET_PATH_MAX_BYTES: usize = 107;

/// Digits of the cache folder's hash that name its agent: collisions are out of question at 64 bits.
const NAME_DIGITS: usize = 16;

/// What an agent writes beside its socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AgentDescription {
    /// Its cache folder.
    pub(crate) cache_dir: WirePath,
    /// Process of the worker.
    pub(crate) pid: u32,
    /// Version of the program.
    pub(crate) version: String,
}

/// Socket and description of the agent of one cache folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AgentFiles {
    pub(crate) socket: PathBuf,
    pub(crate) description: PathBuf,
}

/// The folder of this user's sockets, made if it is not there.
///
/// # Errors
/// If it belongs to somebody else, is a link, or lets others in: whoever controls it could pose as the agent and be
/// handed credentials.
pub(crate) fn runtime_dir() -> anyhow::Result<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| {
        // After `sudo -E` the variable names the folder of another user; it is not ours to use.
        dir.is_absolute() && fs::metadata(dir).is_ok_and(|m| m.is_dir() && m.uid() == user)
    });
    let dir = match given {
        Some(base) => base.join("streamfs"),
        None if user == 0 => PathBuf::from("/run/streamfs"),
        None => PathBuf::from(format!("/tmp/streamfs-{user}")),
    };
    private_dir(&dir)?;
    Ok(dir)
}

/// Makes `dir` with mode 0700 if it is missing, and checks that it is ours alone.
pub(crate) fn private_dir(dir: &Path) -> anyhow::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e).with_context(|| format!("cannot create the runtime folder {}", dir.display())),
    }
    let meta = fs::symlink_metadata(dir).with_context(|| format!("cannot use the runtime folder {}", dir.display()))?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
        bail!(
            "cannot use the runtime folder {}: it must be a folder of yours that nobody else may enter; remove it, or set XDG_RUNTIME_DIR",
            dir.display()
        );
    }
    Ok(())
}

/// Socket and description for `cache_dir` (canonical) in `runtime_dir`.
///
/// # Errors
/// If the socket's path is too long for the system.
pub(crate) fn files(runtime_dir: &Path, cache_dir: &Path) -> anyhow::Result<AgentFiles> {
    let name = &Hash::of(cache_dir.as_os_str().as_bytes()).to_string()[..NAME_DIGITS];
    let socket = runtime_dir.join(format!("{name}.sock"));
    if socket.as_os_str().len() > SOCKET_PATH_MAX_BYTES {
        bail!("the path of the socket {} is too long; set XDG_RUNTIME_DIR to a shorter folder", socket.display());
    }
    Ok(AgentFiles { socket, description: runtime_dir.join(format!("{name}.json")) })
}

impl AgentFiles {
    /// Writes the description, whole or not at all.
    pub(crate) fn describe(&self, description: &AgentDescription) -> io::Result<()> {
        let mut new = self.description.clone();
        new.as_mut_os_string().push(".new");
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(description)?)?;
        fs::rename(&new, &self.description)
    }

    /// Removes both files; missing ones are fine.
    pub(crate) fn remove(&self) {
        for path in [&self.socket, &self.description] {
            if let Err(error) = fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove a file of the agent");
            }
        }
    }
}

/// All agents that are described in `runtime_dir`, alive or not, by their cache folder.
pub(crate) fn agents(runtime_dir: &Path) -> anyhow::Result<Vec<(AgentDescription, AgentFiles)>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(runtime_dir).with_context(|| format!("cannot list {}", runtime_dir.display()))?;
    for entry in entries {
        let description = entry?.path();
        if description.extension().is_none_or(|e| e != "json") {
            continue;
        }
        // An agent may end while we look, or have been killed while writing: such files tell nothing.
        let Some(known) = fs::read(&description).ok().and_then(|text| serde_json::from_slice(&text).ok()) else {
            continue;
        };
        found.push((known, AgentFiles { socket: description.with_extension("sock"), description }));
    }
    found.sort_by(|(a, _): &(AgentDescription, _), (b, _)| a.cache_dir.0.cmp(&b.cache_dir.0));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn agents_are_named_by_their_cache() {
        let run = Path::new("/run/user/1000/streamfs");
        let a = files(run, Path::new("/cache/a")).unwrap();
        assert_eq!(a, files(run, Path::new("/cache/a")).unwrap());
        assert_ne!(a, files(run, Path::new("/cache/b")).unwrap());
        let long = PathBuf::from(format!("/{}", "x".repeat(100)));
        assert!(files(&long, Path::new("/cache/a")).unwrap_err().to_string().contains("too long"));
    }

    #[test]
    fn only_a_folder_of_our_own_is_used() {
        let base = tempfile::tempdir().unwrap();
        let good = base.path().join("good");
        private_dir(&good).unwrap();
        private_dir(&good).unwrap();
        let open = base.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        let link = base.path().join("link");
        symlink(&good, &link).unwrap();
        let file = base.path().join("file");
        fs::write(&file, "").unwrap();
        for bad in [open, link, file] {
            assert!(private_dir(&bad).unwrap_err().to_string().contains("cannot use"), "{}", bad.display());
        }
    }

    #[test]
    fn described_agents_are_found_and_forgotten() {
        let run = tempfile::tempdir().unwrap();
        let mine = files(run.path(), Path::new("/cache/a")).unwrap();
        let about = AgentDescription { cache_dir: Path::new("/cache/a").into(), pid: 7, version: "0".into() };
        mine.describe(&about).unwrap();
        fs::write(run.path().join("broken.json"), "{").unwrap();
        let found = agents(run.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0.pid, &found[0].1), (7, &mine));
        mine.remove();
        assert!(agents(run.path()).unwrap().is_empty());
    }
}
