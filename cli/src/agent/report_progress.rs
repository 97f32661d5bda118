//! Progress of an agent's work, on its way to the command that asked for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fs_core::mount::host::{Load, LoadState, LoadStatus, LoadSummary};
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

/// Waits for the end of `load`, telling the peer how far it is. Dropping this stops the load, unless others want it too.
pub(crate) async fn follow_load(load: &Arc<Load>, replies: &Replies) -> fs_core::Result<LoadSummary> {
    let _holder = load.hold();
    let mut ticks = tokio::time::interval(REPORT_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let finished = load.finished();
    tokio::pin!(finished);
    loop {
        tokio::select! {
            biased;
            result = &mut finished => return result,
            _ = ticks.tick() => {
                let status = load.status();
                let (done, total, message) = (status.done_bytes, status.total_bytes, load_in_words(&status));
                replies.send(Reply::Progress { done, total, message }).await;
            }
        }
    }
}

/// How far a load is, without its bytes.
pub(crate) fn load_in_words(status: &LoadStatus) -> String {
    let because = |what: &str| status.reason.as_ref().map_or(what.to_owned(), |reason| format!("{what}: {reason}"));
    match status.state {
        LoadState::Waiting => format!("starts in {} s", status.starts_in_seconds.unwrap_or(0)),
        LoadState::Checking => "looking for what is here".to_owned(),
        LoadState::Loading => match status.stalled_seconds {
            Some(seconds) => format!("loading, but nothing has come for {seconds} s; is its origin away?"),
            None => "loading".to_owned(),
        },
        LoadState::Paused => "paused while somebody reads".to_owned(),
        LoadState::OfflineReady => "ready for offline use".to_owned(),
        LoadState::Stopped => "stopped; streamfs load goes on, streamfs unload gives it up".to_owned(),
        LoadState::Failed => because("failed"),
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
