//! Clients who mean no good, over real sockets, against the built server: whatever they do, it goes on serving others,
//! stays within its limits, gives back what they held, and ends when it is asked to.

mod credentials;
mod crowds;
mod oversized;
mod paths;
mod sessions;
mod slow;
mod wire;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tests::{Served, Streamfs, assert_same_tree, wait_for};

use crate::serving::published;

/// Longer than anything here takes that is not meant to take long.
const DEADLINE: Duration = Duration::from_secs(60);

/// Name of an object that is larger than all memory that the server may take.
const LARGE: &str = "packs/0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a";
const LARGE_BYTES: u64 = 1 << 30;

/// A server with package `app`, and what it had open before anybody came.
struct Siege {
    user: Streamfs,
    source: PathBuf,
    content: PathBuf,
    server: Served,
    sockets: usize,
    other_descriptors: usize,
}

impl Siege {
    fn begin(more: &[&str]) -> Self {
        Self::with(|_, _| more.iter().map(|&argument| argument.to_owned()).collect())
    }

    /// `prepare` gets the user and the content root, and gives more arguments of the server.
    fn with(prepare: impl FnOnce(&Streamfs, &PathBuf) -> Vec<String>) -> Self {
        let (user, source, content) = published();
        // It has no blocks on the disk: a hole.
        let large = fs::File::create(content.join("app").join(LARGE)).expect("a folder of the test");
        large.set_len(LARGE_BYTES).expect("a file of the test");
        let more = prepare(&user, &content);
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let server = Served::start(&user, &content, &more);
        // Nobody has come yet, so these are not of connections.
        let (sockets, _) = server.open_descriptors();
        let mut siege = Self { user, source, content, server, sockets, other_descriptors: 0 };
        // What it opens once: to see changes of the content root, and with the first answer.
        wait_for("the server to watch its content root", DEADLINE, || siege.server.has_open("inotify").then_some(()));
        siege.is_well();
        siege.other_descriptors = siege.server.open_descriptors().1;
        siege
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// How many connections the server has.
    fn connections(&self) -> usize {
        self.server.open_descriptors().0.saturating_sub(self.sockets)
    }

    #[track_caller]
    fn is_well(&self) {
        let answer = wire::told(self.address(), "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }

    /// After all who came have gone: nothing is left of them, a mount works, and the end is one.
    #[track_caller]
    fn survived(self) {
        let url = format!("{}/app", self.server.url("http"));
        self.survived_at(&url);
    }

    /// Like [`Self::survived`], with the package at `url`.
    #[track_caller]
    fn survived_at(mut self, url: &str) {
        let (begun, wanted) = (Instant::now(), (0, self.other_descriptors));
        let left = wait_for("the server to close what its clients had open", DEADLINE, || {
            let left = (self.connections(), self.server.open_descriptors().1);
            (left.0 == 0 && left.1 <= wanted.1 || begun.elapsed() > DEADLINE / 2).then_some(left)
        });
        assert!(left.0 == 0 && left.1 <= wanted.1, "sockets and other descriptors are left: {left:?}, not {wanted:?}");
        let mount = self.user.mount(url, "mnt");
        assert_same_tree(&self.source, mount.path());
        mount.unmount();
        self.server.signal(Signal::TERM);
        assert!(self.server.ended().success(), "the server did not end as it should");
    }
}

/// Lets this process, and what it starts, have so many files open.
fn may_open(files: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= files) {
        return;
    }
    assert!(maximum.is_none_or(|maximum| maximum >= files), "this test needs {files} open files (ulimit -Hn {files})");
    setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum }).expect("within the hard limit");
}
