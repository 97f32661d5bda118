//! Nydus, where its programs are on PATH: Debian packages none of them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::peers::measure;
use super::{Sample, Stage};
use crate::measure::timed;
use crate::origin::{CLEAR, floor_name};
use crate::pages;

const PROGRAMS: [&str; 2] = ["nydusd", "nydus-image"];

const IMAGE_DEADLINE: Duration = Duration::from_secs(1800);

/// Its own default is one, which would answer an application's threads in turn.
const FUSE_THREADS: &str = "4";

/// Whether its programs are on PATH.
pub(super) fn is_installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    PROGRAMS.iter().all(|program| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

/// `nydusd` with its own disk cache and, if told, the list of the files that a launch reads, which it fetches ahead.
pub(super) fn nydus(stage: &mut Stage<'_>, listed: bool) -> Result<Sample> {
    let name = stage.app.name.name();
    let image = if listed { format!("{name}-list") } else { name.to_owned() };
    let made = stage.origin.content().join("nydus").join(&image);
    if !made.join("bootstrap").exists() {
        make_image(stage, &made, listed).with_context(|| format!("making the image {image}"))?;
    }
    let base = format!("http://127.0.0.1:{}", stage.link.port(CLEAR));
    let settings = stage.disk.join("nydusd.json");
    let text = json!({
        "version": 2,
        "backend": {
            "type": "http-proxy",
            "http-proxy": { "addr": base, "path": format!("/nydus/{image}/blobs") },
        },
        "cache": { "type": "filecache", "filecache": { "work_dir": stage.folder("cache")? } },
        "rafs": { "mode": "direct", "prefetch": { "enable": listed } },
    });
    fs::write(&settings, serde_json::to_vec_pretty(&text)?)?;
    // What a registry's client does: the metadata first, once.
    let script = stage.disk.join("nydus");
    fs::write(
        &script,
        format!(
            "#!/bin/sh\nset -e\nif test \"$1\" = --version; then exec nydusd --version; fi\n\
             test -s {metadata} || curl -sf -o {metadata} {base}/nydus/{image}/bootstrap\n\
             exec nydusd --config {settings} --bootstrap {metadata} --mountpoint \"$1\" \
             --fuse-threads {FUSE_THREADS} --rlimit-nofile 0 --log-level error\n",
            metadata = stage.disk.join("bootstrap").display(),
            settings = settings.display(),
        ),
    )?;
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let (point, origin) = (stage.point.to_owned(), stage.origin);
    measure(stage, Some(&origin.clear), &|| {
        let mut command = Command::new(&script);
        command.arg(&point);
        command
    })
}

/// The application's tree as an image below `made`, as its tool makes one unless told otherwise.
fn make_image(stage: &Stage<'_>, made: &Path, listed: bool) -> Result<()> {
    fs::create_dir_all(made.join("blobs"))?;
    let list = stage.disk.join("list");
    let mut text = String::new();
    if listed {
        let stream = stage.origin.content().join("archives").join(floor_name(stage.app.name.name()));
        let pages = stage.folder("pages")?;
        pages::unpack_stream(File::open(stream)?, &pages)?;
        let mut files = Vec::new();
        files_below(&pages, Path::new("/"), &mut files)?;
        text.extend(files.iter().map(|file| format!("{}\n", file.display())));
    }
    fs::write(&list, text)?;
    let mut make = Command::new("sh");
    make.args(["-c", "exec nydus-image create --type directory --prefetch-policy \"$0\" --blob-dir \"$1\" --bootstrap \"$2\" \"$3\" < \"$4\""]);
    make.arg(if listed { "fs" } else { "none" }).arg(made.join("blobs")).arg(made.join("making"));
    timed(make.arg(&stage.app.tree).arg(&list), "nydus-image create", IMAGE_DEADLINE)?;
    fs::rename(made.join("making"), made.join("bootstrap"))?;
    Ok(())
}

/// All files below `folder`, as paths below `shown`.
fn files_below(folder: &Path, shown: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = shown.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            files_below(&entry.path(), &path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
