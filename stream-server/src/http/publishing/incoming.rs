//! An object on its way in: to a file beside its place, hashed as it comes, and renamed into its place only if the hash is
//! its name. What is left of a transfer that broke off with the server is in `.incoming`, where `streamfs gc` finds it.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use fs_core::backend::ObjectPath;
use fs_core::package::collect::INCOMING_DIR;
use fs_core::package::descriptor::DESCRIPTOR_MAX_BYTES;
use fs_core::package::launch::LAUNCH_OBJECT_MAX_BYTES;
use fs_core::package::profile::PROFILE_MAX_BYTES;
use fs_core::package::{LAUNCH_DIR, PACK_DIR, PROFILE_DIR, TREE_DIR};
use fs_core::trust::DESCRIPTOR_DIR;

/// Publishers close packs at 64 MiB.
const PACK_MAX_BYTES: u64 = 1 << 30;
/// Some hundred bytes for each of the most nodes that a version can have would be more; a million nodes take 60 MiB.
const TREE_MAX_BYTES: u64 = 16 << 30;
/// What stays free: a full disk is trouble for more than publishers.
const KEEP_FREE_BYTES: u64 = 64 << 20;
/// Pieces that wait for the disk.
const PIECES_MAX: usize = 8;
/// Digits of BLAKE3-256 and SHA-256.
const DIGITS: usize = 64;

/// What the name of an object says of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ObjectName {
    hash: String,
    kind: Hashing,
    limit_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hashing {
    Blake3,
    Sha256,
}

impl ObjectName {
    /// `None` if it is not named by the hash of its bytes.
    pub(super) fn of(object: &ObjectPath) -> Option<Self> {
        let (folder, name) = object.as_str().split_once('/')?;
        let (hash, kind, limit_bytes) = match folder {
            PACK_DIR => (name, Hashing::Blake3, PACK_MAX_BYTES),
            TREE_DIR => (name, Hashing::Blake3, TREE_MAX_BYTES),
            LAUNCH_DIR => (name, Hashing::Blake3, LAUNCH_OBJECT_MAX_BYTES),
            PROFILE_DIR => (name, Hashing::Blake3, PROFILE_MAX_BYTES as u64),
            DESCRIPTOR_DIR => {
                let (hash, version) = name.strip_suffix(".json")?.split_once('.')?;
                version.parse::<fs_core::location::PackageVersion>().ok()?;
                (hash, Hashing::Sha256, DESCRIPTOR_MAX_BYTES)
            }
            _ => return None,
        };
        let is_hash = hash.len() == DIGITS && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_hash.then(|| Self { hash: hash.to_owned(), kind, limit_bytes })
    }

    /// Longest object of its kind.
    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }
}

/// Why an object is not kept.
#[derive(Debug)]
pub(super) enum NotKept {
    /// The hash of its bytes is not its name.
    Damaged,
    /// Other bytes came than were announced.
    OtherLength,
    /// The disk is full.
    Full,
    /// Nothing can be written there.
    ReadOnly,
    /// The disk failed.
    Failed(io::Error),
}

impl NotKept {
    pub(super) fn from_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => NotKept::Full,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => NotKept::ReadOnly,
            _ => NotKept::Failed(io::Error::new(error.kind(), error.to_string())),
        }
    }
}

/// An object that is coming in. Dropped before it is finished, nothing of it stays.
pub(super) struct Incoming {
    pieces: mpsc::Sender<Bytes>,
    writing: JoinHandle<Result<bool, NotKept>>,
}

impl Incoming {
    /// Makes room for `length` bytes of `object` in the package's folder, which is made if it is not there.
    pub(super) async fn begin(
        folder: &Path,
        object: &ObjectPath,
        name: ObjectName,
        length: u64,
    ) -> Result<Self, NotKept> {
        let (folder, target) = (folder.to_owned(), folder.join(object.as_str()));
        let opened = tokio::task::spawn_blocking(move || Scratch::make(&folder, length));
        let scratch = opened.await.map_err(|_| stopping())?.map_err(|e| NotKept::from_io(&e))?;
        let (pieces, coming) = mpsc::channel(PIECES_MAX);
        let writing = tokio::task::spawn_blocking(move || keep(scratch, &target, &name, length, coming));
        Ok(Self { pieces, writing })
    }

    pub(super) async fn write(&mut self, piece: Bytes) -> Result<(), NotKept> {
        if piece.is_empty() {
            return Ok(());
        }
        match self.pieces.send(piece).await {
            Ok(()) => Ok(()),
            // The writer ended, and says why.
            Err(_) => Err(match (&mut self.writing).await {
                Ok(Err(why)) => why,
                Ok(Ok(_)) | Err(_) => stopping(),
            }),
        }
    }

    /// All came: puts it into its place; tells whether it was not there before.
    pub(super) async fn finish(self) -> Result<bool, NotKept> {
        // An empty piece says that this is the end, and not that somebody went away.
        let _ = self.pieces.send(Bytes::new()).await;
        self.writing.await.unwrap_or_else(|_| Err(stopping()))
    }
}

fn stopping() -> NotKept {
    NotKept::Failed(io::Error::other("the server is ending"))
}

/// A file that goes when it is dropped, unless it was put into its place.
struct Scratch {
    file: File,
    path: PathBuf,
}

impl Scratch {
    fn make(folder: &Path, length: u64) -> io::Result<Self> {
        let incoming = folder.join(INCOMING_DIR);
        std::fs::create_dir_all(&incoming)?;
        let space = rustix::fs::statvfs(&incoming)?;
        if !has_room(space.f_bavail.saturating_mul(space.f_frsize), length) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let path = incoming.join(format!("{:032x}", rand::random::<u128>()));
        let file = File::options().write(true).create_new(true).open(&path)?;
        Ok(Self { file, path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It was renamed, or a collector finds it.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn has_room(free_bytes: u64, length: u64) -> bool {
    length.checked_add(KEEP_FREE_BYTES).is_some_and(|wanted| free_bytes >= wanted)
}

fn keep(
    mut scratch: Scratch,
    target: &Path,
    name: &ObjectName,
    length: u64,
    mut coming: mpsc::Receiver<Bytes>,
) -> Result<bool, NotKept> {
    let (mut blake3, mut sha256, mut came) = (blake3::Hasher::new(), Sha256::new(), 0u64);
    let mut ended = false;
    while let Some(piece) = coming.blocking_recv() {
        if piece.is_empty() {
            ended = true;
            break;
        }
        came += piece.len() as u64;
        if came > length {
            return Err(NotKept::OtherLength);
        }
        match name.kind {
            Hashing::Blake3 => drop(blake3.update(&piece)),
            Hashing::Sha256 => sha256.update(&piece),
        }
        scratch.file.write_all(&piece).map_err(|e| NotKept::from_io(&e))?;
    }
    if !ended || came != length {
        return Err(NotKept::OtherLength);
    }
    let hash = match name.kind {
        Hashing::Blake3 => blake3.finalize().to_hex().to_string(),
        Hashing::Sha256 => sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    if hash != name.hash {
        return Err(NotKept::Damaged);
    }
    place(&scratch, target).map_err(|e| NotKept::from_io(&e))
}

/// Renames it into its place, for good; tells whether nothing was there.
fn place(scratch: &Scratch, target: &Path) -> io::Result<bool> {
    scratch.file.sync_all()?;
    let folder = target.parent().expect("an object is in a folder");
    std::fs::create_dir_all(folder)?;
    let new = !target.exists();
    // What is there under this name may be damaged; these bytes are not.
    std::fs::rename(&scratch.path, target)?;
    File::open(folder)?.sync_all()?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &str) -> Option<ObjectName> {
        ObjectName::of(&ObjectPath::new(path).unwrap())
    }

    #[test]
    fn only_what_is_named_by_its_hash_is_taken() {
        let hash = "0a".repeat(32);
        for folder in ["packs", "trees", "launch", "profiles"] {
            assert!(name(&format!("{folder}/{hash}")).is_some(), "{folder}");
        }
        assert!(name(&format!("descriptors/{hash}.1.0.json")).is_some_and(|name| name.kind == Hashing::Sha256));
        for path in [
            "head".to_owned(),
            "metadata/timestamp.json".to_owned(),
            format!("metadata/{hash}"),
            format!("packs/{}", hash.to_uppercase()),
            format!("packs/{}", &hash[1..]),
            format!("packs/{hash}.1"),
            format!("descriptors/{hash}"),
            format!("descriptors/{hash}.json"),
        ] {
            assert_eq!(name(&path), None, "{path}");
        }
    }

    #[test]
    fn a_disk_is_never_filled_to_the_brim() {
        assert!(has_room(KEEP_FREE_BYTES + 10, 10));
        assert!(!has_room(KEEP_FREE_BYTES + 9, 10));
        assert!(!has_room(u64::MAX, u64::MAX));
    }

    async fn bring(folder: &Path, content: &[u8], pieces: &[&[u8]]) -> Result<bool, NotKept> {
        let object = ObjectPath::new(format!("packs/{}", blake3::hash(content).to_hex())).unwrap();
        let name = ObjectName::of(&object).unwrap();
        let mut incoming = Incoming::begin(folder, &object, name, content.len() as u64).await?;
        for piece in pieces {
            incoming.write(Bytes::copy_from_slice(piece)).await?;
        }
        incoming.finish().await
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for sub in ["packs", INCOMING_DIR] {
            let entries = std::fs::read_dir(folder.join(sub)).into_iter().flatten().flatten();
            found.extend(entries.map(|entry| entry.file_name().into_string().unwrap()));
        }
        found
    }

    #[tokio::test]
    async fn whole_objects_are_kept_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for (pieces, why) in [
            (&[&b"con"[..], b"tents"][..], "damaged"),
            (&[b"con"], "short"),
            (&[b"contents", b"and more"], "long"),
            (&[], "nothing"),
        ] {
            assert!(bring(dir.path(), b"content!", pieces).await.is_err(), "{why}");
            assert_eq!(files(dir.path()), Vec::<String>::new(), "{why}");
        }
        assert!(bring(dir.path(), b"content!", &[b"con", b"tent!"]).await.unwrap());
        let kept = files(dir.path());
        assert_eq!(kept, [blake3::hash(b"content!").to_hex().to_string()]);
        // What was damaged on the disk is mended.
        std::fs::write(dir.path().join("packs").join(&kept[0]), "other").unwrap();
        assert!(!bring(dir.path(), b"content!", &[b"content!"]).await.unwrap());
        assert_eq!(std::fs::read(dir.path().join("packs").join(&kept[0])).unwrap(), b"content!");
    }

    #[tokio::test]
    async fn who_goes_away_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let object = ObjectPath::new(format!("packs/{}", "0a".repeat(32))).unwrap();
        let mut incoming = Incoming::begin(dir.path(), &object, ObjectName::of(&object).unwrap(), 10).await.unwrap();
        incoming.write(Bytes::from_static(b"half")).await.unwrap();
        assert_eq!(files(dir.path()).len(), 1, "its scratch file");
        let Incoming { pieces, writing } = incoming;
        drop(pieces);
        assert!(matches!(writing.await.unwrap(), Err(NotKept::OtherLength)));
        assert!(files(dir.path()).is_empty());
    }
}
