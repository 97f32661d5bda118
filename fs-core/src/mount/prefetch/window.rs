//! How many bytes that nobody waits for may be under way.
//!
//! About as many as the line carries in one and a half round trips: then it is hardly ever idle, and a read that
//! somebody waits for finds little queued before it. Both are measured: the round trip is the shortest that any fetch took, the
//! bandwidth the most that came in a recent stretch of time. Where reads that somebody waits for become slow, it
//! shrinks.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// It never shrinks below this: a piece or two, so that it goes on being measured.
pub(super) const WINDOW_MIN_BYTES: u64 = 256 << 10;
/// It never grows beyond this: 1 Gbit/s at 120 ms.
pub(super) const WINDOW_MAX_BYTES: u64 = 16 << 20;
/// Part of what the line carries in a round trip that is kept under way, in percent: more than all of it, since the
/// shortest round trip is shorter than the usual one, and what is queued at the server is there when a demand read ends.
const FILL_PERCENT: u64 = 150;
/// Stretches of time whose bandwidth is remembered, and the shortest of them.
const STRETCHES: usize = 10;
const STRETCH_MIN: Duration = Duration::from_millis(50);
/// After so many stretches that brought hardly more, the line is full.
const LEVEL_STRETCHES: u32 = 3;
/// A piece on top of what the line carries, or the window could not grow by one when it is a few pieces long.
const ROOM_BYTES: u64 = 256 << 10;
/// A demand read is slow when it takes longer than this many of the shortest round trips, and this besides.
const SLOW_FACTOR: u32 = 8;
const SLOW_BESIDES: Duration = Duration::from_millis(100);

/// Of fewer fetches the shortest may be one that the machine was too busy for.
const MEASURED_MIN: u32 = 2;

#[derive(Debug)]
pub(super) struct Window {
    bytes: u64,
    /// Not all that the line carries was found out yet: it doubles.
    growing: bool,
    /// Stretches in a row that brought hardly more than those before.
    level_for: u32,
    round_trip: Option<Duration>,
    /// How many fetches the shortest was found among.
    measured: u32,
    stretches: VecDeque<f64>,
    stretch: Option<(Instant, u64)>,
    shrunk: Option<Instant>,
}

impl Window {
    pub(super) fn new() -> Self {
        Self {
            bytes: WINDOW_MIN_BYTES,
            growing: true,
            level_for: 0,
            round_trip: None,
            measured: 0,
            stretches: VecDeque::new(),
            stretch: None,
            shrunk: None,
        }
    }

    /// How many bytes may be under way.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The shortest that a fetch took, when enough of them were measured that it is the line that takes the time.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.round_trip.filter(|_| self.measured >= MEASURED_MIN)
    }

    /// A piece came at `now`, `bytes` of it over the line; `took` after it was asked for, if that was all of it.
    pub(super) fn piece(&mut self, now: Instant, bytes: u64, took: Option<Duration>) {
        if let Some(took) = took {
            self.shortest(took);
        }
        let began = took.and_then(|took| now.checked_sub(took)).unwrap_or(now);
        let (began, so_far) = *self.stretch.get_or_insert((began, 0));
        let passed = now.saturating_duration_since(began);
        let came = so_far + bytes;
        if passed < STRETCH_MIN.max(self.round_trip.unwrap_or_default()) {
            self.stretch = Some((began, came));
        } else {
            let best_before = self.best();
            self.stretches.push_back(came as f64 / passed.as_secs_f64());
            if self.stretches.len() > STRETCHES {
                self.stretches.pop_front();
            }
            self.stretch = Some((now, 0));
            // What is asked for now comes a round trip later, so one stretch without growth says nothing.
            let grew = best_before == 0.0 || self.best() > best_before * 1.2;
            self.level_for = if grew { 0 } else { self.level_for + 1 };
            self.growing &= self.level_for < LEVEL_STRETCHES;
        }
        let target = self.target();
        if self.growing || self.bytes < target {
            self.bytes = (self.bytes + bytes).min(WINDOW_MAX_BYTES);
        } else {
            self.bytes = target;
        }
    }

    /// Somebody waited `took` for the origin.
    pub(super) fn demand(&mut self, now: Instant, took: Duration) {
        self.shortest(took);
        let Some(round_trip) = self.round_trip else { return };
        let slow = took > round_trip * SLOW_FACTOR + SLOW_BESIDES;
        let lately = self.shrunk.is_some_and(|at| now.saturating_duration_since(at) < took);
        if slow && !lately {
            self.growing = false;
            self.shrunk = Some(now);
            // What was measured was too much.
            self.stretches.iter_mut().for_each(|rate| *rate *= 0.7);
            self.bytes = (self.bytes * 7 / 10).max(WINDOW_MIN_BYTES);
        }
    }

    fn shortest(&mut self, took: Duration) {
        self.measured += 1;
        self.round_trip = Some(self.round_trip.map_or(took, |known| known.min(took)));
    }

    fn best(&self) -> f64 {
        self.stretches.iter().copied().fold(0.0, f64::max)
    }

    fn target(&self) -> u64 {
        let carried = self.best() * self.round_trip.unwrap_or_default().as_secs_f64();
        (carried as u64 * FILL_PERCENT / 100 + ROOM_BYTES).clamp(WINDOW_MIN_BYTES, WINDOW_MAX_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 256 << 10;

    /// A line of `rate` bytes a second and `round_trip`, kept as full as the window allows for `seconds`. The window, and
    /// the share of the line that was used.
    fn on_a_line(rate: f64, round_trip: Duration, seconds: f64) -> (Window, f64) {
        let start = Instant::now();
        let mut window = Window::new();
        // (asked at, arrives at), in order; the line carries one piece after another.
        let mut under_way: VecDeque<(f64, f64)> = VecDeque::new();
        let (mut now, mut line_free, mut came) = (0.0f64, 0.0f64, 0u64);
        while now < seconds {
            while (under_way.len() as u64 + 1) * PIECE <= window.bytes().max(PIECE) {
                line_free = line_free.max(now + round_trip.as_secs_f64()) + PIECE as f64 / rate;
                under_way.push_back((now, line_free));
            }
            let (asked, arrives) = under_way.pop_front().unwrap();
            now = arrives;
            came += PIECE;
            window.piece(start + Duration::from_secs_f64(now), PIECE, Some(Duration::from_secs_f64(now - asked)));
        }
        (window, came as f64 / (rate * now))
    }

    #[test]
    fn it_fills_the_line_and_queues_little() {
        for (megabit, ms) in [(100.0, 40), (50.0, 120), (1000.0, 20), (10.0, 200)] {
            let rate = megabit * 1e6 / 8.0;
            let round_trip = Duration::from_millis(ms);
            let (window, used) = on_a_line(rate, round_trip, 10.0);
            assert!(used > 0.8, "{megabit} Mbit/s, {ms} ms: {used}");
            let carried = rate * round_trip.as_secs_f64() + PIECE as f64;
            assert!(
                (window.bytes() as f64) < carried * 2.5 + 2.0 * PIECE as f64,
                "{megabit} Mbit/s: {}",
                window.bytes()
            );
        }
    }

    #[test]
    fn slow_demand_reads_shrink_it_once_each_time() {
        let (mut window, _) = on_a_line(100e6, Duration::from_millis(40), 5.0);
        let before = window.bytes();
        let now = Instant::now() + Duration::from_secs(100);
        window.demand(now, Duration::from_millis(45));
        assert_eq!(window.bytes(), before, "that was not slow");
        window.demand(now, Duration::from_secs(1));
        let after = window.bytes();
        assert!(after < before && after >= WINDOW_MIN_BYTES);
        window.demand(now + Duration::from_millis(1), Duration::from_secs(1));
        assert_eq!(window.bytes(), after, "the same congestion");
        for i in 1..50 {
            window.demand(now + Duration::from_secs(i * 10), Duration::from_secs(1));
        }
        assert_eq!(window.bytes(), WINDOW_MIN_BYTES);
    }
}
