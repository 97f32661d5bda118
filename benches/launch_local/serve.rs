//! The mounting side: a process of its own, so that each launch meets a server that has verified and cached nothing.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use benches::host;
use fs_core::mount::observe::{Observed, Observer, Operation};
use fs_core::package::NodeId;
use fuse_linux::{Declining, MountOptions, Mounter, OpenPolicy};
use parking_lot::Mutex;

use crate::arguments::pair;

/// First argument of a server.
pub(crate) const SUBCOMMAND: &str = "serve";

const PAGE_BYTES: u64 = 4096;

/// Notes what is read.
#[derive(Default)]
struct Recorder(Mutex<Vec<(u64, u64, u64)>>);

impl Observer for Recorder {
    fn observed(&self, event: &Observed) {
        if let Operation::Read { node, offset, length } = event.operation {
            self.0.lock().push((node.0, offset, offset + length));
        }
    }
}

/// Mounts until standard input ends. Answers `statistics` with a line of JSON; `over` ends the launch.
pub(crate) fn serve(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let root = PathBuf::from(arguments.next().context("a server needs its folder")?);
    let mut options = MountOptions::default();
    let mut record = false;
    let mut pushed_ahead = true;
    for setting in arguments {
        let (name, value) = pair(&setting, '=')?;
        match (name.as_str(), value.as_str()) {
            ("open", "passthrough") => options.open_policy = OpenPolicy::Passthrough,
            ("open", "zero-message") => options.open_policy = OpenPolicy::ZeroMessage,
            ("push-max", bytes) => options.push_max_bytes = bytes.parse()?,
            ("read-ahead", kb) => options.read_ahead_kb = Some(kb.parse()?),
            ("launch-read-ahead", kb) => options.launch_read_ahead_kb = Some(kb.parse()?),
            ("threads", n) => options.threads = n.parse()?,
            ("declining", "nothing") => options.declining = Declining::Nothing,
            ("declining", "ahead") => options.declining = Declining::EverythingAhead,
            ("launch-set", "no") => pushed_ahead = false,
            ("record", "yes") => record = true,
            _ => bail!("unknown setting {setting}"),
        }
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let host = runtime.block_on(host(&root))?;
    let location = benches::location(&root, "p")?;
    let mount = runtime.block_on(host.mount(&location, None))?;
    let recorder = Arc::new(Recorder::default());
    if record {
        mount.watch(recorder.clone());
    } else if pushed_ahead {
        mount.learn_launch_pieces(read_pieces(&pieces_file(&root))?);
    }
    let mounter = Mounter::standalone();
    let mounted = mounter.mount(mount, &root.join("mnt"), &options, runtime.handle().clone())?;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        match line?.as_str() {
            "statistics" => println!("{}", serde_json::to_string(&mounted.statistics())?),
            "over" => {
                mounted.launch_is_over();
                println!("over");
            }
            other => bail!("unknown command {other}"),
        }
        std::io::stdout().flush()?;
    }
    mounter.unmount(&mounted, true)?;
    runtime.block_on(mounted.ended())?;
    if record {
        write_pieces(&pieces_file(&root), &mut recorder.0.lock())?;
    }
    runtime.block_on(host.close());
    Ok(())
}

fn pieces_file(root: &Path) -> PathBuf {
    root.join("pieces.json")
}

fn write_pieces(path: &Path, reads: &mut Vec<(u64, u64, u64)>) -> Result<()> {
    reads.sort_unstable();
    let mut joined: Vec<(u64, u64, u64)> = Vec::new();
    for (node, start, end) in reads.drain(..) {
        match joined.last_mut() {
            Some(last) if last.0 == node && last.2.next_multiple_of(PAGE_BYTES) >= start => last.2 = last.2.max(end),
            _ => joined.push((node, start, end)),
        }
    }
    std::fs::write(path, serde_json::to_vec(&joined)?).context("writing what was recorded")
}

fn read_pieces(path: &Path) -> Result<Vec<(NodeId, std::ops::Range<u64>)>> {
    let joined: Vec<(u64, u64, u64)> = serde_json::from_slice(&std::fs::read(path)?)?;
    Ok(joined.into_iter().map(|(node, start, end)| (NodeId(node), start..end)).collect())
}
