//! Inputs that the benchmarks share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use fs_core::config::OriginTable;
use fs_core::location::PackageLocation;
use fs_core::mount::Mount;
use fs_core::mount::host::{Host, HostSettings};
use fs_core::package::publish::{DEFAULT_LEVEL, NoProgress, PublishRequest, PublishSummary, publish};
use rand::{Rng, SeedableRng};

/// Deterministic bytes that compress about as well as program files: words of a small vocabulary between random ones.
pub fn program_like(seed: u64, length: usize) -> Vec<u8> {
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let words: Vec<[u8; 12]> = (0..512).map(|_| random.random()).collect();
    let mut bytes = Vec::with_capacity(length + 32);
    while bytes.len() < length {
        if random.random_ratio(1, 3) {
            bytes.extend_from_slice(&random.random::<[u8; 8]>());
        } else {
            bytes.extend_from_slice(&words[random.random_range(0..words.len())]);
        }
    }
    bytes.truncate(length);
    bytes
}

/// Publishes `source` as `package` version 1 below `root`.
pub fn publish_to(root: &Path, source: &Path, package: &str, version: &str, threads: usize) -> Result<PublishSummary> {
    let request = PublishRequest {
        source: source.to_owned(),
        content_root: root.join("content"),
        package: package.parse()?,
        version: version.parse()?,
        channels: vec!["stable".parse()?],
        keys_dir: root.join("keys"),
        level: DEFAULT_LEVEL,
        skip_special: false,
        threads,
        profiles: Vec::new(),
        inherit_profiles: true,
    };
    publish(&request, &NoProgress).context("publishing a benchmark's input")
}

/// A host with a cache of its own below `root`.
pub async fn host(root: &Path) -> Result<Arc<Host>> {
    let settings = HostSettings {
        cache_dir: root.join("cache"),
        cache_size_bytes: 16 << 30,
        keep_free_bytes: 0,
        memory_bytes: 64 << 20,
        poll_interval: Duration::from_secs(3600),
        origins: OriginTable::default(),
    };
    Ok(Host::open(settings).await?)
}

/// Where [`publish_to`] put a package.
pub fn location(root: &Path, package: &str) -> Result<PackageLocation> {
    Ok(root.join("content").join(package).to_string_lossy().parse()?)
}

/// A directory of one file of `bytes`, and `many` small ones in directories of 100.
pub fn sample(dir: &Path, bytes: usize, many: usize) -> Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("large"), program_like(1, bytes))?;
    for i in 0..many {
        let folder = dir.join(format!("many/d{:03}", i / 100));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("f{:02}.txt", i % 100)), format!("file {i}\n"))?;
    }
    Ok(dir.to_owned())
}

/// Waits for an answer on the caller's runtime.
pub fn node_of(runtime: &tokio::runtime::Runtime, mount: &Arc<Mount>, path: &[&str]) -> Result<fs_core::mount::Node> {
    runtime.block_on(async {
        let mut node = mount.node(fs_core::package::NodeId::ROOT).wait().await?;
        for name in path {
            node =
                mount.lookup(node.id, name.as_bytes()).wait().await?.with_context(|| format!("{name} is not there"))?;
        }
        Ok(node)
    })
}
