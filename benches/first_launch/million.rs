//! Does a launch take longer when the version holds very many more files?

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Bench;
use crate::apps::App;
use crate::columns::{Column, Sample, measure_package};
use crate::measure::{Spread, timed};

/// Files of each added directory.
const FILES_A_DIRECTORY: u64 = 1_000;

const DEADLINE: Duration = Duration::from_secs(3600);

/// What was found out.
#[derive(Debug)]
pub(crate) struct MillionReport {
    pub(crate) json: Value,
    pub(crate) markdown: String,
}

/// Launches the first application from a version of its own and from one with `files` more, in turn.
pub(crate) fn measure(bench: &mut Bench<'_>, columns: &[Column], files: u64, disk: &Path) -> Result<MillionReport> {
    let app = bench.apps.first().context("there is an application")?;
    let name = app.name.name();
    let mut packages = Vec::new();
    for column in [Column::StreamfsNoProfile, Column::Streamfs] {
        if columns.contains(&column) {
            packages.push((column, bench.origin.package(app, column), format!("{name}-million-{}", column.key())));
        }
    }
    ensure!(!packages.is_empty(), "--million compares streamfs with itself: name streamfs or streamfs-no-profile");
    let product: Vec<Column> = packages.iter().map(|(column, ..)| *column).collect();
    bench.origin.prepare(app, &product, &bench.point, disk)?;
    let large = disk.join("large");
    println!("making {files} files");
    enlarge(app, files, &large)?;
    for (column, _, package) in &packages {
        println!("publishing {package}");
        let profile = bench.origin.profile(app, disk);
        bench.origin.publish(&large, package, (*column == Column::Streamfs).then_some(profile.as_path()))?;
    }
    fs::remove_dir_all(&large).context("removing the files")?;

    let mut text = String::from(
        "| application, network | small FIRST s | large FIRST s | ratio | small MB | large MB |\n|---|---|---|---|---|---|\n",
    );
    let mut rows = Vec::new();
    let mut samples = vec![(Vec::<Sample>::new(), Vec::<Sample>::new()); bench.links.len() * packages.len()];
    for run in 0..bench.options.runs {
        println!("run {} of {}", run + 1, bench.options.runs);
        for link in 0..bench.links.len() {
            for (i, (_, small, large)) in packages.iter().enumerate() {
                let both = &mut samples[link * packages.len() + i];
                both.0.push(bench.on_stage(0, link, |stage| measure_package(stage, small))?);
                both.1.push(bench.on_stage(0, link, |stage| measure_package(stage, large))?);
            }
        }
    }
    for (i, (small, large)) in samples.iter().enumerate() {
        let (profile, column) = (&bench.links[i / packages.len()].profile, packages[i % packages.len()].0);
        let of = |samples: &[Sample], get: fn(&Sample) -> Option<f64>| {
            Spread::of(&samples.iter().filter_map(get).collect::<Vec<f64>>()).context("there are runs")
        };
        let (a, b) = (of(small, |s| s.first)?, of(large, |s| s.first)?);
        let (bytes_a, bytes_b) = (of(small, |s| s.bytes)?, of(large, |s| s.bytes)?);
        let _ = writeln!(
            text,
            "| {name} on {}, {} | {:.2} ({:.2}..{:.2}) | {:.2} ({:.2}..{:.2}) | {:.3} | {:.1} | {:.1} |",
            profile.name,
            column.title(),
            a.median,
            a.min,
            a.max,
            b.median,
            b.min,
            b.max,
            b.median / a.median,
            bytes_a.median / 1e6,
            bytes_b.median / 1e6,
        );
        rows.push(json!({
            "app": name, "profile": profile.name, "column": column.key(), "files_added": files,
            "small": small, "large": large, "ratio": b.median / a.median,
        }));
    }
    Ok(MillionReport { json: json!({ "rows": rows }), markdown: text })
}

/// A copy of the tree with `files` more in it, each of which says something else.
fn enlarge(app: &App, files: u64, large: &Path) -> Result<()> {
    timed(Command::new("cp").arg("-a").arg("--").arg(&app.tree).arg(large), "copying the tree", DEADLINE)?;
    let mut folder = large.join("generated");
    for i in 0..files {
        if i % FILES_A_DIRECTORY == 0 {
            folder = large.join(format!("generated/dir-{:05}", i / FILES_A_DIRECTORY));
            fs::create_dir_all(&folder)?;
        }
        fs::write(folder.join(format!("file-{:03}.txt", i % FILES_A_DIRECTORY)), format!("generated file {i}\n"))?;
    }
    Ok(())
}
