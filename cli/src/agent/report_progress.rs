//! Progress of an agent's work, on its way to the command that asked for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fs_core::package::publish::Progress;
use parking_lot::Mutex;

use super::protocol::Reply;
use super::session::Replies;

/// Often enough for a bar that looks alive, seldom enough to cost nothing.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Counters {
    done: AtomicU64,
    total: AtomicU64,
    message: Mutex<String>,
    cancelled: AtomicBool,
}

impl Progress for Counters {
    fn total(&self, bytes: u64, files: u64) {
        self.total.store(bytes, Ordering::Relaxed);
        *self.message.lock() = format!("{files} files");
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn message(&self, text: &str) {
        text.clone_into(&mut self.message.lock());
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Tells work that was handed its counters to stop, when whoever wanted it is gone.
struct CancelOnDrop(Arc<Counters>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }
}

/// Runs `work`, sending what it reports to the peer meanwhile. Dropping this tells the work to stop.
pub(crate) async fn with_progress<T, F: Future<Output = T>>(
    replies: &Replies,
    work: impl FnOnce(Arc<dyn Progress>) -> F,
) -> T {
    let counters = Arc::new(Counters::default());
    let _cancel = CancelOnDrop(counters.clone());
    let work = work(counters.clone());
    tokio::pin!(work);
    let mut ticks = tokio::time::interval(REPORT_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            result = &mut work => return result,
            _ = ticks.tick() => {
                let message = counters.message.lock().clone();
                let (done, total) = (counters.done.load(Ordering::Relaxed), counters.total.load(Ordering::Relaxed));
                replies.send(Reply::Progress { done, total, message }).await;
            }
        }
    }
}
