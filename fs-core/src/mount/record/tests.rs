use std::time::Duration;

use super::*;
use crate::mount::observe::Waits;

fn tell(recorder: &Recorder, millis: u64, operation: Operation) {
    let at = recorder.began + Duration::from_millis(millis);
    recorder.observed(&Observed { at, operation, waits: Waits::default(), succeeded: true });
}

fn name(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn lookup(parent: u64, called: &str, found: Option<u64>) -> Operation {
    Operation::Lookup { parent: NodeId(parent), name: name(called), found: found.map(NodeId) }
}

fn read(node: u64, offset: u64, length: u64) -> Operation {
    Operation::Read { node: NodeId(node), offset, length }
}

/// What was recorded as (milliseconds, path, what), without a mount for the header.
fn recorded(recorder: &Recorder) -> Vec<(u64, String, Use)> {
    let state = recorder.state.lock();
    let mut events: Vec<_> = state.uses.iter().filter_map(|used| state.event(used)).collect();
    events.sort_by_key(|event| event.at_micros);
    let told = |e: ProfileEvent| (e.at_micros / 1000, String::from_utf8(e.path.to_vec()).unwrap(), e.use_);
    events.into_iter().map(told).collect()
}

#[test]
fn first_uses_are_told_by_path_in_the_order_they_were_asked() {
    let recorder = Recorder::new();
    tell(&recorder, 1, lookup(1, "bin", Some(2)));
    // Answered late, asked early.
    tell(&recorder, 5, read(3, 0, 4096));
    tell(&recorder, 2, lookup(2, "calc", Some(3)));
    tell(&recorder, 6, lookup(2, "calc", Some(3)));
    tell(&recorder, 7, lookup(2, "absent", None));
    tell(&recorder, 8, Operation::List { dir: NodeId::ROOT, entries: vec![(name("lib"), NodeId(9))] });
    tell(&recorder, 9, Operation::List { dir: NodeId(9), entries: vec![] });
    tell(&recorder, 9, Operation::List { dir: NodeId(9), entries: vec![] });
    tell(&recorder, 10, Operation::ReadLink { node: NodeId(3) });
    tell(&recorder, 11, Operation::Xattrs { node: NodeId(3) });
    let expected = [
        (1, "/bin", Use::Lookup),
        (2, "/bin/calc", Use::Lookup),
        (5, "/bin/calc", Use::Read { offset: 0, length: 4096 }),
        (7, "/bin/absent", Use::Lookup),
        (8, "/", Use::List),
        (9, "/lib", Use::List),
        (10, "/bin/calc", Use::ReadLink),
        (11, "/bin/calc", Use::Xattrs),
    ];
    assert_eq!(recorded(&recorder), expected.map(|(t, p, u)| (t, p.to_owned(), u)));
}

#[test]
fn only_bytes_read_for_the_first_time_are_told_and_neighbours_together() {
    let recorder = Recorder::new();
    tell(&recorder, 0, lookup(1, "a", Some(2)));
    tell(&recorder, 0, lookup(1, "b", Some(3)));
    for (at, operation) in [
        (1, read(2, 8192, 4096)),
        (2, read(2, 12_288, 4096)),
        (3, read(3, 0, 100)),
        (4, read(2, 4096, 16_384)),
        (5, read(2, 4096, 4096)),
        // Not at a page's beginning: direct I/O.
        (6, read(3, 5000, 10)),
    ] {
        tell(&recorder, at, operation);
    }
    let r = |offset, length| Use::Read { offset, length };
    let expected = [
        (1, "/a", r(8192, 8192)),
        (3, "/b", r(0, 100)),
        (4, "/a", r(4096, 4096)),
        (4, "/a", r(16_384, 4096)),
        (6, "/b", r(4096, 914)),
    ];
    assert_eq!(recorded(&recorder)[2..], expected.map(|(t, p, u)| (t, p.to_owned(), u)));
    let totals = recorder.totals();
    assert_eq!((totals.files_read, totals.bytes_read, totals.dropped), (2, 16_384 + 100 + 914, 0));
}

#[test]
fn what_failed_and_what_has_no_known_name_is_not_told() {
    let recorder = Recorder::new();
    let operation = lookup(1, "x", Some(2));
    recorder.observed(&Observed { at: Instant::now(), operation, waits: Waits::default(), succeeded: false });
    tell(&recorder, 1, read(77, 0, 10));
    assert_eq!(recorded(&recorder), []);
}

#[test]
fn a_long_sequential_read_is_told_in_pieces_with_times() {
    let recorder = Recorder::new();
    tell(&recorder, 0, lookup(1, "a", Some(2)));
    for i in 0..1024 {
        tell(&recorder, i, read(2, i * 4096, 4096));
    }
    let reads = &recorded(&recorder)[1..];
    assert_eq!(reads.len(), 4);
    assert_eq!(reads[1], (256, "/a".to_owned(), Use::Read { offset: 1 << 20, length: 1 << 20 }));
}

#[test]
fn covered_parts_agree_with_a_set_of_bytes() {
    use rand::Rng as _;
    let mut rng: rand::rngs::StdRng = rand::SeedableRng::seed_from_u64(3);
    let (mut covered, mut bytes) = (Covered::default(), HashSet::new());
    for _ in 0..2000 {
        let start = rng.random_range(0..300u64);
        let end = start + rng.random_range(0..20);
        let fresh: Vec<u64> = (start..end).filter(|b| !bytes.contains(b)).collect();
        let told: Vec<u64> = covered.add(start, end).into_iter().flat_map(|(s, e)| s..e).collect();
        assert_eq!(told, fresh, "{start}..{end}");
        bytes.extend(start..end);
        assert_eq!(covered.bytes(), bytes.len() as u64);
    }
}
