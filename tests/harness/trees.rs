//! The real applications: where `cargo xtask trees` puts them.

use std::path::PathBuf;

/// Folder of the trees within the target directory.
pub const TREES_FOLDER: &str = "test-trees";
/// Folder of the Python tree in it.
pub const PYTHON_TREE: &str = "python";
/// Folder of the Node.js tree in it.
pub const NODE_TREE: &str = "node";

/// The target directory that this test program was built into.
///
/// # Panics
/// When the program does not lie in one.
pub fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a program knows its own path");
    // target/<profile>/deps/<test>-<hash>
    exe.ancestors().nth(3).expect("test programs lie in target/<profile>/deps").to_owned()
}

fn tree(name: &str) -> PathBuf {
    let path = target_dir().join(TREES_FOLDER).join(name);
    assert!(path.with_extension("stamp").exists(), "{} is missing; build it with `cargo xtask trees`", path.display());
    path
}

/// A relocatable CPython 3.11 with numpy and pandas: `bin/python3.11`, started with `LD_LIBRARY_PATH` at its `lib`.
pub fn python_tree() -> PathBuf {
    tree(PYTHON_TREE)
}

/// Node.js with eslint, typescript and webpack: `bin/node` and `node_modules`, more than 5,000 files.
pub fn node_tree() -> PathBuf {
    tree(NODE_TREE)
}
