//! What is kept of launches, and what becomes of files that cannot be used.

use super::*;
use crate::package::profile::{ProfileEvent, ProfileHeader};

fn launch(reads: &[(&str, u64, u64)]) -> Profile {
    let event = |(path, offset, length): &(&str, u64, u64)| ProfileEvent {
        at_micros: 0,
        path: Bytes::copy_from_slice(path.as_bytes()),
        use_: Use::Read { offset: *offset, length: *length },
    };
    let header = ProfileHeader { package: "app".into(), version: "1".into(), name: "learned".into() };
    Profile { header, events: reads.iter().map(event).collect() }
}

fn shown(set: &LearnedSet) -> Vec<(&str, u64, u64)> {
    let text = |path: &'_ Bytes| std::str::from_utf8(path).unwrap().len();
    let of = |(r, _): &'_ (PathRange, u64)| (text(&r.path), r.range.start, r.range.end);
    set.ranges.iter().map(|entry| (std::str::from_utf8(&entry.0.path).unwrap(), of(entry).1, of(entry).2)).collect()
}

#[test]
fn a_launch_adds_what_it_read_and_three_forget_what_they_did_not_read() {
    let mut set = LearnedSet::default();
    set.add(&launch(&[("/a", 0, 8192), ("/b", 0, 4096)]));
    assert_eq!(shown(&set), [("/a", 0, 8192), ("/b", 0, 4096)]);
    // The newer order goes first; of what was read before, the parts that are not read now stay.
    set.add(&launch(&[("/c", 0, 10), ("/a", 4096, 4096)]));
    assert_eq!(shown(&set), [("/c", 0, 10), ("/a", 4096, 8192), ("/a", 0, 4096), ("/b", 0, 4096)]);
    set.add(&launch(&[("/c", 0, 10)]));
    assert!(shown(&set).contains(&("/b", 0, 4096)));
    set.add(&launch(&[("/c", 0, 10)]));
    assert_eq!(shown(&set), [("/c", 0, 10), ("/a", 4096, 8192)], "missed three times: forgotten");
    assert_eq!(set.launches, 4);
}

#[test]
fn sets_return_as_they_went() {
    let mut set = LearnedSet::default();
    set.add(&launch(&[("/a", 0, 8192), ("/b\u{fc}", 4096, 1)]));
    set.ranges.push((PathRange { path: Bytes::from_static(b"/\xff"), range: 0..1 }, 2));
    let bytes = set.to_bytes("/c/app");
    assert_eq!(LearnedSet::parse(&bytes, "/c/app").unwrap(), set);
    assert!(LearnedSet::parse(&bytes, "/c/other").unwrap_err().contains("another package"));
    for length in 0..bytes.len() {
        // Whole lines are a shorter set; anything else is refused. Nothing panics.
        let _ = LearnedSet::parse(&bytes[..length], "/c/app");
    }
    assert!(LearnedSet::parse(b"", "/c/app").is_err());
    let newer = String::from_utf8(bytes).unwrap().replace("learned\":1", "learned\":2");
    assert!(LearnedSet::parse(newer.as_bytes(), "/c/app").unwrap_err().contains("format"));
}

#[tokio::test]
async fn files_are_private_few_and_of_one_package_and_broken_ones_are_no_hindrance() {
    let dir = tempfile::tempdir().unwrap();
    let sets = LearnedSets::new(dir.path());
    assert!(sets.ranges("/c/app").await.is_empty());
    sets.add("/c/app", &launch(&[("/a", 0, 1)])).unwrap();
    assert_eq!(sets.ranges("/c/app").await.len(), 1);
    assert!(sets.ranges("/c/other").await.is_empty());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(sets.path("/c/app")).unwrap().permissions().mode() & 0o777, 0o600);
    }
    // Another package's file under this one's name.
    std::fs::copy(sets.path("/c/app"), sets.path("/c/other")).unwrap();
    assert!(sets.ranges("/c/other").await.is_empty());
    for junk in [&b"junk"[..], b"{\"streamfs_learned\":1,\"package\":\"/c/app\",\"launches\":1}\n{\"path\":3}"] {
        std::fs::write(sets.path("/c/app"), junk).unwrap();
        assert!(sets.ranges("/c/app").await.is_empty());
        sets.add("/c/app", &launch(&[("/b", 0, 1)])).unwrap();
        assert_eq!(sets.ranges("/c/app").await.len(), 1, "it is learned anew");
    }
    for i in 0..FILES_MAX + 5 {
        sets.add(&format!("/c/{i}"), &launch(&[("/a", 0, 1)])).unwrap();
    }
    assert_eq!(std::fs::read_dir(dir.path().join("learned")).unwrap().count(), FILES_MAX);
}
