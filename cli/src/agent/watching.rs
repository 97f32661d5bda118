//! Watching a mount that was made for it, and writing down what was seen.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context as _;
use fs_core::fetch::FetchStatistics;
use fs_core::mount::Mount;
use fs_core::mount::launch::Arrivals;
use fs_core::mount::observe::Observer;
use fs_core::mount::record::{RecordedTotals, Recorder};

use super::protocol::Watch;

/// How often it is noted how much was fetched: a report's finest line.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);

/// A mount that is being watched.
pub(crate) struct Watching {
    recorder: Arc<Recorder>,
    mount: Weak<Mount>,
    /// What had been fetched when watching began.
    before: FetchStatistics,
    /// A mount knows its receivers only as long as somebody holds them.
    _arrivals: Arc<dyn Arrivals>,
}

impl Watching {
    /// Watches `mount` from now on, for as long as it lives.
    pub(crate) fn begin(watch: Watch, mount: &Arc<Mount>) -> Arc<Self> {
        let recorder = Arc::new(match watch {
            Watch::Record => Recorder::new(),
            Watch::Trace => Recorder::with_timeline(),
        });
        let observer: Arc<dyn Observer> = recorder.clone();
        mount.watch(observer);
        let arrivals: Arc<dyn Arrivals> = recorder.clone();
        mount.send_arrivals_to(&arrivals);
        let before = mount.statistics().fetches;
        if watch == Watch::Trace {
            tokio::spawn(sample(recorder.clone(), Arc::downgrade(mount), before));
        }
        Arc::new(Self { recorder, mount: Arc::downgrade(mount), before, _arrivals: arrivals })
    }

    /// Writes what was seen so far into new files.
    pub(crate) async fn write(
        &self,
        name: String,
        profile: Option<PathBuf>,
        trace: Option<PathBuf>,
    ) -> anyhow::Result<RecordedTotals> {
        let mount = self.mount.upgrade().context("the mount is gone")?;
        let recorder = self.recorder.clone();
        // A launch may be shorter than the time between two samples.
        recorder.sample(&mount.statistics().fetches, &self.before);
        let work = move || {
            if let Some(path) = profile {
                let bytes = recorder.profile(&mount, &name).to_bytes();
                write_new(&path, |file| file.write_all(&bytes))?;
            }
            if let Some(path) = trace {
                let trace = recorder.trace(&mount);
                write_new(&path, |file| Ok(serde_json::to_writer(file, &trace)?))?;
            }
            Ok(recorder.totals())
        };
        // A long recording is many megabytes of text.
        tokio::task::spawn_blocking(work).await.context("writing the recording broke off")?
    }
}

fn write_new(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> anyhow::Result<()> {
    let what = || format!("cannot write {}", path.display());
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(what)?;
    let mut file = BufWriter::new(file);
    write(&mut file).and_then(|()| file.flush()).with_context(what)
}

/// Notes now and then how much was fetched, until the mount is gone.
async fn sample(recorder: Arc<Recorder>, mount: Weak<Mount>, before: FetchStatistics) {
    while let Some(mount) = mount.upgrade() {
        recorder.sample(&mount.statistics().fetches, &before);
        drop(mount);
        tokio::time::sleep(SAMPLE_EVERY).await;
    }
}
