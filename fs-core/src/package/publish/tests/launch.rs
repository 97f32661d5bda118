//! Launch sets: what is in them, in which order, and what becomes of them in later versions.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::*;
use crate::package::block::{Extent, decode, decompress};
use crate::package::descriptor::LaunchRef;
use crate::package::launch::{BodyDecoder, LAUNCH_INDEX_MAX_BYTES, LaunchEntry, hash_prefix, parse_index};
use crate::package::profile::{PROFILE_MAX_BYTES, ProfileEvent, ProfileHeader, Use};
use crate::package::publish::resolve::{Kind, Names, resolve};
use crate::package::tree::page::{NodeBody, Page};
use crate::package::tree::walk::{self, Miss, Pages, Walked};
use crate::package::tree::{PageAddress, PageTreeKind, TreeLayout};
use crate::package::{Hash, NodeId};

fn read(offset: u64, length: u64) -> Use {
    Use::Read { offset, length }
}

fn profile(name: &str, events: &[(&str, Use)]) -> Profile {
    let header = ProfileHeader { package: "app".into(), version: "1".into(), name: name.into() };
    let event = |(path, use_): &(&str, Use)| ProfileEvent {
        at_micros: 0,
        path: Bytes::copy_from_slice(path.as_bytes()),
        use_: *use_,
    };
    Profile { header, events: events.iter().map(event).collect() }
}

fn publish_with(stage: &Stage, source: &Path, version: &str, profiles: Vec<Profile>) -> PublishSummary {
    let request = PublishRequest { profiles, ..stage.request(source, version) };
    std::thread::scope(|scope| scope.spawn(|| publish(&request, &NoProgress)).join().unwrap()).unwrap()
}

/// One launch object as a client sees it: nothing but the descriptor and the stored bytes.
struct Launch {
    layout: TreeLayout,
    set: LaunchRef,
    entries: Vec<(LaunchEntry, Bytes)>,
}

async fn descriptor(stage: &Stage, version: &str) -> Descriptor {
    let (host, _) = stage.recorded("look").await;
    let mount = stage.mount(&host, version).await;
    let verified = host.verify(&mount, Arc::new(NoProgress)).await.unwrap();
    assert!(verified.damaged.is_empty(), "{:?}", verified.damaged);
    mount.descriptor().clone()
}

async fn launch(stage: &Stage, version: &str, name: &str) -> Launch {
    let descriptor = descriptor(stage, version).await;
    let set = descriptor.launch.iter().find(|set| set.name == name).expect("the launch set").clone();
    let object = Bytes::from(fs::read(stage.package_dir().join(set.path().as_str())).unwrap());
    assert_eq!((object.len() as u64, Hash::of(&object)), (set.bytes, set.object));
    let at = set.index.stored as usize;
    let length = set.index.length as usize;
    let index =
        decode(&object.slice(..at), length, &set.index.hash, LAUNCH_INDEX_MAX_BYTES, &|| "the index".into()).unwrap();
    let entries = parse_index(&index, "the index").unwrap();
    let mut decoder = BodyDecoder::new(&entries, "the body").unwrap();
    let mut got = Vec::new();
    decoder.feed(&object[at..], &mut |number, bytes| got.push((entries[number], bytes))).unwrap();
    decoder.finish().unwrap();
    assert_eq!(got.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>(), set.body);
    Launch { layout: TreeLayout::new(&descriptor.tree).unwrap(), set, entries: got }
}

/// The pages that came so far.
struct Arrived<'a> {
    layout: &'a TreeLayout,
    pages: HashMap<u32, Arc<Page>>,
}

impl Pages for Arrived<'_> {
    fn page(&mut self, kind: PageTreeKind, address: &PageAddress) -> Walked<Arc<Page>> {
        self.pages.get(&address.number).cloned().ok_or(Miss::Page(kind, *address))
    }
}

impl Names for Arrived<'_> {
    fn child(&mut self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        let layout = self.layout;
        let found = walk::find(layout, self, dir, name).expect("the pages of a look-up have come");
        Ok(found.map(|id| walk::resolved(layout, self, id).expect("the pages of what is found have come").0))
    }

    fn kind(&mut self, node: NodeId) -> Result<Kind> {
        let page = walk::node_leaf(self.layout, self, node).expect("the page of a node has come");
        Ok(match walk::record(&page, node).expect("it holds the node").body {
            NodeBody::Directory { parent, .. } => Kind::Directory { parent: NodeId(parent) },
            NodeBody::Symlink { target } => Kind::Symlink { target: target.to_vec() },
            _ => Kind::File,
        })
    }
}

impl Launch {
    /// Plays a client: takes entry for entry, and verifies each with nothing but what came before it.
    fn arrive(&self) -> Arrived<'_> {
        let mut arrived = Arrived { layout: &self.layout, pages: HashMap::new() };
        let mut blocks = BTreeSet::new();
        for (entry, bytes) in &self.entries {
            match entry {
                LaunchEntry::Page(PageAddress { number, sum, .. }) => {
                    assert_eq!(Hash::of(bytes), sum.hash);
                    let page = Page::parse(bytes.clone(), &|| "a page".into()).unwrap();
                    assert!(arrived.pages.insert(*number, Arc::new(page)).is_none(), "page {number} comes once");
                }
                LaunchEntry::Block { node, offset, .. } => {
                    let extent = self.extent(&mut arrived, *node, *offset);
                    assert_eq!((extent.file_offset, extent.hash), (*offset, Hash::of(bytes)));
                    assert_eq!(entry.prefix(), hash_prefix(&extent.hash));
                    assert!(blocks.insert(extent.hash), "a block comes once");
                }
            }
        }
        arrived
    }

    fn extent(&self, arrived: &mut Arrived<'_>, node: NodeId, offset: u64) -> Extent {
        let layout = &self.layout;
        let (_, extents) =
            walk::extents(layout, arrived, node, offset, offset + 1).expect("the pages of a block come before it");
        extents[0]
    }

    /// Where in which file each block stands, in the order in which they come; neighbours joined.
    fn reads(&self) -> Vec<(NodeId, Range<u64>)> {
        let mut reads: Vec<(NodeId, Range<u64>)> = Vec::new();
        for (entry, _) in &self.entries {
            let LaunchEntry::Block { node, offset, length, .. } = *entry else { continue };
            let end = offset + u64::from(length);
            match reads.last_mut() {
                Some((last, range)) if *last == node && range.end == offset => range.end = end,
                _ => reads.push((node, offset..end)),
            }
        }
        reads
    }
}

/// Enough nodes for several levels of pages, and a file of many extents.
fn large_tree(source: &Path) {
    fs::create_dir_all(source.join("lib/deep")).unwrap();
    fs::create_dir_all(source.join("bin")).unwrap();
    fs::write(source.join("lib/large"), noise(1, 4 << 20)).unwrap();
    fs::write(source.join("bin/app"), noise(2, 60_000)).unwrap();
    fs::write(source.join("bin/zeros"), vec![0; 300_000]).unwrap();
    fs::hard_link(source.join("bin/app"), source.join("lib/deep/same")).unwrap();
    symlink("deep", source.join("lib/way")).unwrap();
    symlink("/etc", source.join("lib/outside")).unwrap();
    for i in 0..3000 {
        fs::write(source.join(format!("lib/file-{i:04}")), format!("content {i}")).unwrap();
    }
}

#[tokio::test]
async fn a_launch_object_has_what_was_asked_for_in_order_and_proves_it_by_itself() {
    let stage = Stage::new();
    let source = stage.folder("source");
    large_tree(&source);
    let asked = [
        ("/bin", Use::Lookup),
        ("/bin/app", Use::Lookup),
        ("/bin/app", read(0, 4096)),
        ("/lib/large", read(1 << 20, 8192)),
        ("/lib/way/same", read(32_768, 100)),
        ("/lib/file-2999", read(0, 4096)),
        ("/lib/absent.so", Use::Lookup),
        ("/lib/large", read(3 << 20, 1 << 20)),
        ("/lib/large", read(0, 100)),
        ("/lib/way", Use::ReadLink),
        ("/lib/deep", Use::List),
        ("/bin/app", Use::Xattrs),
        ("/bin/zeros", read(0, 300_000)),
        ("/bin/gone", read(0, 5)),
        ("/bin/app/not-a-directory", Use::List),
        ("/lib/outside/passwd", read(0, 5)),
        ("/bin/app", read(1 << 40, 4096)),
    ];
    let summary = publish_with(&stage, &source, "1", vec![profile("app", &asked)]);
    let launch = launch(&stage, "1", "app").await;
    assert!(
        launch.layout.root(PageTreeKind::Nodes).unwrap().1 > 1 && launch.layout.root(PageTreeKind::Extents).is_some()
    );
    let mut arrived = launch.arrive();

    // Every path is found, or proven to be absent, with the pages that came.
    let mut node = |path: &str| resolve(&mut arrived, path.as_bytes(), true).unwrap().map(|(node, _)| node);
    for (path, _) in &asked[..13] {
        assert_eq!(node(path).is_some(), !path.contains("absent"), "{path}");
    }
    let (app, large, small, zeros) =
        (node("/bin/app").unwrap(), node("/lib/large").unwrap(), node("/lib/file-2999").unwrap(), node("/bin/zeros"));
    assert_eq!(node("/lib/deep/same"), Some(app), "a further name is the file itself");

    // Files are cut exactly where reading began and ended. All this is one group: by file, as they were first used.
    let zeros = zeros.unwrap();
    let mut reads = launch.reads();
    let of_zeros = reads.pop().unwrap();
    assert_eq!(of_zeros.0, zeros);
    assert!(of_zeros.1.start == 0 && of_zeros.1.end <= 300_000, "equal blocks come once: {of_zeros:?}");
    let expected = [
        (app, 0..4096),
        (app, 32_768..36_864),
        (large, 0..4096),
        (large, (1 << 20)..(1 << 20) + 8192),
        (large, 3 << 20..4 << 20),
        (small, 0..12),
    ];
    assert_eq!(reads, expected);

    let told = &summary.launch[0];
    assert_eq!((&told.name[..], told.inherited, told.left_out), ("app", false, 0));
    assert_eq!(told.not_applicable, 3, "gone, not a directory, outside");
    assert_eq!((told.bytes, told.raw_bytes), (launch.set.bytes, launch.set.body));
    let pages = launch.entries.iter().filter(|(entry, _)| matches!(entry, LaunchEntry::Page { .. })).count() as u64;
    assert_eq!((told.pages, told.pages + told.blocks), (pages, launch.entries.len() as u64));

    // And the files still are what they are.
    let (host, _) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "1").await;
    let node = at(&mount, "lib/large").await;
    assert!(content(&mount, &node, 1 << 20).await.unwrap() == noise(1, 4 << 20));
}

#[tokio::test]
async fn the_stored_profile_is_the_recording_in_its_simplest_form() {
    let stage = Stage::new();
    let source = stage.folder("source");
    fs::write(source.join("f"), noise(1, 100_000)).unwrap();
    let recordings =
        [profile("app", &[("/f", read(5, 5)), ("/f", read(7, 7))]), profile("app", &[("/f", read(8192, 1))])];
    publish_with(&stage, &source, "1", recordings.to_vec());
    let launch = launch(&stage, "1", "app").await;
    let stored = fs::read(stage.package_dir().join(launch.set.profile.path().as_str())).unwrap();
    let text = decompress(&stored, launch.set.profile.length as usize, PROFILE_MAX_BYTES).unwrap();
    assert_eq!(Profile::parse(&text, "p").unwrap(), Profile::merge(&recordings).unwrap());
}

#[tokio::test]
async fn two_applications_have_a_launch_set_each_and_share_cuts() {
    let stage = Stage::new();
    let source = stage.folder("source");
    fs::write(source.join("shared"), noise(1, 1 << 20)).unwrap();
    let (one, two) =
        (profile("one", &[("/shared", read(0, 65_536))]), profile("two", &[("/shared", read(32_768, 65_536))]));
    let more = profile("one", &[("/shared", read(500_000, 1))]);
    let summary = publish_with(&stage, &source, "1", vec![two, one, more]);
    let names: Vec<&str> = summary.launch.iter().map(|set| &set.name[..]).collect();
    assert_eq!(names, ["two", "one"], "in the order given, one set a name");
    for (name, count) in [("two", 1), ("one", 2)] {
        let launch = launch(&stage, "1", name).await;
        launch.arrive();
        let reads: Vec<Range<u64>> = launch.reads().into_iter().map(|(_, range)| range).collect();
        // Blocks reach at most to the ends of what all applications read together.
        let parts = [0..98_304, 499_712..503_808];
        let inside = |range: &Range<u64>| parts.iter().any(|part| part.start <= range.start && range.end <= part.end);
        assert!(reads.iter().all(inside), "{name}: {reads:?}");
        assert_eq!(reads.len(), count, "{name}: {reads:?}");
    }
}

#[test]
fn the_same_source_and_profiles_give_the_same_version() {
    let first = Stage::new();
    let source = first.folder("source");
    large_tree(&source);
    let profiles = || {
        vec![
            profile("b", &[("/lib/large", read(0, 2 << 20)), ("/", Use::List)]),
            profile("a", &[("/bin/app", read(0, 1))]),
        ]
    };
    let mut seen = Vec::new();
    for threads in [1, 2, 5] {
        let stage = Stage::new();
        let request = PublishRequest { profiles: profiles(), threads, ..stage.request(&source, "1") };
        let summary = publish(&request, &NoProgress).unwrap();
        let again = publish(&request, &NoProgress).unwrap();
        assert_eq!((again.new_blocks, again.new_bytes_stored), (0, 0), "publishing again changes nothing");
        // Without the recordings, too: the version keeps its own.
        let without = publish(&stage.request(&source, "1"), &NoProgress).unwrap();
        assert_eq!(without.descriptor_sha256, summary.descriptor_sha256);
        seen.push(summary.descriptor_sha256);
    }
    assert!(seen.iter().all(|sha256| *sha256 == seen[0]), "{seen:?}");
}

#[tokio::test]
async fn blocks_of_launches_stand_first_in_new_packs() {
    let stage = Stage::new();
    let source = stage.folder("source");
    for i in 0..20 {
        fs::write(source.join(format!("file-{i:02}")), noise(i, 200_000)).unwrap();
    }
    let asked = [("/file-13", read(65_536, 65_536)), ("/file-02", read(0, 200_000)), ("/file-13", read(0, 1))];
    publish_with(&stage, &source, "1", vec![profile("app", &asked)]);
    let launch = launch(&stage, "1", "app").await;
    let mut arrived = launch.arrive();
    let mut places = Vec::new();
    for (entry, _) in &launch.entries {
        let LaunchEntry::Block { node, offset, .. } = *entry else { continue };
        let extent = launch.extent(&mut arrived, node, offset);
        assert_eq!(extent.pack, 0);
        places.push(extent.pack_offset..extent.pack_end());
    }
    places.sort_by_key(|place| place.start);
    let mut at = 0;
    for place in places {
        assert_eq!(place.start, at, "one after another from the beginning");
        at = place.end;
    }
    assert!(at > 265_000, "{at}");
}

#[tokio::test]
async fn launches_come_in_order_group_by_group() {
    let stage = Stage::new();
    let source = stage.folder("source");
    const MIB: u64 = 1 << 20;
    fs::write(source.join("large"), noise(1, 8 << 20)).unwrap();
    // From its end to its beginning.
    let asked: Vec<(&str, Use)> = (0..8).rev().map(|i| ("/large", read(i * MIB, MIB))).collect();
    publish_with(&stage, &source, "1", vec![profile("app", &asked)]);
    let launch = launch(&stage, "1", "app").await;
    launch.arrive();
    let starts: Vec<u64> = launch.reads().into_iter().map(|(_, range)| range.start / MIB).collect();
    let turns = starts.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!((3..=4).contains(&turns) && starts[0] > 3, "{starts:?}");
}

#[tokio::test]
async fn later_versions_inherit_launch_sets_by_path() {
    let stage = Stage::new();
    let source = stage.folder("source");
    for (name, seed) in [("kept", 1), ("gone", 2), ("shrunk", 3), ("renamed", 4), ("now-a-folder", 5)] {
        fs::write(source.join(name), noise(seed, 100_000)).unwrap();
    }
    let asked = [
        ("/gone", read(0, 4096)),
        ("/shrunk", read(0, 4096)),
        ("/shrunk", read(50_000, 50_000)),
        ("/renamed", read(0, 4096)),
        ("/now-a-folder", read(0, 4096)),
        ("/kept", read(20_480, 4096)),
    ];
    let profiles = vec![profile("app", &asked), profile("other", &[("/kept", read(0, 1))])];
    let one = publish_with(&stage, &source, "1", profiles);
    assert!(one.launch.iter().all(|set| !set.inherited && set.not_applicable == 0));
    let before = descriptor(&stage, "1").await;

    fs::remove_file(source.join("gone")).unwrap();
    fs::write(source.join("shrunk"), noise(3, 6000)).unwrap();
    fs::rename(source.join("renamed"), source.join("other-name")).unwrap();
    fs::remove_file(source.join("now-a-folder")).unwrap();
    fs::create_dir(source.join("now-a-folder")).unwrap();
    let two = publish_with(&stage, &source, "2", Vec::new());
    let after = descriptor(&stage, "2").await;
    let names: Vec<&str> = two.launch.iter().map(|set| &set.name[..]).collect();
    assert_eq!(names, ["app", "other"]);
    assert!(two.launch.iter().all(|set| set.inherited));
    assert_eq!(two.launch[0].not_applicable, 3, "gone, renamed, no longer a file");
    for (old, new) in before.launch.iter().zip(&after.launch) {
        assert_eq!(old.profile, new.profile, "the same object serves both versions");
        assert_eq!(old.name, new.name);
    }
    let launch = launch(&stage, "2", "app").await;
    launch.arrive();
    let lengths: Vec<Range<u64>> = launch.reads().into_iter().map(|(_, range)| range).collect();
    assert_eq!(lengths, [0..4096, 20_480..24_576], "what is beyond the file's end is left out");

    // Another channel's first version has no predecessor there: the newest version is.
    let mut request = stage.request(&source, "3");
    request.channels = vec!["beta".parse().unwrap()];
    let three = std::thread::scope(|scope| scope.spawn(|| publish(&request, &NoProgress)).join().unwrap()).unwrap();
    assert_eq!(three.launch.len(), 2);

    // Turned off, and told so; and what the channel points at now has nothing to hand on.
    let mut request = stage.request(&source, "4");
    request.inherit_profiles = false;
    let four = std::thread::scope(|scope| scope.spawn(|| publish(&request, &NoProgress)).join().unwrap()).unwrap();
    assert!(four.launch.is_empty() && four.launch_sets_dropped == ["app", "other"]);
    assert!(publish_with(&stage, &source, "5", Vec::new()).launch.is_empty());
    // Its own predecessor does, however, when an old version is published again to move the channel.
    assert_eq!(publish_with(&stage, &source, "2", Vec::new()).descriptor_sha256, two.descriptor_sha256);
}

#[tokio::test]
async fn an_upgrade_with_an_inherited_profile_stores_little_more_than_what_changed() {
    let stage = Stage::new();
    let source = stage.folder("source");
    let mut files: Vec<Vec<u8>> = (0..32).map(|i| noise(i, 512 << 10)).collect();
    let write = |i: usize, bytes: &[u8]| fs::write(source.join(format!("file-{i:02}")), bytes).unwrap();
    files.iter().enumerate().for_each(|(i, bytes)| write(i, bytes));
    let paths: Vec<String> = (0..32).map(|i| format!("/file-{i:02}")).collect();
    // Two pages of each file: whatever changes, launch objects stay small beside it.
    let asked: Vec<(&str, Use)> = paths.iter().map(|path| (&path[..], read(131_072, 8192))).collect();
    publish_with(&stage, &source, "1", vec![profile("app", &asked)]);
    files[7] = noise(1000, 160 << 10);
    files[11].splice(1000..1000, *b"inserted");
    write(7, &files[7]);
    write(11, &files[11]);
    let summary = publish_with(&stage, &source, "2", Vec::new());
    let total: u64 = files.iter().map(|f| f.len() as u64).sum();
    let after = descriptor(&stage, "2").await;
    let launch = after.launch[0].bytes;
    assert!(launch < total / 50, "{launch}");
    // The file with an insertion is cut anew around what the launch reads.
    let allowed = total / 50 + (256 << 10) + after.tree.bytes + launch + 8192;
    assert!(summary.new_bytes_stored <= allowed, "{} stored, {allowed} allowed", summary.new_bytes_stored);
    assert!(summary.launch[0].inherited);
}

#[test]
fn a_profile_that_cannot_be_inherited_is_told_with_ways_out() {
    let stage = Stage::new();
    let source = stage.folder("source");
    fs::write(source.join("f"), noise(1, 100_000)).unwrap();
    let recording = || vec![profile("app", &[("/f", read(0, 1))])];
    publish_with(&stage, &source, "1", recording());
    let profiles = stage.package_dir().join("profiles");
    let object = fs::read_dir(&profiles).unwrap().next().unwrap().unwrap().path();
    let good = fs::read(&object).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&object, bad).unwrap();
    let before = stage.stored();
    let e = stage.try_publish(&source, "2").unwrap_err().to_string();
    for part in ["launch set app of version 1", "--no-profile", &object.display().to_string()] {
        assert!(e.contains(part), "{part:?} is not in: {e}");
    }
    assert!(before == stage.stored(), "nothing is left behind");
    fs::remove_file(&object).unwrap();
    assert!(stage.try_publish(&source, "2").unwrap_err().to_string().contains("it is missing"));
    publish_with(&stage, &source, "1", recording());
    assert_eq!(fs::read(&object).unwrap(), good, "publishing with the recording mends it");
    stage.publish(&source, "2");
}

#[test]
fn descriptors_with_senseless_launch_sets_are_refused() {
    let stage = Stage::new();
    let source = stage.folder("source");
    fs::write(source.join("f"), b"content").unwrap();
    publish_with(&stage, &source, "1", vec![profile("app", &[("/f", read(0, 1))])]);
    let folder = stage.package_dir().join("descriptors");
    let object = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let good = Descriptor::parse(&fs::read(object).unwrap(), "d").unwrap();
    assert_eq!(Descriptor::parse(&good.to_bytes(), "d").unwrap(), good);
    type Spoil = fn(&mut Vec<LaunchRef>);
    let cases: [(Spoil, &str); 9] = [
        (|sets| sets.push(sets[0].clone()), "of the name \"app\""),
        (|sets| sets[0].name = "a b".into(), "of the name \"a b\""),
        (|sets| sets[0].name = "x".repeat(65), "of the name"),
        (
            |sets| *sets = (0..65).map(|i| LaunchRef { name: format!("n{i}"), ..sets[0].clone() }).collect(),
            "65 launch sets",
        ),
        (|sets| sets[0].index.stored = sets[0].bytes as u32 + 1, "app is too long"),
        (|sets| sets[0].index.length = u32::MAX, "app is too long"),
        (|sets| sets[0].body = u64::MAX, "app is too long"),
        (|sets| sets[0].bytes = u64::MAX, "app is too long"),
        (|sets| sets[0].profile.length = u64::MAX, "the profile of its launch set app"),
    ];
    for (spoil, expected) in cases {
        let mut bad = good.clone();
        spoil(&mut bad.launch);
        let e = Descriptor::parse(&bad.to_bytes(), "d").unwrap_err().to_string();
        assert!(e.contains(expected), "{expected:?} is not in: {e}");
    }
}
