//! What is mounted where, which channel it follows, and which old versions still have users.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use fs_core::config::OriginTable;
use fs_core::location::{DEFAULT_CHANNEL, PackageLocation, Selector};
use fs_core::mount::Mount;
use fs_core::mount::host::{Host, LoadWish, Pinned};
use fs_core::mount::launch::LaunchChoice;
use fs_core::mount::prefetch::PrefetchPolicy;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::mounts::{LiveMount, Mounting};
use super::poll;
use super::protocol::{Watch, WirePath};
use super::watching::Watching;
use crate::commands::mount::OpenAnswer;
use crate::commands::status::{MountState, MountStatus};
use crate::trust_report::{FreshnessReport, TrustReport};

/// What to mount, and how.
#[derive(Clone)]
pub(crate) struct MountWish {
    pub(crate) location: PackageLocation,
    pub(crate) trust_root: Option<PathBuf>,
    pub(crate) allow_other: bool,
    pub(crate) open_policy: Option<OpenAnswer>,
    pub(crate) launch: LaunchChoice,
    pub(crate) watch: Option<Watch>,
    pub(crate) prefetch: PrefetchPolicy,
    /// Set to bring the whole version while it is mounted.
    pub(crate) background_load: Option<LoadWish>,
    pub(crate) poll_interval: Duration,
    /// Deadline of its reads, to be kept when it is remounted.
    pub(crate) read_deadline: Duration,
}

/// A directory of ours.
pub(crate) struct Entry {
    pub(crate) dir: PathBuf,
    wish: MountWish,
    /// Set if it was mounted to be watched.
    watching: Option<Arc<Watching>>,
    shown: Mutex<Shown>,
    /// What is known of the package since it was asked for last.
    news: Mutex<News>,
    ended: watch::Sender<bool>,
}

/// What the directory shows at present.
#[derive(Clone)]
struct Shown {
    location: PackageLocation,
    mount: Arc<Mount>,
    live: Arc<LiveMount>,
    since: SystemTime,
}

/// What is known of newer versions, and of the one that is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) newer: Option<String>,
    pub(crate) freshness: FreshnessReport,
    pub(crate) revoked: bool,
}

impl From<&TrustReport> for News {
    fn from(trust: &TrustReport) -> Self {
        Self { newer: None, freshness: trust.freshness.clone(), revoked: trust.revoked }
    }
}

/// An old version that somebody still uses.
struct Draining {
    dir: PathBuf,
    shown: Shown,
}

/// What became of a remount.
pub(crate) enum Remounted {
    /// Another version is shown now.
    Changed { from: String },
    /// The newest was shown already.
    Newest,
    /// The mount follows no channel.
    Fixed,
}

/// All mounts of one agent.
pub(crate) struct Table {
    host: Arc<Host>,
    mounting: Mounting,
    origins: OriginTable,
    entries: Mutex<BTreeMap<PathBuf, Arc<Entry>>>,
    draining: Mutex<Vec<Draining>>,
    /// Mounts change one at a time: what stands where must not change between looking and acting.
    changing: tokio::sync::Mutex<()>,
    activity: watch::Sender<()>,
}

impl Shown {
    /// The channel that is followed; `None` if the version was named itself.
    fn follows(&self) -> Option<&str> {
        let name = self.location.selector.as_ref().map_or(DEFAULT_CHANNEL, Selector::as_str);
        // A version of that name goes before a channel, so a channel is never named like the version it shows.
        (name != self.mount.identity().version).then_some(name)
    }
}

impl Entry {
    pub(crate) fn poll_interval(&self) -> Duration {
        self.wish.poll_interval
    }

    /// What to ask about, the version shown, and whether a channel is followed.
    pub(crate) fn watched(&self) -> (PackageLocation, String, bool) {
        let shown = self.shown.lock();
        (shown.location.clone(), shown.mount.identity().version.clone(), shown.follows().is_some())
    }

    pub(crate) fn news(&self) -> News {
        self.news.lock().clone()
    }

    pub(crate) fn learn(&self, news: News) {
        *self.news.lock() = news;
    }

    /// Deadline of its reads.
    pub(crate) fn read_deadline(&self) -> Duration {
        self.wish.read_deadline
    }

    /// What was seen of it, if it was mounted to be watched.
    pub(crate) fn watching(&self) -> anyhow::Result<Arc<Watching>> {
        self.watching.clone().ok_or_else(|| anyhow!("the mount at {} is not being recorded", self.dir.display()))
    }

    /// Waits until nothing of ours stands at the directory any more.
    pub(crate) async fn gone(&self) {
        // The sender lives in `self`, so waiting ends by the value only.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    pub(crate) fn status(&self) -> MountStatus {
        let News { newer, freshness, revoked } = self.news();
        let shown = self.shown.lock().clone();
        // A read that failed knows sooner than the next question for newer versions.
        let failure = shown.mount.metrics().last_failure.filter(|failure| failure.is_away);
        let freshness = match failure {
            Some(failure) if freshness.is_fresh() => FreshnessReport::offline(failure.reason),
            _ => freshness,
        };
        MountStatus { newer, freshness, revoked, ..status_of(&self.dir, &shown, MountState::Mounted) }
    }
}

fn status_of(dir: &Path, shown: &Shown, state: MountState) -> MountStatus {
    let identity = shown.mount.identity();
    MountStatus {
        dir: WirePath(dir.to_owned()),
        state,
        location: shown.location.to_string(),
        package: identity.package.clone(),
        version: identity.version.clone(),
        descriptor: identity.descriptor.clone(),
        origin: identity.origin.clone(),
        follows: shown.follows().map(str::to_owned),
        since: shown.since.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        newer: None,
        freshness: FreshnessReport::default(),
        revoked: false,
        statistics: statistics(&shown.mount),
    }
}

/// Counters of a mount, for those who ask for its status.
fn statistics(mount: &Mount) -> serde_json::Value {
    let mut all = serde_json::to_value(mount.metrics()).unwrap_or_default();
    if let Some(all) = all.as_object_mut() {
        all.insert("prefetch".to_owned(), serde_json::to_value(mount.prefetch_statistics()).unwrap_or_default());
    }
    all
}

impl Table {
    pub(crate) fn new(host: Arc<Host>, mounting: Mounting, origins: OriginTable) -> Arc<Self> {
        Arc::new(Self {
            host,
            mounting,
            origins,
            entries: Mutex::default(),
            draining: Mutex::default(),
            changing: tokio::sync::Mutex::new(()),
            activity: watch::Sender::new(()),
        })
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    pub(crate) fn mounting(&self) -> &Mounting {
        &self.mounting
    }

    pub(crate) fn origins(&self) -> &OriginTable {
        &self.origins
    }

    /// Changes whenever something was mounted or unmounted, or a connection ended.
    pub(crate) fn activity(&self) -> watch::Receiver<()> {
        self.activity.subscribe()
    }

    pub(crate) fn note_activity(&self) {
        self.activity.send_replace(());
    }

    /// Whether nothing of ours is mounted anywhere.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.lock().is_empty() && self.draining.lock().is_empty()
    }

    pub(crate) fn entry(&self, dir: &Path) -> anyhow::Result<Arc<Entry>> {
        let found = self.entries.lock().get(dir).cloned();
        found.ok_or_else(|| anyhow!("nothing of streamfs is mounted at {}; see: streamfs status", dir.display()))
    }

    /// Everything mounted, and everything old that is still in use.
    pub(crate) fn status(&self) -> Vec<MountStatus> {
        let mut all: Vec<_> = self.entries.lock().values().map(|entry| entry.status()).collect();
        all.extend(self.draining.lock().iter().map(|old| status_of(&old.dir, &old.shown, MountState::Draining)));
        all
    }

    /// Mounts what `wish` says at `dir`. Once the kernel has been asked, the work goes on even if the caller leaves,
    /// and is undone then.
    pub(crate) async fn mount(
        self: &Arc<Self>,
        dir: &Path,
        wish: MountWish,
    ) -> anyhow::Result<(Arc<Entry>, TrustReport)> {
        self.refuse_taken(dir)?;
        let (pinned, watching) = self.pin(&wish).await?;
        let trust = TrustReport::from(&pinned);
        let news = News::from(&trust);
        let (table, dir) = (self.clone(), dir.to_owned());
        let (answer, answered) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let result = table.attach(&dir, wish, pinned.mount, watching, news).await;
            if let Err(Ok(_)) = answer.send(result)
                && let Err(error) = table.unmount(&dir, true).await
            {
                tracing::warn!(dir = %dir.display(), %error, "cannot undo a mount whose request was cancelled");
            }
        });
        Ok((answered.await.context("mounting broke off")??, trust))
    }

    async fn pin(&self, wish: &MountWish) -> anyhow::Result<(Pinned, Option<Arc<Watching>>)> {
        let (location, trust_root) = (&wish.location, wish.trust_root.as_deref());
        let Some(watch) = wish.watch else {
            return Ok((self.host.pin_to_launch(location, trust_root, &wish.launch).await?, None));
        };
        let mut watching = None;
        let begin = |mount: &Arc<Mount>| watching = Some(Watching::begin(watch, mount));
        let pinned = self.host.pin_apart(location, trust_root, &wish.launch, begin).await?;
        Ok((pinned, watching))
    }

    fn refuse_taken(&self, dir: &Path) -> anyhow::Result<()> {
        let Some(entry) = self.entries.lock().get(dir).cloned() else { return Ok(()) };
        let shown = entry.status();
        bail!(
            "{} {} is mounted there already; use: streamfs remount, or streamfs unmount",
            shown.package,
            shown.version
        )
    }

    async fn attach(
        self: &Arc<Self>,
        dir: &Path,
        wish: MountWish,
        mount: Arc<Mount>,
        watching: Option<Arc<Watching>>,
        news: News,
    ) -> anyhow::Result<Arc<Entry>> {
        let _changing = self.changing.lock().await;
        self.refuse_taken(dir)?;
        self.help(&mount, &wish);
        let attached = self.mounting.attach(mount.clone(), dir, wish.allow_other, wish.open_policy, wish.watch);
        let live = Arc::new(attached.await?);
        let shown = Shown { location: wish.location.clone(), mount, live, since: SystemTime::now() };
        let entry = Arc::new(Entry {
            dir: dir.to_owned(),
            wish,
            watching,
            shown: Mutex::new(shown.clone()),
            news: Mutex::new(news),
            ended: watch::Sender::new(false),
        });
        self.entries.lock().insert(dir.to_owned(), entry.clone());
        self.note_activity();
        self.watch_end(&entry, &shown.live);
        poll::start(&self.host, &entry);
        self.begin_background_load(&entry);
        tracing::info!(dir = %dir.display(), location = %shown.location, version = %shown.mount.identity().version, "mounted");
        Ok(entry)
    }

    /// Forgets `live` when its last user is gone, and the directory if it was still shown there.
    fn watch_end(self: &Arc<Self>, entry: &Arc<Entry>, live: &Arc<LiveMount>) {
        let (table, entry, live) = (Arc::downgrade(self), entry.clone(), live.clone());
        tokio::spawn(async move {
            live.ended().await;
            let Some(table) = table.upgrade() else { return };
            // A remount may be exchanging it right now: what it was replaced by is known only afterwards.
            let _changing = table.changing.lock().await;
            table.draining.lock().retain(|old| !Arc::ptr_eq(&old.shown.live, &live));
            if Arc::ptr_eq(&entry.shown.lock().live, &live) {
                table.forget(&entry);
            }
            table.note_activity();
        });
    }

    fn forget(&self, entry: &Arc<Entry>) {
        let mut entries = self.entries.lock();
        if entries.get(&entry.dir).is_some_and(|known| Arc::ptr_eq(known, entry)) {
            entries.remove(&entry.dir);
            tracing::info!(dir = %entry.dir.display(), "unmounted");
        }
        drop(entries);
        entry.ended.send_replace(true);
    }

    /// Takes the mount at `dir` away; with `lazy` also if it is in use.
    pub(crate) async fn unmount(&self, dir: &Path, lazy: bool) -> anyhow::Result<()> {
        let _changing = self.changing.lock().await;
        let entry = self.entry(dir)?;
        let shown = entry.shown.lock().clone();
        // It counts as draining until its end is seen: at once, unless somebody uses it.
        self.draining.lock().push(Draining { dir: dir.to_owned(), shown: shown.clone() });
        if let Err(error) = shown.live.detach(lazy).await {
            self.draining.lock().retain(|old| !Arc::ptr_eq(&old.shown.live, &shown.live));
            return Err(error);
        }
        self.forget(&entry);
        self.note_activity();
        Ok(())
    }

    /// Helps launches from `mount`. What is recorded for a profile must be what the application asks for by itself.
    fn help(&self, mount: &Arc<Mount>, wish: &MountWish) {
        if wish.watch != Some(Watch::Record) && wish.launch != LaunchChoice::Off {
            self.host.help_launches(mount, wish.prefetch);
        }
    }

    fn begin_background_load(&self, entry: &Entry) {
        let Some(wish) = &entry.wish.background_load else { return };
        let mount = entry.shown.lock().mount.clone();
        if let Err(error) = self.host.begin_load(&mount, wish) {
            tracing::warn!(dir = %entry.dir.display(), %error, "the version is not loaded in the background");
        }
    }

    /// Ends what was to be loaded while the version was mounted, if it is not all here yet.
    pub(crate) fn stop_background_load(&self, entry: &Entry) {
        if entry.wish.background_load.is_some()
            && let Some(load) = self.host.load_of(&entry.shown.lock().mount)
        {
            load.stop();
        }
    }

    /// Takes everything away, waiting for nobody.
    pub(crate) async fn unmount_all(&self) {
        let dirs: Vec<PathBuf> = self.entries.lock().keys().cloned().collect();
        for dir in dirs {
            if self.unmount(&dir, false).await.is_ok() {
                continue;
            }
            if let Err(error) = self.unmount(&dir, true).await {
                tracing::warn!(dir = %dir.display(), error = format!("{error:#}"), "cannot unmount");
            }
        }
    }

    /// Shows the newest version of the followed channel at `dir`, or what `to` names.
    pub(crate) async fn remount(
        self: &Arc<Self>,
        dir: &Path,
        to: Option<Selector>,
        lazy: bool,
    ) -> anyhow::Result<(Arc<Entry>, Remounted, TrustReport)> {
        let entry = self.entry(dir)?;
        if entry.watching.is_some() {
            bail!("a launch is being recorded there, which one version belongs to");
        }
        let before = entry.shown.lock().clone();
        let location = match to {
            Some(selector) => PackageLocation { selector: Some(selector), ..before.location.clone() },
            None if before.follows().is_none() => return Ok((entry, Remounted::Fixed, TrustReport::default())),
            None => before.location.clone(),
        };
        let pinned = self.pin_newer(&location, &entry.wish).await?;
        let trust = TrustReport::from(&pinned);
        let news = News::from(&trust);
        let table = self.clone();
        // From here on the work is finished even if the caller leaves: a half exchanged mount helps nobody.
        let work = tokio::spawn(async move { table.exchange(entry, location, pinned.mount, news, lazy).await });
        let (entry, outcome) = work.await.context("remounting broke off")??;
        Ok((entry, outcome, trust))
    }

    /// Pins what a remount shows. A newer version need not have the launch set that was named for an older one.
    async fn pin_newer(&self, location: &PackageLocation, wish: &MountWish) -> anyhow::Result<Pinned> {
        let trust_root = wish.trust_root.as_deref();
        match self.host.pin_to_launch(location, trust_root, &wish.launch).await {
            Err(error @ fs_core::Error::InvalidInput(_)) if matches!(wish.launch, LaunchChoice::Named(_)) => {
                tracing::warn!(%error, "going on without launch set");
                Ok(self.host.pin(location, trust_root).await?)
            }
            pinned => Ok(pinned?),
        }
    }

    async fn exchange(
        self: Arc<Self>,
        entry: Arc<Entry>,
        location: PackageLocation,
        mount: Arc<Mount>,
        news: News,
        lazy: bool,
    ) -> anyhow::Result<(Arc<Entry>, Remounted)> {
        let _changing = self.changing.lock().await;
        let old = entry.shown.lock().clone();
        if *entry.ended.borrow() {
            bail!("it was unmounted meanwhile");
        }
        if old.mount.identity().descriptor == mount.identity().descriptor {
            // Naming a channel that shows the same version means following it from now on.
            entry.shown.lock().location = location;
            entry.learn(news);
            return Ok((entry, Remounted::Newest));
        }
        self.help(&mount, &entry.wish);
        let live = Arc::new(self.mounting.replace(&old.live, mount.clone(), lazy).await?);
        let shown = Shown { location, mount, live: live.clone(), since: SystemTime::now() };
        *entry.shown.lock() = shown;
        self.begin_background_load(&entry);
        entry.learn(news);
        let from = old.mount.identity().version.clone();
        self.draining.lock().push(Draining { dir: entry.dir.clone(), shown: old });
        self.watch_end(&entry, &live);
        self.note_activity();
        tracing::info!(dir = %entry.dir.display(), from, to = %entry.status().version, "remounted");
        Ok((entry, Remounted::Changed { from }))
    }
}
