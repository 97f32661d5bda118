//! All that differs between operating systems and is not a mount: attributes of files, holes, reading at a position.
//!
//! Windows has neither permission bits nor `user.*` attributes; what is published there gets plain ones.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::path::Path;

/// Attributes of a file on disk that a package keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Permission bits.
    pub mode: u16,
    /// Modification time: seconds, nanoseconds.
    pub mtime: (i64, u32),
    /// Names in the file system.
    pub links: u64,
    /// Device and inode, where hard links can be told.
    pub identity: Option<(u64, u64)>,
    /// Bytes on disk.
    pub allocated: u64,
}

#[cfg(unix)]
mod unix {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};

    use super::*;

    pub(crate) fn facts(meta: &Metadata) -> Facts {
        Facts {
            mode: (meta.mode() & 0o7777) as u16,
            mtime: (meta.mtime(), meta.mtime_nsec() as u32),
            links: meta.nlink(),
            identity: Some((meta.dev(), meta.ino())),
            allocated: meta.blocks() * 512,
        }
    }

    pub(crate) fn name_bytes(name: &OsStr) -> Vec<u8> {
        name.as_bytes().to_vec()
    }

    /// `user.*` attributes of `path` itself, sorted by name.
    pub(crate) fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        use rustix::io::Errno;
        let mut names = vec![0u8; 1024];
        let length = loop {
            match rustix::fs::llistxattr(path, &mut names[..]) {
                Ok(n) => break n,
                Err(Errno::RANGE) => names.resize(names.len() * 8, 0),
                Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(Vec::new()),
                Err(e) => return Err(e.into()),
            }
        };
        let mut found = Vec::new();
        for name in names[..length].split(|b| *b == 0).filter(|n| n.starts_with(b"user.")) {
            // 64 KiB is the longest value that Linux has.
            let mut value = vec![0u8; 65_536];
            match rustix::fs::lgetxattr(path, name, &mut value[..]) {
                Ok(n) => value.truncate(n),
                Err(Errno::NODATA) => continue,
                Err(e) => return Err(e.into()),
            }
            found.push((name.to_vec(), value));
        }
        found.sort();
        Ok(found)
    }

    /// Parts of a file that are not holes.
    pub(crate) fn data_segments(file: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
        use rustix::fs::SeekFrom;
        use rustix::io::Errno;
        let mut segments = Vec::new();
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL | Errno::NOTSUP) => return Ok(std::iter::once(0..size).collect()),
                Err(e) => return Err(e.into()),
            };
            let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
            if start >= size || end <= start {
                break;
            }
            segments.push(start..end);
            at = end;
        }
        Ok(segments)
    }

    /// Reads exactly `length` bytes. The memory is not cleared first, which would cost as much as copying them.
    pub(crate) fn read_exact_at(file: &File, length: usize, mut offset: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => offset += n as u64,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        // The allocator may have given more room than was asked for.
        bytes.truncate(length);
        Ok(bytes)
    }

    pub(crate) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    /// Opens for reading and writing, creating it readable by its owner only.
    pub(crate) fn open_private(path: &Path) -> io::Result<File> {
        File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    /// Opens for reading without following a link at the last component, and without waiting if it is a named pipe.
    pub(crate) fn open_no_follow(path: &Path) -> io::Result<File> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)
    }

    /// Makes a folder that only its owner may enter, with its parents.
    pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        std::fs::create_dir_all(path)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o700))
    }

    /// Free and total bytes of the file system that holds `path`.
    pub(crate) fn disk_space(path: &Path) -> io::Result<(u64, u64)> {
        let s = rustix::fs::statvfs(path)?;
        Ok((s.f_bavail * s.f_frsize, s.f_blocks * s.f_frsize))
    }

    /// Tells the system that `range` of `file` will be read soon.
    pub(crate) fn will_need(file: &File, offset: u64, length: u64) {
        let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(length), rustix::fs::Advice::WillNeed);
    }

    pub(crate) fn is_disk_full(e: &io::Error) -> bool {
        matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
    }
}

#[cfg(not(unix))]
mod other {
    use super::*;

    pub(crate) fn facts(meta: &Metadata) -> Facts {
        let since = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
        let mode = match (meta.is_dir(), meta.permissions().readonly()) {
            (true, _) => 0o755,
            (false, true) => 0o555,
            // Windows decides by extension what can run; on Unix a program without execute bits could not.
            (false, false) => 0o755,
        };
        let mtime = (since.as_secs().cast_signed(), since.subsec_nanos());
        Facts { mode, mtime, links: 1, identity: None, allocated: meta.len() }
    }

    pub(crate) fn name_bytes(name: &OsStr) -> Vec<u8> {
        name.to_string_lossy().replace('\\', "/").into_bytes()
    }

    pub(crate) fn xattrs(_: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(Vec::new())
    }

    pub(crate) fn data_segments(_: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
        Ok(if size == 0 { Vec::new() } else { std::iter::once(0..size).collect() })
    }

    #[cfg(windows)]
    pub(crate) fn read_exact_at(file: &File, length: usize, mut offset: u64) -> io::Result<Vec<u8>> {
        use std::os::windows::fs::FileExt;
        let mut bytes = vec![0; length];
        let mut buffer = &mut bytes[..];
        while !buffer.is_empty() {
            match file.seek_read(buffer, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => {
                    buffer = &mut buffer[n..];
                    offset += n as u64;
                }
            }
        }
        Ok(bytes)
    }

    #[cfg(windows)]
    pub(crate) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        use std::os::windows::fs::FileExt;
        while !bytes.is_empty() {
            let n = file.seek_write(bytes, offset)?;
            bytes = &bytes[n..];
            offset += n as u64;
        }
        Ok(())
    }

    pub(crate) fn open_private(path: &Path) -> io::Result<File> {
        File::options().read(true).write(true).create(true).truncate(false).open(path)
    }

    pub(crate) fn open_no_follow(path: &Path) -> io::Result<File> {
        File::open(path)
    }

    pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    /// Not known here: the cache then goes by its quota alone, and by failing writes.
    pub(crate) fn disk_space(_: &Path) -> io::Result<(u64, u64)> {
        Ok((u64::MAX, u64::MAX))
    }

    pub(crate) fn will_need(_: &File, _: u64, _: u64) {}

    pub(crate) fn is_disk_full(e: &io::Error) -> bool {
        matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

#[cfg(not(unix))]
pub(crate) use other::*;
#[cfg(unix)]
pub(crate) use unix::*;
