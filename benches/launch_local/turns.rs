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

/// One launch.
#[derive(Clone, Copy)]
struct Took {
    seconds: f64,
    /// Of the processor, by the application. What else the machine does hardly changes it.
    application: f64,
    /// Of the processor, by the server.
    server: f64,
}

/// The stages of one mount.
const STAGES: [&str; 3] = ["warm", "hot", "settled"];

/// Launches of one side, by stage.
#[derive(Default)]
pub(crate) struct Side {
    name: String,
    launches: [Vec<Took>; 3],
    /// Requests of the last launch of each stage, by kind, where that is known.
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
        // Exactly the pages that are touched.
        let server = Server::start(&bench, &["record=yes".into(), "declining=ahead".into()])?;
        bench.launch(&bench.mounted())?;
        server.end()?;
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
    fn launch(&self, dir: &Path) -> Result<Took> {
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
        let before = processor_time_of_children();
        let started = Instant::now();
        let output = command.output().context("launching")?;
        let seconds = started.elapsed().as_secs_f64();
        ensure!(output.status.success(), "the launch failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Took { seconds, application: processor_time_of_children() - before, server: 0.0 })
    }

    /// All launches, by turns.
    pub(crate) fn run(&self) -> Result<Vec<Side>> {
        let mut sides = vec![Side { name: "local".into(), ..Side::default() }];
        sides.extend(self.options.variants.iter().map(|v| Side { name: v.name.clone(), ..Side::default() }));
        for run in 0..self.options.runs {
            eprintln!("run {} of {}", run + 1, self.options.runs);
            let (local, mounts) = sides.split_first_mut().expect("the local side was put there");
            drop_caches()?;
            for stage in &mut local.launches {
                stage.push(self.launch(&self.local())?);
            }
            for (side, variant) in mounts.iter_mut().zip(&self.options.variants) {
                drop_caches()?;
                let mut server = Server::start(self, &variant.settings)?;
                for (stage, launches) in side.launches.iter_mut().enumerate() {
                    if stage == 2 {
                        server.ask("over")?;
                        // The first open tells the kernel; it is not to be measured.
                        let _ = std::fs::File::open(self.mounted().join(&self.options.command[0]));
                    }
                    let before = server.processor_time()?;
                    let mut took = self.launch(&self.mounted())?;
                    took.server = server.processor_time()? - before;
                    launches.push(took);
                    side.requests[stage] = server.requests()?;
                }
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
        let mut command = Command::new(bench.root.join("launch-local"));
        command.arg(SUBCOMMAND).arg(&bench.root).args(settings).env("HOME", &bench.root).current_dir("/");
        if let Some(uid) = bench.options.user {
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

    /// Seconds of the processor that its threads have had.
    fn processor_time(&self) -> Result<f64> {
        let mut nanoseconds = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let text = std::fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            nanoseconds += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
        }
        Ok(nanoseconds as f64 / 1e9)
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

/// Seconds of the processor that processes which have ended and were waited for have had.
fn processor_time_of_children() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one `rusage` to the place that has room for it; all zeros is one as well.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn median(times: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = times.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// A table, and JSON if it was asked for.
pub(crate) fn report(sides: &[Side], options: &Options) -> Result<()> {
    let who = if options.user.is_some() { "an ordinary user" } else { "root" };
    println!(
        "Mounted by {who}; {} runs. Seconds (ratio to local): median, least, processor; of that, the server's.\n",
        options.runs
    );
    println!("| side | {} |", STAGES.join(" | "));
    println!("|---|---|---|---|");
    let mut rows = Vec::new();
    for side in sides {
        print!("| {} ", side.name);
        for (mine, local) in side.launches.iter().zip(&sides[0].launches) {
            type Figure = fn(&[Took]) -> f64;
            let figures: [Figure; 3] = [
                |all| median(all.iter().map(|took| took.seconds)),
                |all| all.iter().map(|took| took.seconds).fold(f64::INFINITY, f64::min),
                |all| median(all.iter().map(|took| took.application + took.server)),
            ];
            let texts = figures.map(|figure| format!("{:.3} ({:.2})", figure(mine), figure(mine) / figure(local)));
            print!("| {}; {:.3} ", texts.join(", "), median(mine.iter().map(|took| took.server)));
        }
        println!("|");
        let times =
            |all: &Vec<Took>| all.iter().map(|took| [took.seconds, took.application, took.server]).collect::<Vec<_>>();
        rows.push(serde_json::json!({
            "side": side.name, "launches": side.launches.each_ref().map(times), "requests": side.requests,
        }));
    }
    for side in &sides[1..] {
        println!("\n{}:", side.name);
        for (stage, requests) in STAGES.iter().zip(&side.requests) {
            println!("- {stage}: {requests}");
        }
    }
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&serde_json::json!({ "mounted_by": who, "sides": rows }))?)?;
    }
    Ok(())
}
