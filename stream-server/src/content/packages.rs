//! Which packages a folder holds, and a stamp of each that changes when its metadata does.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fs_core::trust::HEAD_OBJECT;

use super::TIMESTAMP;
use super::paths::{DEPTH_MAX, PackagePath};

/// More packages than anybody has below one folder; a folder that holds more is not a content root.
const PACKAGES_MAX: usize = 100_000;

/// State of the two files that are replaced when a package changes, from a look at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    head: Option<FileStamp>,
    timestamp: Option<FileStamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    inode: u64,
    modified: (i64, i64),
    length: u64,
}

/// What is below a content root.
#[derive(Debug, Default)]
pub(crate) struct Stamps {
    /// The packages.
    pub(crate) packages: BTreeMap<PackagePath, Stamp>,
    /// Folders in which packages, or folders that hold some, may appear: the content root first.
    pub(crate) between: Vec<PathBuf>,
}

impl Stamp {
    /// Of the package in `folder`; `None` if there is none.
    pub(crate) fn of(folder: &Path) -> Option<Self> {
        let stamp = Self { head: look(&folder.join(HEAD_OBJECT)), timestamp: look(&folder.join(TIMESTAMP)) };
        (stamp.head.is_some() || stamp.timestamp.is_some()).then_some(stamp)
    }

    /// Whether the package changed between two looks. `head` is written last, so it alone tells where there is one: what
    /// is announced with it is there.
    pub(crate) fn differs(&self, later: &Self) -> bool {
        match later.head {
            Some(_) => self.head != later.head,
            None => self != later,
        }
    }
}

fn look(path: &Path) -> Option<FileStamp> {
    let meta = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(FileStamp { inode: meta.ino(), modified: (meta.mtime(), meta.mtime_nsec()), length: meta.len() })
}

/// Looks through a content root. What cannot be read in it is passed over; it is looked at again next time.
///
/// # Errors
/// If the content root itself cannot be read.
pub(crate) fn stamps(root: &Path) -> io::Result<Stamps> {
    let mut found = Stamps::default();
    let mut todo = vec![(root.to_owned(), String::new(), 0)];
    while let Some((folder, name, depth)) = todo.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if depth == 0 => return Err(e),
            Err(_) => continue,
        };
        found.between.push(folder);
        for entry in entries.flatten() {
            let Ok(last) = entry.file_name().into_string() else { continue };
            let name = if name.is_empty() { last } else { format!("{name}/{last}") };
            // Also leaves out what is hidden.
            let Ok(package) = name.parse::<PackagePath>() else { continue };
            let path = entry.path();
            if let Some(stamp) = Stamp::of(&path) {
                if found.packages.len() == PACKAGES_MAX {
                    return Ok(found);
                }
                found.packages.insert(package, stamp);
            } else if depth + 1 < DEPTH_MAX && path.is_dir() {
                todo.push((path, name, depth + 1));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(folder: &Path) {
        fs::create_dir_all(folder.join("metadata")).unwrap();
        fs::write(folder.join("head"), "1").unwrap();
    }

    #[test]
    fn packages_are_found_wherever_they_may_be() {
        let root = tempfile::tempdir().unwrap();
        for name in ["app", "group/app", "group/deeper/other", ".hidden/app", "app/packs/inner"] {
            package(&root.path().join(name));
        }
        fs::create_dir_all(root.path().join("bare/metadata")).unwrap();
        fs::write(root.path().join("bare").join(TIMESTAMP), "{}").unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink(root.path(), root.path().join("group/loop")).unwrap();
        let found = stamps(root.path()).unwrap();
        let names: Vec<_> = found.packages.keys().map(PackagePath::as_str).filter(|n| !n.contains("loop")).collect();
        assert_eq!(names, ["app", "bare", "group/app", "group/deeper/other"]);
        assert_eq!(found.between[0], root.path());
        assert!(found.between.contains(&root.path().join("group/deeper")));
        assert!(stamps(&root.path().join("nothing")).is_err());
    }

    #[test]
    fn a_stamp_changes_when_a_file_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let app = root.path().join("app");
        assert_eq!(Stamp::of(&app), None);
        package(&app);
        let first = Stamp::of(&app).unwrap();
        assert_eq!(Stamp::of(&app), Some(first));
        fs::write(app.join("new"), "2").unwrap();
        fs::rename(app.join("new"), app.join("head")).unwrap();
        let second = Stamp::of(&app).unwrap();
        assert_ne!(second, first);
        assert!(first.differs(&second));
        fs::write(app.join(TIMESTAMP), "{}").unwrap();
        let third = Stamp::of(&app).unwrap();
        assert!(third != second && !second.differs(&third), "what comes before `head` is not told yet");
        fs::remove_file(app.join("head")).unwrap();
        assert!(third.differs(&Stamp::of(&app).unwrap()));
    }
}
