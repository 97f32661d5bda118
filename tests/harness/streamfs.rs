//! The built `streamfs` command in a world of its own: home, cache, keys and agent belong to one test.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::{wait_for, wait_for_exit};

/// No command of a test takes this long, also on a loaded machine.
const COMMAND_DEADLINE: Duration = Duration::from_secs(600);

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit status; 128 plus the signal if one ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// What it printed, as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.stdout))
    }
}

/// A user of `streamfs` with a home of their own. Dropping it unmounts everything, ends the agent and removes it all.
#[derive(Debug)]
pub struct Streamfs {
    home: TempDir,
    cache: PathBuf,
    variables: Vec<(OsString, OsString)>,
    user: Option<u32>,
    program: PathBuf,
}

impl Default for Streamfs {
    fn default() -> Self {
        Self::new()
    }
}

impl Streamfs {
    /// A fresh home: no cache, no keys, no trust.
    ///
    /// # Panics
    /// When `streamfs` was not built.
    pub fn new() -> Self {
        Self::at_home(Self::program())
    }

    fn at_home(program: PathBuf) -> Self {
        let home = tempfile::Builder::new().prefix("streamfs-test-").tempdir().expect("a temporary folder");
        for folder in ["run", "cache", "config", "data", "state", "keys"] {
            fs::create_dir(home.path().join(folder)).expect("a folder in a fresh one");
        }
        // An agent's socket lies here; programs refuse a runtime folder that others may enter.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(home.path().join("run"), private).expect("own folder");
        let cache = home.path().join("cache/streamfs");
        Self { home, cache, variables: Vec::new(), user: None, program }
    }

    /// The built program.
    ///
    /// # Panics
    /// When it is missing.
    pub fn program() -> PathBuf {
        let exe = std::env::current_exe().expect("a program knows its own path");
        // target/<profile>/deps/<test>-<hash>, beside it target/<profile>/streamfs
        let path = exe.ancestors().nth(2).expect("test programs lie in target/<profile>/deps").join("streamfs");
        assert!(path.exists(), "{} is missing; build it with `cargo build --package cli`", path.display());
        path
    }

    /// Like [`Self::new`], with a program that lies elsewhere.
    pub fn with_program(program: &Path) -> Self {
        Self::at_home(program.to_owned())
    }

    /// Uses another folder as cache.
    pub fn with_cache(mut self, cache: &Path) -> Self {
        self.cache = cache.to_owned();
        self
    }

    /// Sets an environment variable for every command.
    pub fn with_variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Runs every command as another user, who owns this home. Needs root.
    pub fn as_user(mut self, uid: u32) -> Self {
        // The target directory may lie where others cannot go.
        let program = self.home.path().join("streamfs");
        fs::copy(&self.program, &program).expect("room for a copy of the program");
        self.program = program;
        let inside = ["run", "cache", "config", "data", "state", "keys"].map(|f| self.home.path().join(f));
        for folder in inside.iter().map(PathBuf::as_path).chain([self.home.path()]) {
            std::os::unix::fs::chown(folder, Some(uid), Some(uid)).expect("only root can run tests as somebody else");
        }
        self.user = Some(uid);
        self
    }

    /// The folder that holds everything of this user; tests may put their own things into it.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The cache folder.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// An empty folder in this home, to mount at or to fill.
    #[track_caller]
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.home.path().join(name);
        match fs::create_dir_all(&path) {
            // The mount point of an agent that was killed cannot be looked at, but it is there.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => other.expect("a folder in the own home"),
        }
        if let Some(uid) = self.user {
            std::os::unix::fs::chown(&path, Some(uid), Some(uid)).expect("root may");
        }
        path
    }

    /// `program` with this user's environment and nothing else, standard input closed.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let home = self.home.path();
        let mut command = Command::new(program);
        command.env_clear().stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin:/usr/sbin:/sbin".into()));
        command.env("LANG", "C.UTF-8").env("HOME", home).env("TMPDIR", std::env::temp_dir());
        for (variable, folder) in [
            ("XDG_RUNTIME_DIR", "run"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_DATA_HOME", "data"),
            ("XDG_STATE_HOME", "state"),
            ("STREAMFS_KEYS", "keys"),
        ] {
            command.env(variable, home.join(folder));
        }
        command.env("STREAMFS_CACHE", &self.cache);
        command.envs(self.variables.iter().map(|(k, v)| (k, v)));
        if let Some(uid) = self.user {
            command.uid(uid).gid(uid);
        }
        command
    }

    /// `streamfs` with `arguments`, not started yet.
    pub fn streamfs<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.command(&self.program);
        command.args(arguments);
        command
    }

    /// Runs `streamfs` to its end, however it ends.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Outcome {
        finish(self.streamfs(arguments))
    }

    /// Runs `streamfs`, which must succeed.
    #[track_caller]
    pub fn ok<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Outcome {
        let command = self.streamfs(arguments);
        let shown = format!("{command:?}");
        let outcome = finish(command);
        assert_eq!(outcome.code, 0, "{shown} failed:\n{}{}", outcome.stdout, outcome.stderr);
        outcome
    }

    /// Runs `streamfs`, which must fail with status 1 and exactly one line; gives that line.
    #[track_caller]
    pub fn fails<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> String {
        let command = self.streamfs(arguments);
        let shown = format!("{command:?}");
        let outcome = finish(command);
        assert_eq!(outcome.code, 1, "{shown} should have failed:\n{}{}", outcome.stdout, outcome.stderr);
        let lines: Vec<&str> = outcome.stderr.lines().collect();
        assert_eq!(lines.len(), 1, "{shown} should say one line, said:\n{}", outcome.stderr);
        lines[0].to_owned()
    }

    /// Publishes `source` as `version` of `package` (`CONTENT/PACKAGE`).
    #[track_caller]
    pub fn publish(&self, source: &Path, package: &str, version: &str) -> Value {
        self.ok([
            OsStr::new("publish"),
            source.as_os_str(),
            package.as_ref(),
            "--version".as_ref(),
            version.as_ref(),
            "--json".as_ref(),
        ])
        .json()
    }

    /// Mounts `package` at the folder `dir` of this home, which is made.
    #[track_caller]
    pub fn mount(&self, package: &str, dir: &str) -> MountGuard<'_> {
        self.mount_with(package, dir, &[])
    }

    /// Like [`Self::mount`], with more arguments.
    #[track_caller]
    pub fn mount_with(&self, package: &str, dir: &str, more: &[&str]) -> MountGuard<'_> {
        let dir = self.folder(dir);
        let mut arguments = vec![OsStr::new("mount"), package.as_ref(), dir.as_os_str()];
        arguments.extend(more.iter().map(OsStr::new));
        self.ok(arguments);
        assert!(is_mount_point(&dir), "`mount` said it succeeded, but nothing is mounted at {}", dir.display());
        MountGuard { world: self, dir }
    }

    /// What `status --json` says.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.ok(["status", "--json"]).json()
    }

    /// What `status --json` says of the mount at `dir`: the object one of whose values is that path.
    #[track_caller]
    pub fn status_of(&self, dir: &Path) -> Value {
        let status = self.status();
        let dir = dir.to_str().expect("tests use plain mount points");
        object_with(&status, dir).cloned().unwrap_or_else(|| panic!("status does not mention {dir}: {status}"))
    }

    /// Processes of this user's agent: whoever runs `streamfs` with this cache in its environment or arguments.
    pub fn agent_pids(&self) -> Vec<i32> {
        let needle = self.cache.as_os_str().as_encoded_bytes();
        let home = self.home.path().as_os_str().as_encoded_bytes();
        let own = std::process::id().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let program = fs::read_link(entry.path().join("exe")).unwrap_or_default();
            if name == own.as_str()
                || program.file_name().is_none_or(|f| !f.as_encoded_bytes().starts_with(b"streamfs"))
            {
                continue;
            }
            let mentions = |file: &str| {
                let text = fs::read(entry.path().join(file)).unwrap_or_default();
                [needle, home].iter().any(|n| text.windows(n.len()).any(|w| w == *n))
            };
            if mentions("environ") || mentions("cmdline") {
                found.push(pid);
            }
        }
        found
    }

    /// Sends SIGKILL to every process of the agent at once and waits until they are gone.
    #[track_caller]
    pub fn kill_agent(&self) {
        let pids = self.agent_pids();
        // Stopped first, so that a supervisor does not see its worker die and start another.
        for signal in [Signal::STOP, Signal::KILL] {
            for pid in pids.iter().filter_map(|p| Pid::from_raw(*p)) {
                // One that is gone is what we want.
                let _ = kill_process(pid, signal);
            }
        }
        wait_for("the agent to die", Duration::from_secs(10), || {
            let left: Vec<i32> = self.agent_pids();
            for pid in left.iter().filter_map(|p| Pid::from_raw(*p)) {
                let _ = kill_process(pid, Signal::KILL);
            }
            left.is_empty().then_some(())
        });
    }

    /// Resident memory of all processes of the agent, and the most it has been, in bytes.
    pub fn agent_memory(&self) -> (u64, u64) {
        let field = |status: &str, name: &str| {
            let line = status.lines().find(|l| l.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
        };
        let statuses: Vec<String> =
            self.agent_pids().iter().filter_map(|p| fs::read_to_string(format!("/proc/{p}/status")).ok()).collect();
        let sum = |name| statuses.iter().filter_map(|s| field(s, name)).sum();
        (sum("VmRSS:"), sum("VmHWM:"))
    }

    /// Unmounts what is mounted below this home, without asking the agent.
    fn unmount_all(&self) {
        let mut points = mounts_below(self.home.path());
        points.reverse();
        for point in points {
            detach(&point);
        }
    }
}

impl Drop for Streamfs {
    fn drop(&mut self) {
        self.unmount_all();
        for pid in self.agent_pids().into_iter().filter_map(Pid::from_raw) {
            // It may end by itself in this moment.
            let _ = kill_process(pid, Signal::KILL);
        }
        self.unmount_all();
        if std::thread::panicking() {
            self.show_logs();
        }
    }
}

impl Streamfs {
    /// Prints the ends of the agent's log files, for whoever reads a failed run.
    fn show_logs(&self) {
        let mut folders = vec![self.home.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                let path = entry.path();
                if kind.is_dir() && !is_mount_point(&path) {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "log") {
                    let text = fs::read(&path).unwrap_or_default();
                    let end = String::from_utf8_lossy(&text[text.len().saturating_sub(4000)..]).into_owned();
                    eprintln!("--- end of {}\n{end}", path.display());
                }
            }
        }
    }
}

/// A mount that ends with this value.
#[derive(Debug)]
pub struct MountGuard<'a> {
    world: &'a Streamfs,
    dir: PathBuf,
}

impl MountGuard<'_> {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A path below it.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.join(path)
    }

    /// Unmounts through the command, which must succeed.
    #[track_caller]
    pub fn unmount(self) {
        self.world.ok([OsStr::new("unmount"), self.dir.as_os_str()]);
        assert!(!is_mount_point(&self.dir), "{} is still mounted", self.dir.display());
    }
}

impl Drop for MountGuard<'_> {
    fn drop(&mut self) {
        if is_mount_point(&self.dir) {
            detach(&self.dir);
        }
    }
}

/// Whether something is mounted at `dir`: also true for a mount whose agent is dead.
pub fn is_mount_point(dir: &Path) -> bool {
    if mounts_below(dir).iter().any(|m| m == dir) {
        return true;
    }
    match (fs::metadata(dir), dir.parent().map(fs::metadata)) {
        (Ok(here), Some(Ok(above))) => here.dev() != above.dev(),
        _ => false,
    }
}

/// Mount points at or below `root`, in order of mounting.
fn mounts_below(root: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    points.filter(|p| p.starts_with(root)).collect()
}

/// Paths in mountinfo have blanks and the like as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\').then(|| text.get(at + 1..at + 4)).flatten();
        if let Some(byte) = octal.and_then(|o| u8::from_str_radix(o, 8).ok()) {
            out.push(byte);
            at += 4;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    PathBuf::from(<OsString as std::os::unix::ffi::OsStringExt>::from_vec(out))
}

/// Detaches one mount, as root or through fusermount3. Failing is no failure of a test that is ending.
fn detach(dir: &Path) {
    if rustix::mount::unmount(dir, rustix::mount::UnmountFlags::DETACH).is_err() {
        let _ = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(dir).stderr(Stdio::null()).status();
    }
}

/// The innermost object in `value` that has `text` as one of its values.
fn object_with<'a>(value: &'a Value, text: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map
            .values()
            .find_map(|v| object_with(v, text))
            .or_else(|| map.values().any(|v| v.as_str() == Some(text)).then_some(value)),
        Value::Array(list) => list.iter().find_map(|v| object_with(v, text)),
        _ => None,
    }
}

/// Runs a command to its end and collects what it says.
#[track_caller]
fn finish(mut command: Command) -> Outcome {
    let start = Instant::now();
    let shown = format!("{command:?}");
    // Files instead of pipes: an agent that inherits them would keep a pipe open for ever.
    let mut out = tempfile::tempfile().expect("a temporary file");
    let mut err = tempfile::tempfile().expect("a temporary file");
    command.stdout(out.try_clone().expect("a descriptor")).stderr(err.try_clone().expect("a descriptor"));
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {shown}: {e}"));
    let status = wait_for_exit(&mut child, &shown, COMMAND_DEADLINE);
    let took = start.elapsed();
    let text = |file: &mut fs::File| {
        let mut bytes = Vec::new();
        std::io::Seek::rewind(file).and_then(|()| file.read_to_end(&mut bytes)).expect("own temporary file");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let code =
        status.code().unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0));
    Outcome { code, stdout: text(&mut out), stderr: text(&mut err), took }
}
