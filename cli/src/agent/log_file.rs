//! The agent's log: a file that starts anew when it is full, keeping its predecessor.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// A full log file: weeks of warnings, and small enough to attach to a report.
const LOG_MAX_BYTES: u64 = 4 << 20;

/// How much of the end is read when looking for why an agent died.
const TAIL_BYTES: u64 = 4096;

/// The log of the agent of `cache_dir`.
pub(crate) fn path(cache_dir: &Path) -> PathBuf {
    cache_dir.join("log/agent.log")
}

/// Opens the log for appending, with its folder made private.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// The last line of the log at `path`, if anything was written after its first `from` bytes.
pub(crate) fn last_line(path: &Path, from: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES).max(from))).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail).ok()?;
    String::from_utf8_lossy(&tail).lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// Writes log messages, starting anew when the file is full.
pub(crate) struct RotatingLog {
    path: PathBuf,
    limit_bytes: u64,
    file: Mutex<(File, u64)>,
}

impl RotatingLog {
    /// Goes on with the log at `path`.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        Self::with_limit(path, LOG_MAX_BYTES)
    }

    fn with_limit(path: PathBuf, limit_bytes: u64) -> io::Result<Self> {
        let file = open(&path)?;
        let length = file.metadata()?.len();
        Ok(Self { path, limit_bytes, file: Mutex::new((file, length)) })
    }
}

impl Write for &RotatingLog {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        let mut state = self.file.lock();
        if state.1 > 0 && state.1 + message.len() as u64 > self.limit_bytes {
            let mut old = self.path.clone();
            old.as_mut_os_string().push(".1");
            fs::rename(&self.path, &old)?;
            *state = (open(&self.path)?, 0);
        }
        state.0.write_all(message)?;
        state.1 += message.len() as u64;
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_full_log_starts_anew_and_keeps_its_predecessor() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        let log = RotatingLog::with_limit(path.clone(), 20).unwrap();
        for line in ["first line\n", "second\n", "third\n", "fourth line\n"] {
            (&log).write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "third\nfourth line\n");
        let old = path.with_file_name("agent.log.1");
        assert_eq!(fs::read_to_string(&old).unwrap(), "first line\nsecond\n");
        assert_eq!(last_line(&path, 0).unwrap(), "fourth line");
        assert_eq!(last_line(&path, 18), None, "what stood there before tells nothing");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(last_line(Path::new("/nowhere"), 0), None);
    }
}
