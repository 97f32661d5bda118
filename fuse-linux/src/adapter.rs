//! FUSE requests to the core's tree, and its answers to replies.
//!
//! Inode numbers are the node's index in the pinned tree and no request needs a file handle, so every request can be
//! answered by itself, also by another process that serves the same version.

mod attributes;
mod declining;
mod failures;
mod listing;
#[cfg(test)]
pub(crate) mod memory_tree;
mod opens;
mod pushing;
#[cfg(test)]
mod pushing_tests;
mod requests;
#[cfg(test)]
mod tests;
mod xattrs;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fs_core::mount::{Answer, Node};
use fs_core::package::{NodeId, NodeKind};
use fs_core::{Error, Result};
use fuser::{
    AccessFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, Notifier, OpenFlags, PollEvents, PollFlags, PollNotifier, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyXattr,
    Request,
};
use tokio::runtime::Handle;

use crate::tree::Tree;
pub(crate) use attributes::Owner;
use attributes::{file_attr, negative_entry};
pub use declining::Declining;
use declining::{Declined, is_ahead, is_beside};
use failures::Failures;
use listing::{ListReply, Listing, Outcome};
pub use opens::OpenPolicy;
use opens::{Opening, Opens};
use pushing::Pushing;
use requests::RequestKind;
pub(crate) use requests::Requests;
use xattrs::{OwnAttribute, name_list, reply_value};

/// How long the kernel may keep what it was told: a pinned version never changes. 136 years; the kernel converts it
/// to jiffies, and a larger number could overflow there.
const FOR_EVER: Duration = Duration::from_secs(1 << 32);

/// Requests that the kernel may have outstanding in the background (read-ahead above all). Each may wait for a round
/// trip, so the usual 12 would bound throughput on a distant origin.
const BACKGROUND_MAX: u16 = 128;

/// Unit of `statfs`.
const STATFS_BLOCK_BYTES: u32 = 4096;

/// Longest name that the format stores.
const NAME_MAX_BYTES: u32 = 255;

/// What every kernel that has it is asked for, and why:
/// reads in parallel; look-ups and listings of one directory in parallel; direct I/O in parallel; link targets kept;
/// listings with attributes always (they lie beside the names in the tree, so nothing more is fetched, and a program
/// that lists usually stats); `.` and `..` as look-ups, which file handles (`open_by_handle_at`, NFS) need.
const WANTED: [InitFlags; 6] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_EXPORT_SUPPORT,
];

/// What tasks need after the callback that started them has returned.
pub(crate) struct Shared<T: Tree> {
    tree: Arc<T>,
    owner: Owner,
    failures: Failures,
    opens: Opens<ReplyOpen>,
    pushing: Pushing,
    declining: Declining,
    declined: Declined,
    requests: Requests,
}

/// What crossed the boundary between the kernel and this process.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct BoundaryStatistics {
    /// Requests of the kernel, by kind.
    pub requests: BTreeMap<&'static str, u64>,
    /// Bytes of launch sets that were put into the page cache before they were asked for.
    pub pushed_bytes: u64,
    /// In how many messages.
    pub pushes: u64,
}

/// A mount as its mounter sees it, whatever tree it shows.
pub(crate) trait Boundary: Send + Sync + std::fmt::Debug {
    /// Gives it the way to tell the kernel something unasked.
    fn send_by(&self, notifier: Notifier);
    /// Whether there is a launch set and the launch is not over.
    fn is_launching(&self) -> bool;
    /// Ends that; false if it had ended before.
    fn launch_is_over(&self) -> bool;
    fn statistics(&self) -> BoundaryStatistics;
}

impl<T: Tree> Shared<T> {
    /// The errno for an operation on `node` that failed; it is logged.
    pub(super) fn failed(&self, operation: &'static str, node: u64, error: &Error) -> Errno {
        self.failures.answer(operation, || self.tree.known_path(NodeId(node)), error)
    }
}

impl<T: Tree> std::fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("requests", &self.requests).finish_non_exhaustive()
    }
}

impl<T: Tree> Boundary for Shared<T> {
    fn send_by(&self, notifier: Notifier) {
        self.pushing.send_by(notifier);
    }

    fn is_launching(&self) -> bool {
        self.pushing.is_launching()
    }

    fn launch_is_over(&self) -> bool {
        self.declined.clear();
        self.pushing.end()
    }

    fn statistics(&self) -> BoundaryStatistics {
        let (pushed_bytes, pushes) = self.pushing.totals();
        BoundaryStatistics { requests: self.requests.totals().into_iter().collect(), pushed_bytes, pushes }
    }
}

/// One mounted version.
pub(crate) struct Adapter<T: Tree> {
    shared: Arc<Shared<T>>,
    runtime: Handle,
    policy: OpenPolicy,
    /// Whether the kernel may read ahead at all.
    kernel_read_ahead: bool,
    /// Whether the kernel understands "not implemented" as "do not ask again" for files and for directories.
    zero_message_open: bool,
    zero_message_opendir: bool,
}

impl<T: Tree> Adapter<T> {
    /// Serves `tree` as `owner`'s files; what must be fetched is awaited on `runtime`.
    pub(crate) fn new(
        tree: Arc<T>,
        owner: Owner,
        policy: OpenPolicy,
        push_max_bytes: u64,
        declining: Declining,
        runtime: Handle,
    ) -> Self {
        let opens = Opens::new(policy == OpenPolicy::Passthrough);
        let pushing = Pushing::new(tree.has_launch_set(), push_max_bytes);
        let (failures, requests) = (Failures::default(), Requests::default());
        let declined = Declined::default();
        let shared = Arc::new(Shared { tree, owner, failures, opens, pushing, declining, declined, requests });
        Adapter {
            shared,
            runtime,
            policy,
            kernel_read_ahead: true,
            zero_message_open: false,
            zero_message_opendir: false,
        }
    }

    /// Makes the kernel ask for the pages that are used and no others.
    pub(crate) fn without_kernel_read_ahead(mut self) -> Self {
        self.kernel_read_ahead = false;
        self
    }

    /// What others may see and do of this mount while it is served.
    pub(crate) fn boundary(&self) -> Arc<dyn Boundary> {
        self.shared.clone()
    }

    /// Hands the result to `reply`: now if it is here, from a task if it must be fetched.
    fn answer<A: Send + 'static>(&self, answer: Answer<A>, reply: impl FnOnce(&Shared<T>, Result<A>) + Send + 'static) {
        match answer {
            Answer::Ready(result) => reply(&self.shared, result),
            Answer::Later(fetching) => {
                let shared = self.shared.clone();
                self.runtime.spawn(async move { reply(&shared, fetching.await) });
            }
        }
    }

    fn list<R: ListReply>(&self, dir: INodeNo, offset: u64, reply: R) {
        match Listing::new(self.shared.clone(), NodeId(dir.0), offset, reply).run() {
            Outcome::Replied => {}
            Outcome::Waiting(rest) => {
                self.runtime.spawn(rest);
            }
        }
    }

    fn entry(&self, operation: &'static str, of: NodeId, answer: Answer<Option<Node>>, reply: ReplyEntry) {
        self.answer(answer, move |shared, result| match result {
            Ok(Some(node)) => reply.entry(&FOR_EVER, &file_attr(&node, shared.owner), Generation(0)),
            Ok(None) => reply.entry(&FOR_EVER, &negative_entry(shared.owner), Generation(0)),
            Err(error) => reply.error(shared.failed(operation, of.0, &error)),
        });
    }

    /// Whether a READ is refused because the launch would wait in it for bytes that it does not need yet.
    fn is_beside_launch_set(&self, id: NodeId, range: &Range<u64>) -> bool {
        let Shared { tree, declining, pushing, .. } = &*self.shared;
        if *declining != Declining::BesideLaunchSet || !pushing.is_launching() {
            return false;
        }
        let pieces = tree.launch_pieces(id);
        // A file that is open was looked up, so its size is at hand; if not, the read takes its course.
        let Answer::Ready(Ok(node)) = tree.node(id) else { return false };
        is_beside(range, &pieces, node.size_bytes) && self.decline(id, range)
    }

    fn decline(&self, id: NodeId, range: &Range<u64>) -> bool {
        let declines = !self.shared.declined.is_repeated(id, range);
        if declines {
            self.shared.requests.count(RequestKind::DeclinedRead);
        }
        declines
    }

    /// Look-ups of `.` and `..`: how the kernel finds a node again that it knows by number only.
    fn lookup_dot(&self, id: NodeId, parent: bool, reply: ReplyEntry) {
        if !parent {
            return self.entry("lookup", id, some(self.shared.tree.node(id)), reply);
        }
        match self.shared.tree.parent(id) {
            Answer::Ready(Ok(up)) => self.entry("lookup", id, some(self.shared.tree.node(up)), reply),
            Answer::Ready(Err(error)) => self.entry("lookup", id, Answer::Ready(Err(error)), reply),
            Answer::Later(fetching) => {
                let tree = self.shared.tree.clone();
                let both = async move {
                    let up = fetching.await?;
                    tree.node(up).wait().await.map(Some)
                };
                self.entry("lookup", id, Answer::Later(Box::pin(both)), reply);
            }
        }
    }
}

impl<T: Tree> Shared<T> {
    /// Gives the kernel what is here of the parts `due` of a file, and lets those go on who open it.
    fn push_and_open(&self, id: NodeId, due: &[Range<u64>], reply: ReplyOpen) {
        self.pushing.push(&self.tree, id, due);
        let waited = self.opens.pushed(id);
        [reply].into_iter().chain(waited).for_each(opened);
    }
}

fn opened(reply: ReplyOpen) {
    reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
}

fn some<A: Send + 'static>(answer: Answer<A>) -> Answer<Option<A>> {
    match answer {
        Answer::Ready(result) => Answer::Ready(result.map(Some)),
        Answer::Later(fetching) => Answer::Later(Box::pin(async move { fetching.await.map(Some) })),
    }
}

impl<T: Tree> Filesystem for Adapter<T> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in WANTED {
            // A kernel without it answers a little slower.
            let _ = config.add_capabilities(flag);
        }
        self.zero_message_open = config.add_capabilities(InitFlags::FUSE_NO_OPEN_SUPPORT).is_ok();
        self.zero_message_opendir = config.add_capabilities(InitFlags::FUSE_NO_OPENDIR_SUPPORT).is_ok();
        if self.policy == OpenPolicy::Passthrough {
            // Depth 1: the cache must lie on an ordinary file system, and the mount may itself be a layer of an
            // overlay.
            let offered = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
            if !offered || config.set_max_stack_depth(1).is_err() {
                self.shared.opens.refuse_passthrough();
            }
        }
        if !self.kernel_read_ahead {
            // The kernel counts in whole pages, so one byte is none; fuser takes no zero.
            let _ = config.set_max_readahead(1);
        }
        // Both only bound the kernel's own defaults; a kernel that wants less keeps less.
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_congestion_threshold(BACKGROUND_MAX / 4 * 3);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.shared.requests.count(RequestKind::Lookup);
        let parent = NodeId(parent.0);
        match name.as_bytes() {
            b"." => self.lookup_dot(parent, false, reply),
            b".." => self.lookup_dot(parent, true, reply),
            // The kernel lets longer ones through than any file system of Linux.
            name if name.len() > NAME_MAX_BYTES as usize => reply.error(Errno::ENAMETOOLONG),
            name => self.entry("lookup", parent, self.shared.tree.lookup(parent, name), reply),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.shared.requests.count(RequestKind::Getattr);
        self.answer(self.shared.tree.node(NodeId(ino.0)), move |shared, result| match result {
            Ok(node) => reply.attr(&FOR_EVER, &file_attr(&node, shared.owner)),
            Err(error) => reply.error(shared.failed("getattr", ino.0, &error)),
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.shared.requests.count(RequestKind::Readlink);
        self.answer(self.shared.tree.read_link(NodeId(ino.0)), move |shared, result| match result {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(shared.failed("readlink", ino.0, &error)),
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.shared.requests.count(RequestKind::Open);
        let Shared { opens, pushing, tree, .. } = &*self.shared;
        if self.zero_message_open && !opens.passthrough() && !pushing.needs_opens() && opens.is_quiet() {
            return reply.error(Errno::ENOSYS);
        }
        let id = NodeId(ino.0);
        let mut due = Vec::new();
        let wants_push = || {
            due = pushing.due(tree, id);
            !due.is_empty()
        };
        let register = |reply: &ReplyOpen, file: &File| reply.open_backing(file);
        match opens.open(id, reply, || tree.complete_file(id), register, wants_push) {
            Opening::Cached(reply) => opened(reply),
            Opening::PushFirst(reply) => match tree.launch_arriving(id) {
                None => self.shared.push_and_open(id, &due, reply),
                Some(arriving) => {
                    let shared = self.shared.clone();
                    self.runtime.spawn(async move {
                        arriving.await;
                        // It reads files. When the runtime ends, so does the mount.
                        let _ = tokio::task::spawn_blocking(move || shared.push_and_open(id, &due, reply)).await;
                    });
                }
            },
            Opening::Kept => {}
            // The kernel refuses KEEP_CACHE here: passthrough has no cache of this mount's.
            Opening::Passthrough(reply, backing) => {
                reply.opened_passthrough(FileHandle(0), FopenFlags::FOPEN_NOFLUSH, &backing);
            }
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, _: u64) {
        self.shared.requests.count(RequestKind::Forget);
        self.shared.pushing.forgotten(NodeId(ino.0));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.shared.requests.count(RequestKind::Read);
        let id = NodeId(ino.0);
        let range = offset..offset.saturating_add(size.into());
        let refusable = is_ahead(&range) && flags.0 & libc::O_DIRECT == 0;
        if refusable && self.shared.declining == Declining::EverythingAhead && self.decline(id, &range) {
            return reply.error(Errno::EAGAIN);
        }
        let answer = self.shared.tree.read(id, offset, size as usize);
        if refusable && matches!(answer, Answer::Later(_)) && self.is_beside_launch_set(id, &range) {
            // What it would wait for is not asked for: a future does nothing before it is polled.
            return reply.error(Errno::EAGAIN);
        }
        self.answer(answer, move |shared, result| match result {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(shared.failed("read", ino.0, &error)),
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.shared.requests.count(RequestKind::Flush);
        // Nothing is ever written; the kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.requests.count(RequestKind::Release);
        self.shared.opens.release(NodeId(ino.0));
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.shared.requests.count(RequestKind::Opendir);
        if self.zero_message_opendir {
            return reply.error(Errno::ENOSYS);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.shared.requests.count(RequestKind::Readdir);
        self.list(ino, offset, reply);
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.shared.requests.count(RequestKind::Readdirplus);
        self.list(ino, offset, reply);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.shared.requests.count(RequestKind::Statfs);
        let totals = self.shared.tree.totals();
        let blocks = totals.bytes.div_ceil(STATFS_BLOCK_BYTES.into());
        reply.statfs(blocks, 0, 0, totals.nodes, 0, STATFS_BLOCK_BYTES, NAME_MAX_BYTES, STATFS_BLOCK_BYTES);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.shared.requests.count(RequestKind::Getxattr);
        let id = NodeId(ino.0);
        match OwnAttribute::of(name.as_bytes()) {
            None => {
                let name = name.as_bytes().to_owned();
                self.answer(self.shared.tree.xattrs(id), move |shared, result| match result {
                    Ok(all) => match all.iter().find(|(n, _)| **n == name) {
                        Some((_, value)) => reply_value(reply, value, size),
                        None => reply.error(Errno::ENODATA),
                    },
                    Err(error) => reply.error(shared.failed("getxattr", ino.0, &error)),
                });
            }
            Some(own) => match own.value(self.shared.tree.identity()) {
                Some(value) => reply_value(reply, value.as_bytes(), size),
                None => self.answer(self.cached_bytes(id), move |shared, result| match result {
                    Ok(Some(bytes)) => reply_value(reply, bytes.to_string().as_bytes(), size),
                    Ok(None) => reply.error(Errno::ENODATA),
                    Err(error) => reply.error(shared.failed("getxattr", ino.0, &error)),
                }),
            },
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.shared.requests.count(RequestKind::Listxattr);
        self.answer(self.shared.tree.xattrs(NodeId(ino.0)), move |shared, result| match result {
            Ok(all) => reply_value(reply, &name_list(&all), size),
            Err(error) => reply.error(shared.failed("listxattr", ino.0, &error)),
        });
    }

    /// Only reached on mounts without `default_permissions`: with it the kernel decides by itself.
    fn access(&self, _: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        self.shared.requests.count(RequestKind::Access);
        if mask.contains(AccessFlags::W_OK) {
            return reply.error(Errno::EROFS);
        }
        self.answer(self.shared.tree.node(NodeId(ino.0)), move |shared, result| match result {
            // Like root: reading always, executing where anybody may.
            Ok(node) if mask.contains(AccessFlags::X_OK) && node.mode & 0o111 == 0 => reply.error(Errno::EACCES),
            Ok(_) => reply.ok(),
            Err(error) => reply.error(shared.failed("access", ino.0, &error)),
        });
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.shared.requests.count(RequestKind::Lseek);
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            // The kernel does all the others itself.
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(from) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        self.answer(self.shared.tree.seek(NodeId(ino.0), from, data), move |shared, result| match result {
            Ok(found) => match found.and_then(|at| i64::try_from(at).ok()) {
                Some(at) => reply.offset(at),
                None => reply.error(Errno::ENXIO),
            },
            Err(error) => reply.error(shared.failed("lseek", ino.0, &error)),
        });
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        // Files are always ready; the kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }
}

impl<T: Tree> Adapter<T> {
    /// Bytes of a file on this machine; `None` for what is not a file.
    fn cached_bytes(&self, id: NodeId) -> Answer<Option<u64>> {
        match self.shared.tree.node(id) {
            Answer::Ready(Ok(node)) if node.kind == NodeKind::File => some(self.shared.tree.cached_bytes(id)),
            Answer::Ready(Ok(_)) => Answer::Ready(Ok(None)),
            Answer::Ready(Err(error)) => Answer::Ready(Err(error)),
            Answer::Later(fetching) => {
                let tree = self.shared.tree.clone();
                Answer::Later(Box::pin(async move {
                    if fetching.await?.kind == NodeKind::File {
                        tree.cached_bytes(id).wait().await.map(Some)
                    } else {
                        Ok(None)
                    }
                }))
            }
        }
    }
}
