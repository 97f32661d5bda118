//! What one launch read is there for the next one, on a real mount.

use std::fs;
use std::time::Duration;

use tests::{Nginx, Streamfs, wait_for};

use crate::{in_folder, noise};

const DEADLINE: Duration = Duration::from_secs(60);
const FILES: u64 = 12;

#[test]
fn the_second_cold_start_is_helped_by_the_first() {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    for i in 0..FILES {
        fs::write(source.join(format!("file-{i}")), noise(100_000, i)).expect("a folder of the test");
    }
    user.publish(&source, &in_folder(&content, "app"), "1.0");
    let server = Nginx::http(&content);
    let location = format!("{}/app", server.url());
    let prefetch = |what: &str| {
        let status = user.ok(["status", "--json"]).json();
        status.pointer(&format!("/agents/0/mounts/0/statistics/prefetch/{what}")).cloned().unwrap_or_default()
    };

    let mount = user.mount(&location, "mnt");
    for i in (0..FILES).step_by(2) {
        fs::read(mount.path().join(format!("file-{i}"))).expect("a file of the mount");
    }
    wait_for("the launch to be learned", DEADLINE, || (prefetch("learned_now") == true).then_some(()));
    mount.unmount();
    user.kill_agent();
    // All blocks are gone; what was learned is not.
    let cache = user.cache();
    fs::remove_dir_all(cache.join("blobs")).expect("a folder of the cache");
    fs::remove_file(cache.join("index.redb")).expect("a file of the cache");

    let mount = user.mount(&location, "mnt");
    wait_for("what was learned to come", DEADLINE, || {
        let brought = prefetch("bytes").as_u64().is_some_and(|bytes| bytes >= FILES / 2 * 100_000);
        (brought && prefetch("active") == false).then_some(())
    });
    assert!(prefetch("learned_ranges").as_u64().is_some_and(|ranges| ranges >= FILES / 2));
    let mark = server.mark();
    for i in (0..FILES).step_by(2) {
        fs::read(mount.path().join(format!("file-{i}"))).expect("a file of the mount");
    }
    let ranges = server.requests_since(mark).iter().filter(|r| r.range.is_some()).count();
    assert_eq!(ranges, 0, "every read was answered from this machine");
}
