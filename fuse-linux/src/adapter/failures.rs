//! Failures go to the log once per cause, at a bounded rate: an unreachable origin fails thousands of reads a second,
//! and the first line says it all.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fs_core::Error;
use fuser::Errno;
use parking_lot::Mutex;

use crate::errno::{errno, is_worth_reporting};

/// The same cause is named again after this long.
const REPEAT_AFTER: Duration = Duration::from_secs(60);
/// Different causes within one [`REPEAT_AFTER`]; more are only counted. Also bounds the memory of the table.
const CAUSES_MAX: usize = 32;

/// Remembers which failures were logged lately.
#[derive(Default)]
pub(crate) struct Failures {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    logged: HashMap<String, Instant>,
    suppressed: u64,
}

impl Failures {
    /// Turns `error` into the errno for the application, and logs it unless that was done lately. `operation` and
    /// `path` (asked for only then) say what failed.
    pub(crate) fn answer(
        &self,
        operation: &'static str,
        path: impl FnOnce() -> Option<String>,
        error: &Error,
    ) -> Errno {
        let kind = error.kind();
        if is_worth_reporting(kind) {
            let cause = error.to_string();
            if let Some(suppressed) = self.admit(&cause, Instant::now()) {
                let path = path().unwrap_or_else(|| "of a name that is not known here".to_owned());
                tracing::warn!(operation, path, ?kind, suppressed, "answered EIO: {cause}");
            }
        }
        errno(kind)
    }

    /// `Some(failures passed over since the last line)` if `cause` is to be logged now.
    fn admit(&self, cause: &str, now: Instant) -> Option<u64> {
        let mut seen = self.seen.lock();
        if seen.logged.get(cause).is_none_or(|at| now.duration_since(*at) >= REPEAT_AFTER) {
            if seen.logged.len() >= CAUSES_MAX {
                seen.logged.retain(|_, at| now.duration_since(*at) < REPEAT_AFTER);
            }
            if seen.logged.len() < CAUSES_MAX {
                seen.logged.insert(cause.to_owned(), now);
                return Some(std::mem::take(&mut seen.suppressed));
            }
        }
        seen.suppressed += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_logged_once_a_minute_and_the_rest_is_counted() {
        let failures = Failures::default();
        let start = Instant::now();
        assert_eq!(failures.admit("a", start), Some(0));
        assert_eq!(failures.admit("a", start), None);
        assert_eq!(failures.admit("a", start), None);
        assert_eq!(failures.admit("b", start), Some(2));
        assert_eq!(failures.admit("a", start + REPEAT_AFTER), Some(0));
    }

    #[test]
    fn many_causes_at_once_do_not_flood_the_log_nor_the_memory() {
        let failures = Failures::default();
        let start = Instant::now();
        let logged = (0..1000).filter(|i| failures.admit(&i.to_string(), start).is_some()).count();
        assert_eq!(logged, CAUSES_MAX);
        assert!(failures.seen.lock().logged.len() <= CAUSES_MAX);
        assert_eq!(failures.admit("new", start + REPEAT_AFTER), Some(1000 - CAUSES_MAX as u64));
    }
}
