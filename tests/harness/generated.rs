//! Versions with very many files, made without making the files.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use fs_core::location::PackageVersion;
use fs_core::package::block::Extent;
use fs_core::package::descriptor::{Descriptor, PackRef, TreeTotals};
use fs_core::package::pack::{PackEntry, encode_tail};
use fs_core::package::tree::build::{NewBody, NewNode, NewXattrs, TreeBuilder};
use fs_core::package::tree::name_hash;
use fs_core::package::{FORMAT_VERSION, Hash, NodeId, PACK_DIR, TREE_DIR};
use fs_core::trust::keys::KeyStore;
use fs_core::trust::publisher::{PublishOptions, Publisher};

/// Files of each directory.
const FILES_A_DIRECTORY: u64 = 1_000;
/// What every file holds.
pub const GENERATED_CONTENT: &[u8] = b"the content of every generated file\n";

/// Publishes version `1.0` of `package` with `files` small files (a multiple of 1,000) in directories `dir-00000` and so
/// on, each with `file-000.txt` to `file-999.txt`. All share one stored block.
///
/// # Panics
/// When it cannot be written.
pub fn generated_version(content_root: &Path, package: &str, keys: &Path, files: u64) {
    assert_eq!(files % FILES_A_DIRECTORY, 0, "directories are full");
    let package_dir = content_root.join(package);
    for dir in [PACK_DIR, TREE_DIR] {
        fs::create_dir_all(package_dir.join(dir)).expect("a folder of the test");
    }
    let (pack, extent) = one_block(&package_dir);
    let directories = files / FILES_A_DIRECTORY;
    let aside = package_dir.join("tree.aside");
    let mut builder = TreeBuilder::new(&package_dir).expect("room for scratch files");
    let directory = |name: Vec<u8>, first_child, children, parent, subdirectories: u64| NewNode {
        name,
        mode: 0o755,
        mtime: (1_700_000_000, 5),
        links: 2 + subdirectories as u32,
        body: NewBody::Directory { first_child, children, parent: NodeId(parent) },
        xattrs: NewXattrs::None,
    };
    let mut push = |node: &NewNode| builder.push(node).expect("room for the tree");
    push(&directory(Vec::new(), 2, directories, 1, directories));
    for (i, name) in sorted((0..directories).map(|i| format!("dir-{i:05}"))).into_iter().enumerate() {
        let first_child = 2 + directories + i as u64 * FILES_A_DIRECTORY;
        push(&directory(name, first_child, FILES_A_DIRECTORY, 1, 0));
    }
    let names = sorted((0..FILES_A_DIRECTORY).map(|i| format!("file-{i:03}.txt")));
    for directory in 0..directories {
        for (i, name) in names.iter().enumerate() {
            push(&NewNode {
                name: name.clone(),
                mode: 0o644,
                // Different in every file, so that the tree does not compress to nothing.
                mtime: (1_700_000_000 + directory as i64, i as u32 * 7919),
                links: 1,
                body: NewBody::File { size: GENERATED_CONTENT.len() as u64, extents: vec![extent] },
                xattrs: NewXattrs::None,
            });
        }
    }
    let tree = builder.finish(&mut File::create(&aside).expect("a file of the test")).expect("room for the tree");
    fs::rename(&aside, package_dir.join(TREE_DIR).join(tree.object.to_string())).expect("same folder");
    let version: PackageVersion = "1.0".parse().expect("a version's name");
    let bytes = files * GENERATED_CONTENT.len() as u64;
    let descriptor = Descriptor {
        format: FORMAT_VERSION,
        package: package.parse().expect("a package's name"),
        version: version.clone(),
        tree,
        packs: vec![pack],
        launch: Vec::new(),
        totals: TreeTotals {
            nodes: 1 + directories + files,
            files,
            directories: 1 + directories,
            symlinks: 0,
            bytes,
            allocated_bytes: bytes,
        },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let options = PublishOptions { lock_patience: Duration::from_secs(1), ..PublishOptions::default() };
    runtime.block_on(async {
        let mut publisher =
            Publisher::open(&package_dir, &KeyStore::new(keys), options).await.expect("a fresh package");
        let channels = ["stable".parse().expect("a channel's name")];
        publisher.add_version(&version, descriptor.to_bytes().into(), &channels, 1_700_000_000).expect("a new version");
        publisher.commit().await.expect("signs");
    });
}

/// A pack of the one block, and where that is.
fn one_block(package_dir: &Path) -> (PackRef, Extent) {
    let hash = Hash::of(GENERATED_CONTENT);
    // Stored raw, as blocks are that do not become smaller.
    let length = GENERATED_CONTENT.len() as u32;
    let mut pack = GENERATED_CONTENT.to_vec();
    pack.extend(encode_tail(&[PackEntry { hash, offset: 0, stored: length, length }]));
    let object = Hash::of(&pack);
    fs::write(package_dir.join(PACK_DIR).join(object.to_string()), &pack).expect("a file of the test");
    let extent = Extent { file_offset: 0, length, pack: 0, pack_offset: 0, stored: length, hash };
    (PackRef { object, bytes: pack.len() as u64 }, extent)
}

fn sorted(names: impl Iterator<Item = String>) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = names.map(String::into_bytes).collect();
    names.sort_by_cached_key(|name| (name_hash(name), name.clone()));
    names
}
