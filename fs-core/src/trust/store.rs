//! What this machine trusts, and remembers of packages it has seen.
//!
//! ```text
//! DIR/HASH/                  HASH: first 32 hex digits of the BLAKE3 of the package's location
//!   package                  the location, for people
//!   root.json                the root that was trusted first
//!   trusted                  the metadata that was accepted last, as a bundle (see `head`)
//!   descriptors/SHA256       descriptors of versions that were used
//!   lock
//! ```
//!
//! Each file is replaced whole. `trusted` is both the protection against rollback and what is used while the origin
//! is away; it is written only under the lock, and never by an older one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::VersionRecord;
use super::files::{self, Access, blocking};
use super::head::Head;
use super::verify::{Numbers, metadata_path, root_number, root_path};
use crate::error::Result;

const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The folder of trusted metadata: one per user (or per agent).
#[derive(Debug, Clone)]
pub struct TrustStore {
    dir: PathBuf,
}

impl TrustStore {
    /// Uses the folder `dir`, which is created when something is written to it.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The folder of one package: removing it makes this machine forget the package.
    pub fn package_dir(&self, package_key: &str) -> PathBuf {
        self.dir.join(&blake3::hash(package_key.as_bytes()).to_hex()[..32])
    }

    pub(super) fn place(&self, package_key: &str) -> Place {
        Place { dir: self.package_dir(package_key).into(), package_key: package_key.into() }
    }
}

/// One package's part of the store.
#[derive(Debug, Clone)]
pub(super) struct Place {
    dir: Arc<Path>,
    package_key: Arc<str>,
}

/// What is remembered of a package.
#[derive(Debug, Clone, Default)]
pub(super) struct Saved {
    /// The root that was trusted first.
    pub(super) pinned: Option<Bytes>,
    /// The metadata that was accepted last.
    pub(super) trusted: Option<Arc<Head>>,
    /// Whether a version of it was opened.
    pub(super) used: bool,
}

impl Saved {
    /// The root to start from: the newest that was accepted.
    pub(super) fn root(&self) -> Option<Bytes> {
        let newest = self.trusted.as_ref().and_then(|head| head.numbered("root").pop_last().map(|(_, b)| b.clone()));
        newest.or_else(|| self.pinned.clone())
    }
}

impl Place {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) async fn read(&self) -> Result<Saved> {
        let dir = self.dir.clone();
        blocking(move || read(&dir)).await
    }

    /// Keeps `head` as the metadata accepted last, and `pin` as the first root where there is none; unless somebody
    /// else has meanwhile kept newer ones.
    pub(super) async fn save(&self, pin: Bytes, head: Head, numbers: Numbers) -> Result<()> {
        let place = self.clone();
        blocking(move || place.save_now(&pin, &head, numbers)).await
    }

    fn save_now(&self, pin: &Bytes, head: &Head, numbers: Numbers) -> Result<()> {
        let now = read(&self.dir)?;
        if now.pinned.is_some() && now.trusted.as_deref() == Some(head) {
            return Ok(());
        }
        files::create_dir(&self.dir, Access::Private)?;
        let _lock = files::lock(self.dir.join("lock"), Access::Private, LOCK_PATIENCE, "another streamfs process")?;
        files::remove_unfinished(&self.dir);
        let now = read(&self.dir)?;
        if now.pinned.is_none() {
            files::write_atomic(&self.dir.join("package"), self.package_key.as_bytes(), Access::Private)?;
            files::write_atomic(&self.dir.join("root.json"), pin, Access::Private)?;
        }
        if now.trusted.is_none_or(|now| !is_newer(&now, numbers)) {
            files::write_atomic(&self.dir.join("trusted"), &head.encode()?, Access::Private)?;
        }
        Ok(())
    }

    /// A descriptor that was kept; the caller verifies it.
    pub(super) async fn descriptor(&self, record: &VersionRecord) -> Option<Bytes> {
        let path = self.descriptor_path(record);
        blocking(move || files::read_optional(&path)).await.ok().flatten().map(Bytes::from)
    }

    pub(super) async fn keep_descriptor(&self, record: &VersionRecord, bytes: Bytes) -> Result<()> {
        let path = self.descriptor_path(record);
        blocking(move || {
            files::create_dir(path.parent().expect("it is in a folder"), Access::Private)?;
            files::write_atomic(&path, &bytes, Access::Private)
        })
        .await
    }

    fn descriptor_path(&self, record: &VersionRecord) -> PathBuf {
        self.dir.join("descriptors").join(hex::encode(record.descriptor_sha256))
    }
}

fn read(dir: &Path) -> Result<Saved> {
    let pinned = files::read_optional(&dir.join("root.json"))?.map(Bytes::from);
    let trusted = files::read_optional(&dir.join("trusted"))?.map(Bytes::from);
    let trusted = trusted.and_then(|bytes| match Head::parse(&bytes) {
        Ok(head) => Some(Arc::new(head)),
        Err(error) => {
            // A disk's fault, not an attack: whoever can write here can do anything in the user's name. The pinned
            // root still protects, and the next load writes the file anew.
            let file = dir.join("trusted");
            tracing::warn!(file = %file.display(), %error, "the remembered metadata is damaged and is fetched anew");
            None
        }
    });
    // A pinned root that is damaged (it was written whole, so the disk did it) is as good as the copy in `trusted`.
    let pinned = pinned.filter(|bytes| root_number(bytes).is_ok()).or_else(|| {
        let first = trusted.as_ref()?.numbered("root").pop_first().map(|(_, bytes)| bytes.clone());
        first.filter(|_| dir.join("root.json").exists())
    });
    let used = dir.join("descriptors").exists();
    Ok(Saved { pinned, trusted, used })
}

/// Whether `kept` is newer than metadata of `numbers`. A newer root counts more than all the rest, because new keys
/// may begin to count anew.
fn is_newer(kept: &Head, numbers: Numbers) -> bool {
    let root = kept.numbered("root").keys().next_back().copied().unwrap_or(0);
    if root != numbers.root {
        return root > numbers.root;
    }
    // Both were signed by the same keys, so the numbers compare.
    let number = |bytes: &Bytes| {
        let signed: tough::schema::Signed<tough::schema::Timestamp> = serde_json::from_slice(bytes).ok()?;
        Some(signed.signed.version.get())
    };
    debug_assert!(kept.get(&root_path(root)).is_some() || root == 0);
    kept.get(&metadata_path("timestamp.json")).and_then(number).is_some_and(|kept| kept > numbers.timestamp)
}
