//! Reading `head` as it comes: what is verified at once, and the beginning of a launch object behind it, which is handed
//! on while it is still under way.

use std::fmt;

use bytes::Bytes;
use futures::{StreamExt, stream};

use super::HEAD_OBJECT;
use super::head::{HEAD_BYTES_MAX, HEAD_TAIL_BYTES_MAX, TailOf, bytes_before_tail};
use crate::backend::{Backend, Beginning, ByteStream, ObjectPath, Validator};
use crate::error::Result;

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

/// Reads `head` up to its tail; `None` if it is unchanged since `known`.
pub(super) async fn read_head(backend: &dyn Backend, known: Option<&Validator>) -> Result<Option<HeadRead>> {
    // What is no bundle is read to its end, so that it can be told apart by what it is.
    let enough = |came: &[u8]| bytes_before_tail(came).is_some_and(|front| came.len() >= front);
    let limit = HEAD_BYTES_MAX + HEAD_TAIL_BYTES_MAX;
    Ok(match backend.read_beginning(&head_path(), limit, known, &enough).await? {
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
