//! Publishing to a server: upon a copy of the package's signed state, in a folder of this machine. Keys never leave it, and
//! the server has to believe nothing.
//!
//! ```text
//! copy       metadata and descriptors from the server; indexes of its packs, to know what it has
//! publish    into the copy, as into any folder; only new objects are in it then
//! send       objects that the server lacks, each whole, by its hash; then descriptors
//! commit     the new metadata in one request, which fails if somebody else was faster
//! ```
//!
//! Killed anywhere before the commit, the server has some objects more that nothing refers to. They are not sent again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::Progress;
use crate::backend::http::upload::{Precondition, Transfer, Uploader};
use crate::backend::{self, Backend, HttpBackend, ObjectPath, ReadOptions, SmallRead, collect};
use crate::config::OriginConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::location::{Origin, PackageLocation};
use crate::package::descriptor::{Descriptor, PackRef};
use crate::package::pack::{self, PACK_FOOTER_BYTES, PackEntry, PackFooter};
use crate::package::profile::PROFILE_MAX_BYTES;
use crate::package::{LAUNCH_DIR, PACK_DIR, PROFILE_DIR, TREE_DIR};
use crate::trust::files::{self, Access};
use crate::trust::publisher::Publisher;
use crate::trust::{DESCRIPTOR_DIR, HEAD_OBJECT, folder};

/// Objects on their way to the server at a time: enough to fill a line whose server syncs each to its disk.
const OBJECTS_AT_A_TIME: usize = 4;
/// How often whoever watches is told how far it is.
const TELL_INTERVAL: Duration = Duration::from_millis(100);
/// How long to wait for another publication of the same package from this machine.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// A package on a server that takes publications.
#[derive(Debug, Clone)]
pub struct ServerPackage {
    /// Where it is: `http://` or `https://`.
    pub location: PackageLocation,
    /// How the server is reached, and as whom.
    pub config: OriginConfig,
    /// Folder in which copies are made; each package has its own in it.
    pub scratch: PathBuf,
}

/// What was sent to a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SentObjects {
    /// Objects that it lacked.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that it had already.
    pub there: u64,
}

/// A copy of a package's signed state to publish upon, removed when dropped.
pub struct Staged {
    backend: Arc<dyn Backend>,
    uploader: Uploader,
    precondition: Precondition,
    /// The copy's content root, with nothing else in it.
    content_root: PathBuf,
    package_dir: PathBuf,
    _lock: File,
}

impl Staged {
    /// Copies what is published. One at a time for a package, on this machine.
    ///
    /// # Errors
    /// `Unsupported` for what is no web server; `Busy`; what the server says; `Untrusted` if what it gives is not signed
    /// as it should be.
    pub async fn open(server: &ServerPackage) -> Result<Self> {
        let ServerPackage { location, config, scratch } = server;
        let Origin::Http(root) = &location.origin else {
            return Err(Error::Unsupported(format!(
                "cannot publish to {}: publications are taken by folders, and by `streamfs serve` over https://",
                location.origin
            )));
        };
        let uploader = Uploader::new(HttpBackend::new(root, &location.package, config)?)?;
        uploader.check().await?;
        let backend = backend::open(location, config)?;
        let own = scratch.join(&blake3::hash(location.package_key().as_bytes()).to_hex()[..32]);
        let content_root = own.join("content");
        let package_dir = content_root.join(location.package.as_str());
        let lock = files::blocking({
            let (own, content_root, package_dir) = (own.clone(), content_root.clone(), package_dir.clone());
            move || {
                files::create_dir(&own, Access::Private)?;
                let holder = "another publication of this package from this machine";
                let lock = files::lock(own.join("lock"), Access::Private, LOCK_PATIENCE, holder)?;
                // What an interrupted publication left.
                match std::fs::remove_dir_all(&content_root) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::local("clear", &content_root, e));
                    }
                    _ => {}
                }
                files::create_dir(&package_dir, Access::Private)?;
                Ok(lock)
            }
        })
        .await?;
        // Asked for first: if somebody publishes while the rest is copied, the commit fails.
        let precondition = match backend.stat(&object(HEAD_OBJECT)).await {
            Ok(state) => match state.validator {
                Some(validator) => Precondition::Unchanged(validator),
                None => {
                    let reason = "it gives head no ETag, so it is no server to publish to".to_owned();
                    return Err(Error::NotTaken {
                        what: location.to_string(),
                        origin: backend.origin().to_owned(),
                        reason,
                    });
                }
            },
            Err(e) if e.kind() == ErrorKind::NotFound => Precondition::Absent,
            Err(e) => return Err(e),
        };
        let staged = Self { backend, uploader, precondition, content_root, package_dir, _lock: lock };
        folder::copy(&staged.backend, &staged.package_dir).await?;
        Ok(staged)
    }

    /// The copy's content root.
    pub fn content_root(&self) -> &Path {
        &self.content_root
    }

    /// The package's folder in the copy, for [`Publisher::open`] with [`staged`](crate::trust::publisher::PublishOptions::staged).
    pub fn package_dir(&self) -> &Path {
        &self.package_dir
    }

    /// Whether anything is published on the server.
    pub fn is_new(&self) -> bool {
        self.precondition == Precondition::Absent
    }

    /// Fetches the profiles that a version's launch sets were made from, to be inherited from.
    pub(super) async fn fetch_profiles(&self, version: &Descriptor) -> Result<()> {
        for set in &version.launch {
            let path = set.profile.path();
            match self.backend.read_small(&path, PROFILE_MAX_BYTES as u64, None).await {
                Ok(SmallRead::Object { bytes, .. }) => self.keep(&path, bytes).await?,
                // Whoever wants to inherit it says what is missing.
                Ok(SmallRead::NotModified) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    async fn keep(&self, path: &ObjectPath, bytes: Bytes) -> Result<()> {
        let file = self.package_dir.join(path.as_str());
        files::blocking(move || {
            files::create_dir(file.parent().expect("an object is in a folder"), Access::Private)?;
            files::write_atomic(&file, &bytes, Access::Private)
        })
        .await
    }

    /// What blocks a pack on the server has. Its index is taken at its word; readers verify each block.
    pub(super) async fn pack_index(&self, pack: &PackRef) -> Result<Vec<PackEntry>> {
        let whence = format!("pack {} at {}", pack.object, self.backend.origin());
        let short = || Error::damaged(&whence, "it is shorter than its index");
        let at = pack.bytes.checked_sub(PACK_FOOTER_BYTES as u64).ok_or_else(short)?;
        let footer: [u8; PACK_FOOTER_BYTES] =
            self.read(pack, at, PACK_FOOTER_BYTES).await?[..].try_into().map_err(|_| short())?;
        let footer = PackFooter::parse(&footer, &whence)?;
        let start = at.checked_sub(footer.index_bytes() as u64).ok_or_else(short)?;
        let index = self.read(pack, start, footer.index_bytes()).await?;
        pack::parse_index(&footer, &index, pack.bytes, &whence)
    }

    async fn read(&self, pack: &PackRef, at: u64, length: usize) -> Result<Bytes> {
        let stream = self.backend.read_range(&pack.path(), at..at + length as u64, ReadOptions::default()).await?;
        collect(stream, length).await
    }

    /// Sends what `publisher` has committed to the copy, and makes it the server's state. `done_bytes` of `progress` were
    /// done before.
    ///
    /// # Errors
    /// `Busy` if somebody else published since the copy was made; `NotTaken`, `Denied`, `Incomplete`; `Unreachable`,
    /// `TimedOut`; `Cancelled`. Then nothing is visible to anybody, unless the connection was lost while the server answered
    /// the very last request.
    pub async fn send(&self, publisher: &Publisher, done_bytes: u64, progress: &dyn Progress) -> Result<SentObjects> {
        let transfer = Arc::new(Transfer::default());
        let sending = self.send_all(publisher, done_bytes, progress, &transfer);
        tokio::pin!(sending);
        let mut told = 0;
        loop {
            tokio::select! {
                sent = &mut sending => return sent,
                () = tokio::time::sleep(TELL_INTERVAL) => {
                    let sent = transfer.sent_bytes();
                    progress.advance(sent.saturating_sub(told));
                    told = told.max(sent);
                    if progress.cancelled() {
                        transfer.cancel();
                    }
                }
            }
        }
    }

    async fn send_all(
        &self,
        publisher: &Publisher,
        done_bytes: u64,
        progress: &dyn Progress,
        transfer: &Arc<Transfer>,
    ) -> Result<SentObjects> {
        let data = self.files(&[PACK_DIR, TREE_DIR, PROFILE_DIR, LAUNCH_DIR]).await?;
        let descriptors = self.files(&[DESCRIPTOR_DIR]).await?;
        let bytes: u64 = data.iter().map(|file| file.bytes).sum();
        progress.total(done_bytes + bytes, data.len() as u64);
        progress.message("sending");
        let bundle = match tokio::fs::read(self.package_dir.join(HEAD_OBJECT)).await {
            Ok(bundle) => Bytes::from(bundle),
            // Nothing was committed, because nothing had changed.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(SentObjects::default()),
            Err(e) => return Err(Error::local("read", self.package_dir.join(HEAD_OBJECT), e)),
        };
        let mut sent = SentObjects::default();
        for last_try in [false, true] {
            // What refers to others goes after them.
            for files in [&data, &descriptors] {
                self.send_files(files, transfer, &mut sent).await?;
            }
            progress.message("publishing");
            match self.uploader.commit(bundle.clone(), &self.precondition, transfer).await {
                Ok(()) => break,
                // A collector may have removed what was there when it was asked for.
                Err(Error::Incomplete { .. }) if !last_try => {}
                Err(e) => return Err(e),
            }
        }
        publisher.published().await;
        Ok(sent)
    }

    async fn send_files(&self, files: &[StagedFile], transfer: &Arc<Transfer>, sent: &mut SentObjects) -> Result<()> {
        let sending = stream::iter(files).map(|file| async move {
            let there = match self.backend.stat(&file.object).await {
                Ok(state) => state.length == file.bytes,
                Err(e) if e.kind() == ErrorKind::NotFound => false,
                Err(e) => return Err(e),
            };
            if !there {
                self.uploader.put_file(&file.object, &file.path, transfer).await?;
            }
            Ok((there, file.bytes))
        });
        let all: Vec<(bool, u64)> = sending.buffer_unordered(OBJECTS_AT_A_TIME).try_collect().await?;
        for (there, bytes) in all {
            if there {
                sent.there += 1;
            } else {
                sent.objects += 1;
                sent.bytes += bytes;
            }
        }
        Ok(())
    }

    /// Objects in the copy, by path.
    async fn files(&self, dirs: &'static [&'static str]) -> Result<Vec<StagedFile>> {
        let package_dir = self.package_dir.clone();
        files::blocking(move || {
            let mut found = Vec::new();
            for dir in dirs {
                let folder = package_dir.join(dir);
                let entries = match std::fs::read_dir(&folder) {
                    Ok(entries) => entries,
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(Error::local("list", &folder, e)),
                };
                for entry in entries {
                    let entry = entry.map_err(|e| Error::local("list", &folder, e))?;
                    let Ok(object) = ObjectPath::new(format!("{dir}/{}", entry.file_name().to_string_lossy())) else {
                        continue;
                    };
                    let bytes =
                        entry.metadata().map_err(|e| Error::local("read attributes of", entry.path(), e))?.len();
                    found.push(StagedFile { object, path: entry.path(), bytes });
                }
            }
            found.sort_by(|a, b| a.object.cmp(&b.object));
            Ok(found)
        })
        .await
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Nothing in it is needed; a failure leaves rubbish that the next publication of the package removes.
        let _ = std::fs::remove_dir_all(&self.content_root);
    }
}

/// An object in the copy.
struct StagedFile {
    object: ObjectPath,
    path: PathBuf,
    bytes: u64,
}

fn object(name: &str) -> ObjectPath {
    ObjectPath::new(name).expect("a plain name")
}
