//! Which versions servers have sessions of, so that collectors leave them alone: `.uses/SERVER.json` in a package's folder,
//! which counts for as long as the server keeps writing it anew.
//!
//! ```json
//! { "versions": ["1.0", "1.1"] }
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::location::PackageVersion;
use crate::trust::files::{self, Access};

/// Folder of leases, in a package's.
pub const USES_DIR: &str = ".uses";
/// How long a lease counts after it was written: a server that died is believed for so long.
pub const LEASE_VALID: Duration = Duration::from_secs(600);
/// How often a server writes it anew, whatever happens: nine attempts may fail.
pub const LEASE_RENEWAL: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize)]
struct Content {
    versions: Vec<PackageVersion>,
}

/// One server's leases.
#[derive(Debug, Clone)]
pub struct Lease {
    file: String,
}

impl Lease {
    /// Of a server that calls itself `id`: letters and digits that no other server has.
    pub fn new(id: &str) -> Self {
        Self { file: format!("{id}.json") }
    }

    fn path(&self, package_dir: &Path) -> PathBuf {
        package_dir.join(USES_DIR).join(&self.file)
    }

    /// Says that these versions of a package are in use. Blocks.
    ///
    /// # Errors
    /// `Local` if the folder cannot be written.
    pub fn write(&self, package_dir: &Path, versions: Vec<PackageVersion>) -> Result<()> {
        let path = self.path(package_dir);
        files::create_dir(&package_dir.join(USES_DIR), Access::Usual)?;
        let text = serde_json::to_vec(&Content { versions }).expect("names have a form in JSON");
        files::write_atomic(&path, &text, Access::Usual)
    }

    /// Says that nothing of a package is in use any more. Blocks; a failure ends with the lease's time.
    pub fn end(&self, package_dir: &Path) {
        let _ = fs::remove_file(self.path(package_dir));
    }
}

/// The versions of a package that servers have sessions of.
///
/// # Errors
/// `Damaged` if a lease cannot be understood; `Local`.
pub fn versions_in_use(package_dir: &Path, now: SystemTime) -> Result<Vec<PackageVersion>> {
    let folder = package_dir.join(USES_DIR);
    let mut used = Vec::new();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(used),
        Err(e) => return Err(Error::local("list", folder, e)),
    };
    for entry in entries.flatten().filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b".")) {
        let path = entry.path();
        // One that is gone meanwhile is of no concern.
        let (Ok(bytes), Ok(meta)) = (fs::read(&path), entry.metadata()) else { continue };
        if meta.modified().is_ok_and(|then| super::age(now, then) > LEASE_VALID) {
            continue;
        }
        let content: Content = serde_json::from_slice(&bytes).map_err(|e| {
            Error::damaged(path.display().to_string(), format!("it does not say which versions are in use ({e})"))
        })?;
        used.extend(content.versions);
    }
    used.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    used.dedup();
    Ok(used)
}
