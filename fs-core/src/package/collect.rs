//! Removing from a package's folder what nobody needs any more, beside servers, clients and publishers at work.
//!
//! ```text
//! needed     what versions of the catalog consist of
//!            what those consist of that left it less than the grace period ago: clients may still have them mounted
//!            what versions in use consist of, as servers tell by leases
//!            what is younger than the grace period: a publication that is under way
//! removed    all other objects; metadata that was replaced longer ago; scratch of publications that broke off
//! ```
//!
//! When a version left the catalog is told by the metadata itself: targets files are numbered, and each ends its
//! predecessor's time when it is written. So nothing has to be remembered between two collections, and no key is needed:
//! only what no signed catalog refers to is ever removed. Publishers are kept out meanwhile by their own lock.
//!
//! What is not an object, nor a publisher's scratch, is never touched.

mod leases;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

pub use leases::{LEASE_RENEWAL, LEASE_VALID, Lease, USES_DIR, versions_in_use};

use super::descriptor::Descriptor;
use super::{LAUNCH_DIR, PACK_DIR, PROFILE_DIR, TREE_DIR};
use crate::error::{Error, ErrorKind, Result};
use crate::location::PackageVersion;
use crate::trust::files::blocking;
use crate::trust::folder::{self, FolderLock, Published};
use crate::trust::{Catalog, DESCRIPTOR_DIR, HEAD_OBJECT, METADATA_DIR};

/// Folder, in a package's, of objects on their way in.
pub const INCOMING_DIR: &str = ".incoming";
/// Grace period unless told otherwise: longer than a mount lives that nobody ever remounts, mostly.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A local publisher's scratch, which is of no use once nobody holds the lock.
const SCRATCH_DIR: &str = ".publish";
/// Folders between a content root and a package's own.
const DEPTH_MAX: usize = 8;
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// How to collect.
#[derive(Debug, Clone)]
pub struct CollectRequest {
    /// How long what is no longer referred to is kept.
    pub grace: Duration,
    /// Remove nothing, and tell what would be.
    pub dry_run: bool,
    /// What time it is.
    pub now: SystemTime,
}

/// What was collected from one package.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Collected {
    /// What was removed, or would be: paths within the package's folder.
    pub removed: Vec<String>,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Objects that nothing refers to and that are too young.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Versions in use by sessions of servers.
    pub in_use: Vec<PackageVersion>,
}

/// The packages' folders below a content root, which may itself be one; by name.
///
/// # Errors
/// `Local` if the content root cannot be read.
pub fn packages_below(content_root: &Path) -> Result<Vec<PathBuf>> {
    let is_package = |dir: &Path| dir.join(METADATA_DIR).is_dir() || dir.join(INCOMING_DIR).is_dir();
    let (mut found, mut todo) = (Vec::new(), vec![(content_root.to_owned(), 0)]);
    while let Some((dir, depth)) = todo.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if depth == 0 => return Err(Error::local("read the content root", &dir, e)),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "cannot look for packages in it");
                continue;
            }
        };
        if is_package(&dir) {
            found.push(dir);
            continue;
        }
        let hidden = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(b".");
        let below = entries.flatten().filter(|entry| !hidden(entry) && entry.path().is_dir());
        if depth < DEPTH_MAX {
            todo.extend(below.map(|entry| (entry.path(), depth + 1)));
        }
    }
    found.sort();
    Ok(found)
}

/// Which versions to take out of the catalog: all but the newest `keep`, as far as they are older than `older_than`. Never
/// the newest one, what a channel points at, and what is `in_use`.
pub fn to_retire(
    catalog: &Catalog,
    in_use: &[PackageVersion],
    keep: Option<usize>,
    older_than: Option<Duration>,
    now: SystemTime,
) -> Vec<PackageVersion> {
    if keep.is_none() && older_than.is_none() {
        return Vec::new();
    }
    let old = |published: i64| {
        let published = SystemTime::UNIX_EPOCH + Duration::from_secs(published.max(0).cast_unsigned());
        older_than.is_none_or(|limit| age(now, published) >= limit)
    };
    let rest = catalog.versions.iter().rev().skip(keep.unwrap_or(0).max(1));
    let needed = |version: &PackageVersion| {
        in_use.contains(version) || catalog.channels.values().any(|pointed| pointed == version)
    };
    rest.filter(|record| old(record.published) && !needed(&record.version))
        .map(|record| record.version.clone())
        .collect()
}

/// The versions and channels that are published in a package's folder; `None` if nothing is.
///
/// # Errors
/// `Untrusted`, `Damaged`, `Local`.
pub async fn catalog(package_dir: &Path) -> Result<Option<Catalog>> {
    Ok(folder::published(package_dir).await?.map(|published| published.catalog))
}

/// Removes what nobody needs from a package's folder.
///
/// # Errors
/// `Busy` while a publisher works; `Untrusted`, `Damaged` or `NotFound` if what is needed cannot be told: then nothing was
/// removed. `Local`.
pub async fn collect(package_dir: &Path, request: &CollectRequest) -> Result<Collected> {
    let dir = package_dir.to_owned();
    // A look changes nothing, and may be all that somebody is allowed to.
    let lock = match request.dry_run {
        true => None,
        false => Some(blocking(move || FolderLock::take(&dir, LOCK_PATIENCE)).await?),
    };
    let published = folder::published(package_dir).await?;
    let mut needed = Needed::default();
    match &published {
        Some(published) => {
            for record in &published.catalog.versions {
                let bytes = folder::stored_descriptor(package_dir, record).await?;
                needed.version(&bytes, record.descriptor_object().as_str())?;
            }
        }
        None => refuse_lost(package_dir)?,
    }
    let (dir, request) = (package_dir.to_owned(), request.clone());
    blocking(move || {
        // Held until all is removed.
        let _lock = lock;
        let in_use = versions_in_use(&dir, request.now)?;
        needed.in_use(&dir, &in_use)?;
        if let Some(published) = &published {
            needed.recent(&dir, published, &request)?;
        }
        let mut sweep = Sweep { dir, request, collected: Collected { in_use, ..Collected::default() } };
        sweep.objects(&needed);
        if let Some(published) = &published {
            sweep.metadata(published)?;
        }
        sweep.scratch();
        sweep.collected.removed.sort();
        Ok(sweep.collected)
    })
    .await
}

/// A package whose timestamp got lost looks as if nothing were published.
fn refuse_lost(dir: &Path) -> Result<()> {
    let lost = dir.join(HEAD_OBJECT).exists()
        || (dir.join(METADATA_DIR).is_dir() && !folder::numbered_files(dir, "targets")?.is_empty());
    if lost {
        return Err(Error::damaged(
            dir.join(METADATA_DIR).join("timestamp.json").display().to_string(),
            "it is missing, and without it nobody can tell what is needed; restore it, or publish again",
        ));
    }
    Ok(())
}

fn age(now: SystemTime, then: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}

fn modified(path: &Path) -> Result<SystemTime> {
    let meta = fs::metadata(path).and_then(|meta| meta.modified());
    meta.map_err(|e| Error::local("read attributes of", path, e))
}

/// Paths of objects that must stay.
#[derive(Debug, Default)]
struct Needed(HashSet<String>);

impl Needed {
    /// What a version consists of, by its descriptor.
    fn version(&mut self, descriptor: &[u8], object: &str) -> Result<()> {
        let descriptor = Descriptor::parse(descriptor, object)?;
        self.0.insert(object.to_owned());
        self.0.extend(descriptor.objects().map(|(object, _)| object.as_str().to_owned()));
        Ok(())
    }

    /// The same for a version that left the catalog: if its descriptor is gone, so may be the rest.
    fn stored(&mut self, dir: &Path, object: &str) -> Result<()> {
        let path = dir.join(object);
        match fs::read(&path) {
            Ok(bytes) => self.version(&bytes, object),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::local("read", path, e)),
        }
    }

    fn in_use(&mut self, dir: &Path, versions: &[PackageVersion]) -> Result<()> {
        if versions.is_empty() {
            return Ok(());
        }
        for name in names(&dir.join(DESCRIPTOR_DIR)) {
            let version = name.strip_suffix(".json").and_then(|name| name.split_once('.')).map(|(_, version)| version);
            if version.is_some_and(|version| versions.iter().any(|used| used.as_str() == version)) {
                self.stored(dir, &format!("{DESCRIPTOR_DIR}/{name}"))?;
            }
        }
        Ok(())
    }

    /// What was in the catalog less than the grace period ago.
    fn recent(&mut self, dir: &Path, published: &Published, request: &CollectRequest) -> Result<()> {
        for (_, path) in replaced(dir, "targets", published.targets, request)?.recent {
            let bytes = fs::read(&path).map_err(|e| Error::local("read", &path, e))?;
            for record in folder::catalog_in(&bytes, &path.display().to_string())?.versions {
                self.stored(dir, record.descriptor_object().as_str())?;
            }
        }
        Ok(())
    }
}

/// Numbered metadata that is not the current one.
struct Replaced {
    /// Replaced less than the grace period ago.
    recent: Vec<(u64, PathBuf)>,
    /// Replaced longer ago, or never named by a timestamp.
    old: Vec<(u64, PathBuf)>,
}

fn replaced(dir: &Path, role: &str, current: u64, request: &CollectRequest) -> Result<Replaced> {
    let files = folder::numbered_files(dir, role)?;
    let mut sorted = Replaced { recent: Vec::new(), old: Vec::new() };
    for (at, (number, path)) in files.iter().enumerate() {
        let since = match number.cmp(&current) {
            std::cmp::Ordering::Equal => continue,
            // The next one ended its time.
            std::cmp::Ordering::Less => match files.get(at + 1) {
                Some((_, next)) => modified(next)?,
                None => continue,
            },
            std::cmp::Ordering::Greater => modified(path)?,
        };
        let list = if age(request.now, since) < request.grace { &mut sorted.recent } else { &mut sorted.old };
        list.push((*number, path.clone()));
    }
    Ok(sorted)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

struct Sweep {
    dir: PathBuf,
    request: CollectRequest,
    collected: Collected,
}

impl Sweep {
    fn objects(&mut self, needed: &Needed) {
        // What refers goes before what it refers to, should this be interrupted.
        for folder in [DESCRIPTOR_DIR, LAUNCH_DIR, PROFILE_DIR, TREE_DIR, PACK_DIR] {
            for name in names(&self.dir.join(folder)) {
                let object = format!("{folder}/{name}");
                if !name.starts_with('.') && !needed.0.contains(&object) {
                    self.unneeded(&object);
                }
            }
        }
    }

    fn metadata(&mut self, published: &Published) -> Result<()> {
        for (role, current) in [("targets", published.targets), ("snapshot", published.snapshot)] {
            for (number, _) in replaced(&self.dir, role, current, &self.request)?.old {
                self.remove(&format!("{METADATA_DIR}/{number}.{role}.json"));
            }
        }
        Ok(())
    }

    fn scratch(&mut self) {
        for name in names(&self.dir.join(INCOMING_DIR)) {
            self.unneeded(&format!("{INCOMING_DIR}/{name}"));
        }
        // Whoever made it held the lock, which is ours now.
        for name in names(&self.dir.join(SCRATCH_DIR)) {
            self.remove(&format!("{SCRATCH_DIR}/{name}"));
        }
        for name in names(&self.dir.join(USES_DIR)) {
            let path = format!("{USES_DIR}/{name}");
            if modified(&self.dir.join(&path)).is_ok_and(|then| age(self.request.now, then) > LEASE_VALID) {
                self.remove(&path);
            }
        }
    }

    /// Removes what nothing refers to, if it is old enough.
    fn unneeded(&mut self, object: &str) {
        let Ok(meta) = fs::symlink_metadata(self.dir.join(object)) else { return };
        if !meta.is_file() {
            return;
        }
        let young = meta.modified().map_or(true, |then| age(self.request.now, then) < self.request.grace);
        if young {
            self.collected.waiting += 1;
            self.collected.waiting_bytes += meta.len();
        } else {
            self.remove(object);
        }
    }

    fn remove(&mut self, object: &str) {
        let path = self.dir.join(object);
        let Some(bytes) = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file).map(|meta| meta.len()) else {
            return;
        };
        if !self.request.dry_run
            && let Err(error) = fs::remove_file(&path)
        {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "cannot remove it");
            }
            return;
        }
        self.collected.removed_bytes += bytes;
        self.collected.removed.push(object.to_owned());
    }
}

/// Whether an error of [`collect`] means that it makes sense to come back later.
pub fn is_temporary(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Busy | ErrorKind::Unreachable | ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests;
