//! Random trees through a real mount against their source: the source directory is the model.
//!
//! Every operation is done on both; whatever differs is a bug. A failure prints its seed, and
//! `STREAMFS_TEST_SEED=n cargo test -p tests --test model` repeats it.

mod directories;
mod reading;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tests::{MountGuard, Nginx, Streamfs, TreeLimits, assert_same_tree, random_tree, seeds, tier};

/// A published random tree, and how to reach it.
struct World {
    user: Streamfs,
    server: Nginx,
    source: PathBuf,
}

impl World {
    fn new(seed: u64) -> Self {
        let user = Streamfs::new();
        let source = user.home().join("source");
        let nodes = tier().choose(150, 400, 3_000);
        random_tree(&source, seed, &TreeLimits { nodes, ..TreeLimits::default() });
        let content = user.folder("content");
        user.publish(&source, content.join("app").to_str().expect("plain"), "1.0");
        let server = Nginx::http(&content);
        Self { user, server, source }
    }

    /// Half of the worlds are mounted from the folder, half from a web server.
    fn mount(&self, rng: &mut StdRng) -> MountGuard<'_> {
        let location = if rng.random() {
            format!("{}/app", self.server.url())
        } else {
            self.user.home().join("content/app").to_str().expect("plain").to_owned()
        };
        // Little memory and a small cache make it forget, which is where mistakes hide.
        let more: &[&str] = if rng.random() { &["--cache-size", "4M", "--memory", "8M"] } else { &[] };
        self.user.mount_with(&location, "mnt", more)
    }
}

/// Paths of regular files below `root`, relative to it.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("the source") {
            let entry = entry.expect("the source");
            let path = folder.join(entry.file_name());
            match entry.file_type().expect("the source") {
                kind if kind.is_dir() => folders.push(path),
                kind if kind.is_file() => out.push(path),
                _ => {}
            }
        }
    }
    out.sort();
    out
}

fn with_worlds(quick: u64, normal: u64, full: u64, test: impl Fn(&World, &MountGuard<'_>, &mut StdRng)) {
    seeds(tier().choose(quick, normal, full), |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = World::new(seed);
        let mount = world.mount(&mut rng);
        test(&world, &mount, &mut rng);
        mount.unmount();
    });
}

#[test]
fn a_mounted_tree_equals_its_source() {
    with_worlds(2, 6, 100, |world, mount, _| {
        assert_same_tree(&world.source, mount.path());
        // Once more, from the kernel's and the agent's caches.
        assert_same_tree(&world.source, mount.path());
    });
}

#[test]
fn names_that_are_not_there_are_not_found() {
    with_worlds(1, 2, 20, |world, mount, rng| {
        let known = files(&world.source);
        for _ in 0..200 {
            let path = known[rng.random_range(0..known.len())].clone();
            let name = path.file_name().expect("a file").as_encoded_bytes();
            let mut other = name.to_vec();
            match rng.random_range(0..4) {
                0 => drop(other.pop()),
                1 => other.push(b'x'),
                2 => other[0] = other[0].wrapping_add(1).max(1),
                _ => other.make_ascii_uppercase(),
            }
            // On Unix any bytes are a name.
            let other = path.with_file_name(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&other));
            let (a, b) = (fs::symlink_metadata(world.source.join(&other)), fs::symlink_metadata(mount.join(&other)));
            let (a, b) =
                (a.map(|m| m.len()).map_err(|e| e.raw_os_error()), b.map(|m| m.len()).map_err(|e| e.raw_os_error()));
            let is_file = |p: &Path| fs::symlink_metadata(p).is_ok_and(|m| !m.is_dir());
            if a.is_err() || is_file(&world.source.join(&other)) {
                assert_eq!(a, b, "{}", other.display());
            }
            // A file is no folder.
            let below = path.join("x");
            let code =
                |root: &Path| fs::symlink_metadata(root.join(&below)).expect_err("a file is no folder").raw_os_error();
            assert_eq!(code(&world.source), code(mount.path()), "{}", below.display());
        }
    });
}
