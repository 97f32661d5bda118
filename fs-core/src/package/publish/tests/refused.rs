//! What cannot be published is refused, naming what it is about, and leaves nothing behind.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::error::ErrorKind;

#[track_caller]
fn assert_refused(result: Result<PublishSummary>, parts: &[&str]) {
    let e = result.expect_err("it cannot be published");
    for part in parts {
        assert!(e.to_string().contains(part), "{part:?} is not in: {e}");
    }
}

#[test]
fn sockets_and_pipes_are_named_or_skipped_when_asked() {
    for pipe in [false, true] {
        let stage = Stage::new();
        let source = stage.folder("source/inner");
        fs::write(source.join("kept"), b"k").unwrap();
        let special = source.join("special one");
        if pipe {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, &special, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        } else {
            UnixListener::bind(&special).unwrap();
        }
        let source = stage.path("source");
        let what = if pipe { "named pipe" } else { "socket" };
        assert_refused(stage.try_publish(&source, "1"), &["special one", what, "--skip-special"]);
        assert!(stage.stored().is_empty(), "nothing is left behind");
        let mut request = stage.request(&source, "1");
        request.skip_special = true;
        let summary = publish(&request, &NoProgress).unwrap();
        assert_eq!((summary.files, summary.skipped.len()), (1, 1));
        assert!(summary.skipped[0].contains("special one") && summary.skipped[0].contains(what));
    }
}

#[test]
fn other_content_under_a_published_version_is_refused_and_stores_nothing() {
    // The packs of the refused content used to stay in the content root for ever.
    let stage = Stage::new();
    let source = stage.folder("source");
    fs::write(source.join("f"), noise(1, 300_000)).unwrap();
    stage.publish(&source, "1");
    let before = stage.stored();
    fs::write(source.join("f"), noise(2, 300_000)).unwrap();
    assert_refused(stage.try_publish(&source, "1"), &["version 1", "other content"]);
    assert!(before == stage.stored(), "a refused version leaves nothing behind");
}

#[test]
fn sources_that_cannot_be_are_refused_before_anything_is_made() {
    let stage = Stage::new();
    let source = stage.folder("source");
    fs::write(source.join("f"), b"x").unwrap();
    assert_refused(stage.try_publish(&stage.path("absent"), "1"), &["absent", "No such file"]);
    assert_refused(stage.try_publish(&source.join("f"), "1"), &["f is not a directory"]);
    let mut request = stage.request(&source, "1");
    request.level = 23;
    assert_refused(publish(&request, &NoProgress), &["23", "1 to 22"]);
    // The content root within the source, also when it is still to be made and when a link leads there.
    let mut request = stage.request(&source, "1");
    request.content_root = source.join("content");
    assert_refused(publish(&request, &NoProgress), &["outside of the content root"]);
    symlink(&source, stage.path("way")).unwrap();
    request.content_root = stage.path("way").join("content");
    assert_refused(publish(&request, &NoProgress), &["outside of the content root"]);
    assert!(!source.join("content").exists(), "a refused publish made the content root within the source");
    // The source within the content root.
    request.content_root = stage.path("");
    assert_refused(publish(&request, &NoProgress), &["outside of the content root"]);
    assert!(stage.stored().is_empty());
}

#[test]
fn a_path_too_long_for_the_system_is_refused_with_what_to_do() {
    let stage = Stage::new();
    let source = stage.folder("source");
    // Made link by link from within, because no path leads there.
    let mut dir = rustix::fs::open(&source, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    let name = "d".repeat(250);
    for _ in 0..17 {
        rustix::fs::mkdirat(&dir, &name, rustix::fs::Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, &name, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    }
    assert_refused(stage.try_publish(&source, "1"), &["more than the system allows", "nearer to the root"]);
}

#[tokio::test]
async fn a_path_of_almost_the_longest_length_is_published() {
    let stage = Stage::new();
    let source = stage.folder("source");
    let (mut path, mut relative) = (source.clone(), PathBuf::new());
    while path.as_os_str().len() + 300 < 4096 {
        path.push("d".repeat(250));
        relative.push("d".repeat(250));
    }
    fs::create_dir_all(&path).unwrap();
    let name = "f".repeat(4095 - path.as_os_str().len() - 1);
    fs::write(path.join(&name), b"deep").unwrap();
    stage.publish(&source, "1");
    let (host, _) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "1").await;
    let node = at(&mount, relative.join(&name).to_str().unwrap()).await;
    assert_eq!(content(&mount, &node, 100).await.unwrap(), b"deep");
}

/// Changes a file when the first of its bytes were read.
struct ChangesTheFile {
    file: PathBuf,
    done: AtomicBool,
    how: fn(&Path),
}

impl Progress for ChangesTheFile {
    fn total(&self, _: u64, _: u64) {}
    fn advance(&self, _: u64) {}
    fn message(&self, text: &str) {
        if text == "storing blocks" && !self.done.swap(true, Ordering::SeqCst) {
            (self.how)(&self.file);
        }
    }
    fn cancelled(&self) -> bool {
        false
    }
}

#[test]
fn a_file_that_changes_while_it_is_published_is_refused_by_name() {
    let ways: [fn(&Path); 4] = [
        |file| fs::write(file, noise(3, 500_000)).unwrap(),
        |file| File::options().write(true).open(file).unwrap().set_len(100_000).unwrap(),
        |file| {
            use std::io::Write;
            File::options().append(true).open(file).unwrap().write_all(b"more").unwrap();
        },
        // Another file in its place, of the same length and time.
        |file| {
            let meta = fs::metadata(file).unwrap();
            let other = file.with_extension("other");
            fs::write(&other, noise(4, 500_000)).unwrap();
            File::open(&other).unwrap().set_modified(meta.modified().unwrap()).unwrap();
            fs::rename(&other, file).unwrap();
        },
    ];
    for how in ways {
        let stage = Stage::new();
        let source = stage.folder("source");
        let file = source.join("restless");
        fs::write(&file, noise(1, 500_000)).unwrap();
        let progress = ChangesTheFile { file, done: AtomicBool::new(false), how };
        let e = publish(&stage.request(&source, "1"), &progress).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::InvalidInput);
        assert!(e.to_string().contains("restless") && e.to_string().contains("changed"), "{e}");
    }
}

#[test]
fn keys_within_the_content_root_are_refused() {
    let stage = Stage::new();
    let source = stage.folder("source");
    let mut request = stage.request(&source, "1");
    request.keys_dir = stage.path("content/keys");
    assert_refused(publish(&request, &NoProgress), &["private keys", "content root"]);
}
