//! The cache on disk: without network, within its quota, with damage.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tests::{Streamfs, assert_same_tree};

use crate::{forget_pages, in_folder, noise, served_sample};

/// `load`, then everything ends: the server is stopped, the agent killed. A new agent serves all from disk.
#[test]
fn a_loaded_version_needs_no_network() {
    let (user, source, mut server, location) = served_sample();
    user.ok(["load", &location]);
    user.kill_agent();
    server.stop();
    let asked = server.requests().len();
    let mount = user.mount(&location, "mnt");
    assert_same_tree(&source, mount.path());
    mount.unmount();
    assert_eq!(server.requests().len(), asked);
}

/// The server is there, but a loaded version does not ask it for one byte of content.
#[test]
fn a_loaded_version_asks_for_no_content() {
    let (user, source, server, location) = served_sample();
    user.ok(["load", &location]);
    user.kill_agent();
    let mark = server.mark();
    let mount = user.mount(&location, "mnt");
    assert_same_tree(&source, mount.path());
    let bytes: u64 = server.requests_since(mark).iter().map(|r| r.body_bytes).sum();
    assert!(bytes < 64 << 10, "{bytes} bytes were fetched for a loaded version");
}

#[test]
fn a_second_start_reads_from_disk() {
    let (user, source, server, location) = served_sample();
    let mount = user.mount(&location, "mnt");
    assert_same_tree(&source, mount.path());
    mount.unmount();
    user.kill_agent();
    let mark = server.mark();
    let mount = user.mount(&location, "mnt");
    assert_same_tree(&source, mount.path());
    let requests = server.requests_since(mark);
    let data =
        requests.iter().filter(|r| r.range.is_some() && r.body_bytes > 4096 && !r.path.ends_with("/head")).count();
    assert_eq!(data, 0, "content that is on disk was fetched again");
}

/// Someone removes the cache while it is in use.
#[test]
fn a_vanished_cache_folder_is_survived() {
    let (user, source, _server, location) = served_sample();
    let mount = user.mount(&location, "mnt");
    let mut start = [0; 100_000];
    File::open(mount.join("folder/large")).and_then(|mut f| f.read_exact(&mut start)).expect("reads");
    fs::remove_dir_all(user.cache()).expect("own cache");
    forget_pages(&mount.join("folder/large"));
    assert_same_tree(&source, mount.path());
}

/// Bits rot on disk: whatever file of the cache is damaged, no wrong byte is read after a restart.
#[test]
fn damage_in_the_cache_is_never_read() {
    let (user, source, _server, location) = served_sample();
    user.ok(["load", &location]);
    user.kill_agent();
    let mut damaged = 0;
    for_each_file(user.cache(), &mut |path| {
        let Ok(file) = File::options().read(true).write(true).open(path) else { return };
        let length = file.metadata().expect("just opened").len();
        let mut at = 100;
        while at < length {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("inside");
            byte[0] ^= 0x40;
            file.write_all_at(&byte, at).expect("own cache");
            at += 50_000;
            damaged += 1;
        }
    });
    assert!(damaged > 10, "the cache should hold the loaded version");
    let mount = user.mount(&location, "mnt");
    assert_same_tree(&source, mount.path());
}

fn for_each_file(folder: &Path, work: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).expect("own folder").flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => for_each_file(&entry.path(), work),
            Ok(kind) if kind.is_file() => work(&entry.path()),
            _ => {}
        }
    }
}

#[test]
fn a_quota_is_kept() {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    for i in 0..10 {
        fs::write(source.join(format!("big{i}")), noise(8 << 20, i)).expect("a folder of the test");
    }
    let package = in_folder(&content, "app");
    user.publish(&source, &package, "1.0");
    let mount = user.mount_with(&package, "mnt", &["--cache-size", "20M"]);
    assert_same_tree(&source, mount.path());
    mount.unmount();
    let mut bytes = 0;
    for_each_file(user.cache(), &mut |path| {
        bytes += fs::metadata(path).map_or(0, |m| std::os::unix::fs::MetadataExt::blocks(&m) * 512);
    });
    // The quota is of content; index and log come on top.
    assert!(bytes < 28 << 20, "a cache of 20 MB takes {bytes} bytes on disk");
}
