//! Without a mount: local disk, the whole archive, and the floor.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{Sample, Stage, WORK_DEADLINE, answers};
use crate::measure::{timed, wait};
use crate::mounting::MountPoint;
use crate::origin::{archive_name, floor_name};
use crate::pages::unpack_stream;

/// The tree as it lies on the disk.
pub(super) fn local(stage: &mut Stage<'_>) -> Result<Sample> {
    let shown = MountPoint::bind(&stage.app.tree, stage.point)?;
    stage.make_cold(&mut [])?;
    let first = stage.app.launch(stage.point)?;
    stage.make_cold(&mut [])?;
    let warm = stage.app.launch(stage.point)?;
    let hot = stage.app.launch(stage.point)?;
    shown.free()?;
    Ok(Sample { first: Some(first), warm: Some(warm), hot: Some(hot), ..Sample::default() })
}

/// One archive, unpacked while it comes.
pub(super) fn full(stage: &mut Stage<'_>) -> Result<Sample> {
    let folder = stage.folder("unpacked")?;
    stage.make_cold(&mut [])?;
    let mark = stage.origin.tls.mark();
    let start = Instant::now();
    let mut fetch = Command::new("bash");
    fetch.args(["-o", "pipefail", "-c", "curl -sfS --http2 --cacert \"$0\" \"$1\" | zstd -dcq | tar -C \"$2\" -xf -"]);
    fetch.arg(stage.origin.ca_file());
    fetch.arg(format!("{}/archives/{}", stage.url(), archive_name(stage.app.name.name()))).arg(&folder);
    timed(&mut fetch, "fetching the archive", WORK_DEADLINE)?;
    let shown = MountPoint::bind(&folder, stage.point)?;
    let mount = start.elapsed().as_secs_f64();
    let first = mount + stage.app.launch(stage.point)?;
    let (bytes, requests) = answers(&stage.origin.tls, mark);
    stage.make_cold(&mut [])?;
    let warm = stage.app.launch(stage.point)?;
    let hot = stage.app.launch(stage.point)?;
    shown.free()?;
    std::fs::remove_dir_all(&folder).context("removing what was unpacked")?;
    Ok(Sample {
        mount: Some(mount),
        first: Some(first),
        warm: Some(warm),
        hot: Some(hot),
        bytes,
        requests,
        ..Sample::default()
    })
}

/// Exactly the pages that the launch reads, as one stream, unpacked as sparse files; then a launch with everything in
/// the page cache. It is launched from the whole tree and not from these files: now and then a launch reads one page
/// more than others did, which then costs nothing instead of being wrong.
pub(super) fn floor(stage: &mut Stage<'_>) -> Result<Sample> {
    let folder = stage.folder("floor")?;
    let shown = MountPoint::bind(&stage.app.tree, stage.point)?;
    stage.make_cold(&mut [])?;
    stage.app.launch(stage.point)?;
    let mark = stage.origin.tls.mark();
    let start = Instant::now();
    let mut fetch = Command::new("curl");
    fetch.args(["-sfS", "--http2", "--cacert"]).arg(stage.origin.ca_file());
    fetch.arg(format!("{}/archives/{}", stage.url(), floor_name(stage.app.name.name())));
    let mut child = fetch.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting curl")?;
    let stream = child.stdout.take().context("standard output is piped")?;
    let unpacked = unpack_stream(std::io::BufReader::with_capacity(256 << 10, stream), &folder);
    let status = wait(&mut child, "fetching the floor", WORK_DEADLINE)?;
    ensure!(status.success(), "fetching the floor failed: {status}");
    ensure!(unpacked? > 0, "the floor holds nothing");
    let mount = start.elapsed().as_secs_f64();
    let first = mount + stage.app.launch(stage.point)?;
    let (bytes, requests) = answers(&stage.origin.tls, mark);
    let hot = stage.app.launch(stage.point)?;
    shown.free()?;
    std::fs::remove_dir_all(&folder).context("removing what was unpacked")?;
    Ok(Sample { mount: Some(mount), first: Some(first), hot: Some(hot), bytes, requests, ..Sample::default() })
}
