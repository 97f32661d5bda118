//! Objects in a folder: a content root on this machine, or one that the operating system mounted.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};

use super::{Backend, Beginning, ByteStream, Enough, ObjectPath, ObjectState, ReadOptions, Validator};
use crate::error::{Error, Result};

/// One piece of a stream. Larger pieces save trips to the blocking pool; smaller ones reach the reader sooner.
const PIECE_BYTES: u64 = 512 * 1024;

/// A package's folder on this machine.
///
/// Objects are opened anew for each read, so that a share which went away and came back needs no reopening.
/// [`ObjectPath`] holds no `..` and nothing absolute, so no read leaves the folder by its name.
#[derive(Debug)]
pub struct LocalBackend {
    folder: PathBuf,
    origin: String,
}

impl LocalBackend {
    /// Reads from `folder`, which holds one package. Nothing is opened yet.
    pub fn new(folder: PathBuf) -> Self {
        let origin = folder.display().to_string();
        Self { folder, origin }
    }

    /// Opens an object for whoever reads files in a way of its own. What is said of it stays true of the open file, also
    /// when another takes its name.
    ///
    /// # Errors
    /// As those of [`Backend::stat`].
    pub async fn open_object(&self, object: &ObjectPath) -> Result<(File, ObjectState)> {
        let (file, meta) = blocking(object, &self.origin, self.path(object), open).await?;
        Ok((file, state(&meta)))
    }

    fn path(&self, object: &ObjectPath) -> PathBuf {
        let mut path = self.folder.clone();
        path.extend(object.as_str().split('/'));
        path
    }
}

/// Runs blocking file work, naming the object in what goes wrong.
async fn blocking<T: Send + 'static>(
    object: &ObjectPath,
    origin: &str,
    path: PathBuf,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(move || (work(&path), path)).await;
    match done {
        Ok((Ok(value), _)) => Ok(value),
        Ok((Err(e), path)) => Err(explain(e, object, origin, &path)),
        // The runtime is shutting down; the work itself does not panic.
        Err(_) => Err(Error::Cancelled),
    }
}

fn explain(e: io::Error, object: &ObjectPath, origin: &str, path: &Path) -> Error {
    use io::ErrorKind as K;
    let (object, origin) = (object.to_string(), origin.to_owned());
    match e.kind() {
        K::NotFound | K::NotADirectory => Error::NotFound { what: object, origin },
        K::PermissionDenied => Error::Denied { object, origin, reason: e.to_string() },
        K::UnexpectedEof | K::InvalidData | K::IsADirectory => {
            Error::BadAnswer { object, origin, reason: e.to_string() }
        }
        // What a share that the system mounted says while its server is away.
        K::StaleNetworkFileHandle
        | K::NotConnected
        | K::HostUnreachable
        | K::NetworkUnreachable
        | K::NetworkDown
        | K::TimedOut
        | K::ConnectionReset
        | K::ConnectionAborted
        | K::ConnectionRefused
        | K::BrokenPipe => Error::Unreachable { object, origin, reason: e.to_string() },
        // EIO of a network file system; of a local disk it is as little worth as an answer.
        _ if e.raw_os_error() == Some(5) && cfg!(unix) => Error::Unreachable { object, origin, reason: e.to_string() },
        _ => Error::local("read", path, e),
    }
}

/// Opens a regular file. The kind is looked at first: opening a FIFO would wait for a writer.
fn open(path: &Path) -> io::Result<(File, std::fs::Metadata)> {
    let meta = std::fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"));
    }
    let file = File::open(path)?;
    let meta = file.metadata()?;
    Ok((file, meta))
}

fn state(meta: &std::fs::Metadata) -> ObjectState {
    ObjectState { length: meta.len(), validator: Some(validator(meta)), modified: meta.modified().ok() }
}

fn validator(meta: &std::fs::Metadata) -> Validator {
    let mtime = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
    #[cfg(unix)]
    let inode = std::os::unix::fs::MetadataExt::ino(meta);
    // Other systems have no stable inode in std; replacing an object by rename changes its time there.
    #[cfg(not(unix))]
    let inode = 0u64;
    Validator(format!("{mtime}-{}-{inode}", meta.len()))
}

#[async_trait]
impl Backend for LocalBackend {
    fn origin(&self) -> &str {
        &self.origin
    }

    async fn stat(&self, object: &ObjectPath) -> Result<ObjectState> {
        // Opened as for reading: what may not be read is refused here, too.
        let (_, state) = self.open_object(object).await?;
        Ok(state)
    }

    async fn read_range(&self, object: &ObjectPath, range: Range<u64>, _options: ReadOptions) -> Result<ByteStream> {
        let (start, end) = (range.start, range.end);
        if start >= end {
            return Err(Error::InvalidInput(format!("the range {start}..{end} of {object} holds no bytes")));
        }
        let path = self.path(object);
        let (file, first) = blocking(object, &self.origin, path, move |path| {
            let (mut file, meta) = open(path)?;
            if meta.len() < end {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("shorter than published: {} bytes, bytes {start}..{end} are needed", meta.len()),
                ));
            }
            file.seek(SeekFrom::Start(start))?;
            let piece = read_piece(&mut file, end - start)?;
            Ok((file, piece))
        })
        .await?;
        let left = end - start - first.len() as u64;
        Ok(stream::iter([Ok(first)]).chain(self.rest(object, file, left)).boxed())
    }

    async fn read_beginning(
        &self,
        object: &ObjectPath,
        limit_bytes: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> Result<Beginning> {
        let (known, first_bytes) = (known.cloned(), enough.first_bytes);
        let opened = blocking(object, &self.origin, self.path(object), move |path| {
            let (mut file, meta) = open(path)?;
            let validator = validator(&meta);
            if known.as_ref() == Some(&validator) {
                return Ok(None);
            }
            if meta.len() > limit_bytes {
                let why = format!("it is longer than the {limit_bytes} bytes allowed");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            let wanted = first_bytes.unwrap_or(u64::MAX).min(meta.len());
            let first = read_piece(&mut file, wanted)?;
            let left = wanted - first.len() as u64;
            Ok(Some((file, first, left, validator)))
        });
        let Some((file, first, left, validator)) = opened.await? else { return Ok(Beginning::NotModified) };
        let validator = Some(validator);
        let mut rest = self.rest(object, file, left);
        if left == 0 || enough.is_in(&first) {
            return Ok(Beginning::Object { front: first, rest, validator });
        }
        let mut front = BytesMut::from(first);
        while !enough.is_in(&front)
            && let Some(piece) = rest.try_next().await?
        {
            front.extend_from_slice(&piece);
        }
        Ok(Beginning::Object { front: front.freeze(), rest, validator })
    }
}

impl LocalBackend {
    /// The next `left` bytes of `file`, in pieces.
    fn rest(&self, object: &ObjectPath, file: File, left: u64) -> ByteStream {
        let (object, origin, path) = (object.clone(), self.origin.clone(), self.path(object));
        stream::try_unfold((file, left), move |(mut file, left)| {
            let (object, origin, path) = (object.clone(), origin.clone(), path.clone());
            async move {
                if left == 0 {
                    return Ok(None);
                }
                let (file, piece) = blocking(&object, &origin, path, move |_| {
                    let piece = read_piece(&mut file, left)?;
                    Ok((file, piece))
                })
                .await?;
                let left = left - piece.len() as u64;
                Ok(Some((piece, (file, left))))
            }
        })
        .boxed()
    }
}

fn read_piece(file: &mut File, left: u64) -> io::Result<Bytes> {
    let mut piece = vec![0; left.min(PIECE_BYTES) as usize];
    file.read_exact(&mut piece).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(e.kind(), "shorter than published: it was cut while being read"),
        _ => e,
    })?;
    Ok(piece.into())
}
