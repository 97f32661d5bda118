//! A mount of one command's own, which ends with the command.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::task::JoinHandle;

use crate::agent::client::AgentConnection;
use crate::agent::protocol::{LaunchWish, MountRequest, PackageWire, Request, Watch};
use crate::agent::registry;
use crate::commands::mount::MountReport;
use crate::interrupt::Interrupt;
use crate::settings::InForce;

/// A folder that only this user may enter, below the one of the agents' sockets. Removed with its files in the end.
pub(crate) struct RunFolder {
    path: PathBuf,
    files: Vec<PathBuf>,
}

impl RunFolder {
    /// A new one.
    pub(crate) fn make() -> anyhow::Result<Self> {
        let all = registry::runtime_dir()?.join("run");
        registry::private_dir(&all)?;
        let folder = tempfile::Builder::new().prefix("").tempdir_in(&all);
        let folder = folder.with_context(|| format!("cannot make a folder in {}", all.display()))?;
        // Not removed by what it holds: a mount must never be walked through to be deleted.
        Ok(Self { path: folder.keep(), files: Vec::new() })
    }

    /// An empty folder to mount at, named like what is mounted there.
    pub(crate) fn mount_point(&mut self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.path.join(name);
        registry::private_dir(&dir)?;
        if !self.files.contains(&dir) {
            self.files.push(dir.clone());
        }
        Ok(dir)
    }

    /// Path of a file that is not there yet.
    pub(crate) fn file(&mut self, name: &str) -> PathBuf {
        let file = self.path.join(format!("{}-{name}", self.files.len()));
        self.files.push(file.clone());
        file
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // What is still mounted or was never made stays what it is.
        for path in self.files.iter().rev() {
            let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
        }
        let _ = fs::remove_dir(&self.path);
    }
}

/// How to mount.
pub(crate) struct PrivateMountOptions {
    pub(crate) package: PackageWire,
    pub(crate) launch: LaunchWish,
    pub(crate) watch: Option<Watch>,
}

/// A mount that the agent removes when this program is gone, however it goes.
pub(crate) struct PrivateMount {
    dir: PathBuf,
    agent: AgentConnection,
    holding: JoinHandle<()>,
    report: MountReport,
}

impl PrivateMount {
    /// Mounts at `dir` (resolved, empty).
    pub(crate) async fn make(
        dir: &Path,
        options: PrivateMountOptions,
        settings: &InForce,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        let request = Request::Mount(MountRequest {
            package: options.package,
            dir: dir.into(),
            allow_other: false,
            open_policy: None,
            launch: options.launch,
            watch: options.watch,
            prefetch: settings.prefetch,
            background_load: None,
            poll_interval_ms: u64::try_from(settings.poll_interval.as_millis()).unwrap_or(u64::MAX),
            cache_size_bytes: None,
            memory_bytes: None,
        });
        let work = async {
            let mut holder = AgentConnection::connect_or_start(settings).await?;
            let report: MountReport = holder.request(&request, |_, _, _| {}).await?;
            let hold = Request::Hold { dir: dir.into() };
            let holding = tokio::spawn(async move {
                // Ends with the mount, or with this program: then the agent unmounts.
                let _ = holder.request::<()>(&hold, |_, _, _| {}).await;
            });
            let agent = AgentConnection::connect_or_start(settings).await?;
            Ok(Self { dir: dir.to_owned(), agent, holding, report })
        };
        interrupt.or(work).await
    }

    /// Where it stands.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was mounted.
    pub(crate) fn report(&self) -> &MountReport {
        &self.report
    }

    /// The connection to its agent.
    pub(crate) fn agent(&mut self) -> &mut AgentConnection {
        &mut self.agent
    }

    /// Takes it away. If somebody uses it, it leaves its directory and ends with its last user; tells whether so.
    pub(crate) async fn end(mut self) -> anyhow::Result<bool> {
        let what = || format!("cannot unmount {}", self.dir.display());
        let ask = |lazy| Request::Unmount { dir: self.dir.as_path().into(), lazy };
        let gone = self.agent.request::<()>(&ask(false), |_, _, _| {}).await.is_ok();
        // Somebody may have unmounted it already.
        if !gone && !self.holding.is_finished() {
            self.agent.request::<()>(&ask(true), |_, _, _| {}).await.with_context(what)?;
        }
        self.holding.abort();
        Ok(!gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_removed_with_its_own_files_and_no_others() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("folder");
        fs::create_dir(&path).unwrap();
        let mut folder = RunFolder { path: path.clone(), files: Vec::new() };
        let point = folder.mount_point("app").unwrap();
        let file = folder.file("profile");
        fs::write(&file, "x").unwrap();
        fs::write(point.join("strange"), "y").unwrap();
        drop(folder);
        assert!(point.join("strange").exists() && !file.exists());
        fs::remove_file(point.join("strange")).unwrap();
        drop(RunFolder { path: path.clone(), files: vec![point] });
        assert!(!path.exists());
    }
}
