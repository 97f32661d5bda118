//! In what order things are brought. Nothing is fetched here: what is put on the way is only written down.

use std::fs;

use super::*;
use crate::stage::{Stage, at, noise};

const FILE_BYTES: usize = 40 << 10;

async fn index(mount: &Arc<Mount>) -> Index {
    let nodes = mount.descriptor.totals.nodes;
    Index::read(Arc::downgrade(mount), nodes, Urgency::Demand).await.unwrap()
}

async fn wanted_of(mount: &Arc<Mount>, path: &str, range: Range<u64>) -> Vec<Wanted> {
    let node = at(mount, path).await.id;
    let question = move |this: &Mount, held: &mut Held| this.not_local(held, node, &range);
    mount.answer_for(Urgency::Demand, question).await.unwrap()
}

/// Which of `paths` come, in that order, until the plan has nothing more.
async fn order(mount: &Arc<Mount>, plan: &mut Plan, paths: &[&str]) -> Vec<String> {
    let mut names = HashMap::new();
    for path in paths {
        for wanted in wanted_of(mount, path, 0..u64::MAX).await {
            names.insert(wanted.hash, (*path).to_owned());
        }
    }
    let mut order = Vec::new();
    while let Some(piece) = plan.next(256 << 10).await.unwrap() {
        for name in piece.iter().filter_map(|wanted| names.get(&wanted.hash)) {
            if !order.contains(name) {
                order.push(name.clone());
            }
        }
    }
    order
}

async fn touch(mount: &Arc<Mount>, plan: &mut Plan, path: &str, offset: u64) {
    let (dir, name) = path.rsplit_once('/').unwrap();
    let (dir, node) = (at(mount, dir).await.id, at(mount, path).await.id);
    plan.touched(node, offset, Some((dir, Kind::of(name.as_bytes()))));
}

async fn published(stage: &Stage, paths: &[&str]) -> Arc<Mount> {
    let source = stage.folder("source");
    for (path, seed) in paths.iter().zip(1..) {
        let path = source.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, noise(seed, FILE_BYTES)).unwrap();
    }
    stage.publish(&source, "1");
    let (host, _) = stage.recorded("cache").await;
    stage.mount(&host, "1").await
}

const PATHS: [&str; 8] = [
    "top/app/one/a.so",
    "top/app/one/b.so.1",
    "top/app/one/c.txt",
    "top/app/two/d.so",
    "top/other/e.so",
    "far/away/f.so",
    "far/away/g.txt",
    "far/away/h",
];

#[tokio::test(flavor = "multi_thread")]
async fn nearby_origins_bring_what_is_of_the_kind_in_the_same_directory() {
    let stage = Stage::new();
    let mount = published(&stage, &PATHS).await;
    let mut plan = Plan::new(&mount);
    plan.know(index(&mount).await);
    touch(&mount, &mut plan, PATHS[1], 0).await;
    assert_eq!(order(&mount, &mut plan, &PATHS).await, [PATHS[1], PATHS[0]]);
    assert!(plan.wants_index().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn far_origins_bring_the_kind_from_ever_farther_and_then_the_rest() {
    let stage = Stage::new();
    let mount = published(&stage, &PATHS).await;
    let mut plan = Plan::new(&mount);
    plan.is_far();
    assert!(plan.wants_index().is_none(), "the tree was not asked for yet");
    touch(&mount, &mut plan, PATHS[0], 0).await;
    // Without the other files nothing but the directory is known.
    assert_eq!(order(&mount, &mut plan, &PATHS).await, PATHS[..2]);
    let read = plan.wants_index().expect("all else needs it");
    plan.know(read.await.unwrap());
    let order = order(&mount, &mut plan, &PATHS).await;
    let order: Vec<&str> = order.iter().map(String::as_str).filter(|path| !PATHS[..2].contains(path)).collect();
    assert_eq!(order[..3], [PATHS[3], PATHS[4], PATHS[5]], "of the kind, the nearest first");
    let mut rest = order[3..].to_vec();
    rest.sort_unstable();
    assert_eq!(rest, [PATHS[6], PATHS[7], PATHS[2]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_last_comes_first() {
    let stage = Stage::new();
    let mount = published(&stage, &PATHS).await;
    let mut plan = Plan::new(&mount);
    touch(&mount, &mut plan, PATHS[0], 0).await;
    touch(&mount, &mut plan, PATHS[6], 0).await;
    assert_eq!(order(&mount, &mut plan, &PATHS).await, [PATHS[6], PATHS[0], PATHS[1]]);
}

/// Bytes of the long file that the plan brings now, uncompressed, none of them for a second time, and the places of the first and the last block.
async fn brought(mount: &Arc<Mount>, plan: &mut Plan, path: &str) -> (u64, Vec<u64>) {
    let places: HashMap<_, _> = wanted_of(mount, path, 0..u64::MAX)
        .await
        .into_iter()
        .map(|wanted| (wanted.hash, (wanted.home.unwrap().1, u64::from(wanted.length))))
        .collect();
    let mut order = Vec::new();
    let mut bytes = 0;
    while let Some(piece) = plan.next(256 << 10).await.unwrap() {
        for (offset, length) in piece.iter().filter_map(|wanted| places.get(&wanted.hash)) {
            assert!(!order.contains(offset), "{offset} is brought twice");
            bytes += length;
            order.push(*offset);
        }
    }
    (bytes, order)
}

/// A mount of a version that is `bin/long`, of `bytes` bytes, from far away, and a plan that knows it.
async fn of_a_long_file(stage: &Stage, bytes: u64) -> (Arc<Mount>, Plan) {
    let source = stage.folder("source");
    fs::create_dir(source.join("bin")).unwrap();
    fs::write(source.join("bin/long"), noise(1, bytes as usize)).unwrap();
    stage.publish(&source, "1");
    let (host, _) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "1").await;
    let mut plan = Plan::new(&mount);
    plan.is_far();
    plan.know(index(&mount).await);
    (mount, plan)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_file_comes_around_what_is_read_and_whole_when_much_of_it_is() {
    const SIZE: u64 = 24 << 20;
    const AT: u64 = 10 << 20;
    let stage = Stage::new();
    let (mount, mut plan) = of_a_long_file(&stage, SIZE).await;
    touch(&mount, &mut plan, "bin/long", AT).await;
    let (bytes, order) = brought(&mount, &mut plan, "bin/long").await;
    let block = 256 << 10;
    assert!((AT - BEFORE_BYTES - block..=AT).contains(&order[0]), "{}", order[0]);
    let end = order.iter().position(|offset| *offset >= SIZE - END_BYTES - block).expect("its end comes");
    assert!(order[..end].iter().all(|offset| (AT - BEFORE_BYTES - block..AT + AFTER_BYTES).contains(offset)));
    let most = BEFORE_BYTES + AFTER_BYTES + END_BYTES + 4 * block;
    assert!((BEFORE_BYTES + AFTER_BYTES + END_BYTES..most).contains(&bytes), "{bytes}");
    touch(&mount, &mut plan, "bin/long", 2 << 20).await;
    let (second, _) = brought(&mount, &mut plan, "bin/long").await;
    assert!(second < SIZE / 2, "{second}");
    touch(&mount, &mut plan, "bin/long", 18 << 20).await;
    let (third, _) = brought(&mount, &mut plan, "bin/long").await;
    assert_eq!(bytes + second + third, SIZE, "it is read in many places, and whole by now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_file_comes_whole_also_if_it_is_read_in_one_place() {
    const SIZE: u64 = 24 << 20;
    let stage = Stage::new();
    let (mount, mut plan) = of_a_long_file(&stage, SIZE).await;
    let mut bytes = 0;
    for (at, whole) in [(0, false), (4096, false), (8192, true), (12288, true)] {
        touch(&mount, &mut plan, "bin/long", at).await;
        bytes += brought(&mount, &mut plan, "bin/long").await.0;
        assert_eq!(bytes == SIZE, whole, "{at}: {bytes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_of_a_mount_that_is_gone_is_empty() {
    let stage = Stage::new();
    let source = stage.folder("source");
    fs::write(source.join("file"), b"content").unwrap();
    stage.publish(&source, "1");
    let (host, _) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "1").await;
    let weak = Arc::downgrade(&mount);
    let mut plan = Plan::new(&mount);
    drop(mount);
    assert!(weak.upgrade().is_none());
    assert!(plan.next(1 << 20).await.unwrap().is_none());
    assert!(Index::read(weak, 2, Urgency::Demand).await.unwrap().parent(NodeId(2)).is_none());
}
