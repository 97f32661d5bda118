//! Waiting for something that no descriptor announces, never longer than a deadline.

use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// Asks `check` every few milliseconds until it gives a value.
///
/// # Panics
/// When it gave none within `deadline`; the message says what was waited for.
#[track_caller]
pub fn wait_for<T>(what: &str, deadline: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(start.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a child to end; kills it and panics when it does not in time.
#[track_caller]
pub fn wait_for_exit(child: &mut Child, what: &str, deadline: Duration) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status;
        }
        if start.elapsed() >= deadline {
            // The panic below says why; a child that is gone by now needs no killing.
            let _ = child.kill();
            let _ = child.wait();
            panic!("{what} did not end within {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
