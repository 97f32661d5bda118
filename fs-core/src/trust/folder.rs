//! A package's folder, as those who change it share it: publishers here, servers that take publications, collectors of
//! what is no longer used. Whoever changes it holds its lock; whoever reads packages needs none.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use tough::ExpirationEnforcement;
use tough::schema::{Signed, Targets};

use super::files::{self, Access, blocking};
use super::head::{HEAD_BYTES_MAX, HEAD_ENTRIES_MAX, HEAD_TAIL_BYTES, Head, TailOf};
use super::tail::head_path;
use super::verify::{Supply, Verified, metadata_path, root_path, verify};
use super::{Catalog, DESCRIPTOR_DIR, HEAD_OBJECT, METADATA_DIR, VersionRecord, record};
use crate::backend::{Backend, LocalBackend, ObjectPath};
use crate::error::{Error, ErrorKind, Result};
use crate::location::DEFAULT_CHANNEL;
use crate::package::descriptor::{Descriptor, LaunchRef};

/// Name of the lock file in a package's folder; the leading dot keeps it out of the objects' name space.
const LOCK_FILE: &str = ".publish.lock";

/// Requests for descriptors under way at a time.
const DESCRIPTORS_AT_A_TIME: usize = 8;

/// Held by the one who changes a package's folder, until it is dropped.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the folder `dir`, which exists, within `patience`, and removes what was left half-written there. Blocks.
    ///
    /// # Errors
    /// `Busy` if somebody else holds it too long; `Local`.
    pub(crate) fn take(dir: &Path, patience: Duration) -> Result<Self> {
        let holder = "another publisher of this package";
        let file = files::lock(dir.join(LOCK_FILE), Access::Usual, patience, holder)?;
        for sub in [".", METADATA_DIR, DESCRIPTOR_DIR] {
            files::remove_unfinished(&dir.join(sub));
        }
        Ok(Self { _file: file })
    }
}

/// Makes the folders that signed metadata is in. Blocks.
pub(crate) fn create(dir: &Path) -> Result<()> {
    for sub in [METADATA_DIR, DESCRIPTOR_DIR] {
        files::create_dir(&dir.join(sub), Access::Usual)?;
    }
    Ok(())
}

/// What is published in the folder `dir`, verified from its first root on; `None` if nothing is. Dates do not matter: an
/// old state is still the one to go on from.
///
/// # Errors
/// `Untrusted`, `Damaged`, and what the disk says.
pub(super) async fn state(dir: &Path) -> Result<Option<Verified>> {
    if !dir.join(METADATA_DIR).join("timestamp.json").exists() {
        return Ok(None);
    }
    let supply = Supply::origin(Arc::new(LocalBackend::new(dir.to_owned())));
    let first = supply.file(&root_path(1)).await?;
    let package = dir.display().to_string();
    Ok(Some(verify(&package, &supply, &first, None, ExpirationEnforcement::Unsafe).await?))
}

/// What is published in a folder, as far as others than publishers want to know.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) catalog: Catalog,
    /// Number of the targets file.
    pub(crate) targets: u64,
    /// Number of the snapshot.
    pub(crate) snapshot: u64,
}

/// What is published in the folder `dir`, verified as by [`state`].
///
/// # Errors
/// As [`state`].
pub(crate) async fn published(dir: &Path) -> Result<Option<Published>> {
    Ok(state(dir).await?.map(|verified| Published {
        catalog: verified.catalog,
        targets: verified.numbers.targets,
        snapshot: verified.numbers.snapshot,
    }))
}

/// The catalog in an older targets file, taken at its word: for whoever wants to know what it protected.
///
/// # Errors
/// `Damaged`.
pub(crate) fn catalog_in(targets: &[u8], whence: &str) -> Result<Catalog> {
    let signed: Signed<Targets> =
        serde_json::from_slice(targets).map_err(|e| Error::damaged(whence, format!("it is unreadable: {e}")))?;
    record::catalog(&signed.signed.targets).map_err(|why| Error::damaged(whence, why))
}

/// Reads the stored descriptor of a version from the folder `dir`.
///
/// # Errors
/// `NotFound`, `Damaged` if it is not the one that was signed.
pub(crate) async fn stored_descriptor(dir: &Path, record: &VersionRecord) -> Result<Bytes> {
    let object = record.descriptor_object();
    let bytes = Supply::origin(Arc::new(LocalBackend::new(dir.to_owned()))).file(&object).await?;
    if Sha256::digest(&bytes)[..] != record.descriptor_sha256 {
        let what = format!("{}/{object}", dir.display());
        return Err(Error::damaged(what, "its SHA-256 is not the one that was signed"));
    }
    Ok(bytes)
}

/// The bundle of a state: all its files, the descriptors of channels as far as there is room, and, if that is wanted, its
/// tail. Descriptors are `unwritten` ones, or in the folder `dir`.
pub(super) async fn bundle(
    dir: &Path,
    files: &Head,
    catalog: &Catalog,
    with_tail: bool,
    unwritten: &BTreeMap<ObjectPath, Bytes>,
) -> Result<Bytes> {
    let mut head = files.clone();
    let pointed = |v: &&VersionRecord| catalog.channels.values().any(|c| *c == v.version);
    let mut entries = head.iter().count() as u32;
    for record in catalog.versions.iter().rev().filter(pointed) {
        let object = record.descriptor_object();
        let room = record.descriptor_bytes + 6 + object.as_str().len() as u64;
        if entries < HEAD_ENTRIES_MAX && head.encoded_bytes() + room <= HEAD_BYTES_MAX {
            head.insert(object, descriptor(dir, record, unwritten).await?);
            entries += 1;
        }
    }
    let set = match likely(catalog).filter(|_| with_tail) {
        // A version whose descriptor is lost, damaged or of a newer format has no launch set that is known here.
        Some(record) => descriptor(dir, record, unwritten).await.ok().and_then(|bytes| first_launch(record, &bytes)),
        None => None,
    };
    let tail = match set {
        Some(set) => tail(dir, &set).await?,
        None => None,
    };
    head.set_tail(tail.as_ref().map(|(of, _)| *of));
    let front = head.encode()?;
    Ok(match tail {
        Some((_, bytes)) => [front, bytes].concat().into(),
        None => front,
    })
}

async fn descriptor(dir: &Path, record: &VersionRecord, unwritten: &BTreeMap<ObjectPath, Bytes>) -> Result<Bytes> {
    match unwritten.get(&record.descriptor_object()) {
        Some(bytes) => Ok(bytes.clone()),
        None => stored_descriptor(dir, record).await,
    }
}

/// Writes `head` if what is there is not that of this state, as after an interrupted publisher.
pub(super) async fn mend_head(
    dir: &Path,
    files: &Head,
    catalog: &Catalog,
    unwritten: &BTreeMap<ObjectPath, Bytes>,
) -> Result<()> {
    let head = match bundle(dir, files, catalog, true, unwritten).await {
        Ok(head) => head,
        // A damaged or lost descriptor must not keep anybody from publishing a version that is whole.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Damaged) => {
            tracing::warn!(error = %e, "head cannot be checked");
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    let path = dir.join(HEAD_OBJECT);
    let there = blocking(move || files::read_optional(&path)).await?;
    if there.as_deref() != Some(&head[..]) {
        write(dir, &head_path(), head).await?;
    }
    Ok(())
}

/// Writes one file of the folder, whole or not at all.
pub(super) async fn write(dir: &Path, path: &ObjectPath, bytes: Bytes) -> Result<()> {
    let file = dir.join(path.as_str());
    blocking(move || files::write_atomic(&file, &bytes, Access::Usual)).await
}

/// The version that most who mount the package want: the default channel's; without one, the first channel's by name.
fn likely(catalog: &Catalog) -> Option<&VersionRecord> {
    let channels = &catalog.channels;
    let default = channels.iter().find(|(channel, _)| channel.as_str() == DEFAULT_CHANNEL);
    let (_, version) = default.or_else(|| channels.first_key_value())?;
    catalog.versions.iter().find(|v| v.version == *version)
}

fn first_launch(record: &VersionRecord, descriptor: &[u8]) -> Option<LaunchRef> {
    let descriptor = Descriptor::parse(descriptor, record.descriptor_object().as_str()).ok()?;
    descriptor.launch.into_iter().next()
}

/// What stands behind `head`: the beginning of this launch object, and what it is. None if it is not here as it should be:
/// then nothing is lost but a round trip at each launch.
async fn tail(dir: &Path, set: &LaunchRef) -> Result<Option<(TailOf, Bytes)>> {
    let object: PathBuf = dir.join(set.path().as_str());
    let bytes = u32::try_from(set.bytes.min(HEAD_TAIL_BYTES)).expect("a tail is shorter than 4 GiB");
    let of = TailOf { object: set.object, object_bytes: set.bytes, bytes };
    blocking(move || match beginning(&object, &of) {
        Ok(begun) => Ok(Some((of, begun))),
        Err(error) => {
            let object = object.display();
            tracing::warn!(%object, %error, "a launch object cannot be read; head is written without its beginning");
            Ok(None)
        }
    })
    .await
}

fn beginning(object: &Path, of: &TailOf) -> std::io::Result<Bytes> {
    let mut file = File::open(object)?;
    let length = file.metadata()?.len();
    if length != of.object_bytes {
        let why = format!("it has {length} bytes instead of {}", of.object_bytes);
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
    }
    let mut bytes = vec![0; of.bytes as usize];
    file.read_exact(&mut bytes)?;
    Ok(bytes.into())
}

/// Copies what signs the state at an origin into the folder `dir`: metadata, verified, and the descriptors of all versions.
/// Of a first publication that was interrupted, its root. What is copied is to be published upon and sent back.
///
/// # Errors
/// What the origin says; `Untrusted`, `Damaged`; `Local`.
pub(crate) async fn copy(backend: &Arc<dyn Backend>, dir: &Path) -> Result<()> {
    let folder = dir.to_owned();
    blocking(move || create(&folder)).await?;
    let supply = Supply::origin(backend.clone());
    let first = match supply.file(&root_path(1)).await {
        Ok(first) => first,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    match supply.file(&timestamp_path()).await {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return write(dir, &root_path(1), first).await,
        Err(e) => return Err(e),
    }
    let verified = verify(backend.origin(), &supply, &first, None, ExpirationEnforcement::Unsafe).await?;
    for (path, bytes) in verified.files.iter() {
        write(dir, path, bytes.clone()).await?;
    }
    let fetched = stream::iter(&verified.catalog.versions).map(|record| async move {
        let bytes = super::client::stored_descriptor(backend, record).await?;
        write(dir, &record.descriptor_object(), bytes).await
    });
    fetched.buffer_unordered(DESCRIPTORS_AT_A_TIME).try_collect().await
}

/// Numbers of the files `metadata/N.ROLE.json` in the folder, with their paths.
pub(crate) fn numbered_files(dir: &Path, role: &str) -> Result<Vec<(u64, PathBuf)>> {
    let folder = dir.join(METADATA_DIR);
    let entries = std::fs::read_dir(&folder).map_err(|e| Error::local("list", &folder, e))?;
    let number = |name: &str| name.strip_suffix(".json")?.strip_suffix(role)?.strip_suffix('.')?.parse().ok();
    let mut found: Vec<(u64, PathBuf)> =
        entries.flatten().filter_map(|entry| Some((number(entry.file_name().to_str()?)?, entry.path()))).collect();
    found.sort();
    Ok(found)
}

/// Path of the timestamp within the package.
pub(super) fn timestamp_path() -> ObjectPath {
    metadata_path("timestamp.json")
}
