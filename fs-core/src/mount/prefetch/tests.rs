//! Launches without a launch set: what is brought unasked, when, and when no longer.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;

use super::*;
use crate::backend::recording::{Log, Recording};
use crate::backend::{Backend, Beginning, ByteStream, Enough, ObjectPath, ObjectState, ReadOptions, Validator};
use crate::mount::host::Host;
use crate::stage::{DEADLINE, Stage, at, content, noise};

/// An origin some way off, behind a line that carries one answer after the other.
#[derive(Debug)]
struct Distant {
    inner: Arc<dyn Backend>,
    round_trip: Duration,
    free_at: Mutex<tokio::time::Instant>,
}

/// What the line of a [`Distant`] carries in a second.
const LINE_BYTES_PER_SECOND: u64 = 20 << 20;

#[async_trait]
impl Backend for Distant {
    fn origin(&self) -> &str {
        self.inner.origin()
    }
    async fn stat(&self, object: &ObjectPath) -> crate::Result<ObjectState> {
        self.inner.stat(object).await
    }
    async fn read_range(
        &self,
        object: &ObjectPath,
        range: std::ops::Range<u64>,
        options: ReadOptions,
    ) -> crate::Result<ByteStream> {
        let carried = Duration::from_secs_f64((range.end - range.start) as f64 / LINE_BYTES_PER_SECOND as f64);
        let arrives = {
            let mut free_at = self.free_at.lock();
            *free_at = (*free_at).max(tokio::time::Instant::now() + self.round_trip) + carried;
            *free_at
        };
        tokio::time::sleep_until(arrives).await;
        self.inner.read_range(object, range, options).await
    }
    async fn read_beginning(
        &self,
        object: &ObjectPath,
        limit: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> crate::Result<Beginning> {
        self.inner.read_beginning(object, limit, known, enough).await
    }
}

/// Counts reads of content that had to wait for the origin.
#[derive(Default)]
struct Waited(AtomicUsize);

impl Observer for Waited {
    fn observed(&self, event: &Observed) {
        let waited = matches!(event.waits.farthest, Some(Source::Origin | Source::UnderWay));
        if waited && matches!(event.operation, Operation::Read { .. }) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

const FILES: usize = 24;
const FILE_BYTES: usize = 96 << 10;

/// A program in `bin`, libraries in `lib`, and as many files of no interest in `share`.
fn application(stage: &Stage) -> PathBuf {
    let source = stage.folder("source");
    for dir in ["bin", "lib", "share"] {
        fs::create_dir_all(source.join(dir)).unwrap();
    }
    fs::write(source.join("bin/app"), noise(1, 300 << 10)).unwrap();
    fs::set_permissions(source.join("bin/app"), fs::Permissions::from_mode(0o755)).unwrap();
    for i in 0..FILES {
        fs::write(source.join(format!("lib/{i}.so")), noise(100 + i as u64, FILE_BYTES)).unwrap();
        fs::write(source.join(format!("share/{i}")), noise(200 + i as u64, FILE_BYTES)).unwrap();
    }
    source
}

fn policy() -> PrefetchPolicy {
    // Long enough that a busy machine does not look like a pause.
    PrefetchPolicy { learn: false, quiet: Duration::from_millis(1500), ..PrefetchPolicy::default() }
}

async fn distant(stage: &Stage, cache: &str, ms: u64) -> (Arc<Host>, Arc<Log>) {
    let recording = Recording::new(stage.backend());
    let log = recording.log();
    let free_at = Mutex::new(tokio::time::Instant::now());
    let backend = Distant { inner: Arc::new(recording), round_trip: Duration::from_millis(ms), free_at };
    (stage.host_through(cache, Arc::new(backend)).await, log)
}

async fn work(mount: &Arc<Mount>, until: impl FnMut(&Work) -> bool) -> Work {
    let mut work = mount.assistance.get().unwrap().work.subscribe();
    *tokio::time::timeout(DEADLINE, work.wait_for(until)).await.unwrap().unwrap()
}

async fn read(mount: &Arc<Mount>, path: &str) {
    let node = at(mount, path).await;
    content(mount, &node, 64 << 10).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_starting_program_gets_what_stands_beside_what_it_reads() {
    let stage = Stage::new();
    stage.publish(&application(&stage), "1");
    let (host, log) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "1").await;
    host.help_launches(&mount, policy());
    let waited = Arc::new(Waited::default());
    mount.watch(waited.clone());
    read(&mount, "bin/app").await;
    read(&mount, "lib/0.so").await;
    work(&mount, |work| work.launches == 1 && !work.active).await;
    let before = (waited.0.load(Ordering::Relaxed), log.count());
    for i in 1..FILES {
        read(&mount, &format!("lib/{i}.so")).await;
    }
    assert_eq!((waited.0.load(Ordering::Relaxed), log.count()), before, "all libraries were brought");
    // Near as the origin is, what nobody touched was left alone.
    read(&mount, "share/7").await;
    assert!(log.count() > before.1);
    assert!(mount.prefetch_statistics().bytes >= ((FILES - 1) * FILE_BYTES) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_one_file_is_no_launch() {
    let stage = Stage::new();
    stage.publish(&application(&stage), "1");
    let (host, log) = distant(&stage, "cache", 1).await;
    let mount = stage.mount(&host, "1").await;
    host.help_launches(&mount, policy());
    for i in 0..START_FILES - 1 {
        read(&mount, &format!("share/{i}")).await;
    }
    // The watcher has seen them all when it has been asked to look again.
    let assistance = mount.assistance.get().unwrap();
    while !assistance.touched.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(mount.prefetch_statistics(), PrefetchStatistics::default());
    let asked: u64 = log.requests().iter().filter(|r| r.object.as_str().starts_with("packs/")).count() as u64;
    assert!(asked <= 2 * START_FILES as u64, "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn far_away_everything_comes_while_reads_go_on_and_no_longer() {
    let stage = Stage::new();
    let source = application(&stage);
    for i in 0..64 {
        fs::write(source.join(format!("share/more-{i}")), noise(1000 + i, 1 << 20)).unwrap();
    }
    stage.publish(&source, "1");
    let (host, log) = distant(&stage, "cache", 30).await;
    let mount = stage.mount(&host, "1").await;
    let quiet = Duration::from_millis(700);
    host.help_launches(&mount, PrefetchPolicy { quiet, ..policy() });
    read(&mount, "bin/app").await;
    let after = work(&mount, |work| work.launches == 1 && !work.active).await;
    assert_eq!(after.launches, 1);
    let brought = log.delivered_bytes();
    assert!(brought > (FILES * FILE_BYTES) as u64, "more than the program's own directory: {brought}");
    assert!(brought < 50 << 20, "nobody read, so it ended: {brought}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_is_kept() {
    let stage = Stage::new();
    stage.publish(&application(&stage), "1");
    let (host, log) = distant(&stage, "cache", 30).await;
    let mount = stage.mount(&host, "1").await;
    let budget_bytes = 1 << 20;
    host.help_launches(&mount, PrefetchPolicy { budget_bytes, ..policy() });
    read(&mount, "bin/app").await;
    work(&mount, |work| work.launches == 1 && !work.active).await;
    let brought = mount.prefetch_statistics().bytes;
    assert!(brought > budget_bytes / 2 && brought <= budget_bytes, "{brought}");
    assert!(log.delivered_bytes() < budget_bytes + (600 << 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_brought_that_there_is_no_room_for() {
    let stage = Stage::new();
    let source = application(&stage);
    stage.publish(&source, "1");
    let mut settings = stage.settings("cache");
    settings.cache_size_bytes = 1 << 20;
    let host = Host::open(settings).await.unwrap();
    let mount = stage.mount(&host, "1").await;
    host.help_launches(&mount, policy());
    read(&mount, "bin/app").await;
    work(&mount, |work| work.launches == 1 && !work.active).await;
    assert_eq!(mount.prefetch_statistics().bytes, 0);
    crate::stage::assert_same(&mount, &source).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_none_brings_and_keeps_nothing() {
    let stage = Stage::new();
    stage.publish(&application(&stage), "1");
    let (host, _) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "1").await;
    host.help_launches(&mount, PrefetchPolicy { prefetch: Prefetch::None, ..policy() });
    assert!(mount.assistance.get().is_none());
}

/// The launch: the program, and every third library, backwards.
async fn start(mount: &Arc<Mount>) {
    read(mount, "bin/app").await;
    for i in (0..FILES).rev().step_by(3) {
        read(mount, &format!("lib/{i}.so")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_launch_read_is_there_for_the_next_one_also_of_the_next_version() {
    let stage = Stage::new();
    let source = application(&stage);
    stage.publish(&source, "1");
    let learning = PrefetchPolicy { prefetch: Prefetch::None, learn: true, ..policy() };
    {
        let (host, _) = stage.recorded("cache").await;
        let mount = stage.mount(&host, "1").await;
        host.help_launches(&mount, learning);
        let waited = Arc::new(Waited::default());
        mount.watch(waited.clone());
        start(&mount).await;
        assert!(waited.0.load(Ordering::Relaxed) > FILES / 3);
        let mut learned = mount.assistance.get().unwrap().learned_now.subscribe();
        tokio::time::timeout(DEADLINE, learned.wait_for(|l| *l)).await.unwrap().unwrap();
        host.close().await;
    }
    // All blocks are evicted, and a new version changed half of the libraries and moved all the others about.
    for i in (0..FILES).step_by(2) {
        fs::write(source.join(format!("lib/{i}.so")), noise(900 + i as u64, FILE_BYTES)).unwrap();
    }
    fs::create_dir(source.join("added")).unwrap();
    fs::write(source.join("added/first"), noise(77, 1 << 20)).unwrap();
    stage.publish(&source, "2");
    fs::create_dir(stage.path("fresh")).unwrap();
    fs::rename(stage.path("cache/learned"), stage.path("fresh/learned")).unwrap();

    let (host, log) = stage.recorded("fresh").await;
    let mount = stage.mount(&host, "2").await;
    let waited = Arc::new(Waited::default());
    mount.watch(waited.clone());
    host.help_launches(&mount, PrefetchPolicy { learn: true, ..policy() });
    work(&mount, |work| work.learned_brought).await;
    let brought = log.delivered_bytes();
    start(&mount).await;
    assert_eq!(waited.0.load(Ordering::Relaxed), 0, "no read waited");
    let read = (300 << 10) + FILES.div_ceil(3) * FILE_BYTES;
    assert!(brought < read as u64 * 3 / 2, "{brought} bytes came for {read} that are read");
    assert!(mount.prefetch_statistics().learned_ranges > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_is_gone_is_not_kept_to_bring_what_was_learned() {
    let stage = Stage::new();
    stage.publish(&application(&stage), "1");
    {
        let (host, _) = stage.recorded("cache").await;
        let mount = stage.mount(&host, "1").await;
        host.help_launches(&mount, PrefetchPolicy { prefetch: Prefetch::None, learn: true, ..policy() });
        start(&mount).await;
        let mut learned = mount.assistance.get().unwrap().learned_now.subscribe();
        tokio::time::timeout(DEADLINE, learned.wait_for(|l| *l)).await.unwrap().unwrap();
        host.close().await;
    }
    fs::create_dir(stage.path("fresh")).unwrap();
    fs::rename(stage.path("cache/learned"), stage.path("fresh/learned")).unwrap();
    let (host, log) = distant(&stage, "fresh", 300).await;
    let mount = stage.mount(&host, "1").await;
    host.help_launches(&mount, PrefetchPolicy { learn: true, ..policy() });
    let mut work = mount.assistance.get().unwrap().work.subscribe();
    tokio::time::timeout(DEADLINE, work.wait_for(|work| work.active)).await.unwrap().unwrap();
    drop(mount);
    // What tells of the work goes with the mount and with those who do it.
    let gone = async { while work.changed().await.is_ok() {} };
    tokio::time::timeout(DEADLINE, gone).await.expect("nothing keeps it");
    let read = (300 << 10) + FILES.div_ceil(3) * FILE_BYTES;
    assert!(log.delivered_bytes() < read as u64, "it ended early");
}
