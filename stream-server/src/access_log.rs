//! The access log: one line of JSON for each thing that happened.
//!
//! ```text
//! {"time":"2026-07-01T12:00:00.123Z","event":"request","peer":"192.0.2.7","protocol":"http","tls":true,"user":"ann",
//!  "package":"team/app","version":"1.2","method":"GET","object":"head","status":200,"bytes":14820,"ms":1.4}
//! ```
//!
//! Lines are written by a thread of their own, so that a slow disk holds up nobody. What it cannot keep up with is
//! counted, and said in the log as soon as it can. After SIGHUP the file is opened anew, for who moved it away.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;

use crate::metrics::{Metrics, Protocol};

/// Lines that wait to be written: some seconds of a busy server, at most about 4 MiB.
const WAITING_MAX: usize = 8192;

/// Longest text that a client may bring into a line. Longer ones are cut.
const TEXT_MAX_BYTES: usize = 1024;

/// Lines are on disk after this long, also when more keep coming.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    /// A request was answered.
    Request,
    /// Credentials were refused.
    FailedLogin,
    /// A client told how long a launch took.
    Launch,
    /// An RTSP session ended; bytes are all that it was sent.
    Session,
    /// A version was published, or refused to be.
    Publish,
}

/// One line. What is `None` is left out.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Entry<'a> {
    pub(crate) event: Event,
    pub(crate) peer: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) protocol: Option<Protocol>,
    pub(crate) tls: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) package: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) object: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<u64>,
    /// Milliseconds that it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ms: Option<f64>,
}

impl<'a> Entry<'a> {
    /// A line that says only what happened and to whom.
    pub(crate) fn new(event: Event, peer: IpAddr, tls: bool) -> Self {
        Self {
            event,
            peer: peer.to_canonical(),
            protocol: None,
            tls,
            user: None,
            package: None,
            version: None,
            method: None,
            object: None,
            status: None,
            bytes: None,
            ms: None,
        }
    }

    fn cut(mut self) -> Self {
        for text in [&mut self.user, &mut self.package, &mut self.version, &mut self.method, &mut self.object] {
            *text = text.map(|text| {
                let end = (0..=TEXT_MAX_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
                &text[..end.unwrap_or(0)]
            });
        }
        self
    }
}

/// Milliseconds as the log shows them.
pub(crate) fn millis(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}

#[derive(Serialize)]
struct Stamped<'a> {
    time: String,
    #[serde(flatten)]
    entry: Entry<'a>,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Nowhere.
    Off,
    /// To standard output, which a service manager collects.
    StandardOutput,
    /// To the end of a file.
    File(PathBuf),
}

/// The access log. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    lines: SyncSender<Message>,
    lost: Arc<AtomicU64>,
    metrics: Metrics,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
enum Message {
    Line(String),
    Reopen,
    Stop,
}

impl AccessLog {
    /// Writes nothing.
    pub(crate) fn off() -> Self {
        Self { inner: None }
    }

    /// Begins to log.
    ///
    /// # Errors
    /// If the file cannot be opened, or no thread be started.
    pub(crate) fn open(target: LogTarget, metrics: Metrics) -> io::Result<Self> {
        let (out, path): (Box<dyn Write + Send>, _) = match target {
            LogTarget::Off => return Ok(Self::off()),
            LogTarget::StandardOutput => (Box::new(io::stdout()), None),
            LogTarget::File(path) => (Box::new(open(&path)?), Some(path)),
        };
        Self::start(out, path, metrics)
    }

    fn start(out: Box<dyn Write + Send>, path: Option<PathBuf>, metrics: Metrics) -> io::Result<Self> {
        let (lines, waiting) = sync_channel(WAITING_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let mut writer =
            Writer { out: BufWriter::new(out), path, lost: lost.clone(), metrics: metrics.clone(), failing: false };
        let thread = std::thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run(&waiting))?;
        Ok(Self { inner: Some(Arc::new(Inner { lines, lost, metrics, writer: Mutex::new(Some(thread)) })) })
    }

    /// Writes a line, soon. Never waits.
    pub(crate) fn record(&self, entry: Entry<'_>) {
        let Some(inner) = &self.inner else { return };
        let stamped = Stamped { time: format!("{:.3}", Timestamp::now()), entry: entry.cut() };
        // Everything in it can be written as JSON.
        let Ok(line) = serde_json::to_string(&stamped) else { return };
        if let Err(TrySendError::Full(_)) = inner.lines.try_send(Message::Line(line)) {
            inner.lost.fetch_add(1, Ordering::Relaxed);
            inner.metrics.log_lines_lost(1);
        }
    }

    /// Opens the file anew.
    pub(crate) fn reopen(&self) {
        if let Some(inner) = &self.inner {
            // A full queue belongs to a writer in trouble, who opens it anew by itself.
            let _ = inner.lines.try_send(Message::Reopen);
        }
    }

    /// Writes what waits and ends. Blocks until that is done.
    pub(crate) fn close(&self) {
        let Some(inner) = &self.inner else { return };
        if let Some(thread) = inner.writer.lock().take() {
            // Errors only say that the writer has ended already.
            let _ = inner.lines.send(Message::Stop);
            let _ = thread.join();
        }
    }
}

struct Writer {
    out: BufWriter<Box<dyn Write + Send>>,
    path: Option<PathBuf>,
    lost: Arc<AtomicU64>,
    metrics: Metrics,
    failing: bool,
}

impl Writer {
    fn run(&mut self, waiting: &Receiver<Message>) {
        // When what was written must reach the file.
        let mut due: Option<Instant> = None;
        loop {
            // Also while more keeps coming.
            if due.is_some_and(|due| Instant::now() >= due) {
                self.flush();
                due = None;
            }
            let next = match due {
                Some(due) => waiting.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(Message::Line(line)) => {
                    self.note_lost();
                    self.write(&line);
                    // Who looks at the end of the log wants to see it, but a busy server shall write in large pieces.
                    due = due.or_else(|| Some(Instant::now() + FLUSH_EVERY));
                }
                Ok(Message::Reopen) => self.reopen(),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    self.note_lost();
                    self.flush();
                    return;
                }
            }
        }
    }

    fn note_lost(&mut self) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.write(&format!("{{\"time\":\"{:.3}\",\"event\":\"lost\",\"lines\":{lost}}}", Timestamp::now()));
        }
    }

    fn write(&mut self, line: &str) {
        let written = self.out.write_all(line.as_bytes()).and_then(|()| self.out.write_all(b"\n"));
        self.outcome(written);
    }

    fn flush(&mut self) {
        let flushed = self.out.flush();
        self.outcome(flushed);
    }

    fn outcome(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.metrics.log_lines_lost(1);
                // Once, not for each line.
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, "the access log cannot be written; the server goes on without");
                }
            }
        }
    }

    fn reopen(&mut self) {
        let Some(path) = self.path.clone() else { return };
        self.flush();
        match open(&path) {
            Ok(file) => self.out = BufWriter::new(Box::new(file)),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "cannot open the access log anew; the old file is used")
            }
        }
    }
}

/// Names and addresses of users are not for everybody.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::mpsc::channel;

    use serde_json::Value;

    use super::*;

    fn peer() -> IpAddr {
        "::ffff:192.0.2.7".parse().unwrap()
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_says_what_is_known_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let log = AccessLog::open(LogTarget::File(path.clone()), Metrics::default()).unwrap();
        log.record(Entry {
            protocol: Some(Protocol::Http),
            user: Some("an\"n\n{\"event\":\"forged\"}"),
            package: Some("team/app"),
            version: Some("1.2"),
            method: Some("GET"),
            object: Some(&"ö".repeat(2000)),
            status: Some(200),
            bytes: Some(14_820),
            ms: Some(millis(Duration::from_micros(1400))),
            ..Entry::new(Event::Request, peer(), true)
        });
        log.record(Entry::new(Event::FailedLogin, peer(), false));
        log.close();
        log.close();
        let lines = lines(&path);
        assert_eq!(lines.len(), 2);
        let first = lines[0].as_object().unwrap();
        assert_eq!(first["peer"], "192.0.2.7");
        assert_eq!(first["protocol"], "http");
        assert_eq!(first["user"], "an\"n\n{\"event\":\"forged\"}");
        assert_eq!(first["ms"], 1.4);
        assert_eq!(first["object"].as_str().unwrap().len(), TEXT_MAX_BYTES);
        let time = first["time"].as_str().unwrap();
        assert_eq!((time.len(), &time[10..11], &time[19..20], &time[23..]), (24, "T", ".", "Z"));
        let keys: Vec<&String> = lines[1].as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), 4, "{keys:?}");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o137, 0);
    }

    #[test]
    fn a_moved_file_is_followed_by_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let log = AccessLog::open(LogTarget::File(path.clone()), Metrics::default()).unwrap();
        log.record(Entry::new(Event::Request, peer(), true));
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        log.record(Entry::new(Event::Session, peer(), true));
        log.close();
        assert_eq!(lines(&moved)[0]["event"], "request");
        assert_eq!(lines(&path)[0]["event"], "session");
    }

    /// Writes only when it is let.
    struct Slow {
        go: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Once nobody holds it up any more it goes on.
            let _ = self.go.recv();
            self.written.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_slow_disk_does_not_take_is_counted_and_nobody_waits() {
        let (hold, go) = channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let metrics = Metrics::default();
        let slow = Slow { go, written: written.clone() };
        let log = AccessLog::start(Box::new(slow), None, metrics.clone()).unwrap();
        let sent = 3 * WAITING_MAX;
        for _ in 0..sent {
            log.record(Entry::new(Event::Request, peer(), true));
        }
        drop(hold);
        log.close();
        let text = String::from_utf8(written.lock().clone()).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let requests = lines.iter().filter(|line| line["event"] == "request").count() as u64;
        let lost: u64 = lines.iter().filter_map(|line| line["lines"].as_u64()).sum();
        assert!(lost > 0, "the disk was too slow for {sent} lines, but took {requests}");
        assert_eq!(requests + lost, sent as u64);
        let counted = format!("streamfs_server_log_lines_lost_total {lost}");
        assert!(metrics.text().lines().any(|line| line == counted));
    }

    #[test]
    fn a_log_that_is_off_takes_everything() {
        let log = AccessLog::open(LogTarget::Off, Metrics::default()).unwrap();
        log.record(Entry::new(Event::Request, peer(), true));
        log.reopen();
        log.close();
        let missing = LogTarget::File("/nowhere/access.log".into());
        assert!(AccessLog::open(missing, Metrics::default()).is_err());
    }
}
