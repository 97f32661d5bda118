//! Exact comparison of two trees: everything that a package must bring over.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};

/// Holes smaller than this are not looked for: file systems differ in what they can keep.
const SMALLEST_HOLE_BYTES: u64 = 1 << 20;

/// Differences shown in a failure.
const SHOWN: usize = 30;

/// Compares two trees; panics with the paths that differ.
///
/// # Panics
/// When they differ, or one cannot be read.
#[track_caller]
pub fn assert_same_tree(expected: &Path, found: &Path) {
    let differences = compare_trees(expected, found);
    if differences.is_empty() {
        return;
    }
    let mut text = String::new();
    for line in differences.iter().take(SHOWN) {
        let _ = writeln!(text, "  {line}");
    }
    panic!("{} and {} differ in {} things:\n{text}", expected.display(), found.display(), differences.len());
}

/// Everything in which `found` differs from `expected`: names, types, content, modes, modification times in
/// nanoseconds, hard links, targets of symbolic links, user extended attributes, and holes. Owners are not compared:
/// a mount shows the mounting user's.
pub fn compare_trees(expected: &Path, found: &Path) -> Vec<String> {
    let mut differences = Vec::new();
    let left = list(expected, &mut differences);
    let right = list(found, &mut differences);
    let groups = (link_groups(&left), link_groups(&right));
    for (path, meta) in &left {
        let shown = path.display();
        let Some(other) = right.get(path) else {
            differences.push(format!("{shown}: missing"));
            continue;
        };
        if meta.file_type() != other.file_type() {
            differences.push(format!("{shown}: is {:?}, expected {:?}", other.file_type(), meta.file_type()));
            continue;
        }
        if !meta.is_symlink() && meta.mode() & 0o7777 != other.mode() & 0o7777 {
            differences.push(format!("{shown}: mode {:o}, expected {:o}", other.mode() & 0o7777, meta.mode() & 0o7777));
        }
        let times = ((meta.mtime(), meta.mtime_nsec()), (other.mtime(), other.mtime_nsec()));
        if times.0 != times.1 {
            differences.push(format!("{shown}: mtime {:?}, expected {:?}", times.1, times.0));
        }
        if groups.0.get(path.as_path()) != groups.1.get(path.as_path()) {
            differences.push(format!("{shown}: names of the same file differ"));
        }
        // A directory's count is its subdirectories in one file system and 1 in another.
        if !meta.is_dir() && meta.nlink() != other.nlink() {
            differences.push(format!("{shown}: {} links, expected {}", other.nlink(), meta.nlink()));
        }
        let (a, b) = (expected.join(path), found.join(path));
        if let Err(difference) = compare_node(&a, &b, meta, other) {
            differences.push(format!("{shown}: {difference}"));
        }
    }
    for path in right.keys().filter(|p| !left.contains_key(*p)) {
        differences.push(format!("{}: should not be there", path.display()));
    }
    differences
}

type Listing = BTreeMap<PathBuf, fs::Metadata>;

fn list(root: &Path, differences: &mut Vec<String>) -> Listing {
    let mut out = Listing::new();
    let mut folders = vec![PathBuf::new()];
    match fs::symlink_metadata(root) {
        Ok(meta) => drop(out.insert(PathBuf::new(), meta)),
        Err(e) => differences.push(format!("{}: {e}", root.display())),
    }
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(root.join(&folder)) {
            Ok(entries) => entries,
            Err(e) => {
                differences.push(format!("{}: cannot list: {e}", root.join(&folder).display()));
                continue;
            }
        };
        for entry in entries {
            let step =
                entry.and_then(|e| Ok((folder.join(e.file_name()), fs::symlink_metadata(e.path())?, e.file_type()?)));
            match step {
                Ok((path, meta, kind)) => {
                    if kind != meta.file_type() {
                        differences.push(format!("{}: listed as {kind:?}, is {:?}", path.display(), meta.file_type()));
                    }
                    if meta.is_dir() {
                        folders.push(path.clone());
                    }
                    if out.insert(path.clone(), meta).is_some() {
                        differences.push(format!("{}: listed twice in {}", path.display(), root.display()));
                    }
                }
                Err(e) => differences.push(format!("{}: {e}", root.join(&folder).display())),
            }
        }
    }
    out
}

/// For each name of a file with several: the first of its names.
fn link_groups(listing: &Listing) -> HashMap<&Path, &Path> {
    let mut first = HashMap::new();
    let mut out = HashMap::new();
    for (path, meta) in listing.iter().filter(|(_, m)| !m.is_dir() && m.nlink() > 1) {
        out.insert(path.as_path(), *first.entry((meta.dev(), meta.ino())).or_insert(path.as_path()));
    }
    out
}

fn compare_node(a: &Path, b: &Path, meta: &fs::Metadata, other: &fs::Metadata) -> Result<(), String> {
    if meta.is_symlink() {
        let targets = (fs::read_link(a).map_err(said)?, fs::read_link(b).map_err(said)?);
        return if targets.0 == targets.1 {
            Ok(())
        } else {
            Err(format!("points at {:?}, expected {:?}", targets.1, targets.0))
        };
    }
    let attributes = (user_attributes(a)?, user_attributes(b)?);
    if attributes.0 != attributes.1 {
        return Err(format!("attributes {:?}, expected {:?}", attributes.1, attributes.0));
    }
    if meta.is_file() {
        if meta.len() != other.len() {
            return Err(format!("{} bytes, expected {}", other.len(), meta.len()));
        }
        compare_content(a, b, meta.len())?;
    }
    Ok(())
}

fn said(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// Extended attributes in the user's name space, without those by which a mount tells about itself.
fn user_attributes(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
    let mut names = vec![0_u8; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        Err(e) => return Err(format!("cannot list attributes: {e}")),
    };
    let mut out = BTreeMap::new();
    for name in
        names[..length].split(|b| *b == 0).filter(|n| n.starts_with(b"user.") && !n.starts_with(b"user.streamfs."))
    {
        let mut value = vec![0_u8; 64 << 10];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])
            .map_err(|e| format!("cannot read attribute {}: {e}", String::from_utf8_lossy(name)))?;
        value.truncate(length);
        out.insert(name.to_vec(), value);
    }
    Ok(out)
}

fn compare_content(a: &Path, b: &Path, length: u64) -> Result<(), String> {
    let open = |p: &Path| File::open(p).map_err(|e| format!("cannot open: {e}"));
    let (mut left, mut right) = (open(a)?, open(b)?);
    let holes = (holes(&left, length), holes(&right, length));
    let bytes_in = |holes: &[(u64, u64)]| holes.iter().map(|h| h.1 - h.0).sum::<u64>();
    let (expected, found) = (bytes_in(&holes.0), bytes_in(&holes.1));
    if found < expected / 2 {
        return Err(format!("holes of {found} bytes, expected about {expected}"));
    }
    if expected > 0 {
        return compare_sparse(&left, &right, length, &holes.0, &holes.1);
    }
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0_u64;
    loop {
        let n = left.read(&mut x).map_err(|e| format!("cannot read the original: {e}"))?;
        if n == 0 {
            break;
        }
        right.read_exact(&mut y[..n]).map_err(|e| format!("cannot read {n} bytes at {at}: {e}"))?;
        if let Some(i) = x[..n].iter().zip(&y[..n]).position(|(p, q)| p != q) {
            return Err(format!("wrong byte at {}", at + i as u64));
        }
        at += n as u64;
    }
    match right.read(&mut y).map_err(said)? {
        0 => Ok(()),
        n => Err(format!("{n} bytes past the end")),
    }
}

/// Compares what is data in the original, and demands that what `right` calls a hole is zero there.
fn compare_sparse(
    left: &File,
    right: &File,
    length: u64,
    left_holes: &[(u64, u64)],
    right_holes: &[(u64, u64)],
) -> Result<(), String> {
    let mut x = vec![0; 1 << 20];
    let mut y = vec![0; 1 << 20];
    for (start, end) in complement(left_holes, length) {
        let mut at = start;
        while at < end {
            let n = (end - at).min(x.len() as u64) as usize;
            left.read_exact_at(&mut x[..n], at).map_err(|e| format!("cannot read the original: {e}"))?;
            right.read_exact_at(&mut y[..n], at).map_err(|e| format!("cannot read {n} bytes at {at}: {e}"))?;
            if let Some(i) = x[..n].iter().zip(&y[..n]).position(|(p, q)| p != q) {
                return Err(format!("wrong byte at {}", at + i as u64));
            }
            let in_hole = |i: usize| right_holes.iter().any(|h| (h.0..h.1).contains(&(at + i as u64)));
            if right_holes.iter().any(|h| h.0 < at + n as u64 && at < h.1) && (0..n).any(|i| x[i] != 0 && in_hole(i)) {
                return Err(format!("claims a hole where there is data, after {at}"));
            }
            at += n as u64;
        }
    }
    // Inside the original's holes a few probes do: reading terabytes of zeros would not end.
    for (start, end) in left_holes {
        for at in [*start, start + (end - start) / 2, end - 1] {
            right.read_exact_at(&mut y[..1], at).map_err(|e| format!("cannot read in a hole at {at}: {e}"))?;
            if y[0] != 0 {
                return Err(format!("not zero in a hole at {at}"));
            }
        }
    }
    Ok(())
}

fn complement(holes: &[(u64, u64)], length: u64) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    let mut at = 0;
    for (start, end) in holes {
        if *start > at {
            out.push((at, *start));
        }
        at = *end;
    }
    if at < length {
        out.push((at, length));
    }
    out
}

/// Holes of at least [`SMALLEST_HOLE_BYTES`].
fn holes(file: &File, length: u64) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < length {
        let Ok(start) = seek(file, SeekFrom::Hole(at)) else { break };
        if start >= length {
            break;
        }
        // No data until the end is an error of its own (ENXIO).
        let end = seek(file, SeekFrom::Data(start)).unwrap_or(length).min(length);
        if end <= start {
            break;
        }
        if end - start >= SMALLEST_HOLE_BYTES {
            out.push((start, end));
        }
        at = end;
    }
    // The comparison reads from the beginning.
    let _ = seek(file, SeekFrom::Start(0));
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn pair() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for side in ["a", "b"] {
            let root = dir.path().join(side);
            fs::create_dir(&root).unwrap();
            fs::write(root.join("file"), "content").unwrap();
            std::os::unix::fs::symlink("file", root.join("link")).unwrap();
            let sparse = File::create(root.join("sparse")).unwrap();
            sparse.set_len(8 << 20).unwrap();
            sparse.write_all_at(b"end", (8 << 20) - 3).unwrap();
            for name in ["file", "sparse", "."] {
                let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 7);
                File::open(root.join(name)).unwrap().set_modified(time).unwrap();
            }
            rustix::fs::utimensat(
                rustix::fs::CWD,
                root.join("link"),
                &rustix::fs::Timestamps {
                    last_access: rustix::fs::Timespec { tv_sec: 5, tv_nsec: 5 },
                    last_modification: rustix::fs::Timespec { tv_sec: 5, tv_nsec: 5 },
                },
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
            )
            .unwrap();
        }
        dir
    }

    fn differences_after(change: impl Fn(&Path)) -> String {
        let dir = pair();
        change(&dir.path().join("b"));
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 7);
        File::open(dir.path().join("b")).unwrap().set_modified(time).unwrap();
        compare_trees(&dir.path().join("a"), &dir.path().join("b")).join("; ")
    }

    #[test]
    fn equal_trees_are_equal() {
        assert_eq!(differences_after(|_| ()), "");
    }

    #[test]
    fn every_kind_of_difference_is_seen() {
        let keep_time = |path: PathBuf, change: &dyn Fn(&Path)| {
            let time = fs::metadata(&path).unwrap().modified().unwrap();
            change(&path);
            File::open(&path).unwrap().set_modified(time).unwrap();
        };
        type Change<'a> = &'a dyn Fn(&Path);
        let cases: [(Change<'_>, &str); 9] = [
            (&|b| fs::remove_file(b.join("file")).unwrap(), "file: missing"),
            (&|b| fs::write(b.join("more"), "").unwrap(), "more: should not be there"),
            (&|b| keep_time(b.join("file"), &|p| fs::write(p, "contenT").unwrap()), "wrong byte at 6"),
            (&|b| keep_time(b.join("file"), &|p| fs::write(p, "conten").unwrap()), "6 bytes, expected 7"),
            (&|b| fs::set_permissions(b.join("file"), fs::Permissions::from_mode(0o600)).unwrap(), "mode 600"),
            (
                &|b| {
                    File::open(b.join("file")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
                },
                "mtime (0, 0)",
            ),
            (
                &|b| {
                    fs::remove_file(b.join("link")).unwrap();
                    std::os::unix::fs::symlink("other", b.join("link")).unwrap();
                },
                "points at",
            ),
            (&|b| keep_time(b.join("sparse"), &|p| fs::write(p, vec![0; 8 << 20]).unwrap()), "holes of 0 bytes"),
            (&|b| fs::hard_link(b.join("file"), b.join("second")).unwrap(), "2 links, expected 1"),
        ];
        for (change, part) in cases {
            let found = differences_after(change);
            assert!(found.contains(part), "{part}: {found}");
        }
    }
}
