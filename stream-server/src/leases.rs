//! Tells collectors (`streamfs gc`) which versions are in use, by a small file in each package's folder that is written anew
//! while there are sessions. Where this server cannot write, a version is protected by the collector's grace period alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use fs_core::location::PackageVersion;
use fs_core::package::collect::{LEASE_RENEWAL, Lease};

use crate::Shared;
use crate::content::PackagePath;

/// How soon a new session is told of.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Leases are kept until this is dropped.
pub(crate) struct Leasing {
    task: Option<AbortHandle>,
    leases: Arc<Leases>,
}

impl Drop for Leasing {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        self.leases.end();
    }
}

/// Begins to tell, if it is a folder that is served.
pub(crate) fn start(shared: &Arc<Shared>) -> Leasing {
    let root = shared.content.folder().map(Path::to_owned);
    let id = format!("{:032x}", rand::random::<u128>());
    let leases =
        Arc::new(Leases { root: root.clone().unwrap_or_default(), lease: Lease::new(&id), told: Default::default() });
    let task = root.map(|_| {
        let (shared, leases) = (shared.clone(), leases.clone());
        tokio::spawn(async move {
            loop {
                let (uses, leases) = (shared.uses.list(), leases.clone());
                // The runtime is ending if this fails: it does not panic.
                let _ = tokio::task::spawn_blocking(move || leases.tell(uses)).await;
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        })
        .abort_handle()
    });
    Leasing { task, leases }
}

struct Leases {
    root: PathBuf,
    lease: Lease,
    told: parking_lot::Mutex<Told>,
}

#[derive(Default)]
struct Told {
    packages: BTreeMap<PackagePath, (Vec<PackageVersion>, Instant)>,
    failed: bool,
    ended: bool,
}

impl Leases {
    fn tell(&self, uses: Vec<(PackagePath, PackageVersion, usize)>) {
        let mut now: BTreeMap<PackagePath, Vec<PackageVersion>> = BTreeMap::new();
        for (package, version, _) in uses {
            now.entry(package).or_default().push(version);
        }
        let mut told = self.told.lock();
        if told.ended {
            return;
        }
        let over: Vec<PackagePath> =
            told.packages.keys().filter(|package| !now.contains_key(package)).cloned().collect();
        for package in over {
            self.lease.end(&self.root.join(package.as_str()));
            told.packages.remove(&package);
        }
        for (package, versions) in now {
            let fresh = told
                .packages
                .get(&package)
                .is_some_and(|(was, when)| *was == versions && when.elapsed() < LEASE_RENEWAL);
            if fresh {
                continue;
            }
            match self.lease.write(&self.root.join(package.as_str()), versions.clone()) {
                Ok(()) => told.failed = false,
                Err(error) if !told.failed => {
                    tracing::warn!(%package, %error, "cannot tell `streamfs gc` which versions are in use; its grace period alone protects them");
                    told.failed = true;
                }
                Err(_) => {}
            }
            // Also after a failure: it is tried again when it would be written anew.
            told.packages.insert(package, (versions, Instant::now()));
        }
    }

    fn end(&self) {
        let mut told = self.told.lock();
        told.ended = true;
        for package in std::mem::take(&mut told.packages).into_keys() {
            self.lease.end(&self.root.join(package.as_str()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use fs_core::package::collect::versions_in_use;

    use super::*;

    #[test]
    fn leases_follow_the_sessions() {
        let dir = tempfile::tempdir().unwrap();
        let leases = Leases { root: dir.path().to_owned(), lease: Lease::new("a"), told: Default::default() };
        let used = |package: &str| {
            let used = versions_in_use(&dir.path().join(package), SystemTime::now()).unwrap();
            used.iter().map(|version| version.as_str().to_owned()).collect::<Vec<_>>()
        };
        let uses = |list: &[(&str, &str)]| {
            list.iter().map(|(package, version)| (package.parse().unwrap(), version.parse().unwrap(), 1)).collect()
        };
        leases.tell(uses(&[("app", "1"), ("app", "2"), ("team/other", "1")]));
        assert_eq!((used("app"), used("team/other")), (vec!["1".to_owned(), "2".to_owned()], vec!["1".to_owned()]));
        leases.tell(uses(&[("app", "2")]));
        assert_eq!((used("app"), used("team/other")), (vec!["2".to_owned()], Vec::new()));
        leases.end();
        assert_eq!(used("app"), Vec::<String>::new());
        leases.tell(uses(&[("app", "2")]));
        assert_eq!(used("app"), Vec::<String>::new(), "a look that was under way at the end");
    }
}
