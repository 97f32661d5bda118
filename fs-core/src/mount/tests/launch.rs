//! Launch streams: what they spare, what they never spoil, and how they end.
//!
//! Time stands still in these tests unless they move it: while a stream is being decoded nothing else moves it either.
//! So whoever waits for the stream waits until the test lets it go on, however busy the machine is.

mod damaged;
mod tail;
mod upgrade;

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::backend::recording::{Log, Recording};
use crate::backend::{Backend, Beginning, ByteStream, Enough, ObjectPath, ObjectState, ReadOptions, Validator};
use crate::config::RetryPolicy;
use crate::error::Result;
use crate::mount::Mount;
use crate::mount::host::Host;
use crate::mount::launch::{LaunchChoice, LaunchPhase};
use crate::package::descriptor::LaunchRef;
use crate::package::profile::{Profile, ProfileEvent, ProfileHeader, Use};
use crate::package::publish::{NoProgress, PublishSummary, publish};
use crate::stage::{DEADLINE, Stage, at, content, noise};
use crate::trust::head::{HEAD_TAIL_BYTES, bytes_before_tail};

const LIBRARIES: usize = 12;
const LIBRARY_BYTES: usize = 96 << 10;

/// A program and its libraries, which starting it reads, and as many files that it does not.
fn application(stage: &Stage) -> PathBuf {
    let source = stage.folder("source");
    for dir in ["bin", "lib", "share"] {
        fs::create_dir_all(source.join(dir)).unwrap();
    }
    fs::write(source.join("bin/app"), noise(1, 300 << 10)).unwrap();
    for i in 0..LIBRARIES {
        fs::write(source.join(format!("lib/{i}.so")), noise(100 + i as u64, LIBRARY_BYTES)).unwrap();
        fs::write(source.join(format!("share/{i}")), noise(200 + i as u64, LIBRARY_BYTES)).unwrap();
    }
    source
}

/// What starting the program reads, in this order.
fn launch_files() -> Vec<String> {
    std::iter::once("bin/app".to_owned()).chain((0..LIBRARIES).map(|i| format!("lib/{i}.so"))).collect()
}

/// A recording of a launch that reads these files whole.
fn profile(name: &str, files: &[String]) -> Profile {
    let mut events = Vec::new();
    let mut event = |path: String, use_| {
        events.push(ProfileEvent { at_micros: 0, path: Bytes::from(path), use_ });
    };
    for file in files {
        for (end, _) in file.match_indices('/') {
            event(format!("/{}", &file[..end]), Use::Lookup);
        }
        event(format!("/{file}"), Use::Lookup);
        event(format!("/{file}"), Use::Read { offset: 0, length: 1 << 30 });
    }
    let header = ProfileHeader { package: "app".into(), version: "1".into(), name: name.into() };
    Profile { header, events }
}

fn publish_with(stage: &Stage, source: &std::path::Path, version: &str, profiles: Vec<Profile>) -> PublishSummary {
    let mut request = stage.request(source, version);
    request.profiles = profiles;
    std::thread::scope(|scope| scope.spawn(|| publish(&request, &NoProgress)).join().unwrap()).unwrap()
}

/// A line to the published package that lets each launch object through only up to there, behind `head` and by itself.
#[derive(Debug)]
struct Gate {
    inner: Arc<dyn Backend>,
    allowed: watch::Sender<u64>,
    streams: Mutex<Vec<Weak<()>>>,
}

/// Bytes of a launch object that come together.
const PIECE_BYTES: usize = 16 << 10;

struct Passing {
    whole: ByteStream,
    rest: Bytes,
    passed: u64,
    allowed: watch::Receiver<u64>,
    _alive: Arc<()>,
}

async fn next_piece(mut passing: Passing) -> Option<(Result<Bytes>, Passing)> {
    while passing.rest.is_empty() {
        match passing.whole.next().await? {
            Ok(piece) => passing.rest = piece,
            Err(e) => return Some((Err(e), passing)),
        }
    }
    let passed = passing.passed;
    let allowed = *passing.allowed.wait_for(|allowed| *allowed > passed).await.ok()?;
    let room = usize::try_from(allowed - passed).unwrap_or(usize::MAX);
    let piece = passing.rest.split_to(passing.rest.len().min(room).min(PIECE_BYTES));
    passing.passed += piece.len() as u64;
    Some((Ok(piece), passing))
}

#[async_trait]
impl Backend for Gate {
    fn origin(&self) -> &str {
        self.inner.origin()
    }
    async fn stat(&self, object: &ObjectPath) -> Result<ObjectState> {
        self.inner.stat(object).await
    }
    async fn read_range(&self, object: &ObjectPath, range: Range<u64>, options: ReadOptions) -> Result<ByteStream> {
        let start = range.start;
        let whole = self.inner.read_range(object, range, options).await?;
        Ok(if is_launch(object.as_str()) { self.gated(whole, start) } else { whole })
    }
    async fn read_beginning(
        &self,
        object: &ObjectPath,
        limit: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> Result<Beginning> {
        let read = self.inner.read_beginning(object, limit, known, enough).await?;
        let Beginning::Object { mut front, rest, validator } = read else { return Ok(read) };
        let Some(length) = bytes_before_tail(&front) else {
            return Ok(Beginning::Object { front, rest, validator });
        };
        let first = front.split_off(length);
        let tail = futures::stream::iter([Ok(first)]).chain(rest).boxed();
        Ok(Beginning::Object { front, rest: self.gated(tail, 0), validator })
    }
}

impl Gate {
    /// A stream of a launch object from `start` on.
    fn gated(&self, whole: ByteStream, start: u64) -> ByteStream {
        let alive = Arc::new(());
        self.streams.lock().push(Arc::downgrade(&alive));
        let (rest, allowed) = (Bytes::new(), self.allowed.subscribe());
        let passing = Passing { whole, rest, passed: start, allowed, _alive: alive };
        futures::stream::unfold(passing, next_piece).boxed()
    }

    fn open(&self) {
        self.allowed.send_replace(u64::MAX);
    }

    /// Streams that somebody still holds.
    fn streams_alive(&self) -> usize {
        self.streams.lock().iter().filter(|stream| stream.strong_count() > 0).count()
    }
}

fn is_launch(object: &str) -> bool {
    object.starts_with("launch/")
}

/// A machine without anything, at the end of a gated line.
struct Machine {
    host: Arc<Host>,
    gate: Arc<Gate>,
    log: Arc<Log>,
    package: PathBuf,
}

impl Machine {
    /// The gate is open for `allowed` bytes.
    async fn new(stage: &Stage, cache: &str, allowed: u64) -> Self {
        let host = Host::open(stage.settings(cache)).await.unwrap();
        Self::of(stage, host, allowed)
    }

    fn of(stage: &Stage, host: Arc<Host>, allowed: u64) -> Self {
        let (inner, allowed) = (stage.backend(), watch::Sender::new(allowed));
        let gate = Arc::new(Gate { inner, allowed, streams: Mutex::default() });
        let recording = Recording::new(gate.clone());
        let log = recording.log();
        host.set_backend(&stage.location("stable"), Arc::new(recording), DEADLINE);
        Self { host, gate, log, package: stage.package_dir() }
    }

    async fn launch(&self, stage: &Stage, version: &str) -> Arc<Mount> {
        let pinned = self.host.pin_to_launch(&stage.location(version), None, &LaunchChoice::First).await;
        pinned.unwrap().mount
    }

    /// Requests for parts of stored objects: of launch objects, and of others.
    fn requests(&self) -> (usize, usize) {
        let all = self.log.requests();
        let ranges = all.iter().filter(|request| request.range.is_some());
        let (launch, other): (Vec<_>, Vec<_>) = ranges.partition(|request| is_launch(request.object.as_str()));
        (launch.len(), other.len())
    }

    /// Bytes that came behind `head`.
    fn bytes_of_tail(&self) -> u64 {
        let front = bytes_before_tail(&fs::read(self.package.join("head")).unwrap()).unwrap() as u64;
        let all = self.log.requests();
        all.iter().filter(|r| r.object.as_str() == "head").map(|r| r.delivered_bytes.saturating_sub(front)).sum()
    }

    /// Bytes that came of launch objects, and of other objects but metadata.
    fn bytes(&self) -> (u64, u64) {
        let all = self.log.requests();
        let of = |launch: bool| {
            let ranges = all.iter().filter(|request| request.range.is_some());
            ranges.filter(|r| is_launch(r.object.as_str()) == launch).map(|r| r.delivered_bytes).sum()
        };
        (of(true) + self.bytes_of_tail(), of(false))
    }
}

/// Reads a file in one piece and compares it with what was published.
async fn read(mount: &Arc<Mount>, source: &std::path::Path, file: &str) {
    let node = at(mount, file).await;
    let bytes = content(mount, &node, 1 << 20).await.unwrap();
    assert!(bytes == fs::read(source.join(file)).unwrap(), "content of {file}");
}

async fn read_all(mount: &Arc<Mount>, source: &std::path::Path, files: &[String]) {
    for file in files {
        read(mount, source, file).await;
    }
}

/// Waits until the launch set is no longer being brought; lets time pass for the pauses in which a stream gives way.
async fn brought(mount: &Arc<Mount>) -> LaunchPhase {
    let mut phase = mount.launch_phase();
    let ended = async move { *phase.wait_for(|phase| !phase.is_under_way()).await.unwrap() };
    let_time_pass(Duration::MAX, tokio::spawn(ended)).await.0
}

/// Waits, without letting time pass, for what does not depend on time.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < DEADLINE, "{what} did not come");
        tokio::task::yield_now().await;
    }
}

/// Lets time pass until `task` is done, but no more than `limit`: then it stands still again. How much passed.
async fn let_time_pass<T>(limit: Duration, task: tokio::task::JoinHandle<T>) -> (T, Duration) {
    const STEP: Duration = Duration::from_millis(10);
    let (begun, mut passed) = (std::time::Instant::now(), Duration::ZERO);
    while !task.is_finished() {
        assert!(begun.elapsed() < DEADLINE, "it does not end within {passed:?}");
        // Other threads need real time for their part.
        tokio::task::spawn_blocking(std::thread::yield_now).await.unwrap();
        if passed < limit {
            tokio::time::advance(STEP).await;
            passed += STEP;
        }
    }
    (task.await.unwrap(), passed)
}

/// How far a stream must be let through so that its index and about `share` percent of its body come.
fn part_of(set: &LaunchRef, share: u64) -> u64 {
    let index = u64::from(set.index.stored);
    index + (set.bytes - index) * share / 100
}

fn set_of(mount: &Arc<Mount>) -> LaunchRef {
    mount.descriptor().launch[0].clone()
}

/// Publishes the application with a profile of its launch; gives its one launch set, too.
async fn published(stage: &Stage) -> (PathBuf, LaunchRef) {
    let source = application(stage);
    publish_with(stage, &source, "1", vec![profile("app", &launch_files())]);
    let host = stage.host_through("look", stage.backend()).await;
    let set = set_of(&stage.mount(&host, "1").await);
    (source, set)
}

#[tokio::test(start_paused = true)]
async fn a_launch_is_head_and_one_request_of_what_is_not_behind_it() {
    let stage = Stage::new();
    let (source, set) = published(&stage).await;
    let machine = Machine::new(&stage, "cache", u64::MAX).await;
    let mount = machine.launch(&stage, "1").await;
    read_all(&mount, &source, &launch_files()).await;
    assert_eq!(brought(&mount).await, LaunchPhase::Complete);
    assert_eq!(machine.requests(), (1, 0), "{:?}", machine.log.requests());
    let all = machine.log.requests();
    assert_eq!((all[0].object.as_str(), all.len()), ("head", 2), "{all:?}");
    assert_eq!(all[1].range, Some(HEAD_TAIL_BYTES..set.bytes));
    assert_eq!((machine.bytes(), machine.bytes_of_tail()), ((set.bytes, 0), HEAD_TAIL_BYTES));
    let statistics = mount.launch_statistics();
    assert_eq!((statistics.bytes, statistics.bytes_received), (set.bytes, set.bytes));
    assert_eq!((statistics.entries_here, statistics.bytes_repeated), (statistics.entries, 0));
    assert_eq!(statistics.name, "app");
    let fetches = mount.statistics().fetches;
    assert_eq!((fetches.requests, fetches.bytes_fetched), (1, set.bytes));
    // Neither the set's files nor its directories are asked for later.
    read_all(&mount, &source, &launch_files()).await;
    assert_eq!(machine.requests(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn reads_wait_for_what_the_stream_brings_and_others_do_not() {
    let stage = Stage::new();
    let (source, set) = published(&stage).await;
    let machine = Machine::new(&stage, "cache", part_of(&set, 40)).await;
    let mount = machine.launch(&stage, "1").await;
    let last = launch_files().pop().unwrap();
    let node = at(&mount, &last).await;
    assert_eq!(machine.requests(), (1, 0), "its directory came before it");
    let waiting = tokio::spawn({
        let mount = mount.clone();
        async move { content(&mount, &node, 1 << 20).await.unwrap() }
    });
    // What stands at the beginning is here although the rest is held.
    read(&mount, &source, "bin/app").await;
    until("what is let through", || mount.launch_statistics().bytes_received == part_of(&set, 40)).await;
    assert_eq!(machine.requests(), (1, 0));
    // What the set does not name is fetched meanwhile: a page, perhaps, and its blocks.
    read(&mount, &source, "share/3").await;
    let (launch, other) = machine.requests();
    assert!(launch == 1 && other > 0);
    assert!(machine.bytes().0 <= part_of(&set, 40), "the stream is held");
    assert!(!waiting.is_finished());
    assert_eq!(mount.launch_statistics().phase, LaunchPhase::Streaming);
    let before = mount.launch_statistics().entries_waited_for;
    machine.gate.open();
    // Time for the stream to go on after it gave way, less than whoever waits for it is patient.
    let (bytes, _) = let_time_pass(Duration::from_millis(100), waiting).await;
    assert!(bytes == fs::read(source.join(&last)).unwrap());
    assert_eq!(brought(&mount).await, LaunchPhase::Complete);
    assert_eq!(machine.requests(), (launch, other), "it came with the stream");
    assert!(mount.launch_statistics().entries_waited_for > before);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_begins_holds_nobody_up_for_long() {
    let stage = Stage::new();
    let (source, _) = published(&stage).await;
    let machine = Machine::new(&stage, "cache", 0).await;
    let begun = tokio::time::Instant::now();
    let mount = machine.launch(&stage, "1").await;
    read_all(&mount, &source, &launch_files()).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "it took {:?}", begun.elapsed());
    assert_eq!(mount.launch_statistics().phase, LaunchPhase::Streaming);
    // It is given up after the deadline, and is no loss.
    assert_eq!(brought(&mount).await, LaunchPhase::Failed);
    assert_eq!((machine.bytes().0, machine.gate.streams_alive()), (0, 0));
    read(&mount, &source, "share/1").await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stops_for_good_delays_reads_a_little_and_is_given_up() {
    let stage = Stage::new();
    let (source, set) = published(&stage).await;
    let machine = Machine::new(&stage, "cache", part_of(&set, 40)).await;
    let mount = machine.launch(&stage, "1").await;
    let reading = tokio::spawn({
        let (mount, source) = (mount.clone(), source.clone());
        async move { read_all(&mount, &source, &launch_files()).await }
    });
    let ((), took) = let_time_pass(Duration::MAX, reading).await;
    assert!(took < DEADLINE, "all reads together took {took:?}");
    assert!(machine.requests().1 > 0, "what did not come was fetched");
    assert_eq!(brought(&mount).await, LaunchPhase::Failed);
    assert_eq!(machine.gate.streams_alive(), 0);
    // The mount goes on, and another start may try again.
    read(&mount, &source, "share/1").await;
    machine.gate.open();
    mount.start_launch(&LaunchChoice::First).unwrap();
    assert_eq!(brought(&mount).await, LaunchPhase::Complete);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_profile_costs_at_most_its_launch_object() {
    let stage = Stage::new();
    let source = application(&stage);
    let wrong: Vec<String> = (0..LIBRARIES).map(|i| format!("share/{i}")).collect();
    publish_with(&stage, &source, "1", vec![profile("app", &wrong)]);
    let machine = Machine::new(&stage, "cache", u64::MAX).await;
    let set = set_of(&stage.mount(&machine.host, "1").await);
    // What the launch reads without any set, to compare with.
    let plain = Machine::new(&stage, "plain", u64::MAX).await;
    let mount = stage.mount(&plain.host, "1").await;
    read_all(&mount, &source, &launch_files()).await;

    let machine = Machine::of(&stage, machine.host, part_of(&set, 20));
    let mount = machine.launch(&stage, "1").await;
    // The whole launch is served while the stream is held, and time stands still: nobody waits for the stream.
    read_all(&mount, &source, &launch_files()).await;
    assert!(machine.bytes().0 <= part_of(&set, 20));
    machine.gate.open();
    assert_eq!(brought(&mount).await, LaunchPhase::Complete);
    let (launch, other) = machine.bytes();
    assert_eq!(launch, set.bytes);
    assert!(other <= plain.bytes().1, "{other} bytes besides, {} without a set", plain.bytes().1);
}

#[tokio::test(start_paused = true)]
async fn several_who_start_it_share_one_stream() {
    let stage = Stage::new();
    let (source, set) = published(&stage).await;
    let machine = Machine::new(&stage, "cache", part_of(&set, 10)).await;
    let (one, other) = tokio::join!(machine.launch(&stage, "1"), machine.launch(&stage, "1"));
    assert!(Arc::ptr_eq(&one, &other));
    one.start_launch(&LaunchChoice::First).unwrap();
    other.start_launch(&LaunchChoice::Named("app".into())).unwrap();
    machine.gate.open();
    assert_eq!(brought(&one).await, LaunchPhase::Complete);
    assert_eq!(machine.requests(), (1, 0));
    read_all(&other, &source, &launch_files()).await;
    assert_eq!(machine.bytes(), (set.bytes, 0));
}

#[tokio::test(start_paused = true)]
async fn sets_are_chosen_by_name_and_an_unknown_name_is_told() {
    let stage = Stage::new();
    let source = application(&stage);
    let files = launch_files();
    publish_with(&stage, &source, "1", vec![profile("app", &files[..2]), profile("other", &files[2..4])]);
    let machine = Machine::new(&stage, "cache", u64::MAX).await;
    let mount = stage.mount(&machine.host, "1").await;
    assert_eq!((brought(&mount).await, machine.requests().0), (LaunchPhase::None, 0), "nobody asked for one");
    let e = mount.start_launch(&LaunchChoice::Named("absent".into())).unwrap_err();
    assert_eq!(e.kind(), crate::ErrorKind::InvalidInput);
    assert!(e.to_string().contains("\"absent\"") && e.to_string().contains("app, other"), "{e}");
    mount.start_launch(&LaunchChoice::Named("other".into())).unwrap();
    assert_eq!(brought(&mount).await, LaunchPhase::Complete);
    assert_eq!(mount.launch_statistics().name, "other");
    machine.log.clear();
    read_all(&mount, &source, &files[2..4]).await;
    assert_eq!(machine.requests(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_mount_that_goes_away_takes_its_stream_along() {
    let stage = Stage::new();
    let (_, set) = published(&stage).await;
    let machine = Machine::new(&stage, "cache", part_of(&set, 40)).await;
    let mount = machine.launch(&stage, "1").await;
    until("the stream", || mount.launch_statistics().bytes_received == part_of(&set, 40)).await;
    let (gone, fetcher) = (Arc::downgrade(&mount), Arc::downgrade(&mount.fetcher));
    assert_eq!(machine.gate.streams_alive(), 2, "its beginning behind head, and the rest");
    drop(mount);
    until("the mount's end", || gone.strong_count() == 0).await;
    // The line says nothing more, which does not keep the stream.
    until("the stream's end", || machine.gate.streams_alive() == 0).await;
    assert!(machine.bytes().0 <= part_of(&set, 40));
    // Nothing of it keeps the package open.
    machine.host.set_backend(&stage.location("1"), stage.backend(), RetryPolicy::default().read_deadline);
    let ended = tokio::spawn(async move { until("the tasks' end", || fetcher.strong_count() == 0).await });
    let_time_pass(Duration::MAX, ended).await;
}
