//! The built command against real servers, real applications and real trouble, from publishing to unmounting.

mod cache;
mod cli_errors;
mod collecting;
mod crashes;
mod directory;
mod faults;
mod foreign_clients;
mod full_disk;
mod hostile_clients;
mod http_servers;
mod launch;
mod learning;
mod load;
mod login;
mod metrics;
mod profile;
mod publishing;
mod publishing_remote;
mod real_trees;
mod run;
mod scale;
mod serving;
mod streaming;
mod tampering;
mod trace;
mod trust_state;
mod upgrade;

use std::fs;
use std::path::{Path, PathBuf};

use tests::{Nginx, Streamfs};

/// A small tree with a bit of everything that reading tests need: `small`, `folder/large` (3 MB, incompressible),
/// `text`, and a link.
fn sample(root: &Path) {
    fs::create_dir_all(root.join("folder")).expect("a folder of the test");
    fs::write(root.join("small"), "small content\n").expect("a folder of the test");
    fs::write(root.join("text"), "a line that repeats itself\n".repeat(20_000)).expect("a folder of the test");
    fs::write(root.join("folder/large"), noise(3_000_000, 7)).expect("a folder of the test");
    std::os::unix::fs::symlink("folder/large", root.join("link")).expect("a folder of the test");
}

/// A user, the sample's folder, a server with it published as `app` 1.0, and where to mount that from.
fn served_sample() -> (Streamfs, PathBuf, Nginx, String) {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    user.publish(&source, &in_folder(&content, "app"), "1.0");
    let server = Nginx::http(&content);
    let location = format!("{}/app", server.url());
    (user, source, server, location)
}

/// Bytes that neither compress nor repeat; the same for the same seed.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    use rand::{RngCore as _, SeedableRng as _};
    let mut bytes = vec![0; length];
    rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Lets later reads come from the file system and not from the kernel's page cache.
fn forget_pages(path: &Path) {
    let file = fs::File::open(path).expect("a file of the test");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("a regular file");
}

/// `CONTENT/PACKAGE` of a folder.
fn in_folder(content: &Path, package: &str) -> String {
    format!("{}/{package}", content.to_str().expect("tests use plain paths"))
}
