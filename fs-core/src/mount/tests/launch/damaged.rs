//! Launch objects that are missing, damaged or another version's: never a wrong byte, and one complaint.

use std::sync::LazyLock;

use tracing::field::{Field, Visit};

use super::*;
use crate::fetch::{Fetcher, Urgency};
use crate::mount::pages::Held;
use crate::package::Hash;
use crate::package::block::Encoder;
use crate::package::descriptor::PageSum;
use crate::package::launch::{BodyEncoder, LaunchEntry, encode_index};
use crate::package::tree::walk::all_pages;
use crate::stage::{assert_same, walk};

/// Warnings of launch streams, of all tests of this process.
static WARNINGS: LazyLock<Arc<Mutex<Vec<String>>>> = LazyLock::new(|| {
    let warnings = Arc::<Mutex<Vec<String>>>::default();
    tracing::subscriber::set_global_default(Listener(warnings.clone())).expect("nobody else listens");
    warnings
});

struct Listener(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN && metadata.target() == "fs_core::mount::launch"
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                self.0.push_str(&format!("{}={value:?} ", field.name()));
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().push(text.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// What was said of a launch set whose object has this path; each test's has its own.
fn said_of(set: &LaunchRef) -> Vec<String> {
    let name = set.path().to_string();
    WARNINGS.lock().iter().filter(|said| said.contains(&name)).cloned().collect()
}

/// Publishes an application whose bytes no other test has; its launch object's path on disk.
async fn unique(stage: &Stage, seed: u64) -> (PathBuf, LaunchRef, PathBuf) {
    LazyLock::force(&WARNINGS);
    let source = application(stage);
    fs::write(source.join("bin/app"), noise(1000 + seed, 300 << 10)).unwrap();
    publish_with(stage, &source, "1", vec![profile("app", &launch_files())]);
    let host = stage.host_through("look", stage.backend()).await;
    let set = set_of(&stage.mount(&host, "1").await);
    let object = stage.package_dir().join(set.path().as_str());
    (source, set, object)
}

fn flip(object: &std::path::Path, at: u64) {
    let mut bytes = fs::read(object).unwrap();
    bytes[at as usize] ^= 0x10;
    fs::write(object, bytes).unwrap();
}

/// Flips a bit of the launch object and the same one behind `head`, if it stands there.
fn flip_both(stage: &Stage, object: &std::path::Path, at: u64) {
    flip(object, at);
    if at < HEAD_TAIL_BYTES {
        let head = stage.package_dir().join("head");
        let front = bytes_before_tail(&fs::read(&head).unwrap()).unwrap() as u64;
        flip(&head, front + at);
    }
}

/// Launches with what is stored at present; nothing may be wrong but `phase`.
async fn launch_all(stage: &Stage, source: &std::path::Path, phase: LaunchPhase) -> (Machine, Arc<Mount>) {
    let machine = Machine::new(stage, "cache", u64::MAX).await;
    let mount = machine.launch(stage, "1").await;
    // Time passes: whoever waits for what does not come must not wait for ever.
    let reading = tokio::spawn({
        let (mount, source) = (mount.clone(), source.to_owned());
        async move { read_all(&mount, &source, &launch_files()).await }
    });
    let ((), took) = let_time_pass(Duration::MAX, reading).await;
    assert!(took < DEADLINE, "{took:?}");
    assert_eq!(brought(&mount).await, phase);
    let statistics = mount.launch_statistics();
    if phase == LaunchPhase::Complete {
        assert_eq!(statistics.entries_here, statistics.entries, "{statistics:?}");
    }
    assert_same(&mount, source).await;
    (machine, mount)
}

#[tokio::test(start_paused = true)]
async fn a_missing_launch_object_is_said_once_and_spoils_nothing() {
    let stage = Stage::new();
    let (source, set, object) = unique(&stage, 1).await;
    fs::remove_file(object).unwrap();
    let (machine, _) = launch_all(&stage, &source, LaunchPhase::Failed).await;
    assert_eq!(machine.requests().0, 1, "it is asked for once");
    let said = said_of(&set);
    assert!(said.len() == 1 && said[0].contains("set=\"app\""), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn a_launch_object_that_is_too_short_is_said_once_and_spoils_nothing() {
    let stage = Stage::new();
    let (source, set, object) = unique(&stage, 2).await;
    let bytes = fs::read(&object).unwrap();
    fs::write(&object, &bytes[..bytes.len() / 2]).unwrap();
    launch_all(&stage, &source, LaunchPhase::Failed).await;
    assert_eq!(said_of(&set).len(), 1, "{:?}", said_of(&set));
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_in_the_index_is_said_once_and_spoils_nothing() {
    let stage = Stage::new();
    let (source, set, object) = unique(&stage, 3).await;
    flip_both(&stage, &object, u64::from(set.index.stored) / 2);
    launch_all(&stage, &source, LaunchPhase::Failed).await;
    assert_eq!(said_of(&set).len(), 1, "{:?}", said_of(&set));
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_in_the_body_costs_what_it_damages() {
    // What was damaged so that it decompressed all the same was missing from a launch set that was called complete.
    let stage = Stage::new();
    let (source, set, object) = unique(&stage, 4).await;
    let index = u64::from(set.index.stored);
    let head = stage.package_dir().join("head");
    let good = (fs::read(&object).unwrap(), fs::read(&head).unwrap());
    // The frame's head, the pages that come first, a block of noise, the end.
    for (i, at) in [index, index + 40, index + (300 << 10), set.bytes - 1].into_iter().enumerate() {
        flip_both(&stage, &object, at);
        let before = said_of(&set).len();
        let (machine, mount) = launch_all(&stage, &source, LaunchPhase::Complete).await;
        assert_eq!(machine.requests().0, 1);
        assert!(said_of(&set).len() <= before + 1, "byte {at}: {:?}", said_of(&set));
        // Of all that is brought, only what did not come well is brought again.
        if i == 2 {
            let (_, other) = machine.bytes();
            let unlisted = LIBRARIES as u64 * (LIBRARY_BYTES as u64 + (1 << 10));
            assert!(other < unlisted + (600 << 10), "{other} bytes besides the launch object");
        }
        drop(mount);
        machine.host.close().await;
        drop(machine);
        fs::write(&object, &good.0).unwrap();
        fs::write(&head, &good.1).unwrap();
        fs::rename(stage.path("cache"), stage.path(&format!("cache-{i}"))).unwrap();
    }
}

/// Mounts `version` on a machine without anything, as if its descriptor named `set`.
async fn launch_of(stage: &Stage, cache: &str, version: &Arc<Mount>, set: &LaunchRef) -> Arc<Mount> {
    let machine = Machine::new(stage, cache, u64::MAX).await;
    let fetcher = Fetcher::new(machine.gate.clone(), machine.host.cache().clone(), DEADLINE);
    let mut descriptor = version.descriptor().clone();
    descriptor.launch = vec![set.clone()];
    Mount::open(descriptor, version.identity().clone(), fetcher, &LaunchChoice::First).await.unwrap()
}

/// Two versions with as many files of the same names, of which all is different; enough for several pages.
async fn two_versions(stage: &Stage) -> [(PathBuf, Arc<Mount>); 2] {
    let mut versions = Vec::new();
    for (version, size) in [("1", 3000), ("2", 2000)] {
        let source = stage.folder(version);
        for i in 0..300 {
            fs::write(source.join(format!("file-{i}")), noise(i * size as u64, size)).unwrap();
        }
        let files: Vec<String> = (0..300).map(|i| format!("file-{i}")).collect();
        publish_with(stage, &source, version, vec![profile("app", &files)]);
        let host = stage.host_through(&format!("look-{version}"), stage.backend()).await;
        versions.push((source, stage.mount(&host, version).await));
    }
    versions.try_into().unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_launch_object_of_another_version_is_told_and_left() {
    let stage = Stage::new();
    LazyLock::force(&WARNINGS);
    let [(source, one), (_, two)] = two_versions(&stage).await;
    let foreign = set_of(&two);
    let mount = launch_of(&stage, "cache", &one, &foreign).await;
    assert_eq!(brought(&mount).await, LaunchPhase::Failed);
    assert_same(&mount, &source).await;
    let said = said_of(&foreign);
    assert!(said.len() == 1 && said[0].contains("another version"), "{said:?}");
}

/// Pages that an index named were kept as the pages of the version's own tree, whatever they were: the mount then
/// showed another version's files.
#[tokio::test(start_paused = true)]
async fn pages_of_another_version_do_not_get_into_the_tree() {
    let stage = Stage::new();
    let [(source, one), (_, two)] = two_versions(&stage).await;
    let pages = [&one, &two].map(|mount| {
        let mount = mount.clone();
        async move {
            walk(&mount).await.unwrap();
            mount.walk(&mut Held::default(), all_pages).ok().unwrap()
        }
    });
    let [ours, theirs] = pages;
    let (ours, theirs) = (ours.await, theirs.await);
    assert!(theirs.len() > 3 && ours.len() >= theirs.len(), "{} pages", theirs.len());
    // It begins with the right root, so that it looks like one of this version.
    let mut entries = vec![(one.clone(), ours[0])];
    entries.extend(theirs[1..].iter().map(|page| (two.clone(), *page)));
    let body_bytes = entries.iter().map(|(_, page)| u64::from(page.sum.length)).sum();
    let (mut body, mut encoder) = (Vec::new(), BodyEncoder::new(body_bytes).unwrap());
    for (mount, page) in &entries {
        let bytes = mount.fetcher.get(vec![mount.pages.wanted(page)], Urgency::Demand).await.unwrap();
        body.extend(encoder.add(&bytes[0]).unwrap());
    }
    body.extend(encoder.finish().unwrap());
    let index = encode_index(&entries.iter().map(|(_, page)| LaunchEntry::Page(*page)).collect::<Vec<_>>());
    let (hash, length) = (Hash::of(&index), index.len() as u32);
    let stored = Encoder::new(1).unwrap().encode(index);
    let object = [&stored[..], &body].concat();
    let set = LaunchRef {
        name: "app".into(),
        object: Hash::of(&object),
        bytes: object.len() as u64,
        index: PageSum { stored: stored.len() as u32, length, hash },
        body: body_bytes,
        profile: set_of(&one).profile,
    };
    fs::write(stage.package_dir().join(set.path().as_str()), object).unwrap();
    let mount = launch_of(&stage, "cache", &one, &set).await;
    assert!(!brought(&mount).await.is_under_way());
    assert_same(&mount, &source).await;
}

#[tokio::test(start_paused = true)]
async fn a_cache_without_room_launches_from_memory() {
    // Blocks of files whose pages could not be kept on disk were thrown away as they came, and fetched again.
    let stage = Stage::new();
    let (source, set, _) = unique(&stage, 6).await;
    let mut settings = stage.settings("cache");
    settings.cache_size_bytes = 0;
    let machine = Machine::of(&stage, Host::open(settings).await.unwrap(), u64::MAX);
    let mount = machine.launch(&stage, "1").await;
    assert_eq!(brought(&mount).await, LaunchPhase::Complete);
    read_all(&mount, &source, &launch_files()).await;
    assert_eq!((machine.requests(), machine.bytes().0), ((1, 0), set.bytes));
}
