//! Trees of everything that a directory may hold, from a seed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, lsetxattr, utimensat};

/// How large a tree may become.
#[derive(Debug, Clone)]
pub struct TreeLimits {
    /// Files, links and directories, about.
    pub nodes: usize,
    /// Bytes of one file, at most; sparse files are longer.
    pub file_bytes: usize,
    /// Entries of the one large directory.
    pub large_directory: usize,
    /// Length of the longest path, counted from the root of the tree.
    pub path_bytes: usize,
}

impl Default for TreeLimits {
    fn default() -> Self {
        Self { nodes: 300, file_bytes: 700 << 10, large_directory: 2_000, path_bytes: 3_600 }
    }
}

/// Makes a tree at `root`, which must not exist. The same seed makes the same tree.
///
/// # Panics
/// When the file system refuses; it must know user extended attributes.
pub fn random_tree(root: &Path, seed: u64, limits: &TreeLimits) {
    let mut maker = Maker {
        rng: StdRng::seed_from_u64(seed),
        limits,
        folders: vec![root.to_owned()],
        files: Vec::new(),
        all: Vec::new(),
    };
    fs::create_dir(root).expect("the root is new");
    while maker.all.len() < limits.nodes {
        maker.add_node();
    }
    maker.add_large_directory(root);
    maker.add_deep_path(root);
    maker.add_fixed_cases(root);
    maker.finish(root);
}

struct Maker<'a> {
    rng: StdRng,
    limits: &'a TreeLimits,
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
    /// Everything but the root, parents before children.
    all: Vec<PathBuf>,
}

impl Maker<'_> {
    fn pick<'b>(rng: &mut StdRng, from: &'b [PathBuf]) -> &'b Path {
        &from[rng.random_range(0..from.len())]
    }

    fn add_node(&mut self) {
        let folder = Self::pick(&mut self.rng, &self.folders).to_owned();
        let path = folder.join(self.name());
        // Names are long at times: what no longer fits into a path goes elsewhere.
        if path.as_os_str().len() > 2_000 || path.symlink_metadata().is_ok() {
            return;
        }
        match self.rng.random_range(0..20) {
            0..=3 => {
                fs::create_dir(&path).expect("a new name");
                self.folders.push(path.clone());
            }
            4..=5 => symlink(self.target(), &path).expect("a new name"),
            6..=7 if !self.files.is_empty() => {
                fs::hard_link(Self::pick(&mut self.rng, &self.files), &path).expect("the same file system");
            }
            8 => self.sparse_file(&path),
            _ => self.file(&path),
        }
        self.all.push(path);
    }

    /// Any bytes but `/` and NUL.
    fn name(&mut self) -> OsString {
        let rng = &mut self.rng;
        let bytes: Vec<u8> = match rng.random_range(0..10) {
            0 => (0..255).map(|_| rng.random_range(1..=255_u8)).map(|b| if b == b'/' { b'_' } else { b }).collect(),
            1 => (0..rng.random_range(1..20))
                .map(|_| rng.random_range(1..=255_u8))
                .map(|b| if b == b'/' { 0xff } else { b })
                .collect(),
            2 => format!("line\nbreak {}", rng.next_u32()).into_bytes(),
            3 => format!("-dash --{}", rng.next_u32()).into_bytes(),
            4 => format!("…ünï¢ødé {}", rng.next_u32()).into_bytes(),
            5 => format!(".hidden{}", rng.next_u32()).into_bytes(),
            // Differ in nothing but case or one byte, as names in real directories do.
            6 => format!("Case{}", rng.random_range(0..50)).into_bytes(),
            7 => format!("case{}", rng.random_range(0..50)).into_bytes(),
            _ => format!("plain-{:08x}", rng.next_u32()).into_bytes(),
        };
        let special = bytes == b"." || bytes == b"..";
        OsString::from_vec(if special { b"dots".to_vec() } else { bytes })
    }

    fn target(&mut self) -> OsString {
        match self.rng.random_range(0..5) {
            0 => "nowhere/at all".into(),
            1 => OsString::from_vec(vec![b'x'; self.rng.random_range(1_000..4_000)]),
            2 => "/absolute/target".into(),
            3 => OsString::from_vec(vec![0xff, 0xfe, b'\n']),
            _ if self.all.is_empty() => ".".into(),
            _ => Self::pick(&mut self.rng, &self.all).file_name().unwrap_or(OsStr::new(".")).to_owned(),
        }
    }

    fn content(&mut self) -> Vec<u8> {
        let most = self.limits.file_bytes;
        let length = match self.rng.random_range(0..10) {
            0 => 0,
            1 => 1,
            2 => 4096,
            3..=6 => self.rng.random_range(0..20_000.min(most)),
            _ => self.rng.random_range(0..most),
        };
        let mut bytes = vec![0; length];
        match self.rng.random_range(0..4) {
            // Incompressible.
            0 => self.rng.fill_bytes(&mut bytes),
            // All zero, but not a hole.
            1 => {}
            // Text with repetitions.
            _ => {
                let word = self.rng.next_u64().to_string().into_bytes();
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = word[(i / 3) % word.len()];
                }
            }
        }
        bytes
    }

    fn file(&mut self, path: &Path) {
        // A file equal to another is stored once, and must still be two files.
        let equal = !self.files.is_empty() && self.rng.random_range(0..8) == 0;
        let other = equal.then(|| Self::pick(&mut self.rng, &self.files));
        // Copying a sparse file would fill its holes: gigabytes.
        let short = |p: &&Path| p.metadata().is_ok_and(|m| m.len() <= self.limits.file_bytes as u64);
        if let Some(other) = other.filter(short) {
            fs::copy(other, path).expect("a readable file");
        } else {
            fs::write(path, self.content()).expect("a new name");
        }
        self.files.push(path.to_owned());
    }

    fn sparse_file(&mut self, path: &Path) {
        let file = File::create(path).expect("a new name");
        let length = self.rng.random_range(1_u64..(6 << 30));
        file.set_len(length).expect("sparse files");
        for _ in 0..self.rng.random_range(0..6) {
            let mut piece = self.content();
            piece.truncate(200_000);
            let at = self.rng.random_range(0..length);
            file.write_all_at(&piece, at).expect("room");
        }
        // Writing may have gone past the end; an odd length ends in the middle of a page.
        self.files.push(path.to_owned());
    }

    fn add_large_directory(&mut self, root: &Path) {
        let folder = root.join("large directory");
        fs::create_dir(&folder).expect("a new name");
        for i in 0..self.limits.large_directory {
            let path = folder.join(format!("entry-{i:07}"));
            if i % 7 == 0 {
                symlink(format!("entry-{:07}", i / 2), &path).expect("a new name");
            } else {
                File::create(&path).expect("a new name");
            }
        }
        self.all.push(folder);
    }

    fn add_deep_path(&mut self, root: &Path) {
        let mut path = root.to_owned();
        let part = "d".repeat(199);
        while path.as_os_str().len() - root.as_os_str().len() + 201 < self.limits.path_bytes {
            path.push(&part);
        }
        fs::create_dir_all(&path).expect("a path below PATH_MAX");
        fs::write(path.join("deepest"), "down here").expect("a path below PATH_MAX");
    }

    /// What a random choice might leave out.
    fn add_fixed_cases(&mut self, root: &Path) {
        let folder = root.join("fixed");
        fs::create_dir(&folder).expect("a new name");
        self.all.push(folder.clone());
        let mut add = |name: &[u8], content: &[u8]| {
            let path = folder.join(OsStr::from_bytes(name));
            fs::write(&path, content).expect("a new name");
            self.all.push(path);
        };
        add(b"empty", b"");
        add(&[b'n'; 255], b"longest name");
        add(&[0xff, 0xfe, 0x80], b"not text");
        add(b"new\nline", b"x");
        add(b"*?[\"'$`\\", b"shell");
        add(&[1], b"control");
        let unreadable = folder.join("mode 0000");
        fs::write(&unreadable, "only root reads this").expect("a new name");
        let setuid = folder.join("mode 6755");
        fs::write(&setuid, "#!/bin/sh\n").expect("a new name");
        for i in 0..300 {
            // More names than a byte counts.
            fs::hard_link(&setuid, folder.join(format!("link {i}"))).expect("the same file system");
        }
        fs::create_dir(folder.join("empty folder")).expect("a new name");
        symlink("dangling", folder.join("dangling link")).expect("a new name");
        symlink(OsString::from_vec(vec![b'l'; 4095]), folder.join("longest link")).expect("a new name");
        let tail = folder.join("hole at the end");
        fs::write(&tail, vec![7; 100_000]).expect("a new name");
        File::options().write(true).open(&tail).and_then(|f| f.set_len(5 << 30)).expect("sparse files");
        for (path, mode) in [(&unreadable, 0o000), (&setuid, 0o6755)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("own file");
        }
    }

    /// Modes, attributes and times, children before parents, because each change of a child changes its parent.
    fn finish(&mut self, root: &Path) {
        let mut all = std::mem::take(&mut self.all);
        all.reverse();
        for path in &all {
            let meta = path.symlink_metadata().expect("made above");
            let fixed = path.starts_with(root.join("fixed"));
            if !meta.is_symlink() {
                if self.rng.random_range(0..4) == 0 {
                    self.set_attributes(path);
                }
                if !fixed {
                    let mode = match self.rng.random_range(0..6) {
                        0 => 0o755,
                        1 => 0o400,
                        2 => 0o4711,
                        3 => self.rng.random_range(0..0o1000) | 0o400,
                        _ => 0o644,
                    };
                    let mode = if meta.is_dir() { mode | 0o700 } else { mode };
                    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("own file");
                }
            }
            self.set_time(path);
        }
        self.set_time(root);
    }

    fn set_attributes(&mut self, path: &Path) {
        for i in 0..self.rng.random_range(1..4) {
            let mut value = vec![0; self.rng.random_range(0..300)];
            self.rng.fill_bytes(&mut value);
            let name = format!("user.test.{i}.é");
            lsetxattr(path, name.as_str(), &value, XattrFlags::empty())
                .unwrap_or_else(|e| panic!("{} takes no user attributes: {e}", path.display()));
        }
    }

    fn set_time(&mut self, path: &Path) {
        let tv_sec = match self.rng.random_range(0..5) {
            0 => 0,
            1 => -1_000_000,
            // Beyond 32 bits.
            2 => 5_000_000_000,
            _ => self.rng.random_range(1_000_000_000..1_700_000_000),
        };
        let time = Timespec { tv_sec, tv_nsec: self.rng.random_range(0..1_000_000_000) };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("own file");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_tree() {
        let dir = tempfile::tempdir().unwrap();
        let limits = TreeLimits { nodes: 80, file_bytes: 50_000, large_directory: 30, path_bytes: 2_000 };
        for (name, seed) in [("a", 1), ("b", 1), ("c", 2)] {
            random_tree(&dir.path().join(name), seed, &limits);
        }
        let compare = |x: &str, y: &str| crate::compare_trees(&dir.path().join(x), &dir.path().join(y));
        let differences: Vec<_> = compare("a", "b").into_iter().filter(|d| !not_set_by_us(d)).collect();
        assert_eq!(differences, Vec::<String>::new());
        assert!(!compare("a", "c").is_empty());
    }

    /// The large directory's links and the deep path keep the time at which they were made.
    fn not_set_by_us(difference: &str) -> bool {
        difference.contains("mtime")
            && (difference.starts_with("large directory")
                || difference.starts_with("ddd")
                || difference.starts_with("fixed/"))
    }
}
