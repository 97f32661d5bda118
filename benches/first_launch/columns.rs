//! The contenders: how each brings an application to this machine, and what of it is measured.

mod nydus;
mod peers;
mod plain;
mod product;

pub(crate) use self::product::measure as measure_package;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::apps::App;
use crate::link::Link;
use crate::measure::{drop_caches, timed};
use crate::origin::Origin;

/// Mounting, unpacking and the like, on the slowest link.
const WORK_DEADLINE: Duration = Duration::from_secs(900);

/// Small things that are here already.
const TOUCH_DEADLINE: Duration = Duration::from_secs(60);

/// A way to bring an application here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Column {
    /// streamfs with a recorded launch.
    Streamfs,
    /// streamfs without.
    StreamfsNoProfile,
    /// Exactly the pages that the launch reads, then a launch from the local disk.
    Floor,
    /// One archive, unpacked as it comes.
    Full,
    /// The tree on this machine's disk: no network at all.
    Local,
    /// `rclone mount` over HTTP.
    Rclone,
    /// `httpdirfs`.
    Httpdirfs,
    /// `sshfs`.
    Sshfs,
    /// `casync mount`.
    Casync,
    /// Nydus, which fetches what is read.
    Nydus,
    /// Nydus with the list of files that a launch reads.
    NydusList,
}

impl Column {
    /// In the order of the table.
    pub(crate) const ALL: [Column; 11] = [
        Column::Streamfs,
        Column::StreamfsNoProfile,
        Column::Floor,
        Column::Full,
        Column::Local,
        Column::Rclone,
        Column::Httpdirfs,
        Column::Sshfs,
        Column::Casync,
        Column::Nydus,
        Column::NydusList,
    ];

    /// On the command line and in JSON.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Column::Streamfs => "streamfs",
            Column::StreamfsNoProfile => "streamfs-no-profile",
            Column::Floor => "floor",
            Column::Full => "full",
            Column::Local => "local",
            Column::Rclone => "rclone",
            Column::Httpdirfs => "httpdirfs",
            Column::Sshfs => "sshfs",
            Column::Casync => "casync",
            Column::Nydus => "nydus",
            Column::NydusList => "nydus-list",
        }
    }

    /// In tables and the plot.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Column::Streamfs => "streamfs",
            Column::StreamfsNoProfile => "streamfs, no profile",
            Column::Floor => "floor",
            Column::Full => "full download",
            Column::Local => "local disk",
            Column::Rclone => "rclone mount",
            Column::Httpdirfs => "httpdirfs",
            Column::Sshfs => "sshfs (no SSH)",
            Column::Casync => "casync (no TLS)",
            Column::Nydus => "Nydus (no TLS)",
            Column::NydusList => "Nydus, list of files (no TLS)",
        }
    }

    /// Whether it is somebody else's program.
    pub(crate) fn is_foreign(self) -> bool {
        self >= Column::Rclone
    }

    /// Whether its programs are here: in the tree of the `peers` that Debian packages, or on PATH.
    pub(crate) fn is_installed(self, peers: &Path) -> bool {
        let program = match self {
            Column::Rclone => "usr/bin/rclone",
            Column::Httpdirfs => "usr/bin/httpdirfs",
            Column::Sshfs => "usr/bin/sshfs",
            Column::Casync => "usr/bin/casync",
            Column::Nydus | Column::NydusList => return nydus::is_installed(),
            _ => return true,
        };
        peers.join(program).is_file()
    }

    /// Brings `stage`'s application here, launches it cold, warm and hot.
    pub(crate) fn measure(self, stage: &mut Stage<'_>) -> Result<Sample> {
        match self {
            Column::Streamfs | Column::StreamfsNoProfile => {
                product::measure(stage, &stage.origin.package(stage.app, self))
            }
            Column::Floor => plain::floor(stage),
            Column::Full => plain::full(stage),
            Column::Local => plain::local(stage),
            Column::Rclone => peers::rclone(stage),
            Column::Httpdirfs => peers::httpdirfs(stage),
            Column::Sshfs => peers::sshfs(stage),
            Column::Casync => peers::casync(stage),
            Column::Nydus => nydus::nydus(stage, false),
            Column::NydusList => nydus::nydus(stage, true),
        }
    }
}

impl FromStr for Column {
    type Err = anyhow::Error;

    fn from_str(key: &str) -> Result<Self> {
        let known = Column::ALL.map(Column::key).join(", ");
        Column::ALL
            .into_iter()
            .find(|c| c.key() == key)
            .with_context(|| format!("no column is called {key}; known: {known}"))
    }
}

/// What one run of a contender cost. Times are in seconds.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Sample {
    /// Until the application's files appear, nothing being here before: mounting, or fetching and unpacking.
    pub(crate) mount: Option<f64>,
    /// From nothing to the application having done its work: mount and cold launch.
    pub(crate) first: Option<f64>,
    /// Mounting again, the disk cache being kept and everything else gone.
    pub(crate) warm_mount: Option<f64>,
    /// The launch after that.
    pub(crate) warm: Option<f64>,
    /// A launch right after that.
    pub(crate) hot: Option<f64>,
    /// Bytes of answers for the first launch, until the contender was told to end.
    pub(crate) bytes: Option<f64>,
    /// Answers for it.
    pub(crate) requests: Option<f64>,
    /// Most memory that the process behind the mount had at the end of the first launch, in bytes.
    pub(crate) memory: Option<f64>,
}

/// Where a contender performs.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    /// What it launches.
    pub(crate) app: &'a App,
    /// The network.
    pub(crate) link: &'a mut Link,
    /// The far end.
    pub(crate) origin: &'a Origin,
    /// Where the application appears, whoever brings it: some programs keep paths.
    pub(crate) point: &'a Path,
    /// On this machine's disk, empty.
    pub(crate) disk: &'a Path,
    /// The product.
    pub(crate) streamfs: &'a Path,
    /// Programs of others.
    pub(crate) peers: &'a Path,
}

impl Stage<'_> {
    /// URL of the content root through the link.
    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.link.port(crate::origin::TLS))
    }

    /// An empty folder on the disk.
    fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.disk.join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Drops the machine's caches, then has the machine's own programs and the servers read again: what is measured
    /// is how an application gets here, not how a shell or a web server starts.
    fn make_cold(&self, tools: &mut [Command]) -> Result<()> {
        drop_caches()?;
        let mut ask = Command::new("curl");
        // Straight to the servers, past the link; that there is no such object is as good an answer.
        ask.args(["-s", "-o", "/dev/null", "--cacert"]).arg(self.origin.ca_file());
        ask.args([format!("{}/nothing", self.origin.tls.url()), format!("{}/nothing", self.origin.clear.url())]);
        timed(&mut ask, "asking the servers", TOUCH_DEADLINE)?;
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "bash -c true; zstd --version; tar --version; rm --version; grep --version"]);
        timed(&mut shell, "touching tools", TOUCH_DEADLINE)?;
        for tool in tools {
            timed(tool, "touching tools", TOUCH_DEADLINE)?;
        }
        Ok(())
    }
}

/// Bytes and number of the answers that a server logged since a mark.
fn answers(server: &tests::Nginx, mark: u64) -> (Option<f64>, Option<f64>) {
    let requests = server.requests_since(mark);
    let bytes: u64 = requests.iter().map(|r| r.body_bytes).sum();
    (Some(bytes as f64), Some(requests.len() as f64))
}
