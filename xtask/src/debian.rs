//! Debian packages unpacked into a tree of their own: nothing is installed, no script of a package runs, and the
//! tree can be moved.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::steps::{output, succeed};

/// Where the tree notes which packages it holds, in the form `name_version_architecture.deb`.
pub(crate) const PACKAGE_LIST: &str = "PACKAGES";

/// Unpacks `packages` into `tree`, together with what they need and this machine lacks.
pub(crate) fn unpack(tree: &Path, packages: &[&str]) -> Result<()> {
    let wanted = with_what_is_missing(packages)?;
    let work = tempfile::tempdir().context("cannot make a temporary folder")?;
    // apt-get downloads as a user of its own, who must be able to write here.
    fs::set_permissions(work.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let mut download = Command::new("apt-get");
    succeed(download.current_dir(work.path()).args(["-qq", "download"]).args(&wanted))?;
    let mut archives = fs::read_dir(work.path())?.map(|e| Ok(e?.path())).collect::<Result<Vec<PathBuf>>>()?;
    archives.retain(|path| path.extension().is_some_and(|e| e == "deb"));
    archives.sort();
    if archives.len() < wanted.len() {
        bail!("apt-get downloaded {} of the {} packages {wanted:?}", archives.len(), wanted.len());
    }
    let mut list = String::new();
    for archive in &archives {
        succeed(Command::new("dpkg-deb").arg("-x").arg(archive).arg(tree))?;
        let name = archive.file_name().and_then(|n| n.to_str()).context("packages have plain names")?;
        list.push_str(name);
        list.push('\n');
    }
    fs::write(tree.join(PACKAGE_LIST), list)?;
    // What only people read is no part of an application that is launched.
    for folder in ["usr/share/doc", "usr/share/man", "usr/share/lintian"] {
        match fs::remove_dir_all(tree.join(folder)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context(folder),
            _ => {}
        }
    }
    make_links_relative(tree, tree)
}

/// `packages`, and what apt-get would install with them on this machine.
fn with_what_is_missing(packages: &[&str]) -> Result<BTreeSet<String>> {
    let simulate = || {
        let mut command = Command::new("apt-get");
        output(command.args(["-qq", "install", "--simulate", "--no-install-recommends"]).args(packages))
    };
    let said = match simulate() {
        Ok(said) => said,
        // A fresh machine has no lists yet; without root the second attempt says what is wrong.
        Err(_) => {
            succeed(Command::new("apt-get").args(["-qq", "update"])).context("apt-get knows no packages")?;
            simulate()?
        }
    };
    let mut wanted: BTreeSet<String> = packages.iter().map(|p| (*p).to_owned()).collect();
    let lines = said.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    wanted.extend(lines.map(str::to_owned));
    Ok(wanted)
}

/// Packages link to absolute paths, which in the tree mean something of the machine: such links are made to point
/// at the same path within the tree, if it holds it.
fn make_links_relative(tree: &Path, folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            make_links_relative(tree, &path)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path)?;
            let Ok(inside) = target.strip_prefix("/") else { continue };
            let depth = folder.strip_prefix(tree).context("folders of the tree")?.components();
            if fs::symlink_metadata(tree.join(inside)).is_ok() {
                let ups: PathBuf = depth.map(|_| Component::ParentDir).collect();
                fs::remove_file(&path)?;
                std::os::unix::fs::symlink(ups.join(inside), &path)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_to_what_the_tree_holds_stay_within_it() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        fs::create_dir_all(tree.join("usr/lib/app")).unwrap();
        fs::create_dir_all(tree.join("etc/app")).unwrap();
        fs::write(tree.join("etc/app/settings"), "s").unwrap();
        symlink("/etc/app", tree.join("usr/lib/app/etc")).unwrap();
        symlink("/etc/hostname", tree.join("usr/lib/app/machine")).unwrap();
        make_links_relative(tree, tree).unwrap();
        assert_eq!(fs::read_link(tree.join("usr/lib/app/etc")).unwrap(), Path::new("../../../etc/app"));
        assert_eq!(fs::read_to_string(tree.join("usr/lib/app/etc/settings")).unwrap(), "s");
        assert_eq!(fs::read_link(tree.join("usr/lib/app/machine")).unwrap(), Path::new("/etc/hostname"));
    }
}
