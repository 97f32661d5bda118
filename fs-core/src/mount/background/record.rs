//! What stands on disk of a load.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::location::PackageLocation;
use crate::platform;
use crate::trust::files::{self, Access};

/// Format of the records.
pub(super) const FORMAT: u64 = 1;
/// Longest record that is read.
const MAX_BYTES: u64 = 64 << 10;

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Recorded {
    UnderWay,
    Complete,
    Stopped,
}

/// What stands on disk of a load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) streamfs_load: u64,
    pub(super) location: String,
    pub(super) state: Recorded,
    /// Why it was given up, if it failed.
    #[serde(default)]
    pub(super) reason: Option<String>,
    pub(super) bytes_per_second: Option<u64>,
    /// Seconds since 1970.
    pub(super) starts_at: u64,
    pub(super) in_background: bool,
    pub(super) done_bytes: u64,
    pub(super) total_bytes: u64,
    pub(super) ca_files: Vec<PathBuf>,
    pub(super) needs_credentials: bool,
}

/// Writes the record at `path`: whole or not at all, unless the disk is full. Then it is written over the old one, for
/// which there is room; a crash in that moment costs no more than the record.
pub(super) fn write(path: &Path, mut bytes: Vec<u8>) -> Result<()> {
    let failed = match files::write_atomic(path, &bytes, Access::Private) {
        Err(Error::Local { source, .. }) if platform::is_disk_full(&source) => source,
        other => return other,
    };
    let over = |file: std::fs::File| {
        let before = file.metadata()?.len() as usize;
        let length = bytes.len();
        // Never shorter than the old one while it is being written, so that nothing is given away.
        bytes.resize(length.max(before), b' ');
        platform::write_all_at(&file, &bytes, 0)?;
        file.set_len(length as u64)?;
        file.sync_all()
    };
    let written = std::fs::File::options().write(true).open(path).and_then(over);
    written.map_err(|_| Error::local("write", path, failed))
}

/// Reads the record at `path`.
pub(super) fn read(path: &Path) -> Result<(PackageLocation, Record)> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(MAX_BYTES).read_to_end(&mut bytes));
    read.map_err(|e| Error::local("read", path, e))?;
    let broken = |reason: String| Error::damaged(path.display().to_string(), reason);
    let record: Record = serde_json::from_slice(&bytes).map_err(|e| broken(e.to_string()))?;
    if record.streamfs_load != FORMAT {
        return Err(broken(format!("its format is {}, not {FORMAT}", record.streamfs_load)));
    }
    let location: PackageLocation = record.location.parse()?;
    if location.selector.is_none() {
        return Err(broken("it names no version".to_owned()));
    }
    Ok((location, record))
}
