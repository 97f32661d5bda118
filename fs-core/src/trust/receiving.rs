//! Taking a publication that somebody made elsewhere: a server's part of publishing. It holds no keys and signs nothing.
//!
//! What a version consists of comes first, object by object, and is visible to nobody who goes by signed metadata. Then
//! comes a bundle (the form of [`super::head`]) with the new metadata. It becomes the folder's state in the order of
//! docs/FORMAT.md, or nothing changes: if it is not what the package's keys signed, older than what is there, or refers to
//! what is not there.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tough::ExpirationEnforcement;

use super::files::blocking;
use super::folder::{self, FolderLock, timestamp_path};
use super::head::Head;
use super::verify::{Supply, Verified, metadata_path, root_path, verify};
use super::{Catalog, VersionRecord};
use crate::backend::ObjectPath;
use crate::error::{Error, Result};
use crate::location::PackageName;
use crate::package::descriptor::Descriptor;

/// Missing objects that are named; more would make nobody wiser.
const MISSING_NAMED_MAX: usize = 100;

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// It is the folder's state now, the first one.
    First,
    /// It is the folder's state now.
    Changed,
    /// It was that already: the answer to an earlier attempt got lost.
    Unchanged,
}

/// Why a publication is not taken. The folder is as it was.
#[derive(Debug, thiserror::Error)]
pub enum NotReceived {
    /// The folder is in another state than the publisher went on from.
    #[error("somebody else has published meanwhile")]
    Changed,
    /// The metadata cannot follow what is there.
    #[error("{0}")]
    Conflict(String),
    /// It refers to objects that are not there.
    #[error("{} objects that it refers to are not here: {}", .0.len(), listed(.0))]
    Missing(Vec<ObjectPath>),
    /// It is no bundle, or not signed as it should be.
    #[error("{0}")]
    Unusable(Error),
    /// The folder cannot be read or written.
    #[error("{0}")]
    Failed(Error),
}

fn listed(objects: &[ObjectPath]) -> String {
    objects.iter().map(ObjectPath::as_str).collect::<Vec<_>>().join(", ")
}

/// Makes the metadata in `bundle` the state of the package `package` in the folder `dir`, which is made if it is not there.
/// Waits up to `patience` for other publishers. `as_expected` tells, once nobody else can change the folder, whether it is in
/// the state that the publication goes on from; it may block.
///
/// # Errors
/// [`NotReceived`].
pub async fn receive(
    dir: &Path,
    package: &PackageName,
    bundle: Bytes,
    patience: Duration,
    as_expected: impl FnOnce() -> bool + Send + 'static,
) -> Result<Received, NotReceived> {
    use NotReceived::{Failed, Unusable};
    let bundle = Head::parse(&bundle).map_err(Unusable)?;
    let new_timestamp = bundle.get(&timestamp_path()).cloned();
    let new_timestamp = new_timestamp.ok_or_else(|| Unusable(Error::damaged("the bundle", "it has no timestamp")))?;
    let folder = dir.to_owned();
    let lock = blocking(move || {
        folder::create(&folder)?;
        FolderLock::take(&folder, patience)
    });
    let lock = Arc::new(lock.await.map_err(Failed)?);
    let current = folder::state(dir).await.map_err(Failed)?;
    if let Some(current) = &current
        && current.files.get(&timestamp_path()) == Some(&new_timestamp)
    {
        // Perhaps the server was ended before it wrote `head`.
        mend(dir, current).await.map_err(Failed)?;
        return Ok(Received::Unchanged);
    }
    let held = lock.clone();
    let expected = blocking(move || {
        let _held = held;
        Ok(as_expected())
    });
    if !expected.await.map_err(Failed)? {
        return Err(NotReceived::Changed);
    }
    let new = verified(dir, bundle, current.as_ref()).await.map_err(Unusable)?;
    if let Some(current) = &current {
        follows(current, &new)?;
    }
    let before = current.as_ref().map(|current| &current.catalog);
    complete(dir, package, before, &new.catalog).await?;
    put(dir, current.as_ref(), &new).await.map_err(Failed)?;
    drop(lock);
    Ok(if current.is_some() { Received::Changed } else { Received::First })
}

/// What the bundle says, once its signatures were verified: from the newest root that is here on, or from its own first
/// one where nothing is here.
async fn verified(dir: &Path, bundle: Head, current: Option<&Verified>) -> Result<Verified> {
    let root = match current {
        Some(current) => current.files.get(&root_path(current.numbers.root)),
        None => bundle.get(&root_path(1)),
    };
    let root = root.cloned().ok_or_else(|| Error::damaged("the bundle", "it has no metadata/1.root.json"))?;
    let previous = current.map(|current| &current.files);
    let supply = Supply::bundle(Arc::new(bundle), "the publication".to_owned());
    Ok(verify(&dir.display().to_string(), &supply, &root, previous, ExpirationEnforcement::Safe).await?)
}

/// Whether `new` may come after `current`: numbered files never change, and a version never does.
fn follows(current: &Verified, new: &Verified) -> Result<(), NotReceived> {
    let conflict = |why: String| Err(NotReceived::Conflict(why));
    if new.numbers.timestamp <= current.numbers.timestamp {
        return conflict(format!(
            "its timestamp is number {}, and number {} is here",
            new.numbers.timestamp, current.numbers.timestamp
        ));
    }
    for (role, was, is) in [
        ("snapshot", current.numbers.snapshot, new.numbers.snapshot),
        ("targets", current.numbers.targets, new.numbers.targets),
    ] {
        let path = metadata_path(&format!("{is}.{role}.json"));
        if is < was || is == was && current.files.get(&path) != new.files.get(&path) {
            return conflict(format!("its {path} is not the one that is here"));
        }
    }
    for was in &current.catalog.versions {
        let is = new.catalog.versions.iter().find(|is| is.version == was.version);
        if is.is_some_and(|is| is.descriptor_sha256 != was.descriptor_sha256 || is.sequence != was.sequence) {
            return conflict(format!("version {} is here with other content, and versions never change", was.version));
        }
    }
    Ok(())
}

/// Sees to it that everything is here that versions consist of which were not in the catalog `before`.
async fn complete(
    dir: &Path,
    package: &PackageName,
    before: Option<&Catalog>,
    now: &Catalog,
) -> Result<(), NotReceived> {
    let known = |record: &VersionRecord| {
        before.is_some_and(|before| before.versions.iter().any(|was| was.version == record.version))
    };
    let mut missing = Vec::new();
    for record in now.versions.iter().filter(|record| !known(record)) {
        let object = record.descriptor_object();
        let bytes = match folder::stored_descriptor(dir, record).await {
            Ok(bytes) => bytes,
            Err(Error::NotFound { .. }) => {
                missing.push(object);
                continue;
            }
            Err(e) => return Err(NotReceived::Failed(e)),
        };
        let descriptor = Descriptor::parse(&bytes, object.as_str()).map_err(NotReceived::Unusable)?;
        if descriptor.package != *package || descriptor.version != record.version {
            return Err(NotReceived::Conflict(format!(
                "{object} is the descriptor of {} {}, not of {package} {}",
                descriptor.package, descriptor.version, record.version
            )));
        }
        let folder = dir.to_owned();
        let absent = blocking(move || {
            let there = |object: &ObjectPath, bytes: u64| {
                std::fs::metadata(folder.join(object.as_str())).is_ok_and(|meta| meta.is_file() && meta.len() == bytes)
            };
            Ok(descriptor
                .objects()
                .filter(|(object, bytes)| !there(object, *bytes))
                .map(|(object, _)| object)
                .collect())
        });
        let absent: Vec<ObjectPath> = absent.await.map_err(NotReceived::Failed)?;
        missing.extend(absent);
        if missing.len() >= MISSING_NAMED_MAX {
            break;
        }
    }
    missing.truncate(MISSING_NAMED_MAX);
    if missing.is_empty() { Ok(()) } else { Err(NotReceived::Missing(missing)) }
}

/// Writes what is new, in the order of docs/FORMAT.md.
async fn put(dir: &Path, current: Option<&Verified>, new: &Verified) -> Result<()> {
    // Verification gathers what it accepts; but what comes from outside must not end a server if that ever fails.
    let bytes = |path: &ObjectPath| {
        let absent = || Error::damaged(path.as_str(), "it was not among what was verified");
        new.files.get(path).cloned().ok_or_else(absent)
    };
    let newest = current.map_or(0, |current| current.numbers.root);
    let roots: Vec<ObjectPath> = (newest + 1..=new.numbers.root).map(root_path).collect();
    if current.is_none() {
        for path in &roots {
            folder::write(dir, path, bytes(path)?).await?;
        }
    }
    for path in [
        metadata_path(&format!("{}.targets.json", new.numbers.targets)),
        metadata_path(&format!("{}.snapshot.json", new.numbers.snapshot)),
    ] {
        if current.and_then(|current| current.files.get(&path)).is_none() {
            folder::write(dir, &path, bytes(&path)?).await?;
        }
    }
    folder::write(dir, &timestamp_path(), bytes(&timestamp_path())?).await?;
    if current.is_some() {
        // Signed by the keys of the root before, too, like the metadata before it.
        for path in &roots {
            folder::write(dir, path, bytes(path)?).await?;
        }
    }
    mend(dir, new).await
}

async fn mend(dir: &Path, state: &Verified) -> Result<()> {
    folder::mend_head(dir, &state.files, &state.catalog, &BTreeMap::new()).await
}

#[cfg(test)]
mod tests;
