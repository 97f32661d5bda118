//! Being told by the system that something changed below a content root (inotify).
//!
//! Watched are the folders in which packages may appear, each package's own and that of its metadata: a few for each
//! package, none of those that hold its many objects.

use std::collections::{HashMap, HashSet};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use fs_core::trust::{HEAD_OBJECT, METADATA_DIR};

use crate::content::Stamps;

/// File systems that others may write to without this machine's system knowing, by what `statfs` calls them: NFS, SMB,
/// CIFS, SMB2, FUSE, AFS, Ceph, 9P, GFS2, OCFS2, Lustre, Coda.
const SHARED_KINDS: [u64; 12] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x6573_5546,
    0x5346_414f,
    0x00c3_6400,
    0x0102_1997,
    0x0116_1970,
    0x7461_636f,
    0x0bd0_0bd0,
    0x7375_7245,
];

/// What a watched folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Packages may appear in it.
    Between,
    /// A package's.
    Package,
    /// A package's metadata.
    Metadata,
}

/// Folders that the system tells about.
pub(super) struct Watch {
    queue: AsyncFd<OwnedFd>,
    /// By path, so that a folder with two (through a link) is not taken for new again and again.
    numbers: HashMap<PathBuf, (i32, Kind)>,
    folders: HashMap<i32, (PathBuf, Kind)>,
    tells_all: bool,
}

impl Watch {
    /// Nothing is watched yet of what is below `root`.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let kind = (rustix::fs::statfs(root)?.f_type as u64) & 0xffff_ffff;
        Ok(Self {
            queue: AsyncFd::with_interest(queue, Interest::READABLE)?,
            numbers: HashMap::new(),
            folders: HashMap::new(),
            tells_all: !SHARED_KINDS.contains(&kind),
        })
    }

    /// Whether the system knows of everything that changes.
    pub(super) fn tells_all(&self) -> bool {
        self.tells_all
    }

    /// Watches what was found, and nothing else; tells whether something of it was not watched before.
    ///
    /// # Errors
    /// If the system has no more watches.
    pub(super) fn follow(&mut self, found: &Stamps) -> io::Result<bool> {
        let root = found.between.first().cloned().unwrap_or_default();
        let between = found.between.iter().map(|folder| (folder.clone(), Kind::Between));
        let packages = found.packages.keys().flat_map(|package| {
            let folder = root.join(package.as_str());
            [(folder.join(METADATA_DIR), Kind::Metadata), (folder, Kind::Package)]
        });
        let wanted: Vec<(PathBuf, Kind)> = between.chain(packages).collect();
        let paths: HashSet<&PathBuf> = wanted.iter().map(|(path, _)| path).collect();
        let gone: Vec<PathBuf> = self.numbers.keys().filter(|path| !paths.contains(path)).cloned().collect();
        for path in gone {
            self.forget(&path);
        }
        let mut new = false;
        for (path, kind) in wanted {
            if self.numbers.get(&path).is_some_and(|(_, was)| *was == kind) {
                continue;
            }
            let flags = WatchFlags::CREATE
                | WatchFlags::MOVED_TO
                | WatchFlags::MOVED_FROM
                | WatchFlags::DELETE
                | WatchFlags::CLOSE_WRITE
                | WatchFlags::ONLYDIR;
            match inotify::add_watch(&self.queue, &path, flags) {
                Ok(number) => {
                    self.numbers.insert(path.clone(), (number, kind));
                    self.folders.insert(number, (path, kind));
                    new = true;
                }
                // It went meanwhile, or a package without metadata of its own.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::ACCESS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(new)
    }

    fn forget(&mut self, path: &Path) {
        if let Some((number, _)) = self.numbers.remove(path) {
            self.folders.remove(&number);
            // It fails if the system has forgotten it, too.
            let _ = inotify::remove_watch(&self.queue, number);
        }
    }

    /// Waits until something happened that may be a change of a package.
    ///
    /// # Errors
    /// If the system's queue cannot be read.
    pub(super) async fn something(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.queue.readable().await?;
            let mut told = false;
            let mut memory = [MaybeUninit::uninit(); 8192];
            let mut reader = Reader::new(ready.get_inner(), &mut memory);
            loop {
                match reader.next() {
                    Ok(event) => {
                        let number = event.wd();
                        if event.events().contains(ReadFlags::IGNORED) {
                            // The folder is gone. One that comes at its place is watched anew.
                            if let Some((path, _)) = self.folders.remove(&number) {
                                self.numbers.remove(&path);
                            }
                            told = true;
                        } else if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                            told = true;
                        } else if let Some((_, kind)) = self.folders.get(&number) {
                            told |= concerns(*kind, event.file_name().map_or(b"", |name| name.to_bytes()));
                        }
                    }
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            if told {
                return Ok(());
            }
        }
    }
}

/// Whether what happened to `name` in such a folder may be a change of a package.
fn concerns(kind: Kind, name: &[u8]) -> bool {
    match kind {
        Kind::Between => !name.starts_with(b"."),
        Kind::Package => name == HEAD_OBJECT.as_bytes() || name == METADATA_DIR.as_bytes(),
        Kind::Metadata => name == b"timestamp.json",
    }
}
