//! Signs versions of a package in a local content root.
//!
//! A commit writes what nothing refers to yet (descriptors, targets, snapshot), then replaces the timestamp, which
//! makes it valid, then `head`, which makes it quick. Killed between any two, the old state stays whole; a `head`
//! left behind is brought up to date by the next publisher. One publisher at a time works on a package.

mod sign;

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tough::ExpirationEnforcement;
use tough::schema::{Root, Signed, Timestamp};

pub use sign::KeyRole;

use super::files::blocking;
use super::folder::{self, FolderLock};
use super::head::Head;
use super::keys::KeyStore;
use super::store::{Place, TrustStore};
use super::tail::head_path;
use super::verify::{Numbers, Supply, metadata_path, root_path, verify};
use super::{Catalog, METADATA_DIR, VersionRecord};
use crate::backend::{LocalBackend, ObjectPath};
use crate::error::{Error, Result};
use crate::location::{Channel, PackageVersion};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How to publish.
#[derive(Debug, Clone)]
pub struct PublishOptions {
    /// How long to wait for another publisher of the same package.
    pub lock_patience: Duration,
    /// How long root, targets and snapshot stay valid. Long, because nobody re-signs a share by cron.
    pub valid: Duration,
    /// How long the timestamp stays valid: after it, clients learn of no new version until it is renewed.
    pub timestamp_valid: Duration,
    /// Whether the folder is a copy, whose state is published elsewhere only later ([`Publisher::published`]): then
    /// nothing is remembered as signed before that, and `head` has no tail.
    pub staged: bool,
}

impl Default for PublishOptions {
    fn default() -> Self {
        Self { lock_patience: Duration::from_secs(30), valid: 3650 * DAY, timestamp_valid: 365 * DAY, staged: false }
    }
}

/// What [`Publisher::add_version`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// The version is new.
    New,
    /// It was there with the same descriptor; channels were moved to it.
    ChannelsMoved,
    /// It was there and the channels pointed at it.
    Unchanged,
}

/// What a commit wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Number of the timestamp: it grows with every change.
    pub timestamp: u64,
    /// Bytes written to the content root.
    pub written_bytes: u64,
}

/// The one publisher of a package, until it is dropped.
#[derive(Debug)]
pub struct Publisher {
    dir: PathBuf,
    keys: KeyStore,
    options: PublishOptions,
    _lock: FolderLock,
    /// What these keys last signed, so that a restored backup is noticed.
    seen: Place,
    root: Signed<Root>,
    /// A root that was made and is not yet published (the first one, or one with other keys).
    next_root: Option<Signed<Root>>,
    /// All files of the current state.
    files: Head,
    /// Numbers of the current state; zero where there is none.
    numbers: Numbers,
    catalog: Catalog,
    /// Descriptors that are not written yet.
    descriptors: BTreeMap<ObjectPath, Bytes>,
    changed: bool,
    #[cfg(test)]
    pub(super) fail_at_write: Option<u32>,
}

impl Publisher {
    /// Takes the package's folder (created if absent) for publishing. Where nothing was published, keys are made; else
    /// what is there is verified from its first root on, and must not be older than what these keys signed last.
    ///
    /// # Errors
    /// `Busy` if another publisher holds the folder too long; `InvalidInput` if the keys would lie in the content
    /// root; `Untrusted` if the folder's metadata is not what its keys signed; `Local`.
    pub async fn open(package_dir: &Path, keys: &KeyStore, options: PublishOptions) -> Result<Self> {
        let (dir, keys) = (package_dir.to_owned(), keys.clone());
        let patience = options.lock_patience;
        let (dir, keys, lock) = blocking(move || {
            folder::create(&dir)?;
            keep_apart(&dir, &keys)?;
            let lock = FolderLock::take(&dir, patience)?;
            Ok((dir, keys, lock))
        })
        .await?;
        let has = |name: &str| dir.join(METADATA_DIR).join(name).exists();
        let published = has("timestamp.json");
        if published || has("1.root.json") {
            Self::continue_from(dir, keys, options, lock, published).await
        } else {
            let root = sign::first_root(&keys, options.valid).await?;
            Ok(Self::fresh(dir, keys, options, lock, root))
        }
    }

    fn fresh(dir: PathBuf, keys: KeyStore, options: PublishOptions, lock: FolderLock, root: Signed<Root>) -> Self {
        let seen = place_of(&keys, &root);
        Self {
            dir,
            keys,
            options,
            _lock: lock,
            seen,
            next_root: Some(root.clone()),
            root,
            files: Head::default(),
            numbers: Numbers { root: 0, timestamp: 0, snapshot: 0, targets: 0 },
            catalog: Catalog::default(),
            descriptors: BTreeMap::new(),
            changed: false,
            #[cfg(test)]
            fail_at_write: None,
        }
    }

    async fn continue_from(
        dir: PathBuf,
        keys: KeyStore,
        options: PublishOptions,
        lock: FolderLock,
        published: bool,
    ) -> Result<Self> {
        let package = dir.display().to_string();
        let supply = Supply::origin(Arc::new(LocalBackend::new(dir.clone())));
        let first = supply.file(&root_path(1)).await?;
        let root: Signed<Root> = serde_json::from_slice(&first).map_err(|e| {
            Error::damaged(format!("{package}/{}", root_path(1)), format!("it is not root metadata ({e})"))
        })?;
        let seen = place_of(&keys, &root);
        let saved = seen.read().await?;
        if !published {
            // The very first publication was interrupted: its root is there (and perhaps more, which nothing names).
            if saved.trusted.is_some() {
                return Err(Error::damaged(
                    format!("{package}/metadata/timestamp.json"),
                    "it is missing, though these keys have published here before; restore the package's folder from a backup",
                ));
            }
            root.signed
                .verify_role(&root)
                .map_err(|e| Error::damaged(format!("{package}/{}", root_path(1)), e.to_string()))?;
            let mut fresh = Self::fresh(dir, keys, options, lock, root);
            fresh.next_root = None;
            fresh.numbers.root = 1;
            fresh.files.insert(root_path(1), first);
            return Ok(fresh);
        }
        // Starting from the first root each time: a publisher need not pin, it owns the folder.
        let previous = saved.trusted.as_deref();
        let verified =
            verify(&package, &supply, &first, previous, ExpirationEnforcement::Unsafe).await.map_err(Error::from);
        let verified = verified.map_err(|e| match e {
            Error::Untrusted { package, reason, source } if previous.is_some() => Error::Untrusted {
                package,
                reason: format!(
                    "{reason}. (If an old copy was restored on purpose and shall be published upon, remove {}: then these keys forget what they signed since; clients that saw it will refuse what comes until its numbers have grown past that.)",
                    seen.dir().display()
                ),
                source,
            },
            e => e,
        })?;
        let mut publisher = Self::fresh(dir, keys, options, lock, verified.root);
        publisher.seen = seen;
        publisher.next_root = None;
        publisher.numbers = verified.numbers;
        publisher.catalog = verified.catalog;
        publisher.files = verified.files;
        publisher.mend_head().await?;
        Ok(publisher)
    }

    /// All versions and channels, with what was added since the last commit.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The stored descriptor of a published version.
    pub async fn descriptor(&self, record: &VersionRecord) -> Result<Bytes> {
        let object = record.descriptor_object();
        if let Some(bytes) = self.descriptors.get(&object) {
            return Ok(bytes.clone());
        }
        folder::stored_descriptor(&self.dir, record).await
    }

    /// Adds a version and points `channels` at it. Nothing is written before [`Self::commit`].
    ///
    /// # Errors
    /// `InvalidInput` if the version exists with another descriptor (versions are immutable), or was revoked.
    pub fn add_version(
        &mut self,
        version: &PackageVersion,
        descriptor: Bytes,
        channels: &[Channel],
        published: i64,
    ) -> Result<Added> {
        self.refuse_ambiguous(version, channels)?;
        let sha256: [u8; 32] = Sha256::digest(&descriptor).into();
        let existing = self.catalog.versions.iter().find(|v| v.version == *version);
        let is_new = existing.is_none();
        match existing {
            Some(v) if v.descriptor_sha256 != sha256 => {
                return Err(Error::InvalidInput(format!(
                    "version {version} is already published in {} with other content; versions never change, so choose another name",
                    self.dir.display()
                )));
            }
            Some(v) if v.revoked => {
                return Err(Error::InvalidInput(format!(
                    "version {version} was revoked; publish it under another name"
                )));
            }
            Some(_) => {}
            None => {
                let record = VersionRecord {
                    version: version.clone(),
                    sequence: self.catalog.versions.last().map_or(0, |v| v.sequence) + 1,
                    published,
                    descriptor_bytes: descriptor.len() as u64,
                    descriptor_sha256: sha256,
                    revoked: false,
                };
                self.descriptors.insert(record.descriptor_object(), descriptor);
                self.catalog.versions.push(record);
            }
        }
        let mut moved = false;
        for channel in channels {
            moved |= self.catalog.channels.insert(channel.clone(), version.clone()).as_ref() != Some(version);
        }
        self.changed |= is_new || moved;
        Ok(if is_new {
            Added::New
        } else if moved {
            Added::ChannelsMoved
        } else {
            Added::Unchanged
        })
    }

    /// A name after `@` means a version before it means a channel, so no channel may be named like a version.
    fn refuse_ambiguous(&self, version: &PackageVersion, channels: &[Channel]) -> Result<()> {
        let is_version = |c: &Channel| self.catalog.versions.iter().any(|v| v.version.as_str() == c.as_str());
        let is_this = |c: &Channel| c.as_str() == version.as_str();
        let known = self.catalog.channels.keys();
        let shadowed = known.chain(channels).find(|c| is_this(c)).or_else(|| channels.iter().find(|c| is_version(c)));
        match shadowed {
            None => Ok(()),
            Some(name) => Err(Error::InvalidInput(format!(
                "{name} would name both a version and a channel, and nobody could reach the channel; choose another name"
            ))),
        }
    }

    /// Withdraws a version: clients that see it report it. Its channels keep pointing at it until they are moved.
    ///
    /// # Errors
    /// `NotFound` if there is no such version.
    pub fn revoke(&mut self, version: &PackageVersion) -> Result<()> {
        let record = self.catalog.versions.iter_mut().find(|v| v.version == *version);
        let record = record.ok_or_else(|| Error::NotFound {
            what: format!("version {version}"),
            origin: self.dir.display().to_string(),
        })?;
        self.changed |= !record.revoked;
        record.revoked = true;
        Ok(())
    }

    /// Takes a version out of the catalog: nobody can mount it anew. What only it consists of is no longer referred to.
    ///
    /// # Errors
    /// `NotFound` if there is no such version; `InvalidInput` if a channel points at it.
    pub fn retire(&mut self, version: &PackageVersion) -> Result<()> {
        if let Some((channel, _)) = self.catalog.channels.iter().find(|(_, v)| *v == version) {
            return Err(Error::InvalidInput(format!(
                "version {version} is what channel {channel} points at; publish another version to it first"
            )));
        }
        let before = self.catalog.versions.len();
        self.catalog.versions.retain(|v| v.version != *version);
        if self.catalog.versions.len() == before {
            let origin = self.dir.display().to_string();
            return Err(Error::NotFound { what: format!("version {version}"), origin });
        }
        self.changed = true;
        Ok(())
    }

    /// Makes new keys for `roles`. The next commit publishes a root that names them, signed by the old root key too,
    /// and signs its metadata with old and new keys: whichever root a client has, it follows.
    pub async fn rotate(&mut self, roles: &[KeyRole]) -> Result<()> {
        let next = sign::next_root(&self.keys, &self.root, roles, self.options.valid).await?;
        self.next_root = Some(next);
        self.changed = true;
        Ok(())
    }

    /// Publishes what was added, moved or revoked. Without any of these, and if something is published already, it
    /// does nothing.
    pub async fn commit(&mut self) -> Result<Committed> {
        if !self.changed && self.numbers.timestamp > 0 {
            return Ok(Committed { timestamp: self.numbers.timestamp, written_bytes: 0 });
        }
        let signer = self.signer()?;
        let expires = sign::after(self.options.valid);
        let mut numbers = self.numbers;
        numbers.targets += 1;
        numbers.snapshot += 1;
        let targets = signer.targets(&self.catalog, number(numbers.targets), expires).await?;
        let snapshot = signer.snapshot(&targets, number(numbers.snapshot), expires).await?;
        let mut written = 0;
        let is_first = self.numbers.root == 0;
        if is_first {
            written += self.publish_root().await?;
        }
        for (path, bytes) in std::mem::take(&mut self.descriptors) {
            let result = self.write(&path, &bytes).await;
            // Kept until the commit is through, so that it can be tried again.
            self.descriptors.insert(path, bytes);
            written += result?;
        }
        let targets_path = metadata_path(&format!("{}.targets.json", numbers.targets));
        let snapshot_path = metadata_path(&format!("{}.snapshot.json", numbers.snapshot));
        written += self.write(&targets_path, targets.buffer()).await?;
        written += self.write(&snapshot_path, snapshot.buffer()).await?;
        let timestamp = self.next_timestamp(&signer, snapshot.buffer(), numbers.snapshot).await?;
        written += self.write(&metadata_path("timestamp.json"), &timestamp).await?;
        numbers.root = self.numbers.root;
        numbers.timestamp += 1;
        self.numbers = numbers;
        let mut files = Head::default();
        for (number, bytes) in self.files.numbered("root") {
            files.insert(root_path(number), bytes.clone());
        }
        files.insert(metadata_path("timestamp.json"), timestamp);
        files.insert(targets_path, targets.buffer().clone().into());
        files.insert(snapshot_path, snapshot.buffer().clone().into());
        self.files = files;
        let committed = self.finish(written).await?;
        self.changed = false;
        Ok(committed)
    }

    /// Signs the timestamp anew, so that it expires later. Needs only the timestamp's key (unless something was added
    /// or changed before: then it commits).
    ///
    /// # Errors
    /// `NotFound` if nothing was published yet.
    pub async fn renew(&mut self) -> Result<Committed> {
        if self.changed {
            return self.commit().await;
        }
        let snapshot = self.files.numbered("snapshot").pop_last().map(|(number, bytes)| (number, bytes.clone()));
        let Some((snapshot_number, snapshot)) = snapshot else {
            let origin = self.dir.display().to_string();
            return Err(Error::NotFound { what: "a published version".to_owned(), origin });
        };
        let signer = sign::Signer::new(&self.keys, &self.root, None, &[KeyRole::Timestamp])?;
        let timestamp = self.next_timestamp(&signer, &snapshot, snapshot_number).await?;
        let written = self.write(&metadata_path("timestamp.json"), &timestamp).await?;
        self.numbers.timestamp += 1;
        self.files.insert(metadata_path("timestamp.json"), timestamp);
        self.finish(written).await
    }

    /// When the timestamp expires, in seconds since 1970; `None` if nothing was published yet.
    pub fn timestamp_expires(&self) -> Option<i64> {
        let timestamp: Signed<Timestamp> =
            serde_json::from_slice(self.files.get(&metadata_path("timestamp.json"))?).ok()?;
        Some(timestamp.signed.expires.as_second())
    }

    fn signer(&self) -> Result<sign::Signer> {
        let next = self.next_root.as_ref().filter(|_| self.numbers.root > 0);
        sign::Signer::new(&self.keys, &self.root, next, &[KeyRole::Targets, KeyRole::Timestamp])
    }

    async fn next_timestamp(&self, signer: &sign::Signer, snapshot: &[u8], snapshot_number: u64) -> Result<Bytes> {
        let expires = sign::after(self.options.timestamp_valid);
        signer.timestamp(snapshot, number(snapshot_number), number(self.numbers.timestamp + 1), expires).await
    }

    /// What follows the timestamp: a changed root, what these keys remember, and `head`.
    async fn finish(&mut self, mut written: u64) -> Result<Committed> {
        if self.next_root.is_some() && self.numbers.timestamp > 0 {
            // After the metadata that both its keys and the old ones signed.
            written += self.publish_root().await?;
        }
        if !self.options.staged {
            self.published().await;
        }
        let head = self.head().await?;
        written += self.write(&head_path(), &head).await?;
        self.descriptors.clear();
        Ok(Committed { timestamp: self.numbers.timestamp, written_bytes: written })
    }

    /// Remembers with the keys what they have signed: to be called when a staged commit was published.
    pub async fn published(&self) {
        let first = self.files.numbered("root").pop_first().map(|(_, bytes)| bytes.clone()).unwrap_or_default();
        if let Err(error) = self.seen.save(first, self.files.clone(), self.numbers).await {
            tracing::warn!(%error, "cannot remember what was signed; a restored backup would not be noticed");
        }
    }

    async fn publish_root(&mut self) -> Result<u64> {
        let Some(root) = self.next_root.clone() else { return Ok(0) };
        let keys = self.keys.clone();
        blocking(move || keys.keep()).await?;
        let bytes: Bytes = sign::to_file(&root)?;
        let path = root_path(root.signed.version.get());
        let written = self.write(&path, &bytes).await?;
        self.files.insert(path, bytes);
        self.numbers.root = root.signed.version.get();
        self.root = root;
        self.next_root = None;
        Ok(written)
    }

    /// The bundle of the current state.
    async fn head(&self) -> Result<Bytes> {
        folder::bundle(&self.dir, &self.files, &self.catalog, !self.options.staged, &self.descriptors).await
    }

    /// Writes `head` if an interrupted publisher left an old one.
    async fn mend_head(&self) -> Result<()> {
        if self.options.staged {
            return Ok(());
        }
        folder::mend_head(&self.dir, &self.files, &self.catalog, &self.descriptors).await
    }

    async fn write(&mut self, path: &ObjectPath, bytes: &[u8]) -> Result<u64> {
        #[cfg(test)]
        if let Some(left) = &mut self.fail_at_write {
            *left = left.checked_sub(1).ok_or(Error::Cancelled)?;
        }
        folder::write(&self.dir, path, Bytes::copy_from_slice(bytes)).await?;
        Ok(bytes.len() as u64)
    }
}

fn number(n: u64) -> NonZeroU64 {
    NonZeroU64::new(n).expect("numbers of metadata were just increased")
}

/// Where the keys remember what they signed: by the package's first root, wherever its folder lies.
fn place_of(keys: &KeyStore, first_root: &Signed<Root>) -> Place {
    let form = tough::schema::Role::canonical_form(&first_root.signed).unwrap_or_default();
    TrustStore::new(keys.dir().join("signed")).place(&format!("root {}", blake3::hash(&form)))
}

/// Refuses keys in the content root: whoever may read packages could sign them.
fn keep_apart(package_dir: &Path, keys: &KeyStore) -> Result<()> {
    let real = |path: &Path| {
        std::path::absolute(path).and_then(|p| real_path(&p)).map_err(|e| Error::local("look at", path, e))
    };
    let content_root = real(package_dir.parent().unwrap_or(package_dir))?;
    let dir = real(keys.dir())?;
    if dir.starts_with(&content_root) {
        return Err(Error::InvalidInput(format!(
            "private keys do not belong into the content root: {} lies in {}, where everybody who may read packages could take them; keep them in a folder outside",
            dir.display(),
            content_root.display()
        )));
    }
    Ok(())
}

/// Follows the links of as much of `path` as exists.
pub(crate) fn real_path(path: &Path) -> std::io::Result<PathBuf> {
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Err(e), Some(parent), Some(name)) if e.kind() == std::io::ErrorKind::NotFound => {
            Ok(real_path(parent)?.join(name))
        }
        (result, _, _) => result,
    }
}
