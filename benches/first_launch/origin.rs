//! The servers: what each contender fetches, prepared once, in memory, behind real servers.

use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tests::{Nginx, NginxOptions, Scheme, Streamfs};

use crate::apps::App;
use crate::columns::Column;
use crate::measure::timed;
use crate::pages;

/// Packing and publishing end long before.
const PREPARE_DEADLINE: Duration = Duration::from_secs(3600);

/// The archive's level: zstd's own default, which is also what `streamfs publish` uses for its blocks.
const ARCHIVE_LEVEL: i32 = 3;

/// Launches that are recorded. Threads of a program take turns otherwise each time, and read a little more or less.
const RECORDED_LAUNCHES: &str = "3";

/// The floor is the least that can be fetched.
const FLOOR_LEVEL: i32 = 19;

/// Index of the TLS server among a link's targets.
pub(crate) const TLS: usize = 0;
/// Index of the server in clear, for those who cannot be told which authority to trust.
pub(crate) const CLEAR: usize = 1;
/// Index of the SFTP server.
pub(crate) const SFTP: usize = 2;

/// What was found out about an application while preparing it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// Files of the tree of which a launch reads something.
    pub(crate) files_touched: usize,
    /// Bytes of the pages that a launch reads.
    pub(crate) page_bytes: u64,
    /// The floor's stream.
    pub(crate) floor_bytes: u64,
    /// The archive.
    pub(crate) archive_bytes: u64,
    stamp: String,
}

/// All servers and what they serve.
#[derive(Debug)]
pub(crate) struct Origin {
    /// In memory.
    content: PathBuf,
    /// Products of long preparations, kept from run to run.
    prepared: PathBuf,
    /// HTTP/2 under TLS.
    pub(crate) tls: Nginx,
    /// In clear.
    pub(crate) clear: Nginx,
    sftp: SocketAddr,
    publisher: Streamfs,
}

impl Origin {
    /// Starts servers for a content root in `memory`. `peers` holds the programs of others.
    pub(crate) fn start(memory: &Path, prepared: &Path, streamfs: &Path, peers: &Path) -> Result<Self> {
        let content = memory.join("content");
        fs::create_dir_all(&content)?;
        fs::create_dir_all(prepared)?;
        let options = |scheme| NginxOptions { scheme, list_folders: true, ..NginxOptions::default() };
        let sftp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening for SFTP")?;
        let address = sftp.local_addr()?;
        let program = peers.join("usr/lib/openssh/sftp-server");
        thread::spawn(move || serve_sftp(&sftp, &program));
        Ok(Self {
            tls: Nginx::start(&content, &options(Scheme::Https)),
            clear: Nginx::start(&content, &options(Scheme::Http)),
            sftp: address,
            publisher: Streamfs::with_program(streamfs),
            content,
            prepared: prepared.to_owned(),
        })
    }

    /// What a link leads to, in the order of [`TLS`], [`CLEAR`], [`SFTP`].
    pub(crate) fn targets(&self) -> [SocketAddr; 3] {
        [self.tls.address(), self.clear.address(), self.sftp]
    }

    /// The certificate that clients must trust.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.tls.ca_file()
    }

    /// The folder that is served.
    pub(crate) fn content(&self) -> &Path {
        &self.content
    }

    /// Makes all that `columns` need of `app`.
    pub(crate) fn prepare(&self, app: &App, columns: &[Column], point: &Path, scratch: &Path) -> Result<Facts> {
        let name = app.name.name();
        let facts = self.pack(app, point, scratch)?;
        let archives = self.content.join("archives");
        fs::create_dir_all(&archives)?;
        for file in [archive_name(name), floor_name(name)] {
            fs::copy(self.prepared.join(&file), archives.join(&file)).with_context(|| format!("copying {file}"))?;
        }
        if columns.contains(&Column::StreamfsNoProfile) || columns.contains(&Column::Streamfs) {
            println!("publishing {name}");
            self.publish(&app.tree, name, None)?;
        }
        if columns.contains(&Column::Streamfs) {
            println!("recording a launch of {name}");
            let file = self.profile(app, scratch);
            let location = self.content.join(name);
            let mut command = self.publisher.streamfs(["profile".as_ref(), location.as_os_str(), "-o".as_ref()]);
            // Where it will be launched: some applications are told where they are.
            command
                .arg(&file)
                .args(["--runs", RECORDED_LAUNCHES, "--dir"])
                .arg(point)
                .arg("--")
                .args(app.command_line("{mount}"));
            timed(&mut command, "streamfs profile", PREPARE_DEADLINE)?;
            self.publisher.kill_agent();
            self.publish(&app.tree, &self.package(app, Column::Streamfs), Some(&file))?;
        }
        if columns.iter().any(|c| matches!(c, Column::Rclone | Column::Httpdirfs | Column::Sshfs)) {
            let trees = self.content.join("trees");
            fs::create_dir_all(&trees)?;
            let mut copy = Command::new("cp");
            copy.arg("-a").arg("--").arg(&app.tree).arg(trees.join(name));
            timed(&mut copy, "copying the tree into memory", PREPARE_DEADLINE)?;
        }
        Ok(facts)
    }

    /// The package that a column of the product mounts.
    pub(crate) fn package(&self, app: &App, column: Column) -> String {
        let name = app.name.name();
        if column == Column::Streamfs { format!("{name}-profiled") } else { name.to_owned() }
    }

    /// Where the recorded launch of `app` is.
    pub(crate) fn profile(&self, app: &App, scratch: &Path) -> PathBuf {
        scratch.join(format!("{}.profile", app.name.name()))
    }

    /// Publishes `tree`, with the recorded launch in `profile`.
    pub(crate) fn publish(&self, tree: &Path, package: &str, profile: Option<&Path>) -> Result<()> {
        let location = self.content.join(package);
        let mut command =
            self.publisher.streamfs(["publish".as_ref(), tree.as_os_str(), location.as_os_str(), "--version".as_ref()]);
        command.arg("1");
        if let Some(profile) = profile {
            command.arg("--profile").arg(profile);
        }
        timed(&mut command, "streamfs publish", PREPARE_DEADLINE)?;
        Ok(())
    }

    /// The archive and the floor's stream, unless they are there for this very tree.
    fn pack(&self, app: &App, point: &Path, scratch: &Path) -> Result<Facts> {
        let name = app.name.name();
        let facts_file = self.prepared.join(format!("{name}.json"));
        // Whoever changes how they are made changes this number.
        let stamp = format!("prepared 1\n{}", app.stamp);
        let known = fs::read(&facts_file).ok().and_then(|text| serde_json::from_slice::<Facts>(&text).ok());
        if let Some(facts) = known.filter(|facts| facts.stamp == stamp) {
            return Ok(facts);
        }
        println!("packing {name}");
        let archive = self.prepared.join(archive_name(name));
        let mut pack = Command::new("bash");
        pack.args(["-o", "pipefail", "-c", "tar -C \"$0\" -cf - . | zstd -q -T0 -\"$1\" -f -o \"$2\""]);
        pack.arg(&app.tree).arg(ARCHIVE_LEVEL.to_string()).arg(&archive);
        timed(&mut pack, "packing the archive", PREPARE_DEADLINE)?;
        println!("recording the pages that a launch of {name} reads");
        let set = pages::record(app, point, scratch)?;
        let floor = self.prepared.join(floor_name(name));
        pages::write_stream(&set, &app.tree, FLOOR_LEVEL, &floor)?;
        let facts = Facts {
            files_touched: set.len(),
            page_bytes: pages::set_bytes(&set),
            floor_bytes: fs::metadata(&floor)?.len(),
            archive_bytes: fs::metadata(&archive)?.len(),
            stamp,
        };
        fs::write(&facts_file, serde_json::to_vec_pretty(&facts)?)?;
        Ok(facts)
    }
}

/// The full archive's object below `archives`.
pub(crate) fn archive_name(app: &str) -> String {
    format!("{app}.tar.zst")
}

/// The floor's object below `archives`.
pub(crate) fn floor_name(app: &str) -> String {
    format!("{app}.floor.zst")
}

/// Whether this build of streamfs knows recorded launches.
pub(crate) fn knows_profiles(streamfs: &Path) -> bool {
    let mut command = Command::new(streamfs);
    timed(command.args(["profile", "--help"]), "streamfs profile --help", Duration::from_secs(60)).is_ok()
}

/// Whether `folder`'s file system has room for `bytes`, and memory too if it is one in memory.
pub(crate) fn has_room(folder: &Path, bytes: u64) -> Result<bool> {
    let stat = rustix::fs::statvfs(folder).with_context(|| format!("looking at {}", folder.display()))?;
    let mut text = String::new();
    fs::File::open("/proc/meminfo")?.read_to_string(&mut text)?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:")).context("/proc/meminfo tells memory")?;
    let kib: u64 = line.split_whitespace().next().context("a number")?.parse()?;
    // Half is left for the launches and the page cache that they are about.
    Ok(stat.f_bavail * stat.f_frsize > bytes && kib * 1024 / 2 > bytes)
}

/// What all of `app` takes up in memory at most: the tree itself, its packs twice, an archive.
pub(crate) fn bytes_wanted(tree: &Path) -> Result<u64> {
    let (_, said) = timed(Command::new("du").args(["-sb", "--"]).arg(tree), "du", PREPARE_DEADLINE)?;
    let bytes: u64 = said.split_whitespace().next().context("du tells a number")?.parse()?;
    ensure!(bytes > 0, "{} is empty", tree.display());
    Ok(bytes * 3)
}

/// An SFTP server without SSH around it, one process a connection.
fn serve_sftp(listener: &TcpListener, program: &Path) {
    for client in listener.incoming().flatten() {
        if let Err(e) = start_sftp(client, program) {
            eprintln!("first-launch: no SFTP: {e:#}");
        }
    }
}

fn start_sftp(client: TcpStream, program: &Path) -> Result<()> {
    client.set_nodelay(true)?;
    let socket = OwnedFd::from(client);
    let mut command = Command::new(program);
    let mut child = command
        .arg("-R")
        .stdin(Stdio::from(socket.try_clone()?))
        .stdout(Stdio::from(socket))
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    thread::spawn(move || child.wait());
    Ok(())
}
