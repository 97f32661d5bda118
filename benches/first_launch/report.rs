//! Results as JSON, as tables, and what they are about.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

use serde::Serialize;
use serde_json::{Value, json};

use crate::apps::AppName;
use crate::columns::{Column, Sample};
use crate::link::{Measured, Profile};
use crate::measure::Spread;
use crate::origin::Facts;

/// All runs of one contender with one application on one network.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) app: AppName,
    pub(crate) profile: Profile,
    pub(crate) column: Column,
    pub(crate) samples: Vec<Sample>,
    /// Why there are no (more) samples.
    pub(crate) failure: Option<String>,
}

/// One quantity of all samples.
type Quantity = (&'static str, fn(&Sample) -> Option<f64>);

const QUANTITIES: [Quantity; 8] = [
    ("mount_seconds", |s| s.mount),
    ("first_seconds", |s| s.first),
    ("warm_mount_seconds", |s| s.warm_mount),
    ("warm_seconds", |s| s.warm),
    ("hot_seconds", |s| s.hot),
    ("bytes", |s| s.bytes),
    ("requests", |s| s.requests),
    ("agent_peak_memory_bytes", |s| s.memory),
];

impl Row {
    /// The spread of one quantity over all runs that have it.
    pub(crate) fn spread(&self, of: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        Spread::of(&self.samples.iter().filter_map(of).collect::<Vec<f64>>())
    }

    fn json(&self) -> Value {
        let spreads: BTreeMap<&str, Option<Spread>> =
            QUANTITIES.iter().map(|(name, of)| (*name, self.spread(of))).collect();
        json!({
            "app": self.app,
            "profile": self.profile.name,
            "column": self.column.key(),
            "runs": self.samples.len(),
            "spread": spreads,
            "samples": self.samples,
            "failure": self.failure,
        })
    }
}

/// Everything that was found out.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    pub(crate) links: Vec<(Profile, Measured)>,
    pub(crate) facts: BTreeMap<AppName, Facts>,
    /// Contenders that could not take part, and why.
    pub(crate) absent: Vec<(Column, String)>,
    /// The version of the product.
    pub(crate) product: String,
    /// Where the content was kept.
    pub(crate) content_in_memory: bool,
}

/// What the numbers were taken on.
#[derive(Debug, Serialize)]
struct Machine {
    processors: usize,
    kernel: String,
}

impl Machine {
    fn this() -> Self {
        let kernel = Command::new("uname").arg("-sr").output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
        Self {
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            kernel: kernel.unwrap_or_default().trim().to_owned(),
        }
    }
}

impl Report {
    /// Every number.
    pub(crate) fn json(&self) -> Value {
        let links: Vec<Value> =
            self.links.iter().map(|(wanted, measured)| json!({ "wanted": wanted, "measured": measured })).collect();
        let facts: BTreeMap<&str, &Facts> = self.facts.iter().map(|(app, facts)| (app.name(), facts)).collect();
        let absent: BTreeMap<&str, &String> = self.absent.iter().map(|(column, why)| (column.key(), why)).collect();
        json!({
            "machine": Machine::this(),
            "product": self.product,
            "content_in_memory": self.content_in_memory,
            "links": links,
            "apps": facts,
            "not_installed": absent,
            "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
        })
    }

    /// Tables, in Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        let machine = Machine::this();
        let _ = writeln!(text, "{}; {} processors, {}.\n", self.product, machine.processors, machine.kernel);
        if !self.content_in_memory {
            text.push_str("The servers' content was on the disk, not in memory.\n\n");
        }
        text.push_str(
            "| link | round trip ms | connection ms | Mbit/s | of four connections |\n|---|---|---|---|---|\n",
        );
        for (profile, measured) in &self.links {
            let Measured { round_trip_ms, connection_ms, mbit_per_second, mbit_per_second_of_four } = measured;
            let _ = writeln!(
                text,
                "| {}: {} ms, {} Mbit/s | {round_trip_ms:.2} | {connection_ms:.2} | {mbit_per_second:.0} | \
                 {mbit_per_second_of_four:.0} |",
                profile.name, profile.round_trip_ms, profile.mbit_per_second
            );
        }
        for (app, facts) in &self.facts {
            let _ = writeln!(
                text,
                "\n## {}\n\nA launch reads {:.1} MB in pages of {} files. Floor {:.1} MB, archive {:.1} MB.",
                app.name(),
                facts.page_bytes as f64 / 1e6,
                facts.files_touched,
                facts.floor_bytes as f64 / 1e6,
                facts.archive_bytes as f64 / 1e6,
            );
            for (profile, _) in &self.links {
                self.table(&mut text, *app, profile);
            }
        }
        text
    }

    fn table(&self, text: &mut String, app: AppName, profile: &Profile) {
        let rows: Vec<&Row> = self.rows.iter().filter(|r| r.app == app && r.profile == *profile).collect();
        let first = |column: Column| {
            let row = rows.iter().find(|r| r.column == column)?;
            Some(row.spread(|s| s.first)?.median)
        };
        let floor = first(Column::Floor);
        let _ = writeln!(
            text,
            "\n| {} on {} | mount s | FIRST s (min..max) | of floor | warm mount s | warm s | hot s | MB | requests | \
             agent MiB |\n|---|---|---|---|---|---|---|---|---|---|",
            app.name(),
            profile.name
        );
        for row in &rows {
            if let (Some(why), true) = (&row.failure, row.samples.is_empty()) {
                let why = why.replace('|', "/").replace('\n', " ");
                let _ = writeln!(text, "| {} | failed: {why} | | | | | | | | |", row.column.title());
                continue;
            }
            let shown = |spread: Option<Spread>, digits: usize, unit: f64| {
                spread.map_or_else(|| "-".to_owned(), |s| format!("{:.digits$}", s.median / unit))
            };
            let first = row.spread(|s| s.first);
            let range =
                first.map_or_else(|| "-".to_owned(), |s| format!("**{:.2}** ({:.2}..{:.2})", s.median, s.min, s.max));
            let ratio = first.zip(floor).map_or_else(|| "-".to_owned(), |(s, f)| format!("{:.2}", s.median / f));
            let _ = writeln!(
                text,
                "| {} | {} | {range} | {ratio} | {} | {} | {} | {} | {} | {} |",
                row.column.title(),
                shown(row.spread(|s| s.mount), 2, 1.0),
                shown(row.spread(|s| s.warm_mount), 2, 1.0),
                shown(row.spread(|s| s.warm), 2, 1.0),
                shown(row.spread(|s| s.hot), 2, 1.0),
                shown(row.spread(|s| s.bytes), 1, 1e6),
                shown(row.spread(|s| s.requests), 0, 1.0),
                shown(row.spread(|s| s.memory), 0, f64::from(1 << 20)),
            );
        }
        for (column, why) in &self.absent {
            let _ = writeln!(text, "| {} | {why} | | | | | | | | |", column.title());
        }
    }
}
