//! The product.

use std::process::Command;

use anyhow::Result;
use tests::Streamfs;

use super::{Sample, Stage, TOUCH_DEADLINE, WORK_DEADLINE, answers};
use crate::measure::{peak_memory, timed};
use crate::mounting::MountPoint;

/// streamfs as root's command, with a home and a cache of its own.
pub(crate) fn measure(stage: &mut Stage<'_>, package: &str) -> Result<Sample> {
    let user = Streamfs::with_program(stage.streamfs).with_variable("SSL_CERT_FILE", stage.origin.ca_file());
    let location = format!("{}/{package}", stage.url());
    let version = || {
        let mut command = Command::new(stage.streamfs);
        command.arg("--version");
        command
    };
    let mount = |deadline| -> Result<(MountPoint, f64)> {
        let point = MountPoint::occupied(stage.point);
        let mut command = user.streamfs(["mount".as_ref(), location.as_ref(), stage.point.as_os_str()]);
        let (took, _) = timed(&mut command, "streamfs mount", deadline)?;
        Ok((point, took))
    };
    let unmount = |point: MountPoint| -> Result<()> {
        let mut command = user.streamfs(["unmount".as_ref(), stage.point.as_os_str()]);
        timed(&mut command, "streamfs unmount", TOUCH_DEADLINE)?;
        user.kill_agent();
        point.free()
    };

    stage.make_cold(&mut [version()])?;
    let mark = stage.origin.tls.mark();
    let (point, mounting) = mount(WORK_DEADLINE)?;
    let first = mounting + stage.app.launch(stage.point)?;
    // Supervisor and worker; the worker is the one that grows.
    let memory = user.agent_pids().into_iter().filter_map(peak_memory).max();
    unmount(point)?;
    let (bytes, requests) = answers(&stage.origin.tls, mark);

    stage.make_cold(&mut [version()])?;
    let (point, warm_mount) = mount(WORK_DEADLINE)?;
    let warm = stage.app.launch(stage.point)?;
    let hot = stage.app.launch(stage.point)?;
    unmount(point)?;
    Ok(Sample {
        mount: Some(mounting),
        first: Some(first),
        warm_mount: Some(warm_mount),
        warm: Some(warm),
        hot: Some(hot),
        bytes,
        requests,
        memory: memory.map(|m| m as f64),
    })
}
