//! Writing what waits: words and batches, never more ahead of the socket than two batches.
//!
//! While one batch is written, the next is read from the content root. A batch is as long as the line takes in some
//! milliseconds: long enough that a fast line does not wait for turns, short enough that on a slow one nobody stands behind
//! much.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::future::BoxFuture;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::outbox::{Next, Outbox, Turn};
use super::sending::{Batch, Sending, Source};

/// Bytes of a batch.
const BATCH_MIN_BYTES: usize = 32 << 10;
const BATCH_FIRST_BYTES: usize = 64 << 10;
const BATCH_MAX_BYTES: usize = 512 << 10;
/// What all connections together shall hold in batches, of which each has two at most: with many, batches are shorter.
const HELD_BYTES: usize = 64 << 20;
/// How long the line shall take for a batch.
const BATCH_TIME: Duration = Duration::from_millis(4);
/// What waits must have left within this time; two of the shortest batches do on a line of 5 kbit/s.
const LEFT_WITHIN: Duration = Duration::from_secs(120);
/// Pieces that are given to the system at once.
const SLICES_MAX: usize = 64;

/// Writes until nothing waits and nothing will.
///
/// # Errors
/// If the connection breaks, or the client takes next to nothing.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    mut write: W,
    outbox: &Outbox<Sending>,
    source: &Source,
) -> io::Result<()> {
    let mut line = Line::new(write.is_write_vectored());
    let mut producing: Option<BoxFuture<'_, (Box<Turn<Sending>>, Batch)>> = None;
    loop {
        line.say(outbox);
        let mut not_before = None;
        if producing.is_none() && line.has_room() {
            match outbox.next(Instant::now()) {
                Next::Turn(mut turn) => {
                    let bytes = line.batch_bytes.min(share(source.shared.clients.count()));
                    producing = Some(Box::pin(async move {
                        let batch = turn.work.batch(&turn.flow, bytes, turn.alone, source).await;
                        (turn, batch)
                    }));
                }
                Next::NotBefore(due) => not_before = Some(due),
                Next::Nobody => {}
            }
        }
        if line.is_idle() && producing.is_none() {
            if outbox.is_over() {
                return poll_fn(|cx| Pin::new(&mut write).poll_shutdown(cx)).await;
            }
            if not_before.is_none() {
                source.rest();
            }
        }
        let (writes, overdue) = (!line.is_idle(), line.overdue());
        tokio::select! {
            written = line.write_some(&mut write), if writes => written?,
            (mut turn, batch) = async { producing.as_mut().expect("it is asked only if it is there").await },
                if producing.is_some() =>
            {
                producing = None;
                if !turn.flow.is_cancelled() {
                    line.add(batch);
                }
                turn.due = turn.work.due();
                let done = turn.work.is_done();
                outbox.put_back(*turn, done);
            }
            () = outbox.changed() => {}
            () = at(not_before) => {}
            () = at(overdue), if writes => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes next to nothing"));
            }
        }
    }
}

/// Longest batch of each of so many connections.
fn share(connections: usize) -> usize {
    (HELD_BYTES / 2 / connections.max(1)).clamp(BATCH_MIN_BYTES, BATCH_MAX_BYTES)
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// What goes into the socket next.
struct Line {
    out: VecDeque<Bytes>,
    out_bytes: usize,
    vectored: bool,
    /// Something is in the stream's own memory, as TLS has it.
    unflushed: bool,
    /// Since when something waits without a break, and how much was written in that time.
    busy: Option<(Instant, usize)>,
    batch_bytes: usize,
}

impl Line {
    fn new(vectored: bool) -> Self {
        let (out, batch_bytes) = (VecDeque::new(), BATCH_FIRST_BYTES);
        Self { out, out_bytes: 0, vectored, unflushed: false, busy: None, batch_bytes }
    }

    fn say(&mut self, outbox: &Outbox<Sending>) {
        let before = self.out.len();
        outbox.take_words(&mut self.out);
        self.out_bytes += self.out.iter().skip(before).map(Bytes::len).sum::<usize>();
        self.begin();
    }

    fn add(&mut self, batch: Batch) {
        self.out_bytes += batch.bytes;
        if self.vectored {
            self.out.extend(batch.chunks);
        } else {
            // Each piece would be written alone: heads of a few bytes, packets of their own.
            let mut joined = BytesMut::with_capacity(batch.bytes);
            batch.chunks.iter().for_each(|chunk| joined.extend_from_slice(chunk));
            self.out.push_back(joined.freeze());
        }
        self.begin();
    }

    fn begin(&mut self) {
        if self.out_bytes > 0 && self.busy.is_none() {
            self.busy = Some((Instant::now(), 0));
        }
    }

    fn has_room(&self) -> bool {
        self.out_bytes <= self.batch_bytes
    }

    fn is_idle(&self) -> bool {
        self.out.is_empty() && !self.unflushed
    }

    fn overdue(&self) -> Option<Instant> {
        self.busy.map(|(since, _)| since + LEFT_WITHIN)
    }

    /// Writes what the stream takes now. Nothing is lost if this is dropped while it waits.
    async fn write_some<W: AsyncWrite + Unpin>(&mut self, write: &mut W) -> io::Result<()> {
        poll_fn(|cx| {
            let mut write = Pin::new(&mut *write);
            if self.out.is_empty() {
                ready!(write.as_mut().poll_flush(cx))?;
                self.unflushed = false;
                return Poll::Ready(Ok(()));
            }
            let slices: Vec<IoSlice<'_>> = self.out.iter().take(SLICES_MAX).map(|chunk| IoSlice::new(chunk)).collect();
            let written = ready!(write.as_mut().poll_write_vectored(cx, &slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.wrote(written);
            Poll::Ready(Ok(()))
        })
        .await
    }

    fn wrote(&mut self, bytes: usize) {
        self.out_bytes -= bytes;
        let mut left = bytes;
        while let Some(first) = self.out.front_mut()
            && (left > 0 || first.is_empty())
        {
            let taken = left.min(first.len());
            first.advance(taken);
            left -= taken;
            if first.is_empty() {
                self.out.pop_front();
            }
        }
        let Some((since, so_far)) = &mut self.busy else { return };
        *so_far += bytes;
        let elapsed = since.elapsed();
        if self.out.is_empty() || *so_far >= 2 * self.batch_bytes {
            let fits = *so_far as f64 * BATCH_TIME.as_secs_f64() / elapsed.as_secs_f64().max(1e-6);
            // Only a line that was kept busy tells how fast it is.
            if *so_far >= self.batch_bytes {
                let fits = (fits as usize).clamp(BATCH_MIN_BYTES, BATCH_MAX_BYTES);
                self.batch_bytes = (self.batch_bytes + fits) / 2;
            }
            self.busy = (!self.out.is_empty()).then(|| (Instant::now(), 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(chunks: &[&'static str]) -> Batch {
        let chunks: Vec<Bytes> = chunks.iter().map(|chunk| Bytes::from_static(chunk.as_bytes())).collect();
        Batch { bytes: chunks.iter().map(Bytes::len).sum(), chunks }
    }

    #[tokio::test]
    async fn what_is_written_in_parts_is_written_once() {
        for vectored in [true, false] {
            let (mut client, mut server) = tokio::io::duplex(3);
            let mut line = Line::new(vectored);
            line.add(batch(&["ab", "", "cdefg", "h"]));
            assert!(!line.is_idle() && line.out_bytes == 8);
            let mut text = String::new();
            let (_, read) = tokio::join!(
                async {
                    while !line.is_idle() {
                        line.write_some(&mut server).await.unwrap();
                    }
                    drop(server);
                },
                tokio::io::AsyncReadExt::read_to_string(&mut client, &mut text)
            );
            read.unwrap();
            assert_eq!((text.as_str(), line.out_bytes), ("abcdefgh", 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn batches_are_as_long_as_the_line_takes_in_some_milliseconds() {
        for (bytes_per_millisecond, expected) in
            [(100, BATCH_MIN_BYTES), (40 << 10, 160 << 10), (10 << 20, BATCH_MAX_BYTES)]
        {
            let mut line = Line::new(true);
            for _ in 0..20 {
                let length = line.batch_bytes;
                line.add(Batch { chunks: vec![vec![0; length].into()], bytes: length });
                tokio::time::advance(Duration::from_micros(1000 * length as u64 / bytes_per_millisecond)).await;
                line.wrote(length);
            }
            let ratio = line.batch_bytes as f64 / expected as f64;
            assert!((0.9..1.1).contains(&ratio), "{bytes_per_millisecond}: {}", line.batch_bytes);
        }
    }

    #[test]
    fn batches_of_a_crowd_are_short() {
        assert_eq!((share(0), share(1), share(64)), (BATCH_MAX_BYTES, BATCH_MAX_BYTES, BATCH_MAX_BYTES));
        assert_eq!((share(256), share(10_000)), (128 << 10, BATCH_MIN_BYTES));
    }

    /// An answer to one small request says nothing of how fast the line is.
    #[tokio::test(start_paused = true)]
    async fn short_answers_do_not_shorten_batches() {
        let mut line = Line::new(true);
        line.add(batch(&["short"]));
        tokio::time::advance(Duration::from_millis(100)).await;
        line.wrote(5);
        assert_eq!(line.batch_bytes, BATCH_FIRST_BYTES);
    }
}
