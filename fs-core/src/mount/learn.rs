//! What launches on this machine read, kept for the next one.
//!
//! One file for each package, readable by its owner only:
//!
//! ```text
//! CACHE/learned/<hash of the package's location>
//! {"streamfs_learned":1,"package":"https://h/c/app","launches":2}
//! {"path":"/bin/app","at":0,"bytes":4096,"missed":0}
//! ```
//!
//! It speaks of paths, so it fits later versions, and it is kept apart from blocks, so evicting those does not touch it.
//! A launch adds what it read; what several launches in a row did not read is dropped. A file that cannot be used is
//! as good as none.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Mount;
use super::observe::Observer;
use super::prefetch::Assistance;
use super::prefetch::plan::PathRange;
use super::record::{Covered, Recorder};
use crate::error::{Error, Result};
use crate::package::Hash;
use crate::package::profile::{Profile, Use};
use crate::trust::files::{self, Access};

/// Format of the files.
const FORMAT: u64 = 1;
/// Most bytes of one file: some 50,000 ranges.
const FILE_MAX_BYTES: u64 = 8 << 20;
/// Most ranges in one file.
const RANGES_MAX: usize = 50_000;
/// Most files; the one that was written longest ago goes first.
const FILES_MAX: usize = 256;
/// What so many launches in a row did not read is forgotten.
const MISSED_MAX: u64 = 3;
/// What read fewer files was no launch.
const LAUNCH_FILES_MIN: u64 = 3;
/// No launch is recorded for longer.
const RECORD_MAX: Duration = Duration::from_secs(120);

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    streamfs_learned: u64,
    package: String,
    launches: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    path: PathForm,
    at: u64,
    bytes: u64,
    missed: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PathForm {
    Path(String),
    PathHex(String),
}

impl PathForm {
    fn of(path: &[u8]) -> Self {
        match std::str::from_utf8(path) {
            Ok(text) => PathForm::Path(text.to_owned()),
            Err(_) => PathForm::PathHex(hex::encode(path)),
        }
    }

    fn bytes(&self) -> Option<Bytes> {
        match self {
            PathForm::Path(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
            PathForm::PathHex(digits) => hex::decode(digits).ok().map(Bytes::from),
        }
    }
}

/// What launches of one package read.
#[derive(Debug, Default, PartialEq, Eq)]
struct LearnedSet {
    launches: u64,
    /// In order of first use, each with how many launches in a row did not read it.
    ranges: Vec<(PathRange, u64)>,
}

impl LearnedSet {
    /// Adds a launch: its order counts, and what only earlier ones read comes after it.
    fn add(&mut self, launch: &Profile) {
        let mut covered: HashMap<Bytes, Covered> = HashMap::new();
        let mut ranges = Vec::new();
        for event in &launch.events {
            let Use::Read { offset, length } = event.use_ else { continue };
            let new = covered.entry(event.path.clone()).or_default().add(offset, offset.saturating_add(length));
            ranges.extend(new.into_iter().map(|(s, e)| (PathRange { path: event.path.clone(), range: s..e }, 0)));
        }
        for (earlier, missed) in std::mem::take(&mut self.ranges) {
            if missed + 1 >= MISSED_MAX {
                continue;
            }
            let left = covered.entry(earlier.path.clone()).or_default().add(earlier.range.start, earlier.range.end);
            let path = &earlier.path;
            ranges.extend(left.into_iter().map(|(s, e)| (PathRange { path: path.clone(), range: s..e }, missed + 1)));
        }
        ranges.truncate(RANGES_MAX);
        self.ranges = ranges;
        self.launches += 1;
    }

    fn to_bytes(&self, package_key: &str) -> Vec<u8> {
        let header = Header { streamfs_learned: FORMAT, package: package_key.to_owned(), launches: self.launches };
        let mut out = serde_json::to_vec(&header).expect("it has only string keys");
        out.push(b'\n');
        for (PathRange { path, range }, missed) in &self.ranges {
            let line =
                Line { path: PathForm::of(path), at: range.start, bytes: range.end - range.start, missed: *missed };
            let line = serde_json::to_vec(&line).expect("it has only string keys");
            if out.len() + line.len() + 1 > FILE_MAX_BYTES as usize {
                break;
            }
            out.extend_from_slice(&line);
            out.push(b'\n');
        }
        out
    }

    /// Reads the form; the reason if it is none.
    fn parse(bytes: &[u8], package_key: &str) -> std::result::Result<Self, String> {
        let mut lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let header = lines.next().ok_or("it is empty")?;
        let header: Header = serde_json::from_slice(header).map_err(|e| e.to_string())?;
        if header.streamfs_learned != FORMAT {
            return Err(format!("its format is {}, not {FORMAT}", header.streamfs_learned));
        }
        if header.package != package_key {
            return Err("it is another package's".to_owned());
        }
        let mut ranges = Vec::new();
        for line in lines.take(RANGES_MAX) {
            let line: Line = serde_json::from_slice(line).map_err(|e| e.to_string())?;
            let path = line.path.bytes().ok_or("a path is unreadable")?;
            let end = line.at.checked_add(line.bytes).ok_or("a range is too long")?;
            ranges.push((PathRange { path, range: line.at..end }, line.missed));
        }
        Ok(Self { launches: header.launches, ranges })
    }
}

/// The learned sets of one cache directory.
#[derive(Debug)]
pub(super) struct LearnedSets {
    dir: PathBuf,
    /// Held while a set is read, added to, and written.
    changing: Mutex<()>,
}

impl LearnedSets {
    pub(super) fn new(cache_dir: &Path) -> Arc<Self> {
        Arc::new(Self { dir: cache_dir.join("learned"), changing: Mutex::default() })
    }

    fn path(&self, package_key: &str) -> PathBuf {
        self.dir.join(Hash::of(package_key.as_bytes()).to_string())
    }

    /// What earlier launches of the package read, in order; nothing if nothing is known.
    pub(super) async fn ranges(self: &Arc<Self>, package_key: &str) -> Vec<PathRange> {
        let (this, key) = (self.clone(), package_key.to_owned());
        let read = tokio::task::spawn_blocking(move || this.read(&key)).await.unwrap_or_default();
        read.ranges.into_iter().map(|(range, _)| range).collect()
    }

    fn read(&self, package_key: &str) -> LearnedSet {
        let path = self.path(package_key);
        let mut bytes = Vec::new();
        let read = std::fs::File::open(&path).and_then(|file| file.take(FILE_MAX_BYTES).read_to_end(&mut bytes));
        let parsed = match read {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return LearnedSet::default(),
            Err(e) => Err(e.to_string()),
            Ok(_) => LearnedSet::parse(&bytes, package_key),
        };
        parsed.unwrap_or_else(|reason| {
            tracing::warn!("what was learned of {package_key} ({}) is not used: {reason}", path.display());
            LearnedSet::default()
        })
    }

    /// Adds a launch of the package.
    fn add(&self, package_key: &str, launch: &Profile) -> Result<()> {
        let _changing = self.changing.lock();
        let mut set = self.read(package_key);
        set.add(launch);
        files::create_dir(&self.dir, Access::Private)?;
        files::write_atomic(&self.path(package_key), &set.to_bytes(package_key), Access::Private)?;
        self.drop_oldest()
    }

    fn drop_oldest(&self) -> Result<()> {
        let entries = std::fs::read_dir(&self.dir).map_err(|e| Error::local("list", &self.dir, e))?;
        let mut all: Vec<_> =
            entries.flatten().filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path()))).collect();
        all.sort();
        for (_, path) in all.iter().take(all.len().saturating_sub(FILES_MAX)) {
            std::fs::remove_file(path).map_err(|e| Error::local("remove", path, e))?;
        }
        Ok(())
    }
}

/// Records the first launch of a mount.
pub(super) struct Learner;

impl Learner {
    /// Watches `mount` from now on, until its launch is over.
    pub(super) fn begin(mount: &Arc<Mount>, assistance: Arc<Assistance>, sets: Arc<LearnedSets>) {
        let recorder = Arc::new(Recorder::for_learning());
        let observer: Arc<dyn Observer> = recorder.clone();
        mount.watch(observer.clone());
        let weak = Arc::downgrade(mount);
        mount.fetcher.runtime().spawn(async move {
            assistance.first_read.notified().await;
            // From here on it is kept until the recording is written: a short-lived program unmounts before that.
            let Some(mount) = weak.upgrade() else { return };
            let began = Instant::now();
            loop {
                let left = assistance.policy().quiet.saturating_sub(assistance.quiet_for());
                if left.is_zero() || began.elapsed() >= RECORD_MAX {
                    break;
                }
                tokio::time::sleep(left.max(Duration::from_millis(1))).await;
            }
            mount.unwatch(&observer);
            if recorder.totals().files_read < LAUNCH_FILES_MIN {
                return;
            }
            let key = mount.identity.package_key();
            let launch = recorder.profile(&mount, "learned");
            let kept = tokio::task::spawn_blocking(move || sets.add(&key, &launch)).await;
            match kept {
                Ok(Ok(())) => drop(assistance.learned_now.send_replace(true)),
                Ok(Err(error)) => tracing::warn!("a launch cannot be learned: {error}"),
                // The runtime is shutting down.
                Err(_) => {}
            }
        });
    }
}

#[cfg(test)]
mod tests;
