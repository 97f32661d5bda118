//! The report of a launch: one HTML page that needs nothing else, and its numbers in a few words.
//!
//! What was seen is put into the page as JSON, and drawn by the page's own script. Names of files come from packages
//! and may be anything: in the JSON no byte of them can end the script, and the script puts them nowhere but into
//! text.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use crate::report::bytes;

/// How a launch was made.
#[derive(Debug, Serialize)]
pub(crate) struct Circumstances {
    /// What was run.
    pub(crate) command: Vec<String>,
    /// Whether nothing was cached.
    pub(crate) cold: bool,
    /// How long the program ran, or was watched.
    pub(crate) launch_micros: u64,
    /// How long before the recording was taken it had been started.
    pub(crate) since_start_micros: u64,
}

/// A launch in numbers. Times are in seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// How long the program ran, or was watched.
    pub(crate) launch_seconds: f64,
    /// Time in which at least one question was waiting.
    pub(crate) waiting_seconds: f64,
    /// Questions asked of the mount.
    pub(crate) questions: u64,
    /// Of these, reads.
    pub(crate) reads: u64,
    /// Of all questions, those that waited.
    pub(crate) waited: u64,
    /// Look-ups of names that are not there.
    pub(crate) not_found: u64,
    /// Questions that failed.
    pub(crate) failed: u64,
    /// Those that waited, by the farthest that what they waited for came from.
    pub(crate) by_source: BTreeMap<String, Waited>,
    /// Bytes of files that were read, each counted once.
    pub(crate) bytes_read: u64,
    /// Bytes received from the origin, as stored.
    pub(crate) bytes_fetched: u64,
    /// Requests made of the origin.
    pub(crate) requests: u64,
    /// Uncompressed bytes that the launch stream brought.
    pub(crate) bytes_streamed: u64,
    /// Of these, in blocks that came before they were read.
    pub(crate) bytes_in_time: u64,
    /// Of these, in blocks of which nothing was read.
    pub(crate) bytes_wasted: u64,
}

/// Questions that waited for the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Waited {
    /// How many.
    pub(crate) count: u64,
    /// How long together.
    pub(crate) seconds: f64,
}

const TEMPLATE: &str = include_str!("launch_report/page.html");

fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

impl Summary {
    /// The numbers of `trace`.
    pub(crate) fn of(trace: &Value, circumstances: &Circumstances) -> Self {
        let mut summary = Summary { launch_seconds: seconds(circumstances.launch_micros), ..Summary::default() };
        let mut waits: Vec<(u64, u64)> = Vec::new();
        for event in list(trace, "events") {
            let flag = |name: &str| event.get(name).and_then(Value::as_bool).unwrap_or(true);
            summary.questions += 1;
            summary.reads += u64::from(event["op"] == "read");
            summary.failed += u64::from(!flag("ok"));
            summary.not_found += u64::from(flag("ok") && !flag("found"));
            let waited = number(event, "pages") + number(event, "blocks");
            if let Some(source) = event.get("source").and_then(Value::as_str) {
                summary.waited += 1;
                let of = summary.by_source.entry(source.to_owned()).or_default();
                of.count += 1;
                of.seconds += seconds(waited);
                waits.push((number(event, "t"), number(event, "t") + waited));
            }
        }
        summary.waiting_seconds = seconds(length_of_union(waits));
        for arrival in list(trace, "arrivals") {
            let length = number(arrival, "bytes");
            summary.bytes_streamed += length;
            match arrival.get("used").and_then(Value::as_u64) {
                None => summary.bytes_wasted += length,
                Some(used) if used >= number(arrival, "t") => summary.bytes_in_time += length,
                Some(_) => {}
            }
        }
        summary.bytes_read = list(trace, "files").iter().map(|file| number(file, "read")).sum();
        if let Some(last) = list(trace, "fetched").last() {
            (summary.bytes_fetched, summary.requests) = (number(last, "bytes"), number(last, "requests"));
        }
        summary
    }

    /// In one line.
    pub(crate) fn in_words(&self) -> String {
        let share = if self.launch_seconds > 0.0 { 100.0 * self.waiting_seconds / self.launch_seconds } else { 0.0 };
        format!(
            "launched in {:.2} s, waiting for {:.2} s of it ({:.0} %) in {} of {} questions; {} fetched by {} requests",
            self.launch_seconds,
            self.waiting_seconds,
            share.min(100.0),
            self.waited,
            self.questions,
            bytes(self.bytes_fetched),
            self.requests
        )
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// How much of the time line `spans` cover together.
fn length_of_union(mut spans: Vec<(u64, u64)>) -> u64 {
    spans.sort_unstable();
    let (mut covered, mut until) = (0, 0);
    for (from, to) in spans {
        covered += to.saturating_sub(from.max(until));
        until = until.max(to);
    }
    covered
}

/// The page.
pub(crate) fn page(trace: &Value, circumstances: &Circumstances, summary: &Summary) -> String {
    let data = json!({ "trace": trace, "circumstances": circumstances, "summary": summary });
    let title = format!("Launch of {} {}", text_of(trace, "package"), text_of(trace, "version"));
    let mut page = String::new();
    let mut rest = TEMPLATE;
    // Each place is looked for behind the one before, in the template only, so nothing that is put in can be one.
    for (place, content) in [
        ("<!--TITLE-->", as_text(&title)),
        ("/*STYLE*/", include_str!("launch_report/page.css").to_owned()),
        ("<!--DATA-->", in_script(&data)),
        ("/*SCRIPT*/", include_str!("launch_report/page.js").to_owned()),
    ] {
        let (before, after) = rest.split_once(place).expect("the template has all its places, in order");
        page.push_str(before);
        page.push_str(&content);
        rest = after;
    }
    page + rest
}

fn text_of<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// `text` between two tags.
fn as_text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// `data` as JSON that no HTML parser sees anything in: `<` occurs in strings only, where it can be written otherwise.
fn in_script(data: &Value) -> String {
    data.to_string().replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}
