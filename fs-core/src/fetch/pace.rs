//! Keeping work in the background below a bandwidth.
//!
//! Whoever is about to fetch takes its bytes first and waits for its turn. What was taken must be paid off, at the rate
//! that was set, before the next taker is served; unused time is not saved up. So over any stretch of time no more is
//! let through than the rate allows, and the one taking that was under way besides.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Longest that a taking is waited for before the rate is looked at again: it may have been changed meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A bandwidth that everything which takes from it shares.
#[derive(Debug)]
pub struct Pace {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bytes_per_second: Option<u64>,
    /// Bytes taken and not yet paid for, as of `since`.
    owed_bytes: f64,
    since: Instant,
}

impl Pace {
    /// `bytes_per_second` of bandwidth; `None` is no limit.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { state: Mutex::new(State { bytes_per_second, owed_bytes: 0.0, since: Instant::now() }) }
    }

    /// Another bandwidth from now on.
    pub fn set(&self, bytes_per_second: Option<u64>) {
        let mut state = self.state.lock();
        state.pay();
        state.bytes_per_second = bytes_per_second;
    }

    /// The bandwidth.
    pub fn bytes_per_second(&self) -> Option<u64> {
        self.state.lock().bytes_per_second
    }

    /// Waits until `bytes` may be fetched. Dropping the wait takes nothing.
    pub async fn take(&self, bytes: u64) {
        loop {
            let wait = {
                let mut state = self.state.lock();
                state.pay();
                let wait = state.until_paid();
                if wait.is_zero() {
                    if state.bytes_per_second.is_some() {
                        state.owed_bytes += bytes as f64;
                    }
                    return;
                }
                wait
            };
            tokio::time::sleep(wait.min(LOOK_AGAIN)).await;
        }
    }
}

impl State {
    fn pay(&mut self) {
        let now = Instant::now();
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        self.owed_bytes = match self.bytes_per_second {
            Some(rate) => (self.owed_bytes - passed * rate as f64).max(0.0),
            None => 0.0,
        };
    }

    fn until_paid(&self) -> Duration {
        match self.bytes_per_second {
            // Less than a byte is a matter of rounding.
            Some(rate) if self.owed_bytes >= 1.0 => {
                // The clock that waits counts milliseconds: rounded up, or it would be asked again and again.
                Duration::from_millis((self.owed_bytes / rate.max(1) as f64 * 1000.0).ceil().min(1e9) as u64)
            }
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Takes `pieces` of `bytes` from several tasks; when each was let through.
    async fn takings(pace: Arc<Pace>, tasks: usize, pieces: usize, bytes: u64) -> Vec<Duration> {
        let began = Instant::now();
        let tasks: Vec<_> = (0..tasks)
            .map(|_| {
                let pace = pace.clone();
                tokio::spawn(async move {
                    let mut at = Vec::new();
                    for _ in 0..pieces {
                        pace.take(bytes).await;
                        at.push(began.elapsed());
                    }
                    at
                })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.unwrap());
        }
        all.sort();
        all
    }

    #[tokio::test(start_paused = true)]
    async fn no_window_of_time_lets_more_through_than_the_rate_and_one_taking() {
        const RATE: u64 = 1_000_000;
        const PIECE: u64 = 100_000;
        let at = takings(Arc::new(Pace::new(Some(RATE))), 4, 25, PIECE).await;
        for (i, first) in at.iter().enumerate() {
            for (j, last) in at.iter().enumerate().skip(i) {
                let bytes = (j - i + 1) as u64 * PIECE;
                let allowed = (*last - *first).as_secs_f64() * RATE as f64 + PIECE as f64;
                assert!(bytes as f64 <= allowed + 1.0, "{bytes} bytes from {first:?} to {last:?}");
            }
        }
        let took = at.last().unwrap().as_secs_f64();
        assert!((9.8..=10.5).contains(&took), "the rate is used up, too: {took} s for 9.9 MB");
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_nobody_used_is_not_saved_up() {
        let pace = Arc::new(Pace::new(Some(1000)));
        tokio::time::sleep(Duration::from_secs(60)).await;
        let at = takings(pace, 1, 3, 1000).await;
        assert!(
            at[0] < Duration::from_millis(10) && at[1] >= Duration::from_secs(1) && at[2] >= Duration::from_secs(2)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_rate_counts_for_those_who_wait_already() {
        let pace = Arc::new(Pace::new(Some(1)));
        pace.take(1_000_000).await;
        let waiting = tokio::spawn(takings(pace.clone(), 1, 1, 1));
        tokio::task::yield_now().await;
        pace.set(None);
        assert!(waiting.await.unwrap()[0] <= LOOK_AGAIN);
    }
}
