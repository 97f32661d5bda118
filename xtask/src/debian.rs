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

/// What every Debian has, which must match its loader and its C library; and what libraries name as needed for drawing
/// by a graphics card, which is larger than the applications.
const LEFT_OUT: [&str; 8] =
    ["libc6", "libcrypt1", "libgcc-s1", "libstdc++6", "libgl1-mesa-dri", "libllvm15", "libsystemd-shared", "libz3-4"];

/// Beginnings of names of packages that are parts of an application and not programs of their own.
const PARTS: [&str; 6] = ["lib", "fonts-", "fontconfig-config", "uno-libs", "ure", "xkb-data"];

/// Unpacks `packages` into `tree`, together with the libraries that they need, whatever this machine has.
pub(crate) fn unpack(tree: &Path, packages: &[&str]) -> Result<()> {
    let wanted = with_libraries(packages)?;
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

/// `packages`, and the libraries that apt-get would install with them on a machine that has nothing.
fn with_libraries(packages: &[&str]) -> Result<BTreeSet<String>> {
    // An empty file: as if nothing were installed. So the tree does not depend on what happens to be here.
    let nothing = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    let simulate = || {
        let mut command = Command::new("apt-get");
        command.args(["-qq", "install", "--simulate", "--no-install-recommends", "--option"]);
        output(command.arg(format!("Dir::State::status={}", nothing.path().display())).args(packages))
    };
    let said = match simulate() {
        Ok(said) => said,
        // A fresh machine has no lists yet; without root the second attempt says what is wrong.
        Err(_) => {
            succeed(Command::new("apt-get").args(["-qq", "update"])).context("apt-get knows no packages")?;
            simulate()?
        }
    };
    let lines = said.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    let mut wanted: BTreeSet<String> = lines.filter(|name| is_part(name)).map(str::to_owned).collect();
    wanted.extend(packages.iter().map(|p| (*p).to_owned()));
    Ok(wanted)
}

/// Whether a package of this name belongs into an application's tree.
fn is_part(name: &str) -> bool {
    let of_perl = name.starts_with("libperl") || name.ends_with("-perl");
    PARTS.iter().any(|part| name.starts_with(part))
        && !of_perl
        && !name.starts_with("libpam")
        && !LEFT_OUT.contains(&name)
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
    fn libraries_belong_into_a_tree_and_the_machines_own_do_not() {
        assert!(["libgtk-3-0", "ure", "libreoffice-common", "fonts-opensymbol"].into_iter().all(is_part));
        assert!(!["libc6", "dpkg", "perl", "libperl5.36", "systemd", "libpam0g"].into_iter().any(is_part));
    }

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
