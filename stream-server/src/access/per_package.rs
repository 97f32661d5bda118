//! The `access.toml` in a package's folder.
//!
//! It is read like any object of the package, from wherever the content root is, but never served. What it said is
//! remembered for some seconds. One that cannot be understood lets nobody in; while it cannot be read because the
//! storage is away, what it said last counts for some minutes.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use fs_core::ErrorKind;
use fs_core::backend::ObjectPath;
use futures::TryStreamExt;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::rules::{ACCESS_FILE_MAX_BYTES, PackageAccess};
use crate::content::{Content, PackagePath};

/// Name of the file.
pub(crate) const ACCESS_FILE: &str = "access.toml";

/// A change counts after this long at the latest.
const FRESH: Duration = Duration::from_secs(5);

/// How long the storage may be away.
const USABLE: Duration = Duration::from_secs(600);

/// Packages whose rules are remembered.
const PACKAGES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// Reading the file may take this long.
const DEADLINE: Duration = Duration::from_secs(10);

pub(super) struct PerPackage {
    content: Content,
    seen: Mutex<LruCache<String, Seen>>,
}

#[derive(Clone)]
struct Seen {
    /// `None`: the package has no such file.
    access: Option<Arc<PackageAccess>>,
    /// When it was asked for last.
    asked: Instant,
    /// When it was read last.
    read: Instant,
}

impl PerPackage {
    pub(super) fn new(content: Content) -> Self {
        Self { content, seen: Mutex::new(LruCache::new(PACKAGES_MAX)) }
    }

    /// What the package's own file says; `None` if it has none.
    pub(super) async fn of(&self, package: &PackagePath) -> Option<Arc<PackageAccess>> {
        let name = package.to_string();
        let now = Instant::now();
        let before = {
            let mut seen = self.seen.lock();
            let before = seen.get_mut(&name);
            if let Some(before) = before {
                if now.duration_since(before.asked) < FRESH {
                    return before.access.clone();
                }
                // Whoever asks meanwhile gets what is known; one reads it anew.
                before.asked = now;
                Some(before.clone())
            } else {
                None
            }
        };
        let access = match tokio::time::timeout(DEADLINE, self.read(package)).await {
            Ok(Ok(access)) => access.map(Arc::new),
            failed => {
                let why = match failed {
                    Ok(Err(why)) => why,
                    _ => format!("it did not come within {DEADLINE:?}"),
                };
                tracing::warn!(package = name, why, "cannot read who may use the package");
                return match before {
                    Some(before) if now.duration_since(before.read) < USABLE => before.access,
                    _ => Some(Arc::new(PackageAccess::nobody())),
                };
            }
        };
        let seen = Seen { access: access.clone(), asked: now, read: now };
        self.seen.lock().put(name, seen);
        access
    }

    async fn read(&self, package: &PackagePath) -> Result<Option<PackageAccess>, String> {
        let path = ObjectPath::new(ACCESS_FILE).map_err(|e| e.to_string())?;
        let object = match self.content.object(package, &path).await {
            Ok(object) => object,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        if object.length > ACCESS_FILE_MAX_BYTES as u64 {
            tracing::warn!(%package, length = object.length, "{ACCESS_FILE} is too long; nobody may use the package");
            return Ok(Some(PackageAccess::nobody()));
        }
        let mut bytes = Vec::new();
        if object.length > 0 {
            let mut stream = object.read(0..object.length).await.map_err(|e| e.to_string())?;
            while let Some(piece) = stream.try_next().await.map_err(|e| e.to_string())? {
                bytes.extend_from_slice(&piece);
            }
        }
        let parsed = String::from_utf8(bytes).map_err(|e| e.to_string()).and_then(|text| PackageAccess::parse(&text));
        Ok(Some(parsed.unwrap_or_else(|why| {
            tracing::warn!(%package, why, "{ACCESS_FILE} cannot be understood; nobody may use the package");
            PackageAccess::nobody()
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Action, Identity};

    struct Root {
        dir: tempfile::TempDir,
        rules: PerPackage,
    }

    impl Root {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("team/app")).unwrap();
            let rules = PerPackage::new(Content::new(crate::ContentRoot::Folder(dir.path().to_owned())).unwrap());
            Self { dir, rules }
        }

        fn write(&self, text: &str) {
            std::fs::write(self.dir.path().join("team/app/access.toml"), text).unwrap();
        }

        async fn ann_may_read(&self) -> Option<bool> {
            let access = self.rules.of(&"team/app".parse().unwrap()).await;
            access.map(|access| access.allows(&Identity::for_test("ann", &[]), Action::Read))
        }
    }

    const ANN: &str = "[read]\nusers = [\"ann\"]";

    #[tokio::test]
    async fn a_change_counts_after_some_seconds() {
        let root = Root::new();
        assert_eq!(root.ann_may_read().await, None);
        root.write(ANN);
        assert_eq!(root.ann_may_read().await, None, "remembered");
        tokio::time::pause();
        tokio::time::advance(FRESH).await;
        tokio::time::resume();
        assert_eq!(root.ann_may_read().await, Some(true));
        root.write("[read]\nusers = [\"bob\"]");
        tokio::time::pause();
        tokio::time::advance(FRESH).await;
        tokio::time::resume();
        assert_eq!(root.ann_may_read().await, Some(false));
    }

    #[tokio::test]
    async fn what_cannot_be_understood_lets_nobody_in() {
        for text in ["[read]\nuser = [\"ann\"]", "everyone", &"#\n".repeat(200_000)] {
            let root = Root::new();
            root.write(text);
            assert_eq!(root.ann_may_read().await, Some(false));
        }
        let empty = Root::new();
        empty.write("");
        assert_eq!(empty.ann_may_read().await, Some(false));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_not_one_that_is_absent() {
        let root = Root::new();
        // A folder of that name can be opened, but is no object.
        std::fs::create_dir(root.dir.path().join("team/app/access.toml")).unwrap();
        assert_eq!(root.ann_may_read().await, Some(false));
    }
}
