//! The counters of all mounts in Prometheus' text format (version 0.0.4): for node_exporter's textfile collector, or
//! whatever else scrapes.

use std::collections::BTreeMap;
use std::fmt::Write;

use fs_core::mount::host::LoadState;
use serde_json::Value;

use super::{AgentReport, MountState, MountStatus};

/// A metric: what it counts, and its samples.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    samples: Vec<String>,
}

impl Family {
    fn new(name: &'static str, kind: &'static str, help: &'static str) -> Self {
        Self { name, kind, help, samples: Vec::new() }
    }

    /// Adds a sample of the metric itself, or of the part `suffix` of a histogram.
    fn add(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        self.samples.push(format!("{}{suffix}{{{}}} {value}", self.name, labels.join(",")));
    }
}

/// A label's value as it is written between quotes.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Plain counters: name, kind, help, and where in a mount's statistics it stands.
const PLAIN: [(&str, &str, &str, &str); 22] = [
    ("streamfs_reads_total", "counter", "Reads of file content.", "/reads"),
    ("streamfs_reads_local_total", "counter", "Reads that were answered without waiting.", "/reads_local"),
    ("streamfs_read_bytes_total", "counter", "Bytes of file content read.", "/bytes_read"),
    ("streamfs_questions_failed_total", "counter", "Questions that could not be answered.", "/questions_failed"),
    ("streamfs_fetch_requests_total", "counter", "Requests to the package's origin.", "/requests"),
    ("streamfs_fetched_bytes_total", "counter", "Stored bytes received from the package's origin.", "/bytes_fetched"),
    ("streamfs_fetched_blocks_total", "counter", "Blocks and pages received.", "/blocks_fetched"),
    ("streamfs_disk_blocks_total", "counter", "Blocks and pages read from the cache on disk.", "/blocks_from_disk"),
    ("streamfs_damaged_blocks_total", "counter", "Blocks that came damaged and were asked for again.", "/damaged"),
    ("streamfs_failed_blocks_total", "counter", "Blocks that could not be had.", "/failed"),
    ("streamfs_launch_object_bytes", "gauge", "Length of the launch set's object.", "/launch/bytes"),
    ("streamfs_launch_received_bytes_total", "counter", "Bytes of the launch set received.", "/launch/bytes_received"),
    ("streamfs_launch_entries", "gauge", "Blocks and pages of the launch set.", "/launch/entries"),
    ("streamfs_launch_entries_here", "gauge", "Of these, those on this machine.", "/launch/entries_here"),
    (
        "streamfs_launch_entries_waited_for_total",
        "counter",
        "Entries of the launch set that somebody waited for when they came.",
        "/launch/entries_waited_for",
    ),
    (
        "streamfs_launch_repeated_bytes_total",
        "counter",
        "Uncompressed bytes of the launch set that came although they were here.",
        "/launch/bytes_repeated",
    ),
    (
        "streamfs_launch_used_bytes",
        "gauge",
        "Bytes of the launch set that were read, or handed to the system at the opening of their file.",
        "/launch/bytes_used",
    ),
    (
        "streamfs_launch_unused_bytes",
        "gauge",
        "Bytes of the launch set that were not; wasted when the launch is over.",
        "/launch/bytes_unused",
    ),
    (
        "streamfs_launch_outside_bytes",
        "gauge",
        "Bytes that a launch read and that are not in its launch set.",
        "/launch/bytes_outside",
    ),
    (
        "streamfs_prefetch_bytes_total",
        "counter",
        "Stored bytes brought unasked without a launch set.",
        "/prefetch/bytes",
    ),
    ("streamfs_revoked", "gauge", "1 if the version was withdrawn by its publisher.", "/revoked"),
    ("streamfs_newer_available", "gauge", "1 if a remount would show a newer version.", "/newer"),
];

/// Everything as text.
pub(super) fn text(agents: &[AgentReport]) -> String {
    let mut families = Vec::new();
    let mounts: Vec<&MountStatus> =
        agents.iter().flat_map(|agent| &agent.mounts).filter(|mount| mount.state == MountState::Mounted).collect();
    let dirs: Vec<String> = mounts.iter().map(|mount| mount.dir.to_string()).collect();
    let each = || mounts.iter().copied().zip(dirs.iter().map(String::as_str));

    let mut info = Family::new("streamfs_mount_info", "gauge", "What is mounted where.");
    for (mount, dir) in each() {
        let labels = [
            ("mount", dir),
            ("package", mount.package.as_str()),
            ("version", mount.version.as_str()),
            ("origin", mount.origin.as_str()),
        ];
        info.add("", &labels, 1);
    }
    families.push(info);
    families.push(older_versions(agents));
    for (name, kind, help, place) in PLAIN {
        let mut family = Family::new(name, kind, help);
        for (mount, dir) in each() {
            let value = match place {
                "/revoked" => Some(u64::from(mount.revoked)),
                "/newer" => Some(u64::from(mount.newer.is_some())),
                place => mount.statistics.pointer(place).and_then(Value::as_u64),
            };
            // An agent of another version may not count it.
            if let Some(value) = value {
                family.add("", &[("mount", dir)], value);
            }
        }
        families.push(family);
    }
    let mut sources = Family::new(
        "streamfs_source_bytes_total",
        "counter",
        "Bytes by where they came from: read, if they were at hand; else of the blocks and pages that were waited for.",
    );
    let mut waits = Family::new(
        "streamfs_read_wait_seconds",
        "histogram",
        "How long questions waited, by what for and by the farthest that it came from.",
    );
    for (mount, dir) in each() {
        for from in list(&mount.statistics, "bytes_by_source") {
            let labels = [("mount", dir), ("source", from["source"].as_str().unwrap_or("at_hand"))];
            sources.add("", &labels, from["bytes"].as_u64().unwrap_or(0));
        }
        for histogram in list(&mount.statistics, "waits") {
            add_histogram(&mut waits, dir, histogram);
        }
    }
    families.push(sources);
    families.push(waits);

    let mut used = Family::new("streamfs_cache_used_bytes", "gauge", "Bytes of blocks on disk.");
    let mut quota = Family::new("streamfs_cache_quota_bytes", "gauge", "Most bytes of blocks on disk.");
    for report in agents {
        let dir = report.agent.cache_dir.to_string();
        for (family, name) in [(&mut used, "used_bytes"), (&mut quota, "quota_bytes")] {
            if let Some(bytes) = report.cache.get(name).and_then(Value::as_u64) {
                family.add("", &[("cache", dir.as_str())], bytes);
            }
        }
    }
    families.extend([used, quota]);
    families.extend(loads(agents));

    let mut text = String::new();
    for Family { name, kind, help, samples } in families.iter().filter(|family| !family.samples.is_empty()) {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for sample in samples {
            let _ = writeln!(text, "{sample}");
        }
    }
    text
}

/// Versions that were replaced or unmounted and that somebody still uses: how many mounts of each.
fn older_versions(agents: &[AgentReport]) -> Family {
    let mut family = Family::new("streamfs_older_version_in_use", "gauge", "Mounts of versions that drain.");
    let mut counts: BTreeMap<(String, &str, &str), u64> = BTreeMap::new();
    for mount in agents.iter().flat_map(|agent| &agent.mounts).filter(|m| m.state == MountState::Draining) {
        *counts.entry((mount.dir.to_string(), &mount.package, &mount.version)).or_default() += 1;
    }
    for ((dir, package, version), count) in counts {
        family.add("", &[("mount", dir.as_str()), ("package", package), ("version", version)], count);
    }
    family
}

/// Versions that are loaded or being loaded.
fn loads(agents: &[AgentReport]) -> [Family; 4] {
    let mut families = [
        Family::new("streamfs_load_done_bytes", "gauge", "Bytes of a version's content that are here."),
        Family::new("streamfs_load_bytes", "gauge", "Bytes of the version's content."),
        Family::new("streamfs_load_offline_ready", "gauge", "1 if the version can be used without any network."),
        Family::new("streamfs_load_failed", "gauge", "1 if the load failed."),
    ];
    for (report, load) in agents.iter().flat_map(|report| report.loads.iter().map(move |load| (report, load))) {
        let dir = report.agent.cache_dir.to_string();
        let labels = [("cache", dir.as_str()), ("location", load.location.as_str())];
        let failed = u64::from(load.state == LoadState::Failed);
        let values = [load.done_bytes, load.total_bytes, u64::from(load.offline_ready), failed];
        for (family, value) in families.iter_mut().zip(values) {
            family.add("", &labels, value);
        }
    }
    families
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn add_histogram(family: &mut Family, dir: &str, histogram: &Value) {
    let word = |name: &str| histogram[name].as_str().unwrap_or("unknown");
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let labels = [("mount", dir), ("cause", word("cause")), ("source", word("source"))];
    let count = number(&histogram["count"]);
    for bucket in list(histogram, "buckets") {
        let le = (number(&bucket["le_micros"]) as f64 / 1e6).to_string();
        family.add("_bucket", &[&labels[..], &[("le", le.as_str())]].concat(), number(&bucket["count"]));
    }
    family.add("_bucket", &[&labels[..], &[("le", "+Inf")]].concat(), count);
    family.add("_sum", &labels, number(&histogram["sum_micros"]) as f64 / 1e6);
    family.add("_count", &labels, count);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_cannot_break_out() {
        let mut family = Family::new("m", "gauge", "h");
        family.add("", &[("a", "x\"} 1\n\\")], 2);
        assert_eq!(family.samples, [r#"m{a="x\"} 1\n\\"} 2"#]);
    }

    #[test]
    fn histograms_are_cumulative_and_end_with_infinity() {
        let mut family = Family::new("w", "histogram", "h");
        let histogram = serde_json::json!({
            "cause": "pages", "source": "origin", "count": 3, "sum_micros": 1_500_000,
            "buckets": [{ "le_micros": 100, "count": 1 }, { "le_micros": 1_000_000, "count": 2 }],
        });
        add_histogram(&mut family, "/m", &histogram);
        let common = r#"mount="/m",cause="pages",source="origin""#;
        let expected = [
            format!(r#"w_bucket{{{common},le="0.0001"}} 1"#),
            format!(r#"w_bucket{{{common},le="1"}} 2"#),
            format!(r#"w_bucket{{{common},le="+Inf"}} 3"#),
            format!("w_sum{{{common}}} 1.5"),
            format!("w_count{{{common}}} 3"),
        ];
        assert_eq!(family.samples, expected);
    }
}
