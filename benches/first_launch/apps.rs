//! The applications: where their trees are, and what launching them means.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::measure::timed;
use crate::mounting::MountPoint;

/// A launch that takes longer has failed. Some file systems need minutes for what takes a second locally.
const LAUNCH_DEADLINE: Duration = Duration::from_secs(900);

/// LibreOffice is still busy with its profile at the third.
const SETTLING_LAUNCHES: usize = 4;

/// One of the applications.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AppName {
    /// CPython, which imports numpy, scipy.stats, pandas and matplotlib.pyplot.
    Python,
    /// Node.js, which lints a file and compiles one.
    Node,
    /// Chromium without a window, which prints a page.
    Chromium,
    /// LibreOffice Writer without a window, which converts a document.
    Libreoffice,
    /// A shell script that reads some of its files, to see in seconds that the benchmark works.
    Tiny,
}

impl AppName {
    /// What is measured unless something else is asked for.
    pub(crate) const REAL: [AppName; 4] = [AppName::Python, AppName::Node, AppName::Chromium, AppName::Libreoffice];

    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            AppName::Python => "python",
            AppName::Node => "node",
            AppName::Chromium => "chromium",
            AppName::Libreoffice => "libreoffice",
            AppName::Tiny => "tiny",
        }
    }

    /// Where the tree is within the target directory.
    fn folder(self) -> &'static str {
        match self {
            AppName::Node => "test-trees/node",
            AppName::Python => "bench-apps/python",
            AppName::Chromium => "bench-apps/chromium",
            AppName::Libreoffice => "bench-apps/libreoffice",
            AppName::Tiny => "bench-apps/tiny",
        }
    }

    /// What a launch runs. `$app` is where the application is, `$home` a private folder that stays from launch to
    /// launch, as a user's home does.
    fn script(self) -> &'static str {
        match self {
            AppName::Python => {
                "export LD_LIBRARY_PATH=$app/lib PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=$home/matplotlib\n\
                 exec $app/bin/python3.11 -c 'import numpy, scipy.stats, pandas, matplotlib.pyplot; \
                 print(numpy.arange(4).sum() + scipy.stats.norm.cdf(0))'\n"
            }
            AppName::Node => {
                "$app/bin/node $app/node_modules/eslint/bin/eslint.js --no-config-lookup \
                 --rule 'no-undef: error' $home/lint.js\n\
                 exec $app/bin/node $app/node_modules/typescript/bin/tsc --outDir $home/out $home/compile.ts\n"
            }
            AppName::Chromium => {
                "LD_LIBRARY_PATH=$libraries:$app/usr/lib/chromium FONTCONFIG_FILE=$home/fonts.conf \
                 $app/usr/lib/chromium/chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage \
                 --no-first-run --disable-background-networking --disable-component-update --disable-crash-reporter \
                 --user-data-dir=$home/profile --dump-dom 'data:text/html,<p>it works</p>' > $home/page\n\
                 exec grep -q 'it works' $home/page\n"
            }
            AppName::Libreoffice => {
                // Its own launcher starts it again, too, when it ends with 81.
                "rm -f $home/out/document.pdf\n\
                 until LD_LIBRARY_PATH=$app/usr/lib/libreoffice/program:$libraries \
                 FONTCONFIG_FILE=$home/fonts.conf $app/usr/lib/libreoffice/program/soffice.bin --headless --norestore --nologo --nodefault \
                 -env:UserInstallation=file://$home/profile --convert-to pdf --outdir $home/out $home/document.txt\n\
                 do test $? -eq 81; done\n\
                 exec test -s $home/out/document.pdf\n"
            }
            AppName::Tiny => "exec $app/bin/tiny\n",
        }
    }

    /// Fills the private home.
    fn make_home(self, home: &Path, point: &Path) -> Result<()> {
        fs::create_dir_all(home.join("out"))?;
        match self {
            AppName::Python | AppName::Tiny => {}
            AppName::Node => {
                fs::write(home.join("lint.js"), "const answer = 6 * 7;\nglobalThis.answer = answer;\n")?;
                fs::write(home.join("compile.ts"), "const answer: number = 6 * 7;\nexport default answer;\n")?;
            }
            AppName::Chromium | AppName::Libreoffice => {
                let fonts = format!(
                    "<?xml version=\"1.0\"?>\n<!DOCTYPE fontconfig SYSTEM \"fonts.dtd\">\n<fontconfig>\n\
                     <dir>{}/usr/share/fonts</dir>\n<cachedir>{}/fontcache</cachedir>\n</fontconfig>\n",
                    point.display(),
                    home.display()
                );
                fs::write(home.join("fonts.conf"), fonts)?;
                fs::write(home.join("document.txt"), "A document of one line.\n".repeat(40))?;
            }
        }
        Ok(())
    }
}

impl FromStr for AppName {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = AppName::REAL.into_iter().chain([AppName::Tiny]);
        let names = "python, node, chromium and libreoffice";
        known.into_iter().find(|a| a.name() == name).with_context(|| format!("no app is called {name}; known: {names}"))
    }
}

/// An application that can be launched.
#[derive(Debug)]
pub(crate) struct App {
    /// Which it is.
    pub(crate) name: AppName,
    /// Its tree on the local disk.
    pub(crate) tree: PathBuf,
    /// What tells this tree from one built anew.
    pub(crate) stamp: String,
    home: PathBuf,
    script: PathBuf,
}

impl App {
    /// Finds the tree in the target directory, and writes the launch script and a private home below `homes`, which
    /// is in memory: what an application writes at home is not what is measured. `point` is where it will appear.
    pub(crate) fn open(name: AppName, target: &Path, homes: &Path, point: &Path) -> Result<Self> {
        let tree = target.join(name.folder());
        if name == AppName::Tiny {
            make_tiny(&tree)?;
        }
        let stamp = tree.with_extension("stamp");
        let stamp = fs::read_to_string(&stamp).with_context(|| {
            format!("{} is missing; build the tree with: cargo xtask bench-apps {}", stamp.display(), name.name())
        })?;
        let home = homes.join(name.name());
        fs::create_dir_all(&home)?;
        name.make_home(&home, point)?;
        let script = homes.join(format!("{}.sh", name.name()));
        let multiarch = format!("{}-linux-gnu", std::env::consts::ARCH);
        // The folder comes as argument or, when a launch is recorded, in the environment.
        let text = format!(
            "set -eu\napp=${{1:-${{STREAMFS_MOUNT:-}}}}\nhome={home}\nexport HOME=$home TMPDIR=$home LANG=C.UTF-8\n\
             libraries=$app/usr/lib/{multiarch}:$app/usr/lib/{multiarch}/pulseaudio:$app/lib/{multiarch}\n\
             cd $home\nif test -d $home/settled; then rm -rf $home/profile; cp -a $home/settled $home/profile; fi\n\
             {script}",
            home = home.display(),
            script = name.script(),
        );
        fs::write(&script, text)?;
        Ok(Self { name, tree, stamp, home, script })
    }

    /// Launches it from its own tree until its home has all that first launches ever put there. Later launches find
    /// the profile as it is then.
    pub(crate) fn settle(&self, point: &Path) -> Result<()> {
        let shown = MountPoint::bind(&self.tree, point)?;
        for _ in 0..SETTLING_LAUNCHES {
            self.launch(point)?;
        }
        shown.free()?;
        let profile = self.home.join("profile");
        if profile.exists() {
            let mut copy = Command::new("cp");
            copy.arg("-a").arg("--").arg(&profile).arg(self.home.join("settled"));
            timed(&mut copy, "keeping the profile", LAUNCH_DEADLINE)?;
        }
        Ok(())
    }

    /// What somebody said, with `APP` and `HOMES` for the folders of this run: their names say nothing to others.
    pub(crate) fn without_folders(&self, said: &str, point: &Path) -> String {
        let homes = self.home.parent().unwrap_or(&self.home);
        said.replace(&point.display().to_string(), "APP").replace(&homes.display().to_string(), "HOMES")
    }

    /// The arguments of a launch from `point`, program first.
    pub(crate) fn command_line(&self, point: &str) -> Vec<String> {
        vec!["/bin/sh".to_owned(), self.script.display().to_string(), point.to_owned()]
    }

    /// Launches it from `point` and gives the seconds until it had done its work.
    pub(crate) fn launch(&self, point: &Path) -> Result<f64> {
        let line = self.command_line(&point.display().to_string());
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).env_clear().env("PATH", "/usr/bin:/bin");
        let what = format!("launching {} from {}", self.name.name(), point.display());
        Ok(timed(&mut command, &what, LAUNCH_DEADLINE)?.0)
    }
}

/// 200 files, of which the program reads 20, unless they are there. Another benchmark may want them at the same time.
fn make_tiny(tree: &Path) -> Result<()> {
    let folder = tree.parent().context("the tree is in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let lock = fs::File::create(tree.with_extension("lock")).context("making the lock of the tiny tree")?;
    lock.lock().context("waiting for who makes the tiny tree")?;
    if tree.with_extension("stamp").exists() {
        return Ok(());
    }
    fs::create_dir_all(tree.join("bin"))?;
    fs::create_dir_all(tree.join("data"))?;
    for i in 0..200 {
        fs::write(tree.join(format!("data/{i:03}")), benches::program_like(i, 40_000))?;
    }
    let program = tree.join("bin/tiny");
    fs::write(&program, "#!/bin/sh\nset -e\ncd \"${0%/*}/../data\"\ncat 00? 10? | wc -c | grep -qx '800000'\n")?;
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::write(tree.with_extension("stamp"), "tiny 1\n").context("writing the stamp")?;
    ensure!(tree.join("data/199").exists(), "the tiny tree is not whole");
    Ok(())
}
