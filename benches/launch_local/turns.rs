//! Launching by turns, and what came out.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use benches::publish_to;

use crate::arguments::Options;
use crate::serve::SUBCOMMAND;

/// Launches of one side, seconds.
#[derive(Default)]
pub(crate) struct Side {
    name: String,
    warm: Vec<f64>,
    hot: Vec<f64>,
    settled: Vec<f64>,
    /// Requests of the last warm, hot and settled launch, by kind, where that is known.
    requests: [String; 3],
}

/// What is prepared once.
pub(crate) struct Bench<'a> {
    root: PathBuf,
    options: &'a Options,
}

impl<'a> Bench<'a> {
    /// Copies, publishes and records.
    pub(crate) fn prepare(root: &Path, options: &'a Options) -> Result<Self> {
        let bench = Bench { root: root.to_owned(), options };
        let copied = Command::new("cp").arg("-a").arg(&options.tree).arg(bench.local()).status()?;
        ensure!(copied.success(), "copying {} failed", options.tree.display());
        publish_to(root, &bench.local(), "p", "1", 2)?;
        std::fs::create_dir_all(root.join("mnt"))?;
        std::fs::copy(std::env::current_exe()?, root.join("launch-local"))?;
        if let Some(uid) = options.user {
            for path in [root, &root.join("mnt")] {
                std::os::unix::fs::chown(path, Some(uid), None)?;
            }
        }
        // Exactly the pages that are touched: an ordinary user's mount cannot switch reading ahead off, so root
        // records, and the cache made meanwhile is handed over.
        let server = Server::start(&bench, &["record=yes".into(), "read-ahead=0".into(), "open=zero-message".into()])?;
        bench.launch(&bench.mounted())?;
        server.end()?;
        if let Some(uid) = options.user {
            let given = Command::new("chown").arg("-R").arg(uid.to_string()).arg(root.join("cache")).status()?;
            ensure!(given.success(), "handing the cache over failed");
        }
        // And what the kernel reads around them.
        let server = Server::start(&bench, &["launch-set=no".into()])?;
        bench.launch(&bench.mounted())?;
        server.end()?;
        Ok(bench)
    }

    fn local(&self) -> PathBuf {
        self.root.join("local")
    }

    fn mounted(&self) -> PathBuf {
        self.root.join("mnt")
    }

    /// One launch in `dir`.
    fn launch(&self, dir: &Path) -> Result<f64> {
        let fill = |text: &str| text.replace("{}", &dir.to_string_lossy());
        let program = dir.join(&self.options.command[0]);
        let mut command = Command::new(program);
        command.args(self.options.command[1..].iter().map(|a| fill(a))).current_dir("/").env_clear();
        command.env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent");
        command.envs(self.options.environment.iter().map(|(name, value)| (name, fill(value))));
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        if let Some(uid) = self.options.user {
            command.uid(uid);
        }
        let started = Instant::now();
        let output = command.output().context("launching")?;
        let took = started.elapsed();
        ensure!(output.status.success(), "the launch failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(took.as_secs_f64())
    }

    /// All launches, by turns.
    pub(crate) fn run(&self) -> Result<Vec<Side>> {
        let mut sides = vec![Side { name: "local".into(), ..Side::default() }];
        sides.extend(self.options.variants.iter().map(|v| Side { name: v.name.clone(), ..Side::default() }));
        for run in 0..self.options.runs {
            eprintln!("run {} of {}", run + 1, self.options.runs);
            let (local, mounts) = sides.split_first_mut().expect("the local side was put there");
            drop_caches()?;
            let dir = self.local();
            local.warm.push(self.launch(&dir)?);
            local.hot.push(self.launch(&dir)?);
            local.settled.push(self.launch(&dir)?);
            for (side, variant) in mounts.iter_mut().zip(&self.options.variants) {
                drop_caches()?;
                let mut server = Server::start(self, &variant.settings)?;
                let dir = self.mounted();
                side.warm.push(self.launch(&dir)?);
                side.requests[0] = server.requests()?;
                side.hot.push(self.launch(&dir)?);
                side.requests[1] = server.requests()?;
                server.ask("over")?;
                // The first open tells the kernel; it is not to be measured.
                let _ = std::fs::File::open(dir.join(&self.options.command[0]));
                side.settled.push(self.launch(&dir)?);
                side.requests[2] = server.requests()?;
                server.end()?;
            }
        }
        Ok(sides)
    }
}

/// A mount and the process that serves it.
struct Server {
    process: Child,
    answers: BufReader<ChildStdout>,
    before: BTreeMap<String, u64>,
}

impl Server {
    fn start(bench: &Bench<'_>, settings: &[String]) -> Result<Self> {
        let recording = settings.iter().any(|s| s == "record=yes");
        let mut command = Command::new(bench.root.join("launch-local"));
        command.arg(SUBCOMMAND).arg(&bench.root).args(settings).env("HOME", &bench.root).current_dir("/");
        if let Some(uid) = bench.options.user.filter(|_| !recording) {
            command.uid(uid);
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting a server")?;
        let answers = BufReader::new(process.stdout.take().context("a server has an output")?);
        let mut server = Server { process, answers, before: BTreeMap::new() };
        ensure!(server.answer()? == "ready", "the server did not mount");
        Ok(server)
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn ask(&mut self, question: &str) -> Result<String> {
        let input = self.process.stdin.as_mut().context("the server listens")?;
        writeln!(input, "{question}")?;
        self.answer()
    }

    /// What crossed the boundary since the last time.
    fn requests(&mut self) -> Result<String> {
        let told: serde_json::Value = serde_json::from_str(&self.ask("statistics")?)?;
        let mut now: BTreeMap<String, u64> = serde_json::from_value(told["requests"].clone())?;
        for name in ["pushes", "pushed_bytes"] {
            now.insert(name.into(), told[name].as_u64().unwrap_or_default());
        }
        let since = now.iter().map(|(name, count)| (name, count - self.before.get(name).unwrap_or(&0)));
        let text: Vec<String> = since.filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {n}")).collect();
        self.before = now;
        Ok(text.join(", "))
    }

    fn end(mut self) -> Result<()> {
        drop(self.process.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait()? {
                ensure!(status.success(), "the server failed: {status}");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.process.kill()?;
        anyhow::bail!("the server did not end")
    }
}

/// Drops page cache, dentries and inodes of the whole machine.
fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the page cache")
}

fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// A table, and JSON if it was asked for.
pub(crate) fn report(sides: &[Side], options: &Options) -> Result<()> {
    let who = if options.user.is_some() { "an ordinary user" } else { "root" };
    println!("Mounted by {who}; medians of {} runs, seconds (ratio to local).\n", options.runs);
    println!("| side | warm | hot | settled |");
    println!("|---|---|---|---|");
    let local = &sides[0];
    let mut rows = Vec::new();
    for side in sides {
        let cell = |mine: &[f64], base: &[f64]| {
            let (mine, base) = (median(mine), median(base));
            format!("{mine:.3} ({:.3})", mine / base)
        };
        println!(
            "| {} | {} | {} | {} |",
            side.name,
            cell(&side.warm, &local.warm),
            cell(&side.hot, &local.hot),
            cell(&side.settled, &local.settled)
        );
        rows.push(serde_json::json!({
            "side": side.name, "warm": side.warm, "hot": side.hot, "settled": side.settled, "requests": side.requests,
        }));
    }
    for side in &sides[1..] {
        println!("\n{}:", side.name);
        for (when, requests) in ["warm", "hot", "settled"].iter().zip(&side.requests) {
            println!("- {when}: {requests}");
        }
    }
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&serde_json::json!({ "mounted_by": who, "sides": rows }))?)?;
    }
    Ok(())
}
