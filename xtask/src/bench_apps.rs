//! What `first-launch` compares: applications as trees that run from any directory, and the programs of others.
//! Built once into `target/bench-apps` by the same means as the trees of the tests.
//!
//! Nothing is installed: what Debian packages is unpacked. So no test and no benchmark changes the machine.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::steps::output;
use crate::{debian, setup, target_dir, trees};

/// Pinned with everything they need.
const PYTHON_PACKAGES: [&str; 15] = [
    "contourpy==1.3.3",
    "cycler==0.12.1",
    "fonttools==4.61.0",
    "kiwisolver==1.4.9",
    "matplotlib==3.10.7",
    "numpy==2.3.5",
    "packaging==25.0",
    "pandas==2.3.3",
    "pillow==12.0.0",
    "pyparsing==3.2.5",
    "python-dateutil==2.9.0.post0",
    "pytz==2025.2",
    "scipy==1.16.3",
    "six==1.17.0",
    "tzdata==2025.2",
];

const CHROMIUM_PACKAGES: [&str; 2] = ["chromium", "chromium-common"];

/// With fonts, without which a document has no text to lay out.
const LIBREOFFICE_PACKAGES: [&str; 2] = ["libreoffice-writer-nogui", "fonts-dejavu-core"];

/// Programs that do something similar, and what they need on the server's side.
const PEER_PACKAGES: [&str; 5] = ["rclone", "httpdirfs", "sshfs", "openssh-sftp-server", "casync"];

/// Changed when a recipe of Debian packages changes. Their versions are Debian's business: a tree stays as it was
/// built, and notes them.
const DEBIAN_RECIPE: &str = "recipe 1";

/// What can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum App {
    /// CPython with numpy, scipy, pandas and matplotlib
    Python,
    /// Node.js with eslint, typescript and webpack: the tree of the tests
    Node,
    /// Debian's Chromium
    Chromium,
    /// Debian's LibreOffice Writer
    Libreoffice,
    /// rclone, httpdirfs, sshfs and casync
    Peers,
}

#[derive(Debug, Args)]
pub(crate) struct BenchAppsArguments {
    /// What to build [default: all]
    apps: Vec<App>,
}

/// Builds what is missing of what was asked for.
pub(crate) fn run(arguments: &BenchAppsArguments) -> Result<()> {
    let apps = if arguments.apps.is_empty() { App::value_variants() } else { &arguments.apps };
    if apps.iter().any(|app| matches!(app, App::Python | App::Node)) {
        setup::run()?;
    }
    for app in apps {
        build(*app).with_context(|| format!("building {app:?} for the benchmark"))?;
    }
    Ok(())
}

fn build(app: App) -> Result<()> {
    let target = target_dir()?;
    let apps = target.join("bench-apps");
    match app {
        App::Python => trees::python(&apps, &PYTHON_PACKAGES, "import numpy, scipy.stats, pandas, matplotlib.pyplot"),
        App::Node => trees::node(&target.join("test-trees")),
        App::Chromium => unpacked("chromium", &CHROMIUM_PACKAGES, &["usr/lib/chromium/chromium"]),
        App::Libreoffice => {
            unpacked("libreoffice", &LIBREOFFICE_PACKAGES, &["usr/lib/libreoffice/program/soffice.bin"])
        }
        App::Peers => unpacked("peers", &PEER_PACKAGES, &["usr/bin/rclone", "usr/bin/httpdirfs", "usr/bin/casync"]),
    }
}

/// A tree of Debian packages whose `programs` must find all their libraries in it or on the machine.
fn unpacked(name: &str, packages: &[&str], programs: &[&str]) -> Result<()> {
    let recipe = format!("{DEBIAN_RECIPE}\n{}\n", packages.join("\n"));
    let multiarch = format!("{}-linux-gnu", std::env::consts::ARCH);
    trees::build(&target_dir()?.join("bench-apps"), name, &recipe, |tree| {
        debian::unpack(tree, packages)?;
        for program in programs {
            let path = tree.join(program);
            let folder = path.parent().context("programs lie in folders")?;
            // PulseAudio's client library has a part where the loader does not look.
            let system = tree.join("usr/lib").join(&multiarch);
            let old = tree.join("lib").join(&multiarch);
            let libraries = [system.clone(), system.join("pulseaudio"), old, folder.to_owned()];
            let libraries = std::env::join_paths(libraries).context("a library folder")?;
            let mut ldd = Command::new("ldd");
            // ldd says so, and fails, when a program is linked statically.
            let said = match output(ldd.env("LD_LIBRARY_PATH", libraries).arg(&path)) {
                Err(e) if format!("{e}").contains("not a dynamic executable") => continue,
                said => said?,
            };
            let lacking: Vec<&str> = said.lines().filter(|line| line.contains("not found")).map(str::trim).collect();
            if !lacking.is_empty() {
                bail!("{program} lacks libraries: {}", lacking.join("; "));
            }
        }
        Ok(())
    })
}
