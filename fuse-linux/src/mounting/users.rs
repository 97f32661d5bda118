//! Who uses a mount, for the message that it is busy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Processes named at most: enough to know whom to ask.
const NAMED_MAX: usize = 5;
/// The scan ends here at the latest: a message is not worth more.
const SCAN_MAX: Duration = Duration::from_millis(500);

/// Up to five processes, as `name (pid)`, that run in, hold open or map files of the mount on `dir`. Only links in
/// `/proc` are read, so a hanging mount does not hang the scan. Processes of other users stay unseen.
pub fn using_processes(dir: &Path) -> Vec<String> {
    let started = Instant::now();
    let mut named = Vec::new();
    let own = std::process::id();
    let Ok(processes) = fs::read_dir("/proc") else {
        return named;
    };
    for process in processes.flatten() {
        if named.len() >= NAMED_MAX || started.elapsed() >= SCAN_MAX {
            break;
        }
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid != own && uses(&process.path(), dir) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            named.push(format!("{} ({pid})", name.trim_end()));
        }
    }
    named
}

fn uses(process: &Path, dir: &Path) -> bool {
    let points_into = |link: PathBuf| fs::read_link(link).is_ok_and(|target| target.starts_with(dir));
    if ["cwd", "root", "exe"].iter().any(|link| points_into(process.join(link))) {
        return true;
    }
    if let Ok(open) = fs::read_dir(process.join("fd")) {
        if open.flatten().any(|link| points_into(link.path())) {
            return true;
        }
    }
    maps_into(process, dir)
}

/// Each line of `maps` ends with the mapped file's path, from its sixth column.
fn maps_into(process: &Path, dir: &Path) -> bool {
    let Ok(maps) = fs::read_to_string(process.join("maps")) else {
        return false;
    };
    maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).any(|path| Path::new(path).starts_with(dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_found_by_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let mut child =
            Command::new("cat").current_dir(dir.path()).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let found = using_processes(dir.path());
        drop(child.stdin.take());
        let pid = child.id();
        child.wait().unwrap();
        assert_eq!(found, [format!("cat ({pid})")]);
    }
}
