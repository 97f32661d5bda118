//! Where this crate's tests play: a folder with sources, a content root, keys and caches.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::{RngCore, SeedableRng};

use crate::backend::recording::{Log, Recording};
use crate::backend::{Backend, LocalBackend};
use crate::config::OriginTable;
use crate::error::Result;
use crate::location::{Origin, PackageLocation};
use crate::mount::host::{Host, HostSettings};
use crate::mount::{Mount, Node};
use crate::package::publish::{DEFAULT_LEVEL, NoProgress, PublishRequest, PublishSummary, publish};
use crate::package::{NodeId, NodeKind};

/// Longer than anything here takes, unless it hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A folder, made if needed.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn package_dir(&self) -> PathBuf {
        self.path("content/app")
    }

    pub(crate) fn request(&self, source: &Path, version: &str) -> PublishRequest {
        PublishRequest {
            source: source.to_owned(),
            content_root: self.path("content"),
            package: "app".parse().unwrap(),
            version: version.parse().unwrap(),
            channels: vec!["stable".parse().unwrap()],
            keys_dir: self.path("keys"),
            level: DEFAULT_LEVEL,
            skip_special: false,
            threads: 2,
            profiles: Vec::new(),
            inherit_profiles: true,
        }
    }

    pub(crate) fn try_publish(&self, source: &Path, version: &str) -> Result<PublishSummary> {
        let request = self.request(source, version);
        // Publishing blocks and has a runtime of its own, which must not be made within a test's.
        std::thread::scope(|scope| scope.spawn(|| publish(&request, &NoProgress)).join().unwrap())
    }

    pub(crate) fn publish(&self, source: &Path, version: &str) -> PublishSummary {
        self.try_publish(source, version).unwrap()
    }

    pub(crate) fn location(&self, selector: &str) -> PackageLocation {
        PackageLocation {
            origin: Origin::Folder(self.path("content")),
            package: "app".parse().unwrap(),
            selector: Some(selector.parse().unwrap()),
        }
    }

    pub(crate) fn settings(&self, cache: &str) -> HostSettings {
        HostSettings {
            cache_dir: self.path(cache),
            cache_size_bytes: 1 << 30,
            keep_free_bytes: 0,
            memory_bytes: 64 << 20,
            poll_interval: DEADLINE,
            origins: OriginTable::default(),
        }
    }

    pub(crate) fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(LocalBackend::new(self.package_dir()))
    }

    /// A host that reads the package through `backend`.
    pub(crate) async fn host_through(&self, cache: &str, backend: Arc<dyn Backend>) -> Arc<Host> {
        let host = Host::open(self.settings(cache)).await.unwrap();
        host.set_backend(&self.location("stable"), backend, DEADLINE);
        host
    }

    /// A host whose requests are recorded.
    pub(crate) async fn recorded(&self, cache: &str) -> (Arc<Host>, Arc<Log>) {
        let recording = Recording::new(self.backend());
        let log = recording.log();
        (self.host_through(cache, Arc::new(recording)).await, log)
    }

    pub(crate) async fn mount(&self, host: &Arc<Host>, version: &str) -> Arc<Mount> {
        host.mount(&self.location(version), None).await.unwrap()
    }

    /// Every file below the package's folder, and its bytes.
    pub(crate) fn stored(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut all = BTreeMap::new();
        let mut todo = vec![self.package_dir()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => todo.push(entry.path()),
                    false => drop(all.insert(entry.path(), fs::read(entry.path()).unwrap())),
                }
            }
        }
        all
    }
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// The node at a `/`-separated path.
pub(crate) async fn at(mount: &Arc<Mount>, path: &str) -> Node {
    let mut node = mount.node(NodeId::ROOT).wait().await.unwrap();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let found = mount.lookup(node.id, name.as_bytes()).wait().await.unwrap();
        node = found.unwrap_or_else(|| panic!("{name} of {path} is not there"));
    }
    node
}

/// A file's bytes, read in pieces.
pub(crate) async fn content(mount: &Arc<Mount>, node: &Node, piece: usize) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let bytes: Bytes = mount.read(node.id, all.len() as u64, piece).wait().await?;
        if bytes.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&bytes);
    }
}

/// Every node below the root with its path.
pub(crate) async fn walk(mount: &Arc<Mount>) -> Result<Vec<(PathBuf, Node)>> {
    let mut all = Vec::new();
    let mut todo = vec![(PathBuf::new(), NodeId::ROOT)];
    while let Some((path, dir)) = todo.pop() {
        let mut cursor = 0;
        loop {
            let entries = mount.read_dir(dir, cursor, 100).wait().await?;
            let Some(last) = entries.last() else { break };
            cursor = last.next_cursor;
            for entry in entries {
                use std::os::unix::ffi::OsStrExt;
                let path = path.join(std::ffi::OsStr::from_bytes(&entry.name));
                if entry.node.kind == NodeKind::Directory {
                    todo.push((path.clone(), entry.node.id));
                }
                all.push((path, entry.node));
            }
        }
    }
    Ok(all)
}

/// Compares every name, attribute and byte of a mount with the directory it was published from.
pub(crate) async fn assert_same(mount: &Arc<Mount>, source: &Path) {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    let mut there = 0;
    let mut todo = vec![source.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            there += 1;
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            }
        }
    }
    let nodes = walk(mount).await.unwrap();
    assert_eq!(nodes.len(), there, "entries");
    for (path, node) in nodes {
        let full = source.join(&path);
        let meta = fs::symlink_metadata(&full).unwrap();
        let shown = path.display();
        assert_eq!(node.mtime, (meta.mtime(), meta.mtime_nsec() as u32), "mtime of {shown}");
        assert_eq!(u32::from(node.mode), meta.mode() & 0o7777, "mode of {shown}");
        match node.kind {
            NodeKind::Directory => assert!(meta.is_dir(), "{shown}"),
            NodeKind::Symlink => {
                let target = mount.read_link(node.id).wait().await.unwrap();
                assert_eq!(target, fs::read_link(&full).unwrap().as_os_str().as_bytes(), "{shown}");
            }
            NodeKind::File => {
                assert_eq!(node.size_bytes, meta.len(), "size of {shown}");
                assert_eq!(u64::from(node.links), meta.nlink(), "links of {shown}");
                let bytes = content(mount, &node, 100_000).await.unwrap();
                assert!(bytes == fs::read(&full).unwrap(), "content of {shown}");
            }
        }
    }
}
