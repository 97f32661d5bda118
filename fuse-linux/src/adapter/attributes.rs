//! Nodes as the kernel wants them.

use std::time::{Duration, SystemTime};

use fs_core::mount::Node;
use fs_core::package::{NodeId, NodeKind};
use fuser::{FileAttr, FileType, INodeNo};

/// Unit of `st_blksize`: what `stat` tells programs to read by; the size of a page.
const BLOCK_SIZE_BYTES: u32 = 4096;

/// Whom all files of a mount belong to: packages carry no owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The attributes that `stat` shows for `node`.
pub(crate) fn file_attr(node: &Node, owner: Owner) -> FileAttr {
    let mtime = system_time(node.mtime);
    FileAttr {
        ino: INodeNo(node.id.0),
        size: node.size_bytes,
        // st_blocks counts 512-byte units whatever the block size is.
        blocks: node.allocated_bytes.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: file_type(node.kind),
        perm: node.mode & 0o7777,
        nlink: node.links,
        uid: owner.uid,
        gid: owner.gid,
        rdev: 0,
        blksize: BLOCK_SIZE_BYTES,
        flags: 0,
    }
}

/// Stands for a directory of which only the number is known or needed: `.` and `..` in listings.
pub(crate) fn directory_stub(id: NodeId, owner: Owner) -> FileAttr {
    FileAttr { kind: FileType::Directory, ..absent(id, owner) }
}

/// Inode number 0: the kernel remembers that the name does not exist.
pub(crate) fn negative_entry(owner: Owner) -> FileAttr {
    absent(NodeId(0), owner)
}

fn absent(id: NodeId, owner: Owner) -> FileAttr {
    FileAttr {
        ino: INodeNo(id.0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 1,
        uid: owner.uid,
        gid: owner.gid,
        rdev: 0,
        blksize: BLOCK_SIZE_BYTES,
        flags: 0,
    }
}

/// The kernel's word for a node's kind.
pub(crate) fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::File => FileType::RegularFile,
        NodeKind::Directory => FileType::Directory,
        NodeKind::Symlink => FileType::Symlink,
    }
}

/// A time that `SystemTime` cannot hold (none that Linux file systems can store) becomes 1970.
fn system_time((seconds, nanoseconds): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    };
    base.and_then(|t| t.checked_add(Duration::from_nanos(nanoseconds.into()))).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let t = system_time((-2, 250_000_000));
        assert_eq!(SystemTime::UNIX_EPOCH.duration_since(t).unwrap(), Duration::from_millis(1750));
        assert_eq!(system_time((3, 5)).duration_since(SystemTime::UNIX_EPOCH).unwrap(), Duration::new(3, 5));
        assert_eq!(system_time((i64::MIN, 0)).checked_add(Duration::ZERO).is_some(), true);
    }

    #[test]
    fn blocks_count_data_rounded_up_and_not_holes() {
        let node = Node {
            id: NodeId(9),
            kind: NodeKind::File,
            size_bytes: 1 << 40,
            allocated_bytes: 513,
            mode: 0o104755,
            mtime: (0, 0),
            links: 2,
            has_xattrs: false,
        };
        let attr = file_attr(&node, Owner { uid: 7, gid: 8 });
        assert_eq!((attr.blocks, attr.size, attr.perm, attr.nlink, attr.uid, attr.gid), (2, 1 << 40, 0o4755, 2, 7, 8));
    }
}
