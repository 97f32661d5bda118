//! Others, as Debian packages them: each mounts what its own kind of server offers, and keeps a disk cache if it can.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::{Sample, Stage, TOUCH_DEADLINE, WORK_DEADLINE, answers};
use crate::measure::{end_group, peak_memory, timed};
use crate::mounting::MountPoint;
use crate::origin::{CLEAR, SFTP};

/// A mount by a program that stays in the foreground.
#[derive(Debug)]
struct Foreign {
    process: Child,
    point: Option<MountPoint>,
}

impl Foreign {
    /// Starts it and waits until something is mounted.
    fn start(mut command: Command, point: &Path, log: &Path) -> Result<(Self, f64)> {
        let shown = command.get_program().to_string_lossy().into_owned();
        let output = std::fs::File::create(log).context("a log")?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let start = Instant::now();
        let process = command.spawn().with_context(|| format!("starting {shown}"))?;
        let mut mount = Self { process, point: Some(MountPoint::occupied(point)) };
        while !tests::is_mount_point(point) {
            if let Some(status) = mount.process.try_wait()? {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                bail!("{shown} ended with {status}: {}", said.lines().last().unwrap_or_default());
            }
            ensure!(start.elapsed() < WORK_DEADLINE, "{shown} mounted nothing within {} s", WORK_DEADLINE.as_secs());
            // Nothing announces a mount to others than who made it; this is finer than what is compared.
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        // The first answer counts, not the entry in the mount table.
        std::fs::read_dir(point).with_context(|| format!("reading what {shown} mounted"))?;
        Ok((mount, start.elapsed().as_secs_f64()))
    }

    fn memory(&self) -> Option<f64> {
        i32::try_from(self.process.id()).ok().and_then(peak_memory).map(|m| m as f64)
    }

    fn end(mut self) -> Result<()> {
        let point = self.point.take();
        let outcome = point.map_or(Ok(()), MountPoint::free);
        end_group(&mut self.process);
        outcome
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.point.take();
        end_group(&mut self.process);
    }
}

/// Mounts cold, launches, mounts again, launches twice.
pub(super) fn measure(
    stage: &mut Stage<'_>,
    server: Option<&tests::Nginx>,
    command: &dyn Fn() -> Command,
) -> Result<Sample> {
    let log = stage.disk.join("log");
    // So that the program itself and its libraries are in the page cache.
    let touch = || {
        let mut touch = Command::new(command().get_program());
        touch.arg("--version").envs(command().get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))));
        touch
    };
    stage.make_cold(&mut [])?;
    // Some print their version and fail.
    let _ = timed(&mut touch(), "touching the program", TOUCH_DEADLINE);
    let mark = server.map(tests::Nginx::mark);
    let before = stage.link.carried()?.0;
    let (mount, mounting) = Foreign::start(command(), stage.point, &log)?;
    let first = mounting + stage.app.launch(stage.point)?;
    let memory = mount.memory();
    mount.end()?;
    let (bytes, requests) = match (server, mark) {
        (Some(server), Some(mark)) => answers(server, mark),
        _ => (Some((stage.link.carried()?.0 - before) as f64), None),
    };
    stage.make_cold(&mut [])?;
    let _ = timed(&mut touch(), "touching the program", TOUCH_DEADLINE);
    let (mount, warm_mount) = Foreign::start(command(), stage.point, &log)?;
    let warm = stage.app.launch(stage.point)?;
    let hot = stage.app.launch(stage.point)?;
    mount.end()?;
    Ok(Sample {
        mount: Some(mounting),
        first: Some(first),
        warm_mount: Some(warm_mount),
        warm: Some(warm),
        hot: Some(hot),
        bytes,
        requests,
        memory,
    })
}

/// A program of the peers' tree, with its libraries.
fn program(peers: &Path, name: &str) -> Command {
    let mut command = Command::new(peers.join("usr/bin").join(name));
    let multiarch = format!("{}-linux-gnu", std::env::consts::ARCH);
    let libraries = ["usr/lib", "lib"].map(|folder| peers.join(folder).join(&multiarch).display().to_string());
    command.env("LD_LIBRARY_PATH", libraries.join(":"));
    command
}

/// `rclone mount` with its own disk cache.
pub(super) fn rclone(stage: &mut Stage<'_>) -> Result<Sample> {
    let url = format!("{}/trees/{}/", stage.url(), stage.app.name.name());
    let cache = stage.folder("cache")?;
    let (point, ca, peers) = (stage.point.to_owned(), stage.origin.ca_file(), stage.peers.to_owned());
    let origin = stage.origin;
    measure(stage, Some(&origin.tls), &|| {
        let mut command = program(&peers, "rclone");
        command.env("RCLONE_CONFIG", "/dev/null").args(["mount", ":http:"]).arg(&point);
        command.args(["--http-url", &url, "--read-only", "--vfs-cache-mode", "full", "--file-perms", "0755"]);
        command.args(["--dir-cache-time", "24h", "--attr-timeout", "24h"]);
        command.arg("--ca-cert").arg(&ca).arg("--cache-dir").arg(&cache);
        command
    })
}

/// `httpdirfs` with its own disk cache.
pub(super) fn httpdirfs(stage: &mut Stage<'_>) -> Result<Sample> {
    let url = format!("{}/trees/{}/", stage.url(), stage.app.name.name());
    let cache = stage.folder("cache")?;
    let (point, ca, peers) = (stage.point.to_owned(), stage.origin.ca_file(), stage.peers.to_owned());
    let origin = stage.origin;
    measure(stage, Some(&origin.tls), &|| {
        let mut command = program(&peers, "httpdirfs");
        command.args(["-f", "--cache", "--cache-location"]).arg(&cache).arg("--cacert").arg(&ca).arg(&url).arg(&point);
        command
    })
}

/// `sshfs` straight to an SFTP server: neither SSH's round trips nor its encryption, which favours it.
pub(super) fn sshfs(stage: &mut Stage<'_>) -> Result<Sample> {
    let tree = stage.origin.content().join("trees").join(stage.app.name.name());
    let port = stage.link.port(SFTP);
    let (point, peers) = (stage.point.to_owned(), stage.peers.to_owned());
    measure(stage, None, &|| {
        let mut command = program(&peers, "sshfs");
        command.arg("-f").arg(format!("127.0.0.1:{}", tree.display())).arg(&point);
        command.arg("-o").arg(format!("directport={port},ro,kernel_cache,entry_timeout=86400,attr_timeout=86400"));
        command
    })
}

/// `casync mount` of an index, its chunks on a web server in clear.
pub(super) fn casync(stage: &mut Stage<'_>) -> Result<Sample> {
    let name = stage.app.name.name();
    let (point, peers) = (stage.point.to_owned(), stage.peers.to_owned());
    let helpers = peers.join("usr/lib/casync/protocols");
    let store = stage.origin.content().join("casync").join(name);
    let index = store.join("tree.caidx");
    if !index.exists() {
        std::fs::create_dir_all(store.join("store.castr"))?;
        let mut make = program(&peers, "casync");
        make.arg("make").arg(format!("--store={}", store.join("store.castr").display())).arg(&index);
        timed(make.arg(&stage.app.tree), "casync make", std::time::Duration::from_secs(1800))?;
    }
    let url = format!("http://127.0.0.1:{}/casync/{name}", stage.link.port(CLEAR));
    let cache = stage.folder("cache")?;
    let origin = stage.origin;
    measure(stage, Some(&origin.clear), &|| {
        let mut command = program(&peers, "casync");
        command.env("CASYNC_PROTOCOL_PATH", &helpers).env("TMPDIR", &cache);
        command.arg("mount").arg(format!("--store={url}/store.castr")).arg(format!("{url}/tree.caidx")).arg(&point);
        command
    })
}
