//! Users and passwords in a file.
//!
//! ```text
//! # user:hash:groups
//! ann:$argon2id$v=19$m=19456,t=2,p=1$…$…:engineering,release
//! build:$argon2id$v=19$m=19456,t=2,p=1$…$…:
//! ```
//!
//! `streamfs passwd` writes it. The server reads it again when it changes. Hashes are Argon2id (RFC 9106).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{Refusal, Secret, name_is_usable};

/// Memory of a hash in KiB, and passes over it: what OWASP's password storage cheat sheet asks for (19 MiB, 2, 1), some
/// 20 ms on one core.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;

/// Most memory that a hash in a file may ask for. A wrong line shall not exhaust the server.
const MEMORY_MAX_KIB: u32 = 256 * 1024;
const PASSES_MAX: u32 = 20;

/// Passwords checked at the same time: more would only take memory, 19 MiB each.
const CHECKS_AT_ONCE_MAX: usize = 4;

/// Longest file: some ten thousand users.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// How long a login waits for others to be checked.
const PATIENCE: Duration = Duration::from_secs(10);

/// A password file that cannot be used, or not be changed.
#[derive(Debug, thiserror::Error)]
pub enum PasswordFileError {
    /// The system refuses.
    #[error("cannot {verb} the password file {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// What is in it, or shall be.
    #[error("cannot use the password file {}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A file of users and passwords, to be changed.
#[derive(Debug)]
pub struct PasswordFile {
    path: PathBuf,
    lines: Vec<Line>,
}

#[derive(Debug)]
enum Line {
    Entry(Entry),
    /// A comment or an empty line, to be kept as it is.
    Other(String),
}

/// One user. `Debug` does not show the hash: it is what a thief would try passwords against.
#[derive(Clone, PartialEq, Eq)]
struct Entry {
    user: String,
    hash: String,
    groups: Arc<[String]>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("user", &self.user).field("groups", &self.groups).finish_non_exhaustive()
    }
}

impl PasswordFile {
    /// Reads the file at `path`; one that does not exist has no users.
    ///
    /// # Errors
    /// If it cannot be read or is no password file.
    pub fn open(path: &Path) -> Result<Self, PasswordFileError> {
        let text = match read(path) {
            Ok((text, _)) => text,
            Err(PasswordFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let lines = parse(&text).map_err(|reason| PasswordFileError::Content { path: path.to_owned(), reason })?;
        Ok(Self { path: path.to_owned(), lines })
    }

    /// Names of the users, and their groups.
    pub fn users(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.entries().map(|entry| (entry.user.as_str(), &*entry.groups))
    }

    /// Gives `user` a password, and `groups` unless they stay as they are. Takes some 20 ms.
    ///
    /// # Errors
    /// If the name, a group or the password cannot be used.
    pub fn set(&mut self, user: &str, password: &Secret, groups: Option<&[String]>) -> Result<(), PasswordFileError> {
        let bad = |reason: String| PasswordFileError::Content { path: self.path.clone(), reason };
        if !name_is_usable(user) || user.contains(':') || user.starts_with('#') {
            return Err(bad(format!("{user:?} cannot be a user")));
        }
        let groups_fit = |name: &String| name_is_usable(name) && !name.contains([':', ',']);
        if let Some(group) = groups.into_iter().flatten().find(|group| !groups_fit(group)) {
            return Err(bad(format!("{group:?} cannot be a group")));
        }
        if password.is_empty() || password.expose().chars().any(char::is_control) {
            return Err(bad("a password must have characters, but no control characters".to_owned()));
        }
        let hash = hash(password).map_err(bad)?;
        let known = self.lines.iter_mut().find_map(|line| match line {
            Line::Entry(entry) if same(&entry.user, user) => Some(entry),
            _ => None,
        });
        match known {
            Some(entry) => {
                entry.hash = hash;
                if let Some(groups) = groups {
                    entry.groups = groups.into();
                }
            }
            None => {
                let groups = groups.unwrap_or_default().into();
                self.lines.push(Line::Entry(Entry { user: user.to_owned(), hash, groups }));
            }
        }
        Ok(())
    }

    /// Removes `user`, and says whether there was one.
    pub fn remove(&mut self, user: &str) -> bool {
        let before = self.lines.len();
        self.lines.retain(|line| !matches!(line, Line::Entry(entry) if same(&entry.user, user)));
        self.lines.len() < before
    }

    /// Writes the file, so that a reader finds the old one or the new one whole. A new one is readable by its owner
    /// only; one that exists keeps its permissions and its owner, where the system allows.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self) -> Result<(), PasswordFileError> {
        let failed = |source| PasswordFileError::Io { verb: "write", path: self.path.clone(), source };
        let mut text = String::new();
        for line in &self.lines {
            match line {
                Line::Other(line) => text.push_str(line),
                Line::Entry(Entry { user, hash, groups }) => {
                    text.push_str(&format!("{user}:{hash}:{}", groups.join(",")));
                }
            }
            text.push('\n');
        }
        // A link is followed: what it points at is replaced, not the link.
        let path = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        if let Ok(old) = std::fs::metadata(&path) {
            // Only root may give files away; for others it stays theirs.
            let _ = std::os::unix::fs::fchown(file.as_file(), Some(old.uid()), Some(old.gid()));
            let mode = std::fs::Permissions::from_mode(old.mode() & 0o777);
            file.as_file().set_permissions(mode).map_err(failed)?;
        }
        file.write_all(text.as_bytes()).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|e| failed(e.error))?;
        Ok(())
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.lines.iter().filter_map(|line| match line {
            Line::Entry(entry) => Some(entry),
            Line::Other(_) => None,
        })
    }
}

/// What a password file says of a login.
#[derive(Debug)]
pub(super) enum Checked {
    /// It has no such user.
    Unknown,
    Wrong,
    Right {
        user: String,
        groups: Arc<[String]>,
    },
}

/// A password file, to check logins against.
pub(super) struct Passwords {
    shared: Arc<Shared>,
    turns: Arc<Semaphore>,
}

struct Shared {
    path: PathBuf,
    read: Mutex<ReadFile>,
    /// Checked against where there is no such user, so that it takes as long.
    nobody: String,
}

struct ReadFile {
    stamp: Stamp,
    entries: Arc<[Entry]>,
}

/// Changes when the file does.
type Stamp = (u64, u64, i64, i64);

impl Passwords {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// If it cannot be read, is no password file, or others may read it.
    pub(super) fn open(path: &Path) -> Result<Self, PasswordFileError> {
        let read = read_entries(path)?;
        let nobody = hash(&Secret::from("nobody"))
            .map_err(|reason| PasswordFileError::Content { path: path.to_owned(), reason })?;
        let at_once = std::thread::available_parallelism().map_or(1, usize::from).min(CHECKS_AT_ONCE_MAX);
        Ok(Self {
            shared: Arc::new(Shared { path: path.to_owned(), read: Mutex::new(read), nobody }),
            turns: Arc::new(Semaphore::new(at_once)),
        })
    }

    /// Checks a login. With `last`, nobody is asked after this, and an unknown user takes as long as a known one.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] if too many logins are being checked.
    pub(super) async fn check(&self, user: &str, password: &Secret, last: bool) -> Result<Checked, Refusal> {
        let busy = || Refusal::Unavailable("too many passwords are being checked".to_owned());
        let turn = tokio::time::timeout(PATIENCE, self.turns.clone().acquire_owned()).await;
        let turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        let (shared, user, password) = (self.shared.clone(), user.to_owned(), password.clone());
        let check = move || {
            let checked = shared.check(&user, &password, last);
            drop(turn);
            checked
        };
        tokio::task::spawn_blocking(check)
            .await
            .map_err(|e| Refusal::Unavailable(format!("cannot check passwords: {e}")))
    }

    /// The groups that `user` has now; `None` if there is no such user any more.
    pub(super) async fn groups(&self, user: &str) -> Option<Arc<[String]>> {
        let (shared, user) = (self.shared.clone(), user.to_owned());
        let find = move || shared.entries().iter().find(|e| same(&e.user, &user)).map(|e| e.groups.clone());
        tokio::task::spawn_blocking(find).await.unwrap_or(None)
    }
}

impl Shared {
    fn check(&self, user: &str, password: &Secret, last: bool) -> Checked {
        let entries = self.entries();
        match entries.iter().find(|entry| same(&entry.user, user)) {
            Some(entry) if verify(&entry.hash, password) => {
                Checked::Right { user: entry.user.to_lowercase(), groups: entry.groups.clone() }
            }
            Some(_) => Checked::Wrong,
            None => {
                if last {
                    verify(&self.nobody, password);
                }
                Checked::Unknown
            }
        }
    }

    /// The entries as the file is now. One that cannot be used changes nothing: a slip of an editor shall not lock
    /// everybody out.
    fn entries(&self) -> Arc<[Entry]> {
        let mut read = self.read.lock();
        let now = std::fs::metadata(&self.path).map(|m| stamp(&m)).ok();
        if now != Some(read.stamp) {
            match read_entries(&self.path) {
                Ok(new) => {
                    tracing::info!(path = %self.path.display(), "the password file changed and was read again");
                    *read = new;
                }
                Err(error) => {
                    tracing::warn!(%error, "the password file changed and cannot be used; what it said before still counts");
                    // Not read again before it changes again, so that this is said once.
                    if let Some(now) = now {
                        read.stamp = now;
                    }
                }
            }
        }
        read.entries.clone()
    }
}

/// Names that differ only in case would be one user to people, and to directories.
fn same(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

fn stamp(metadata: &std::fs::Metadata) -> Stamp {
    (metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

fn read(path: &Path) -> Result<(String, Stamp), PasswordFileError> {
    let failed = |source| PasswordFileError::Io { verb: "read", path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let bad = |reason: String| PasswordFileError::Content { path: path.to_owned(), reason };
    if metadata.mode() & 0o007 != 0 {
        return Err(bad(format!("everybody may read or write it; run: chmod o= {}", path.display())));
    }
    if metadata.len() > FILE_MAX_BYTES {
        return Err(bad(format!("it is longer than {FILE_MAX_BYTES} bytes")));
    }
    let mut text = String::new();
    file.take(FILE_MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok((text, stamp(&metadata)))
}

fn read_entries(path: &Path) -> Result<ReadFile, PasswordFileError> {
    let (text, stamp) = read(path)?;
    let lines = parse(&text).map_err(|reason| PasswordFileError::Content { path: path.to_owned(), reason })?;
    let entries = lines.into_iter().filter_map(|line| match line {
        Line::Entry(entry) => Some(entry),
        Line::Other(_) => None,
    });
    Ok(ReadFile { stamp, entries: entries.collect() })
}

fn parse(text: &str) -> Result<Vec<Line>, String> {
    let mut lines = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            lines.push(Line::Other(line.to_owned()));
            continue;
        }
        let entry = parse_entry(line).map_err(|why| format!("line {}: {why}", number + 1))?;
        if !seen.insert(entry.user.to_lowercase()) {
            return Err(format!("line {}: the user {:?} stands twice", number + 1, entry.user));
        }
        lines.push(Line::Entry(entry));
    }
    Ok(lines)
}

/// Never quotes a line: somebody may have typed a password where the hash belongs.
fn parse_entry(line: &str) -> Result<Entry, String> {
    let mut parts = line.splitn(3, ':');
    let (Some(user), Some(hash)) = (parts.next(), parts.next()) else {
        return Err("expected USER:HASH:GROUPS; streamfs passwd writes such lines".to_owned());
    };
    if !name_is_usable(user) {
        return Err("the user's name cannot be used".to_owned());
    }
    let parsed = PasswordHash::new(hash).map_err(|_| "the hash cannot be read; streamfs passwd makes it".to_owned())?;
    let params = Params::try_from(&parsed).map_err(|_| "the hash has unusable parameters".to_owned())?;
    if parsed.algorithm.as_str() != "argon2id" || parsed.hash.is_none() || parsed.salt.is_none() {
        return Err("the hash is not of Argon2id".to_owned());
    }
    if params.m_cost() > MEMORY_MAX_KIB || params.t_cost() > PASSES_MAX {
        return Err(format!("the hash takes more than {MEMORY_MAX_KIB} KiB or {PASSES_MAX} passes"));
    }
    let groups = parts.next().unwrap_or_default().split(',').map(str::trim).filter(|group| !group.is_empty());
    Ok(Entry { user: user.to_owned(), hash: hash.to_owned(), groups: groups.map(str::to_owned).collect() })
}

fn hash(password: &Secret) -> Result<String, String> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).map_err(|e| e.to_string())?;
    let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>()).map_err(|e| e.to_string())?;
    let hasher = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    Ok(hasher.hash_password(password.expose().as_bytes(), &salt).map_err(|e| e.to_string())?.to_string())
}

/// Compares in constant time; parameters are those of `hash`.
fn verify(hash: &str, password: &Secret) -> bool {
    let Ok(parsed) = PasswordHash::new(hash) else { return false };
    Argon2::default().verify_password(password.expose().as_bytes(), &parsed).is_ok()
}

#[cfg(test)]
mod tests;
