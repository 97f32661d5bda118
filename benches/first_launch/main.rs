//! How long does it take from nothing to an application that did its work, over a network with latency?
//!
//! `cargo run --release -p benches --bin first-launch -- [--apps …] [--profiles LAN,WAN,FAR] [--columns …] [--runs 5]
//! [--json FILE] [--out docs/performance]`, as root, after `cargo build --release -p cli`. docs/performance/README.md
//! says what is measured and how to read it.
//!
//! Real applications, a real web server, and a network that is a process of its own ([`shaper`]) and is measured
//! before it is used ([`link`]). Contenders ([`columns`]) take turns, so that what else the machine does hits all.
//! Everything happens in namespaces that vanish with the benchmark ([`containment`]).

mod apps;
mod columns;
mod containment;
mod link;
mod measure;
mod million;
mod mounting;
mod options;
mod origin;
mod pages;
mod plot;
mod report;
mod shaper;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser as _;

use crate::apps::{App, AppName};
use crate::columns::{Column, Stage};
use crate::containment::Folders;
use crate::link::{Link, StallOptions};
use crate::options::{CommandLine, Options, Part};
use crate::origin::Origin;
use crate::report::{Report, Row};

fn main() -> ExitCode {
    let line = CommandLine::parse();
    let outcome = match &line.part {
        Some(Part::Shaper(arguments)) => shaper::run(arguments).map(|()| ExitCode::SUCCESS),
        None => benchmark(line.options.resolved()),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("first-launch: {error:#}");
        ExitCode::FAILURE
    })
}

fn benchmark(options: Options) -> Result<ExitCode> {
    let places = Places::find(&options)?;
    if let Some(folders) = containment::inside() {
        return measure_all(&options, &places, &folders);
    }
    if !options.no_build {
        build(&options, &places)?;
    }
    containment::run()
}

/// Where things are that last longer than one benchmark.
#[derive(Debug)]
pub(crate) struct Places {
    target: PathBuf,
    streamfs: PathBuf,
    peers: PathBuf,
    prepared: PathBuf,
}

impl Places {
    fn find(options: &Options) -> Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        // target/<profile>/first-launch
        let target = program.ancestors().nth(2).context("this program lies in a target directory")?.to_owned();
        let streamfs = options.streamfs.clone().unwrap_or_else(|| program.with_file_name("streamfs"));
        let streamfs = std::path::absolute(streamfs)?;
        ensure!(
            streamfs.is_file(),
            "{} is missing; run: cargo build --release -p cli, or name another with --streamfs",
            streamfs.display()
        );
        let (peers, prepared) = (target.join("bench-apps/peers"), target.join("first-launch"));
        Ok(Self { target, streamfs, peers, prepared })
    }
}

/// Builds applications, and unpacks programs of others, that are not there yet.
fn build(options: &Options, places: &Places) -> Result<()> {
    let xtask = |what: &[&str]| {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
        command.env("CARGO_TARGET_DIR", &places.target).args(["xtask", "bench-apps"]).args(what);
        let status = command.status().context("starting cargo")?;
        ensure!(status.success(), "cargo xtask bench-apps {} failed: {status}", what.join(" "));
        Ok(())
    };
    let names: Vec<&str> = options.apps.iter().filter(|a| **a != AppName::Tiny).map(|a| a.name()).collect();
    if !names.is_empty() {
        xtask(&names)?;
    }
    if options.columns.iter().any(|column| column.is_foreign()) {
        // Then they are listed as not installed.
        if let Err(e) = xtask(&["peers"]) {
            eprintln!("first-launch: {e:#}");
        }
    }
    Ok(())
}

/// Splits the contenders into those that can take part, and the others with the reason.
fn present(options: &Options, places: &Places) -> (Vec<Column>, Vec<(Column, String)>) {
    let with_profiles = options.columns.contains(&Column::Streamfs) && origin::knows_profiles(&places.streamfs);
    let (mut here, mut absent) = (Vec::new(), Vec::new());
    for column in options.columns.iter().copied() {
        let lacks = !column.is_installed(&places.peers) || (column == Column::Streamfs && !with_profiles);
        match (lacks, column) {
            (false, _) => here.push(column),
            (true, Column::Streamfs) => absent.push((column, "this build has no `streamfs profile`".to_owned())),
            (true, _) => absent.push((column, "not installed".to_owned())),
        }
    }
    (here, absent)
}

/// Everything that is needed to measure.
#[derive(Debug)]
pub(crate) struct Bench<'a> {
    options: &'a Options,
    places: &'a Places,
    origin: Origin,
    apps: Vec<App>,
    links: Vec<Link>,
    /// Where applications appear.
    point: PathBuf,
    /// For files of one run.
    disk: PathBuf,
    content_in_memory: bool,
}

impl<'a> Bench<'a> {
    fn start(options: &'a Options, places: &'a Places, folders: &Folders) -> Result<Self> {
        let (point, disk) = (folders.disk.join("app"), folders.disk.join("run"));
        let homes = folders.memory.join("homes");
        for folder in [&point, &disk, &homes] {
            fs::create_dir(folder)?;
        }
        let open = |name: &AppName| App::open(*name, &places.target, &homes, &point);
        let apps = options.apps.iter().map(open).collect::<Result<Vec<App>>>()?;
        for app in &apps {
            println!("launching {} until its home is settled", app.name.name());
            app.settle(&point)?;
        }
        let wanted = apps.iter().map(|app| origin::bytes_wanted(&app.tree)).sum::<Result<u64>>()?;
        let content_in_memory = origin::has_room(&folders.memory, wanted)?;
        let content = if content_in_memory { &folders.memory } else { &folders.disk };
        if !content_in_memory {
            eprintln!("first-launch: memory has no room for the content; the servers read it from the disk");
        }
        let origin = Origin::start(content, &places.prepared, &places.streamfs, &places.peers)?;
        let stalls = StallOptions { every_bytes: options.stall_every_bytes, length_ms: options.stall_ms };
        let link = |profile| Link::start(profile, &origin.targets(), stalls, !options.inexact_links);
        let links = options.profiles.iter().map(link).collect::<Result<Vec<Link>>>()?;
        Ok(Self { options, places, origin, apps, links, point, disk, content_in_memory })
    }

    /// One run of something that is given a stage to itself.
    fn on_stage<T>(&mut self, app: usize, link: usize, work: impl FnOnce(&mut Stage<'_>) -> Result<T>) -> Result<T> {
        let mut stage = Stage {
            app: &self.apps[app],
            link: &mut self.links[link],
            origin: &self.origin,
            point: &self.point,
            disk: &self.disk,
            streamfs: &self.places.streamfs,
            peers: &self.places.peers,
        };
        let outcome = work(&mut stage);
        ensure!(!tests::is_mount_point(&self.point), "something is still mounted at {}", self.point.display());
        fs::remove_dir_all(&self.disk)
            .and_then(|()| fs::create_dir(&self.disk))
            .context("emptying the run's folder")?;
        outcome
    }
}

fn measure_all(options: &Options, places: &Places, folders: &Folders) -> Result<ExitCode> {
    let (columns, absent) = present(options, places);
    for (column, why) in &absent {
        println!("{}: {why}", column.title());
    }
    let mut bench = Bench::start(options, places, folders)?;
    if let Some(files) = options.million {
        let report = million::measure(&mut bench, &columns, files, &folders.disk)?;
        print!("\n{}", report.markdown);
        return write(options, "million", &report.json, &report.markdown).map(|()| ExitCode::SUCCESS);
    }
    let (_, product) = measure::timed(
        Command::new(&places.streamfs).arg("--version"),
        "streamfs --version",
        std::time::Duration::from_secs(60),
    )?;
    let mut report = Report {
        links: bench.links.iter().map(|link| (link.profile.clone(), link.measured)).collect(),
        absent,
        product: product.trim().to_owned(),
        content_in_memory: bench.content_in_memory,
        ..Report::default()
    };
    for app in &bench.apps {
        let facts = bench.origin.prepare(app, &columns, &bench.point, &folders.disk)?;
        report.facts.insert(app.name, facts);
    }
    for app in &bench.apps {
        for link in &bench.links {
            report.rows.extend(columns.iter().map(|column| Row {
                app: app.name,
                profile: link.profile.clone(),
                column: *column,
                samples: Vec::new(),
                failure: None,
            }));
        }
    }
    for run in 0..options.runs {
        println!("run {} of {}", run + 1, options.runs);
        one_run(&mut bench, &mut report, &columns, run)?;
        // Hours may be spent on this: what was measured stays if it is ended.
        write(options, "first-launch", &report.json(), &report.markdown())?;
        if let Some(out) = &options.out {
            plot::write(&report, &out.join("first-launch.svg"))?;
        }
    }
    print!("\n{}", report.markdown());
    // Others may fail, which is a result; the product and the references may not.
    let failed = report.rows.iter().filter(|row| row.failure.is_some() && !row.column.is_foreign()).count();
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every contender once, with every application on every network.
fn one_run(bench: &mut Bench<'_>, report: &mut Report, columns: &[Column], run: u32) -> Result<()> {
    for app in 0..bench.apps.len() {
        for link in 0..bench.links.len() {
            for turn in 0..columns.len() {
                // Another one begins in every run.
                let column = columns[(turn + run as usize) % columns.len()];
                let row = (app * bench.links.len() + link) * columns.len();
                let row = row + columns.iter().position(|c| *c == column).context("a contender of the list")?;
                let row = &mut report.rows[row];
                if row.failure.is_some() || (column.is_foreign() && run >= bench.options.peer_runs) {
                    continue;
                }
                let place = format!("{} on {}, {}", row.app.name(), row.profile.name, column.title());
                match bench.on_stage(app, link, |stage| column.measure(stage)) {
                    Ok(sample) => {
                        let first = sample.first.unwrap_or(f64::NAN);
                        println!("{place}: first launch {first:.2} s");
                        row.samples.push(sample);
                    }
                    Err(error) => {
                        let why = bench.apps[app].without_folders(&format!("{error:#}"), &bench.point);
                        println!("{place}: {why}");
                        row.failure = Some(why);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Writes what was asked for.
fn write(options: &Options, name: &str, json: &serde_json::Value, markdown: &str) -> Result<()> {
    if let Some(path) = &options.json {
        let mut text = serde_json::to_vec_pretty(json)?;
        text.push(b'\n');
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(out) = &options.out {
        fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        let path = out.join(format!("{name}.md"));
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let command = format!("cargo run --release -p benches --bin first-launch -- {}", arguments.join(" "));
        let title = if name == "million" { "First launch among a million files" } else { "First launch" };
        let text = format!("# {title}\n\n`{}`; README.md says how to read it.\n\n{markdown}", command.trim_end());
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
