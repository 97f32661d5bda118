//! The adapter through a real kernel.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fs_core::package::NodeId;
use rustix::fs::{SeekFrom as RawSeek, XattrFlags};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::OpenPolicy;
use super::memory_tree::MemoryTree;
use crate::mounter::{MountOptions, Mounted, Mounter};

pub(super) struct Shown {
    _dir: TempDir,
    pub(super) path: PathBuf,
    pub(super) tree: Arc<MemoryTree>,
    pub(super) mounter: Mounter,
    pub(super) mounted: Mounted,
    pub(super) runtime: Runtime,
    unmounted: bool,
}

impl Shown {
    pub(super) fn new(tree: MemoryTree, open_policy: OpenPolicy) -> Self {
        Shown::with(tree, &MountOptions { open_policy, ..MountOptions::default() })
    }

    pub(super) fn with(tree: MemoryTree, options: &MountOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let mounter = Mounter::standalone();
        let tree = Arc::new(tree);
        let mounted = mounter.mount_tree(tree.clone(), dir.path(), options, runtime.handle().clone()).unwrap();
        Shown { path: mounted.dir().to_owned(), _dir: dir, tree, mounter, mounted, runtime, unmounted: false }
    }
}

impl Shown {
    /// For whoever has unmounted it already.
    pub(super) fn gone(mut self) {
        self.unmounted = true;
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if !self.unmounted {
            self.mounter.unmount(&self.mounted, true).unwrap();
        }
    }
}

pub(super) fn sample() -> MemoryTree {
    let mut tree = MemoryTree::new("1.0");
    let bin = tree.dir(NodeId::ROOT, "bin");
    let file = tree.file(bin, "tool", (0..300_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    tree.xattr(file, "user.colour", b"blue");
    tree.file(NodeId::ROOT, b"odd \xff\n name", "x");
    tree.symlink(NodeId::ROOT, "link", "bin/tool");
    let many = tree.dir(NodeId::ROOT, "many");
    for i in 0..1000 {
        tree.file(many, format!("entry-{i:04}"), i.to_string());
    }
    tree.file(NodeId::ROOT, "holes", [vec![1; 5000], vec![0; 5000]].concat());
    tree
}

fn names(dir: &Path) -> BTreeSet<Vec<u8>> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_vec()).collect()
}

fn xattr(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let mut value = vec![0; 4096];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

pub(super) fn check_everything(at: &Path) {
    let root: BTreeSet<Vec<u8>> =
        [&b"bin"[..], b"holes", b"link", b"many", b"odd \xff\n name"].iter().map(|n| n.to_vec()).collect();
    assert_eq!(names(at), root);
    assert_eq!(names(&at.join("many")).len(), 1000);
    assert_eq!(fs::read_link(at.join("link")).unwrap(), Path::new("bin/tool"));

    let stat = fs::metadata(at.join("bin/tool")).unwrap();
    assert_eq!((stat.len(), stat.mode(), stat.nlink()), (1_200_000, 0o100_644, 1));
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (1_700_000_000, 123_456_789));
    assert_eq!((stat.uid(), stat.gid()), (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
    assert_eq!(stat.blocks(), 1_200_000_u64.div_ceil(512));
    assert_eq!(fs::metadata(at).unwrap().ino(), 1);

    let bytes = fs::read(at.join("link")).unwrap();
    assert!(bytes.chunks(4).enumerate().all(|(i, chunk)| chunk == (i as u32).to_le_bytes()));
    let mut part = [0; 8];
    File::open(at.join("bin/tool")).unwrap().read_exact_at(&mut part, 800_000).unwrap();
    assert_eq!(part[..4], 200_000_u32.to_le_bytes());

    assert_eq!(fs::metadata(at.join("absent")).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(fs::metadata(at.join("bin/tool/x")).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    assert_eq!(fs::write(at.join("new"), "x").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::remove_file(at.join("holes")).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);

    assert_eq!(xattr(&at.join("bin/tool"), "user.colour").unwrap(), b"blue");
    assert_eq!(xattr(&at.join("bin/tool"), "user.streamfs.cached").unwrap(), b"600000");
    assert_eq!(xattr(&at.join("bin"), "user.streamfs.version").unwrap(), b"1.0");
    assert_eq!(xattr(&at.join("bin"), "user.streamfs.package").unwrap(), b"toy");
    assert_eq!(xattr(at, "user.streamfs.origin").unwrap(), b"file:///content");
    assert_eq!(xattr(at, "user.streamfs.descriptor").unwrap(), b"ab".repeat(32));
    let no_data = Some(libc::ENODATA);
    assert_eq!(xattr(&at.join("bin"), "user.streamfs.cached").unwrap_err().raw_os_error(), no_data);
    assert_eq!(xattr(&at.join("bin/tool"), "user.absent").unwrap_err().raw_os_error(), no_data);
    let small = rustix::fs::getxattr(at.join("bin/tool"), "user.colour", &mut [0_u8; 2][..]);
    assert_eq!(small, Err(rustix::io::Errno::RANGE));
    let tool = std::ffi::CString::new(at.join("bin/tool").as_os_str().as_bytes()).unwrap();
    // SAFETY: both strings end with NUL, and a size of 0 says that nothing is written.
    let needed = unsafe { libc::getxattr(tool.as_ptr(), c"user.colour".as_ptr(), std::ptr::null_mut(), 0) };
    assert_eq!(needed, 4);
    let mut list = [0_u8; 100];
    let length = rustix::fs::listxattr(at.join("bin/tool"), &mut list[..]).unwrap();
    assert_eq!(&list[..length], b"user.colour\0");
    assert_eq!(rustix::fs::listxattr(at.join("bin"), &mut list[..]), Ok(0));
    let set = rustix::fs::setxattr(at.join("bin/tool"), "user.new", b"x", XattrFlags::empty());
    assert_eq!(set, Err(rustix::io::Errno::ROFS));

    let holes = File::open(at.join("holes")).unwrap();
    assert_eq!(rustix::fs::seek(&holes, RawSeek::Hole(10)), Ok(5000));
    assert_eq!(rustix::fs::seek(&holes, RawSeek::Data(10)), Ok(10));
    assert_eq!(rustix::fs::seek(&holes, RawSeek::Data(6000)), Err(rustix::io::Errno::NXIO));

    let totals = rustix::fs::statvfs(at).unwrap();
    assert_eq!((totals.f_files, totals.f_bfree, totals.f_namemax), (1007, 0, 255));
    assert_eq!(rustix::fs::access(at.join("bin"), rustix::fs::Access::WRITE_OK), Err(rustix::io::Errno::ROFS));
}

#[test]
fn what_is_local_is_shown_exactly() {
    check_everything(&Shown::new(sample(), OpenPolicy::ZeroMessage).path);
}

#[test]
fn what_must_be_fetched_is_shown_exactly() {
    let tree = sample();
    tree.later.store(true, Ordering::Relaxed);
    check_everything(&Shown::new(tree, OpenPolicy::ZeroMessage).path);
}

#[test]
fn opening_by_message_shows_the_same() {
    check_everything(&Shown::new(sample(), OpenPolicy::Passthrough).path);
}

#[test]
fn a_listing_continues_where_it_was_told_to() {
    let shown = Shown::new(sample(), OpenPolicy::ZeroMessage);
    let dir = File::open(shown.path.join("many")).unwrap();
    let mut all = Vec::new();
    let mut entries = rustix::fs::Dir::read_from(&dir).unwrap();
    for entry in entries.by_ref() {
        let entry = entry.unwrap();
        all.push((entry.file_name().to_bytes().to_vec(), entry.ino(), entry.offset()));
    }
    assert_eq!((all.len(), &all[0].0[..], &all[1].0[..]), (1002, &b"."[..], &b".."[..]));
    assert_eq!(all[1].1, 1, "the parent of a directory of the root is the root");
    assert_eq!((all[0].2, all[1].2, all[2].2), (1, 2, 3));
    for from in [0, 1, 500, 1000] {
        entries.seek(all[from].2).unwrap();
        let next = entries.next().unwrap().unwrap();
        assert_eq!(next.file_name().to_bytes(), all[from + 1].0);
    }
}

#[test]
fn the_kernel_asks_once_for_names_that_exist_and_names_that_do_not() {
    let shown = Shown::new(sample(), OpenPolicy::ZeroMessage);
    for _ in 0..10 {
        assert!(fs::metadata(shown.path.join("bin")).is_ok());
        assert!(fs::metadata(shown.path.join("absent")).is_err());
        fs::read(shown.path.join("bin/tool")).unwrap();
    }
    let reads = shown.tree.reads.load(Ordering::Relaxed);
    for _ in 0..10 {
        fs::read(shown.path.join("bin/tool")).unwrap();
    }
    assert_eq!(shown.tree.lookups.load(Ordering::Relaxed), 3);
    assert_eq!(shown.tree.reads.load(Ordering::Relaxed), reads, "pages are kept across opens");
}

#[test]
fn a_listing_makes_look_ups_superfluous() {
    let shown = Shown::new(sample(), OpenPolicy::ZeroMessage);
    for name in names(&shown.path.join("many")) {
        let path = shown.path.join("many").join(std::ffi::OsStr::from_bytes(&name));
        fs::symlink_metadata(path).unwrap();
    }
    assert_eq!(shown.tree.lookups.load(Ordering::Relaxed), 1, "only `many` itself was looked up");
}

#[test]
fn damage_is_an_input_output_error() {
    let shown = Shown::new(sample(), OpenPolicy::ZeroMessage);
    shown.tree.fail_reads.store(true, Ordering::Relaxed);
    assert_eq!(fs::read(shown.path.join("bin/tool")).unwrap_err().raw_os_error(), Some(libc::EIO));
    shown.tree.fail_reads.store(false, Ordering::Relaxed);
    assert_eq!(fs::read(shown.path.join("bin/tool")).unwrap().len(), 1_200_000);
}

/// The kernel answers EIO to an open that mixes passthrough with the page cache, or two backing ids, on one inode.
#[test]
fn passthrough_is_used_for_complete_files_and_never_mixed() {
    let cache = tempfile::tempdir().unwrap();
    let stored = cache.path().join("stored");
    fs::write(&stored, "from the cache's own file").unwrap();
    let mut tree = MemoryTree::new("1.0");
    let complete = tree.file(NodeId::ROOT, "complete", "from the tree in memory..");
    tree.complete(complete, stored.clone());
    let later = cache.path().join("not yet");
    let partial = tree.file(NodeId::ROOT, "partial", "0123456789");
    tree.complete(partial, later.clone());
    let shown = Shown::new(tree, OpenPolicy::Passthrough);

    let mut first = File::open(shown.path.join("complete")).unwrap();
    fs::remove_file(&stored).unwrap();
    let mut text = String::new();
    first.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from the cache's own file", "the kernel read the backing file");
    for _ in 0..20 {
        // Still open: the same backing file, although it has lost its name.
        assert_eq!(fs::read(shown.path.join("complete")).unwrap(), text.as_bytes());
    }

    // Opened through the page cache first, it stays so while open, even though it is complete meanwhile.
    let mut cached = File::open(shown.path.join("partial")).unwrap();
    fs::write(&later, "9876543210").unwrap();
    for _ in 0..20 {
        assert_eq!(fs::read(shown.path.join("partial")).unwrap(), b"0123456789");
    }
    cached.seek(SeekFrom::Start(5)).unwrap();
    let mut rest = String::new();
    cached.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "56789");
}

#[test]
fn concurrent_opens_of_one_file_never_fail() {
    let cache = tempfile::tempdir().unwrap();
    let stored = cache.path().join("stored");
    fs::write(&stored, "content").unwrap();
    let mut tree = MemoryTree::new("1.0");
    let id = tree.file(NodeId::ROOT, "file", "content");
    tree.complete(id, stored);
    let shown = Shown::new(tree, OpenPolicy::Passthrough);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..300 {
                    assert_eq!(fs::read(shown.path.join("file")).unwrap(), b"content");
                }
            });
        }
    });
}

#[test]
fn the_last_release_forgets_an_open_file() {
    let opens = super::opens::Opens::new(true);
    let id = NodeId(7);
    let refuse = |_: &(), _: &File| Err(io::Error::from_raw_os_error(libc::EPERM));
    let refused = |_: &(), _: &File| panic!("refused once, asked never again");
    let complete = || File::open("/dev/null").ok();
    assert!(matches!(opens.open(id, (), complete, refuse, || false), super::Opening::Cached(())));
    assert!(matches!(opens.open(id, (), complete, refused, || false), super::Opening::Cached(())));
    opens.release(id);
    assert_eq!(opens.open_inodes(), 1);
    opens.release(id);
    opens.release(id);
    assert_eq!(opens.open_inodes(), 0);
}

/// What `name_to_handle_at` fills: the kernel's `struct file_handle` with room for its bytes.
#[repr(C)]
struct Handle {
    length: u32,
    kind: i32,
    bytes: [u8; 128],
}

fn handle_of(path: &Path) -> Handle {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut handle = Handle { length: 128, kind: 0, bytes: [0; 128] };
    let mut mount_id = 0;
    // SAFETY: the path ends with NUL, and `handle` has the layout and the room that its length names.
    let result = unsafe {
        libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), (&raw mut handle).cast(), &raw mut mount_id, 0)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    handle
}

fn open_by_handle(on: &File, handle: &mut Handle) -> io::Result<File> {
    use std::os::fd::{AsRawFd, FromRawFd};
    // SAFETY: `handle` has the layout of `struct file_handle`, filled by the kernel.
    let opened = unsafe { libc::open_by_handle_at(on.as_raw_fd(), (&raw mut *handle).cast(), libc::O_RDONLY) };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(opened) })
}

/// The kernel of the second mount knows neither node: it asks for `.` and, for the directory, for `..`.
#[test]
fn a_handle_of_one_mount_opens_the_same_node_in_another_of_the_version() {
    let first = Shown::new(sample(), OpenPolicy::ZeroMessage);
    let (mut file, mut dir) = (handle_of(&first.path.join("bin/tool")), handle_of(&first.path.join("many")));
    drop(first);
    for later in [false, true] {
        let second = Shown::new(sample(), OpenPolicy::ZeroMessage);
        second.tree.later.store(later, Ordering::Relaxed);
        let root = File::open(&second.path).unwrap();
        assert_eq!(open_by_handle(&root, &mut file).unwrap().metadata().unwrap().len(), 1_200_000);
        let many = open_by_handle(&root, &mut dir).unwrap();
        assert_eq!(rustix::fs::Dir::read_from(&many).unwrap().count(), 1002);
    }
}
