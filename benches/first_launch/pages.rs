//! Exactly the pages that a launch reads, and the stream that holds nothing else.
//!
//! The tree is put on an ext4 image on a loop device whose read-ahead is off, so that the page cache afterwards holds
//! what the launch read and nothing around it; `mincore` tells which pages those are. That measure owes nothing to
//! streamfs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::apps::App;
use crate::measure::{drop_caches, timed};
use crate::mounting::MountPoint;

const PAGE: u64 = 4096;

/// A launch reads one page more or less from time to time; recordings are put together.
const RECORDINGS: usize = 3;

/// Making an image takes as long as the disk needs to write it.
const TOOL_DEADLINE: Duration = Duration::from_secs(600);

/// Longest path and longest range that a stream may claim.
const PATH_BYTES_MAX: u64 = 4096;

/// Ranges of one file: start and length in bytes, in order, apart.
pub(crate) type Ranges = Vec<(u64, u64)>;

/// The ranges of every file of which something is read, by its path in the tree.
pub(crate) type PageSet = BTreeMap<PathBuf, Ranges>;

/// Bytes of all ranges.
pub(crate) fn set_bytes(set: &PageSet) -> u64 {
    set.values().flatten().map(|(_, length)| length).sum()
}

/// Records what launches of `app` read when it appears at `point`; `scratch` is on a disk with room for its tree.
pub(crate) fn record(app: &App, point: &Path, scratch: &Path) -> Result<PageSet> {
    let image = scratch.join("pages.ext4");
    make_image(&app.tree, &image)?;
    let outcome = record_image(app, point, &image);
    fs::remove_file(&image).context("removing the image")?;
    outcome
}

fn make_image(tree: &Path, image: &Path) -> Result<()> {
    let (mut files, mut bytes) = (0_u64, 0_u64);
    count(tree, &mut files, &mut bytes)?;
    // Room for the tree, a block a node and the file system's own.
    File::create(image)?.set_len((bytes + files * 8192) * 11 / 10 + (64 << 20))?;
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-F", "-O", "^has_journal", "-m", "0", "-N"]).arg((files * 11 / 10 + 1000).to_string());
    timed(make.arg("-d").arg(tree).arg(image), "making an ext4 image", TOOL_DEADLINE)?;
    Ok(())
}

fn count(folder: &Path, files: &mut u64, bytes: &mut u64) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        *files += 1;
        *bytes += meta.len().next_multiple_of(PAGE);
        if meta.is_dir() {
            count(&entry.path(), files, bytes)?;
        }
    }
    Ok(())
}

fn record_image(app: &App, point: &Path, image: &Path) -> Result<PageSet> {
    let mut mount = Command::new("mount");
    mount.args(["-t", "ext4", "-o", "loop,ro"]).arg(image).arg(point);
    timed(&mut mount, "mounting the ext4 image", TOOL_DEADLINE)?;
    let _mounted = MountPoint::occupied(point);
    let (_, device) = timed(Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(point), "findmnt", TOOL_DEADLINE)?;
    let mut settings = Command::new("blockdev");
    timed(settings.args(["--setra", "0"]).arg(device.trim()), "turning read-ahead off", TOOL_DEADLINE)?;
    // What an application writes into its home at its first launch ever is not what others read later.
    app.launch(point)?;
    let mut all = PageSet::new();
    for _ in 0..RECORDINGS {
        drop_caches()?;
        app.launch(point)?;
        let mut found = PageSet::new();
        resident_below(point, Path::new(""), &mut found)?;
        for (path, ranges) in found {
            let known = all.entry(path).or_default();
            *known = merged(known, &ranges);
        }
    }
    ensure!(!all.is_empty(), "launching {} read no page of its tree", app.name.name());
    Ok(all)
}

/// Both lists as one.
fn merged(a: &Ranges, b: &Ranges) -> Ranges {
    let mut both: Ranges = a.iter().chain(b).copied().collect();
    both.sort_unstable();
    let mut out = Ranges::new();
    for (start, length) in both {
        match out.last_mut() {
            Some((last, reach)) if start <= *last + *reach => *reach = (*reach).max(start + length - *last),
            _ => out.push((start, length)),
        }
    }
    out
}

fn resident_below(root: &Path, folder: &Path, found: &mut PageSet) -> Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            resident_below(root, &path, found)?;
        } else if kind.is_file() {
            let ranges = resident(&entry.path()).with_context(|| format!("asking for pages of {}", path.display()))?;
            if !ranges.is_empty() {
                found.insert(path, ranges);
            }
        }
    }
    Ok(())
}

/// Which parts of a file are in the page cache, without reading any.
fn resident(path: &Path) -> Result<Ranges> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    if size == 0 {
        return Ok(Ranges::new());
    }
    let length = usize::try_from(size)?;
    let mut pages = vec![0_u8; size.div_ceil(PAGE) as usize];
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    // SAFETY: a fresh mapping at an address that the kernel chooses touches no memory of ours; it is never read or
    // written, only asked about.
    let address = unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, &file, 0)? };
    // SAFETY: the mapping has this address and length, and `pages` has one byte for each page of it.
    let answer = unsafe { libc::mincore(address, length, pages.as_mut_ptr()) };
    let error = std::io::Error::last_os_error();
    // SAFETY: nothing refers to the mapping.
    unsafe { munmap(address, length)? };
    ensure!(answer == 0, "mincore: {error}");
    let mut ranges = Ranges::new();
    for (index, _) in pages.iter().enumerate().filter(|(_, page)| **page & 1 == 1) {
        let start = index as u64 * PAGE;
        let end = (start + PAGE).min(size);
        match ranges.last_mut() {
            Some((last, reach)) if *last + *reach == start => *reach = end - *last,
            _ => ranges.push((start, end - start)),
        }
    }
    Ok(ranges)
}

/// Writes the pages of `set`, read from `tree`, as one zstd stream.
///
/// For each file: length of the path, path, number of ranges, the ranges, their bytes; numbers are 64-bit
/// little-endian. A path of length 0 ends it.
pub(crate) fn write_stream(set: &PageSet, tree: &Path, level: i32, out: &Path) -> Result<()> {
    let file = BufWriter::new(File::create(out).with_context(|| format!("cannot write {}", out.display()))?);
    let mut stream = zstd::Encoder::new(file, level)?;
    let number = |n: u64| n.to_le_bytes();
    for (path, ranges) in set {
        let source = File::open(tree.join(path))?;
        let name = path.as_os_str().as_bytes();
        stream.write_all(&number(name.len() as u64))?;
        stream.write_all(name)?;
        stream.write_all(&number(ranges.len() as u64))?;
        for (start, length) in ranges {
            stream.write_all(&number(*start))?;
            stream.write_all(&number(*length))?;
        }
        for (start, length) in ranges {
            let mut bytes = vec![0; usize::try_from(*length)?];
            source.read_exact_at(&mut bytes, *start).with_context(|| format!("reading {}", path.display()))?;
            stream.write_all(&bytes)?;
        }
    }
    stream.write_all(&number(0))?;
    stream.finish()?.flush()?;
    Ok(())
}

/// Unpacks such a stream below `folder` as sparse files, as it comes. Gives the number of bytes.
pub(crate) fn unpack_stream(compressed: impl Read, folder: &Path) -> Result<u64> {
    let mut stream = zstd::Decoder::new(compressed)?;
    let mut total = 0;
    let mut buffer = vec![0; 256 << 10];
    let mut made = PathBuf::new();
    loop {
        let length = read_number(&mut stream)?;
        if length == 0 {
            return Ok(total);
        }
        ensure!(length <= PATH_BYTES_MAX, "a path of {length} bytes");
        let mut name = vec![0; length as usize];
        stream.read_exact(&mut name)?;
        let path = Path::new(std::ffi::OsStr::from_bytes(&name));
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        ensure!(plain, "{} leads out of the tree", path.display());
        let above = folder.join(path.parent().unwrap_or(Path::new("")));
        if above != made {
            fs::create_dir_all(&above)?;
            made = above;
        }
        let file = File::create(folder.join(path))?;
        let ranges = (0..read_number(&mut stream)?)
            .map(|_| Ok((read_number(&mut stream)?, read_number(&mut stream)?)))
            .collect::<Result<Ranges>>()?;
        for (start, length) in ranges {
            let mut done = 0;
            while done < length {
                let part = (length - done).min(buffer.len() as u64) as usize;
                stream.read_exact(&mut buffer[..part])?;
                file.write_all_at(&buffer[..part], start + done)?;
                done += part as u64;
            }
            total += length;
        }
    }
}

fn read_number(stream: &mut impl Read) -> Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes).context("the stream ends early")?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_put_together() {
        assert_eq!(merged(&vec![(0, 4096), (8192, 4096)], &vec![(4096, 4096)]), vec![(0, 12288)]);
        assert_eq!(merged(&vec![(0, 8192)], &vec![(4096, 100), (20480, 1)]), vec![(0, 8192), (20480, 1)]);
    }

    #[test]
    fn a_stream_brings_back_what_was_put_in_and_holes_around_it() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, copy) = (dir.path().join("tree"), dir.path().join("copy"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        let bytes = benches::program_like(1, 700_000);
        fs::write(tree.join("a/b/file"), &bytes).unwrap();
        fs::write(tree.join("other"), b"short").unwrap();
        let set = PageSet::from([
            (PathBuf::from("a/b/file"), vec![(4096, 8192), (40960, 600_000)]),
            (PathBuf::from("other"), vec![(0, 5)]),
        ]);
        let stream = dir.path().join("stream");
        write_stream(&set, &tree, 3, &stream).unwrap();
        let total = unpack_stream(File::open(&stream).unwrap(), &copy).unwrap();
        assert_eq!(total, set_bytes(&set));
        let back = fs::read(copy.join("a/b/file")).unwrap();
        assert!(back[..4096].iter().all(|b| *b == 0));
        assert_eq!((&back[4096..12288], &back[40960..]), (&bytes[4096..12288], &bytes[40960..640_960]));
        assert_eq!(fs::read(copy.join("other")).unwrap(), b"short");
    }

    #[test]
    fn a_stream_cannot_write_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = 9_u64.to_le_bytes().to_vec();
        bytes.extend(b"../../bad");
        bytes.extend(0_u64.to_le_bytes());
        let stream = zstd::encode_all(&bytes[..], 1).unwrap();
        let error = unpack_stream(&stream[..], dir.path()).unwrap_err();
        assert!(error.to_string().contains("leads out"), "{error}");
    }
}
