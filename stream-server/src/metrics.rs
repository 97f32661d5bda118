//! Counters of the server, and their text for Prometheus (exposition format 0.0.4).
//!
//! They are always on; counting is an atomic addition. No label has a value that a client could choose: neither users
//! nor packages, whose number nobody bounds. Those are in the access log.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::access::Method;

/// What a request or a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Protocol {
    Http,
    Rtsp,
}

impl Protocol {
    const ALL: [Protocol; 2] = [Protocol::Http, Protocol::Rtsp];

    /// As it stands in logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Rtsp => "rtsp",
        }
    }
}

/// How a login ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginOutcome {
    Accepted,
    Wrong,
    TooMany,
    Unavailable,
    NotInClear,
}

impl LoginOutcome {
    const ALL: [LoginOutcome; 5] = [
        LoginOutcome::Accepted,
        LoginOutcome::Wrong,
        LoginOutcome::TooMany,
        LoginOutcome::Unavailable,
        LoginOutcome::NotInClear,
    ];

    fn as_str(self) -> &'static str {
        match self {
            LoginOutcome::Accepted => "accepted",
            LoginOutcome::Wrong => "wrong",
            LoginOutcome::TooMany => "too_many",
            LoginOutcome::Unavailable => "unavailable",
            LoginOutcome::NotInClear => "not_in_clear",
        }
    }
}

/// Why a connection was not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turned {
    /// As many are open as may be.
    Full,
    /// It did not say in time what it speaks, or speaks something else.
    Unknown,
    /// TLS did not come about.
    Handshake,
}

impl Turned {
    const ALL: [Turned; 3] = [Turned::Full, Turned::Unknown, Turned::Handshake];

    fn as_str(self) -> &'static str {
        match self {
            Turned::Full => "full",
            Turned::Unknown => "unknown_protocol",
            Turned::Handshake => "tls_handshake",
        }
    }
}

/// Something of which the number that there is now counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gauge {
    HttpConnections,
    RtspConnections,
    /// RTSP sessions.
    Sessions,
    /// Clients that are told of new versions.
    Watchers,
}

/// Statuses with counters of their own: all of HTTP and RTSP.
const STATUS_FIRST: u16 = 100;
const STATUSES: usize = 500;

/// Upper bounds of the histogram of answers, in milliseconds.
const ANSWER_BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 5_000, 30_000];

/// Upper bounds of the histogram of launches, in milliseconds.
const LAUNCH_BOUNDS_MS: [u64; 11] = [250, 500, 1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 20_000, 60_000, 300_000];

/// The counters of a server. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct Counters {
    started: SystemTime,
    gauges: [AtomicI64; 4],
    connections: [AtomicU64; Protocol::ALL.len()],
    turned: [AtomicU64; Turned::ALL.len()],
    statuses: Vec<[AtomicU64; STATUSES]>,
    bytes: [AtomicU64; Protocol::ALL.len()],
    answers: [Histogram<{ ANSWER_BOUNDS_MS.len() }>; Protocol::ALL.len()],
    launches: Histogram<{ LAUNCH_BOUNDS_MS.len() }>,
    logins: [[AtomicU64; LoginOutcome::ALL.len()]; Method::ALL.len()],
    denied: AtomicU64,
    directory_asked: AtomicU64,
    identity_remembered: AtomicU64,
    notices: AtomicU64,
    throttled_micros: AtomicU64,
    log_lines_lost: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            started: SystemTime::now(),
            gauges: Default::default(),
            connections: Default::default(),
            turned: Default::default(),
            statuses: (0..Protocol::ALL.len()).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect(),
            bytes: Default::default(),
            answers: Default::default(),
            launches: Histogram::default(),
            logins: Default::default(),
            denied: AtomicU64::default(),
            directory_asked: AtomicU64::default(),
            identity_remembered: AtomicU64::default(),
            notices: AtomicU64::default(),
            throttled_micros: AtomicU64::default(),
            log_lines_lost: AtomicU64::default(),
        }
    }
}

/// Counts itself for as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted {
    metrics: Metrics,
    gauge: Gauge,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.counters.gauges[self.gauge as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// A request was answered: with which status, and how many bytes of body.
    pub(crate) fn request(&self, protocol: Protocol, status: u16, bytes: u64) {
        let at = usize::from(status.clamp(STATUS_FIRST, STATUS_FIRST + STATUSES as u16 - 1) - STATUS_FIRST);
        add(&self.counters.statuses[protocol as usize][at], 1);
        add(&self.counters.bytes[protocol as usize], bytes);
    }

    /// How long it took until the answer to a request began.
    pub(crate) fn answered_after(&self, protocol: Protocol, took: Duration) {
        self.counters.answers[protocol as usize].add(took, &ANSWER_BOUNDS_MS);
    }

    /// A connection speaks `protocol`. It is open for as long as the result lives.
    pub(crate) fn connection(&self, protocol: Protocol) -> Counted {
        add(&self.counters.connections[protocol as usize], 1);
        self.hold(match protocol {
            Protocol::Http => Gauge::HttpConnections,
            Protocol::Rtsp => Gauge::RtspConnections,
        })
    }

    /// A connection was turned away.
    pub(crate) fn turned_away(&self, why: Turned) {
        add(&self.counters.turned[why as usize], 1);
    }

    /// One more of something, for as long as the result lives.
    pub(crate) fn hold(&self, gauge: Gauge) -> Counted {
        self.counters.gauges[gauge as usize].fetch_add(1, Ordering::Relaxed);
        Counted { metrics: self.clone(), gauge }
    }

    /// How many of something there are now.
    pub(crate) fn held(&self, gauge: Gauge) -> u64 {
        u64::try_from(self.counters.gauges[gauge as usize].load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Somebody presented credentials.
    pub(crate) fn login(&self, method: Method, outcome: LoginOutcome) {
        add(&self.counters.logins[method as usize][outcome as usize], 1);
    }

    /// Somebody who is known may not do what they asked for.
    pub(crate) fn denied(&self) {
        add(&self.counters.denied, 1);
    }

    /// The directory was asked about a user.
    pub(crate) fn directory_asked(&self) {
        add(&self.counters.directory_asked, 1);
    }

    /// It was known from a moment ago who that is.
    pub(crate) fn identity_remembered(&self) {
        add(&self.counters.identity_remembered, 1);
    }

    /// Clients were told of a new version.
    pub(crate) fn notices(&self, clients: u64) {
        add(&self.counters.notices, clients);
    }

    /// A client was held back to keep a rate.
    pub(crate) fn throttled(&self, waited: Duration) {
        add(&self.counters.throttled_micros, u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));
    }

    /// A client told how long a launch took.
    pub(crate) fn launched(&self, took: Duration) {
        self.counters.launches.add(took, &LAUNCH_BOUNDS_MS);
    }

    /// Lines of the access log could not be written.
    pub(crate) fn log_lines_lost(&self, lines: u64) {
        add(&self.counters.log_lines_lost, lines);
    }

    /// All of it for Prometheus.
    pub(crate) fn text(&self) -> String {
        let it = &*self.counters;
        let mut text = Text::default();
        let started = it.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        text.family("streamfs_server_start_time_seconds", "gauge", "When the server started, in seconds since 1970.");
        text.sample("", &[], started);
        text.family("streamfs_server_info", "gauge", "The version of the server.");
        text.sample("", &[("version", env!("CARGO_PKG_VERSION"))], 1);

        text.family("streamfs_server_connections_total", "counter", "Connections, by what they spoke.");
        for (counter, protocol) in it.connections.iter().zip(Protocol::ALL) {
            text.sample("", &[("protocol", protocol.as_str())], get(counter));
        }
        text.family("streamfs_server_connections", "gauge", "Connections open now.");
        text.sample("", &[("protocol", "http")], self.held(Gauge::HttpConnections));
        text.sample("", &[("protocol", "rtsp")], self.held(Gauge::RtspConnections));
        text.family("streamfs_server_connections_turned_away_total", "counter", "Connections that were not served.");
        for (counter, why) in it.turned.iter().zip(Turned::ALL) {
            text.sample("", &[("why", why.as_str())], get(counter));
        }
        text.family("streamfs_server_sessions", "gauge", "RTSP sessions now.");
        text.sample("", &[], self.held(Gauge::Sessions));
        text.family("streamfs_server_watchers", "gauge", "Clients that are told of new versions.");
        text.sample("", &[], self.held(Gauge::Watchers));

        text.family("streamfs_server_requests_total", "counter", "Requests answered.");
        for (statuses, protocol) in it.statuses.iter().zip(Protocol::ALL) {
            for (counter, status) in statuses.iter().zip(STATUS_FIRST..) {
                let count = get(counter);
                // Only what occurred: there are 500 of them.
                if count > 0 {
                    text.sample("", &[("protocol", protocol.as_str()), ("status", &status.to_string())], count);
                }
            }
        }
        text.family("streamfs_server_sent_bytes_total", "counter", "Bytes of bodies and blocks sent.");
        for (counter, protocol) in it.bytes.iter().zip(Protocol::ALL) {
            text.sample("", &[("protocol", protocol.as_str())], get(counter));
        }
        text.family(
            "streamfs_server_answer_seconds",
            "histogram",
            "Time from a request's arrival to the beginning of its answer.",
        );
        for (histogram, protocol) in it.answers.iter().zip(Protocol::ALL) {
            histogram.write(&mut text, &[("protocol", protocol.as_str())], &ANSWER_BOUNDS_MS);
        }
        text.family("streamfs_server_launch_seconds", "histogram", "Time of launches, as clients tell it.");
        it.launches.write(&mut text, &[], &LAUNCH_BOUNDS_MS);

        text.family("streamfs_server_logins_total", "counter", "Credentials presented, by how that ended.");
        for (outcomes, method) in it.logins.iter().zip(Method::ALL) {
            for (counter, outcome) in outcomes.iter().zip(LoginOutcome::ALL) {
                text.sample("", &[("method", method.as_str()), ("outcome", outcome.as_str())], get(counter));
            }
        }
        for (counter, name, help) in [
            (&it.denied, "streamfs_server_denied_total", "Requests of known users for what they may not see or do."),
            (
                &it.directory_asked,
                "streamfs_server_directory_questions_total",
                "Users that the directory was asked about.",
            ),
            (
                &it.identity_remembered,
                "streamfs_server_identities_remembered_total",
                "Credentials that were known from a moment ago.",
            ),
            (&it.notices, "streamfs_server_notices_total", "Notices of new versions sent."),
            (&it.log_lines_lost, "streamfs_server_log_lines_lost_total", "Lines of the access log that were lost."),
        ] {
            text.family(name, "counter", help);
            text.sample("", &[], get(counter));
        }
        text.family(
            "streamfs_server_throttled_seconds_total",
            "counter",
            "Time that clients were held back by limits.",
        );
        text.sample("", &[], seconds(get(&it.throttled_micros)));
        text.out
    }
}

/// How often something took how long.
#[derive(Debug)]
struct Histogram<const N: usize> {
    buckets: [AtomicU64; N],
    /// All, those beyond the last bound included.
    count: AtomicU64,
    sum_micros: AtomicU64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            count: AtomicU64::default(),
            sum_micros: AtomicU64::default(),
        }
    }
}

impl<const N: usize> Histogram<N> {
    fn add(&self, took: Duration, bounds_ms: &[u64; N]) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = bounds_ms.partition_point(|bound| bound * 1000 < micros);
        if let Some(bucket) = self.buckets.get(at) {
            add(bucket, 1);
        }
        add(&self.sum_micros, micros);
        add(&self.count, 1);
    }

    fn write(&self, text: &mut Text, labels: &[(&str, &str)], bounds_ms: &[u64; N]) {
        // Read before the buckets, so that none of them is larger.
        let mut below = 0;
        let buckets: Vec<u64> = self.buckets.iter().map(get).collect();
        let count = get(&self.count).max(buckets.iter().sum());
        for (count, bound) in buckets.iter().zip(bounds_ms) {
            below += count;
            let bound = seconds(bound * 1000).to_string();
            text.sample("_bucket", &[labels, &[("le", bound.as_str())]].concat(), below);
        }
        text.sample("_bucket", &[labels, &[("le", "+Inf")]].concat(), count);
        text.sample("_sum", labels, seconds(get(&self.sum_micros)));
        text.sample("_count", labels, count);
    }
}

/// The text as it grows.
#[derive(Default)]
struct Text {
    out: String,
    name: &'static str,
}

impl Text {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Label values are words of this module: nothing in them needs escaping.
    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let _ = write!(self.out, "{}{suffix}", self.name);
        if !labels.is_empty() {
            let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
            let _ = write!(self.out, "{{{}}}", labels.join(","));
        }
        let _ = writeln!(self.out, " {value}");
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
    }

    #[test]
    fn requests_are_counted_by_protocol_and_status() {
        let metrics = Metrics::default();
        metrics.request(Protocol::Http, 206, 1000);
        metrics.clone().request(Protocol::Http, 206, 24);
        metrics.request(Protocol::Rtsp, 454, 0);
        metrics.request(Protocol::Http, 7, 0);
        let text = metrics.text();
        has(&text, "streamfs_server_requests_total{protocol=\"http\",status=\"206\"} 2");
        has(&text, "streamfs_server_requests_total{protocol=\"rtsp\",status=\"454\"} 1");
        has(&text, "streamfs_server_requests_total{protocol=\"http\",status=\"100\"} 1");
        has(&text, "streamfs_server_sent_bytes_total{protocol=\"http\"} 1024");
    }

    #[test]
    fn what_is_open_is_counted_while_it_lives() {
        let metrics = Metrics::default();
        let (one, two) = (metrics.connection(Protocol::Rtsp), metrics.connection(Protocol::Http));
        let session = metrics.hold(Gauge::Sessions);
        has(&metrics.text(), "streamfs_server_connections{protocol=\"rtsp\"} 1");
        has(&metrics.text(), "streamfs_server_sessions 1");
        drop((one, session));
        let text = metrics.text();
        has(&text, "streamfs_server_connections{protocol=\"rtsp\"} 0");
        has(&text, "streamfs_server_connections{protocol=\"http\"} 1");
        has(&text, "streamfs_server_connections_total{protocol=\"rtsp\"} 1");
        has(&text, "streamfs_server_sessions 0");
        drop(two);
    }

    #[test]
    fn histograms_are_cumulative_and_end_with_infinity() {
        let metrics = Metrics::default();
        for ms in [1, 3, 30_000, 60_000] {
            metrics.answered_after(Protocol::Http, Duration::from_millis(ms));
        }
        metrics.launched(Duration::from_millis(1800));
        let text = metrics.text();
        for line in [
            "streamfs_server_answer_seconds_bucket{protocol=\"http\",le=\"0.001\"} 1",
            "streamfs_server_answer_seconds_bucket{protocol=\"http\",le=\"0.002\"} 1",
            "streamfs_server_answer_seconds_bucket{protocol=\"http\",le=\"0.005\"} 2",
            "streamfs_server_answer_seconds_bucket{protocol=\"http\",le=\"30\"} 3",
            "streamfs_server_answer_seconds_bucket{protocol=\"http\",le=\"+Inf\"} 4",
            "streamfs_server_answer_seconds_sum{protocol=\"http\"} 90.004",
            "streamfs_server_answer_seconds_count{protocol=\"http\"} 4",
            "streamfs_server_launch_seconds_bucket{le=\"1\"} 0",
            "streamfs_server_launch_seconds_bucket{le=\"2\"} 1",
        ] {
            has(&text, line);
        }
    }

    #[test]
    fn enumerations_are_in_the_order_that_counters_have() {
        for (at, protocol) in Protocol::ALL.into_iter().enumerate() {
            assert_eq!(protocol as usize, at);
            assert_eq!(serde_json::to_value(protocol).unwrap(), protocol.as_str());
        }
        for (at, outcome) in LoginOutcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, at);
        }
        for (at, method) in Method::ALL.into_iter().enumerate() {
            assert_eq!(method as usize, at);
        }
        for (at, why) in Turned::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, at);
        }
    }

    #[test]
    fn every_sample_belongs_to_a_family_and_every_family_stands_once() {
        let text = Metrics::default().text();
        let mut families = std::collections::HashSet::new();
        let mut family = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                family = rest.split(' ').next().unwrap();
                assert!(families.insert(family), "{family} stands twice");
            } else if !line.starts_with('#') {
                assert!(line.starts_with(family), "{line}");
                assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
            }
        }
    }
}
