//! Recognising sequential readers, and how far to fetch ahead of them.
//!
//! The first read that continues another opens a window of [`WINDOW_FIRST_BYTES`]; every further one doubles it, up to
//! [`WINDOW_MAX_BYTES`]. The next stretch is asked for when half of the window is used up, so a steady reader
//! never waits. A jump closes the window: random readers fetch what they read and nothing more.

use std::ops::Range;

/// Window after the second sequential read.
pub(super) const WINDOW_FIRST_BYTES: u64 = 256 << 10;
/// Largest window: at 100 Mbit/s and 40 ms it covers sixteen round trips.
pub(super) const WINDOW_MAX_BYTES: u64 = 8 << 20;
/// How far a read may miss the expected position and still count as sequential: the kernel splits its own
/// read-ahead into requests that several threads bring here in any order.
const SLACK_BYTES: u64 = 1 << 20;

/// What is known of the reads of one file.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sequence {
    expected: u64,
    window: u64,
    asked_until: u64,
}

impl Sequence {
    /// Notes a read of `offset..end` in a file of `size`; what to fetch ahead now, if anything.
    pub(super) fn read(&mut self, offset: u64, end: u64, size: u64) -> Option<Range<u64>> {
        let sequential =
            self.expected > 0 && offset <= self.expected + SLACK_BYTES && end + SLACK_BYTES >= self.expected;
        if !sequential {
            *self = Sequence { expected: end, window: 0, asked_until: end };
            return None;
        }
        if end > self.expected {
            self.window = (self.window * 2).clamp(WINDOW_FIRST_BYTES, WINDOW_MAX_BYTES);
            self.expected = end;
        }
        self.asked_until = self.asked_until.max(self.expected);
        let target = (self.expected + self.window).min(size);
        let ahead = self.asked_until - self.expected;
        if self.asked_until >= target || ahead > self.window / 2 {
            return None;
        }
        let stretch = self.asked_until..target;
        self.asked_until = target;
        Some(stretch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_sequential_reader_finds_everything_asked_for_and_nothing_twice() {
        let mut sequence = Sequence::default();
        let mut asked = 128 << 10;
        for i in 0..8192u64 {
            let (offset, end) = (i * (128 << 10), (i + 1) * (128 << 10));
            if let Some(stretch) = sequence.read(offset, end, GIB) {
                assert_eq!(stretch.start, asked.max(end), "no gap and no overlap");
                asked = stretch.end;
            }
            assert!(asked <= end + WINDOW_MAX_BYTES);
            if i > 64 {
                assert!(asked >= (end + WINDOW_MAX_BYTES / 2).min(GIB), "read {i}: a steady reader is always ahead");
            }
        }
        assert_eq!(asked, GIB);
    }

    #[test]
    fn a_random_reader_asks_for_nothing() {
        let mut sequence = Sequence::default();
        for i in 0..1000u64 {
            let offset = (i * 7919 * (4 << 20)) % GIB;
            assert_eq!(sequence.read(offset, offset + 4096, GIB), None);
        }
    }

    #[test]
    fn reads_that_several_threads_bring_out_of_order_stay_sequential() {
        let mut sequence = Sequence::default();
        let mut asked = 0;
        for i in [0u64, 2, 1, 3, 5, 4, 7, 6] {
            let offset = i * (128 << 10);
            if let Some(stretch) = sequence.read(offset, offset + (128 << 10), GIB) {
                asked += stretch.end - stretch.start;
            }
        }
        assert!(asked >= WINDOW_FIRST_BYTES * 4);
    }
}
