//! Reading `head` as it comes: what is verified at once, and the beginning of a launch object behind it, which is handed
//! on while it is still under way.

use std::fmt;

use bytes::Bytes;
use futures::{StreamExt, stream};

use super::HEAD_OBJECT;
use super::head::{HEAD_BYTES_MAX, HEAD_TAIL_BYTES_MAX, TailOf, bytes_before_tail};
use crate::backend::{Backend, Beginning, ByteStream, Enough, LaunchWish, ObjectPath, Validator};
use crate::error::Result;

/// What is asked for of a `head` whose tail nobody wants: all before the tail, if there are not hundreds of versions.
pub(super) const FRONT_BYTES: u64 = 64 << 10;

/// The beginning of a launch object, coming behind `head`. Nothing vouches for it: it may be anything, end early, or
/// never end. Dropping it ends the transfer.
pub struct Tail {
    of: TailOf,
    pieces: ByteStream,
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail").field("of", &self.of).finish_non_exhaustive()
    }
}

impl Tail {
    /// What `after` brings behind a `head` that says of it what `of` is.
    pub(super) fn new(of: TailOf, after: ByteStream) -> Self {
        Self { of, pieces: after }
    }

    /// What it claims to be.
    pub fn of(&self) -> &TailOf {
        &self.of
    }

    /// Its bytes as they come: perhaps fewer or more than it claims.
    pub fn into_pieces(self) -> ByteStream {
        self.pieces
    }
}

/// A `head` whose tail is still to come.
pub(super) struct HeadRead {
    /// All before the tail. If it does not begin as a bundle does, all that came.
    pub(super) front: Bytes,
    /// What stands behind it.
    pub(super) after: ByteStream,
    /// For asking whether it changed.
    pub(super) validator: Option<Validator>,
}

/// Reads `head` up to its tail; `None` if it is unchanged since `known`. Where nobody wants the tail, `front_bytes` is a guess
/// how much stands before it; too low a one costs another request. `launch` is what the tail is wanted for.
pub(super) async fn read_head(
    backend: &dyn Backend,
    known: Option<&Validator>,
    front_bytes: Option<u64>,
    launch: Option<&LaunchWish>,
) -> Result<Option<HeadRead>> {
    let read = read_front(backend, known, front_bytes, launch).await?;
    let is_cut = |head: &HeadRead| bytes_before_tail(&head.front).is_some_and(|length| head.front.len() < length);
    // Packages of some hundred versions have a longer front.
    let again = front_bytes.is_some() && read.as_ref().is_some_and(is_cut);
    if again { read_front(backend, known, None, None).await } else { Ok(read) }
}

async fn read_front(
    backend: &dyn Backend,
    known: Option<&Validator>,
    first_bytes: Option<u64>,
    launch: Option<&LaunchWish>,
) -> Result<Option<HeadRead>> {
    // What is no bundle is read to its end, so that it can be told apart by what it is.
    let is_enough = |came: &[u8]| bytes_before_tail(came).is_some_and(|front| came.len() >= front);
    let enough = Enough::when(&is_enough);
    let enough = first_bytes.map_or(enough.to_launch(launch), |bytes| enough.of_first(bytes));
    let limit = HEAD_BYTES_MAX + HEAD_TAIL_BYTES_MAX;
    Ok(match backend.read_beginning(&head_path(), limit, known, enough).await? {
        Beginning::NotModified => None,
        Beginning::Object { mut front, rest, validator } => {
            let length = bytes_before_tail(&front).map_or(front.len(), |length| length.min(front.len()));
            let first = front.split_off(length);
            let first = (!first.is_empty()).then_some(Ok(first));
            Some(HeadRead { front, after: stream::iter(first).chain(rest).boxed(), validator })
        }
    })
}

/// Where it is in a package's folder.
pub(super) fn head_path() -> ObjectPath {
    ObjectPath::new(HEAD_OBJECT).expect("a plain name")
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;
    use crate::backend::LocalBackend;
    use crate::trust::head::Head;

    #[tokio::test]
    async fn a_front_is_read_whole_however_long_it_is_and_its_tail_only_if_wanted() {
        for front_bytes in [10, FRONT_BYTES as usize - 200, FRONT_BYTES as usize, 3 * FRONT_BYTES as usize] {
            let dir = tempfile::tempdir().unwrap();
            let mut head = Head::default();
            head.insert(ObjectPath::new("metadata/1.root.json").unwrap(), vec![7; front_bytes].into());
            let front = head.encode().unwrap();
            let tail = vec![8; 700_000];
            std::fs::write(dir.path().join("head"), [&front[..], &tail].concat()).unwrap();
            let backend = LocalBackend::new(dir.path().to_owned());
            for guess in [None, Some(FRONT_BYTES)] {
                let read = read_head(&backend, None, guess, None).await.unwrap().unwrap();
                assert!(read.front == front, "{front_bytes}");
                let after = read.after.try_collect::<Vec<_>>().await.unwrap().concat();
                assert!(tail.starts_with(&after) && (guess.is_some() || after.len() == tail.len()));
                let short = front.len() < FRONT_BYTES as usize;
                assert!(guess.is_none() || !short || front.len() + after.len() <= FRONT_BYTES as usize);
            }
        }
    }
}
