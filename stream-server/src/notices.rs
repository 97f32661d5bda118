//! Noticing that a package changed, and telling everybody who listens: one broadcast for all protocols.
//!
//! A folder's changes are told by the system (inotify) and looked for besides, seldom where the system tells all, often
//! where it cannot: on a file system that other machines write to, or when it has no watches left. Elsewhere the packages
//! that somebody asked for are asked about.

mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use fs_core::ErrorKind;
use fs_core::backend::ObjectPath;
use fs_core::location::{Channel, PackageVersion};
use fs_core::trust::HEAD_OBJECT;

use self::watch::Watch;
use crate::content::{Content, PackagePath, Stamp, stamps};

/// How often a folder is looked through whose changes the system tells.
const WATCHED_INTERVAL: Duration = Duration::from_secs(30);
/// How often a folder is looked through whose changes it does not tell: news shall be out within a second.
const UNWATCHED_INTERVAL: Duration = Duration::from_millis(700);
/// How often an origin is asked, by one request for each package.
const ORIGIN_INTERVAL: Duration = Duration::from_secs(10);
/// Looking takes at most a part of the time: after a look there is a pause of this many times its duration.
const PAUSE_FACTOR: u32 = 10;
/// What belongs together comes within this time; then one look sees all of it.
const SETTLING: Duration = Duration::from_millis(30);
/// Longest pause for that; a large content root takes longer to look through.
const SETTLING_MAX: Duration = Duration::from_millis(500);
/// Notices that a listener may be behind before it misses some.
const BACKLOG: usize = 256;

/// A package's metadata changed: there is a new version, or a channel points elsewhere, or one was revoked.
#[derive(Debug, Clone)]
pub(crate) struct NewVersion {
    /// Which package.
    pub(crate) package: PackagePath,
    /// Names its new state.
    pub(crate) tag: String,
    /// Where its channels point now. Unverified.
    pub(crate) channels: Arc<BTreeMap<Channel, PackageVersion>>,
}

/// Where notices are heard. Clones are the same.
#[derive(Clone)]
pub(crate) struct Notices {
    sender: broadcast::Sender<NewVersion>,
    packages: Arc<RwLock<Arc<[PackagePath]>>>,
}

/// The noticing; ends when it is dropped.
pub(crate) struct Noticing(JoinHandle<()>);

impl Drop for Noticing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Notices {
    /// Nothing is noticed yet.
    pub(crate) fn new() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG), packages: Arc::new(RwLock::new(Arc::new([]))) }
    }

    /// Hears of every change from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<NewVersion> {
        self.sender.subscribe()
    }

    /// The packages that there were at the last look, by name.
    pub(crate) fn packages(&self) -> Arc<[PackagePath]> {
        self.packages.read().clone()
    }

    /// Begins to notice what changes in `content`. `interval` is how often to look where the system tells nothing.
    pub(crate) fn start(&self, content: Content, interval: Option<Duration>) -> Noticing {
        let notices = self.clone();
        Noticing(match content.folder().map(Path::to_owned) {
            Some(folder) => {
                let interval = interval.unwrap_or(UNWATCHED_INTERVAL);
                tokio::spawn(async move { Looking { notices, content, seen: BTreeMap::new() }.told(folder, interval).await })
            }
            None => {
                let interval = interval.unwrap_or(ORIGIN_INTERVAL);
                tokio::spawn(async move { notices.ask(content, interval).await })
            }
        })
    }

    /// Tells all who listen of the state that `package` has now.
    async fn tell(&self, content: &Content, package: &PackagePath) -> fs_core::Result<()> {
        let known = match content.known(package).await {
            Ok(known) => known,
            // It went as it came.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        tracing::info!(%package, "the package changed");
        let channels = Arc::new(known.catalog.channels.clone());
        // It fails if nobody listens.
        let _ = self.sender.send(NewVersion { package: package.clone(), tag: known.tag.clone(), channels });
        Ok(())
    }

    /// Asks an origin for the state of what was asked for, again and again.
    async fn ask(&self, content: Content, interval: Duration) {
        let head = ObjectPath::new(HEAD_OBJECT).expect("a plain name");
        let mut seen: BTreeMap<PackagePath, String> = BTreeMap::new();
        loop {
            tokio::time::sleep(interval).await;
            let packages = content.asked_for();
            seen.retain(|package, _| packages.contains(package));
            for package in &packages {
                let tag = match content.object(package, &head).await {
                    Ok(object) => object.tag(),
                    Err(error) => {
                        tracing::debug!(%package, %error, "cannot ask for its state");
                        continue;
                    }
                };
                if seen.get(package).is_some_and(|before| *before != tag)
                    && let Err(error) = self.tell(&content, package).await
                {
                    tracing::warn!(%package, %error, "the package changed, and what it says now cannot be read");
                    continue;
                }
                seen.insert(package.clone(), tag);
            }
            *self.packages.write() = packages.into();
        }
    }
}

/// Looking through a folder.
struct Looking {
    notices: Notices,
    content: Content,
    /// What was there at the last look, and was told.
    seen: BTreeMap<PackagePath, Stamp>,
}

impl Looking {
    /// Told by the system, if it does that here.
    async fn told(self, folder: PathBuf, unwatched: Duration) {
        let watch = Watch::open(&folder).inspect_err(|error| not_told(&folder, error)).ok();
        self.at(folder, watch, unwatched).await;
    }

    async fn at(mut self, folder: PathBuf, mut watch: Option<Watch>, unwatched: Duration) {
        let mut first = true;
        loop {
            let begun = Instant::now();
            let mut again = false;
            let root = folder.clone();
            match tokio::task::spawn_blocking(move || stamps(&root)).await {
                Ok(Ok(found)) => {
                    match watch.as_mut().map(|watch| watch.follow(&found)) {
                        // What appeared there before it was watched was not told.
                        Some(Ok(new)) => again = new,
                        Some(Err(error)) => {
                            not_told(&folder, &error);
                            watch = None;
                        }
                        None => {}
                    }
                    self.compare(found.packages, first).await;
                    first = false;
                }
                Ok(Err(error)) => tracing::warn!(folder = %folder.display(), %error, "cannot look for new versions"),
                // The runtime is shutting down.
                Err(_) => return,
            }
            if again {
                continue;
            }
            let took = begun.elapsed();
            let told_all = watch.as_ref().is_some_and(Watch::tells_all);
            let interval = if told_all { WATCHED_INTERVAL.max(unwatched) } else { unwatched };
            let told = async {
                match &mut watch {
                    Some(watch) => watch.something().await,
                    None => std::future::pending().await,
                }
            };
            match tokio::time::timeout(interval.max(took * PAUSE_FACTOR), told).await {
                Ok(Ok(())) => tokio::time::sleep(SETTLING.max(took * 2).min(SETTLING_MAX)).await,
                Ok(Err(error)) => {
                    not_told(&folder, &error);
                    watch = None;
                }
                Err(_) => {}
            }
        }
    }

    /// Tells of what is not as it was.
    async fn compare(&mut self, found: BTreeMap<PackagePath, Stamp>, first: bool) {
        *self.notices.packages.write() = found.keys().cloned().collect();
        self.seen.retain(|package, _| found.contains_key(package));
        for (package, stamp) in found {
            let changed = self.seen.get(&package).is_none_or(|before| before.differs(&stamp));
            if changed
                && !first
                && let Err(error) = self.notices.tell(&self.content, &package).await
            {
                // It is told when it can be read.
                tracing::warn!(%package, %error, "the package changed, and what it says now cannot be read");
                continue;
            }
            self.seen.insert(package, stamp);
        }
    }
}

fn not_told(folder: &Path, error: &std::io::Error) {
    tracing::warn!(folder = %folder.display(), %error, "the system does not tell of changes; looking for them often instead");
}

#[cfg(test)]
mod tests;
