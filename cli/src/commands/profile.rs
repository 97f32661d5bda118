//! `streamfs profile CONTENT/PACKAGE[@…] -o FILE -- CMD ARG...`

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use fs_core::mount::record::RecordedTotals;
use fs_core::package::launch::is_launch_name;
use fs_core::package::profile::{Profile, Use};
use serde::Serialize;
use tempfile::NamedTempFile;

use super::run::LaunchArguments;
use super::{Context, Package, trace};
use crate::agent::protocol::{LaunchWish, Request, Watch, WirePath};
use crate::arguments;
use crate::child::{self, Child, Over};
use crate::private_mount::{PrivateMount, PrivateMountOptions, RunFolder};
use crate::settings::InForce;
use crate::{mount_point, report};

/// A profile of a launch of tens of thousands of files is some megabytes.
const PROFILE_MAX_BYTES: u64 = 1 << 30;

/// Arguments of `profile`.
#[derive(Debug, Args)]
pub struct ProfileArguments {
    /// CONTENT/PACKAGE[@VERSION|@CHANNEL]; without @ the channel "stable"
    #[arg(value_name = "CONTENT/PACKAGE", required_unless_present_any = ["show", "merge"])]
    package: Option<String>,
    /// File that the recording is written to
    #[arg(short, long, value_name = "FILE", required_unless_present = "show")]
    output: Option<PathBuf>,
    /// Name of the application that is started: that of its launch set [default: the package's]
    #[arg(long, value_name = "NAME", value_parser = launch_name)]
    name: Option<String>,
    /// Mount at this empty directory instead of a private one: for programs that know where they are
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Record so many launches, each from a fresh mount, and merge them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// End the program and the recording after this time
    #[arg(long = "for", value_name = "TIME", value_parser = arguments::duration)]
    longest: Option<Duration>,
    /// Also launch it as users do, with nothing cached, and write a report of that (HTML)
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print a profile as text
    #[arg(long, value_name = "FILE", conflicts_with_all = ["package", "output", "merge", "report"])]
    show: Option<PathBuf>,
    /// Merge profiles into one, the order of the first going first
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["package", "report"])]
    merge: Vec<PathBuf>,
    /// Print what was recorded as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    launch: LaunchArguments,
}

fn launch_name(name: &str) -> Result<String, String> {
    if is_launch_name(name) && name != "none" {
        Ok(name.to_owned())
    } else {
        Err("a name is 1 to 64 letters, digits, '.', '_' and '-', and not \"none\"".to_owned())
    }
}

/// What was recorded.
#[derive(Debug, Serialize)]
struct ProfileReport {
    profile: WirePath,
    package: String,
    version: String,
    name: String,
    /// Launches that were recorded.
    runs: u32,
    /// How long the last one was watched.
    seconds: f64,
    /// Status that the program ended with; none if it was ended.
    exit_status: Option<u8>,
    #[serde(flatten)]
    totals: RecordedTotals,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<WirePath>,
}

pub(super) async fn run(arguments: ProfileArguments, context: &Context) -> anyhow::Result<()> {
    if let Some(file) = &arguments.show {
        return report::text(&read_profile(file)?.to_text());
    }
    // clap has seen to it that these are there.
    let output = arguments.output.as_deref().context("name the file to write with -o")?;
    let Some(location) = &arguments.package else { return merge(&arguments, output) };
    let package = Package::parse(location, arguments.launch.trust_root.as_deref())?;
    let what = || format!("cannot record a launch of {}", package.location);
    arguments.launch.command().with_context(what)?;
    let settings = context.settings(Some(&arguments.launch.cache)).with_context(what)?;
    // What cannot be written is found out before anything is started.
    let written = Output::begin(output)?;
    let report_to = arguments.report.as_deref().map(Output::begin).transpose()?;

    let mut recorded = Vec::new();
    let mut dropped = 0;
    let last = loop {
        let launch = record(&arguments, &package, &settings, context).await.with_context(what)?;
        dropped += launch.totals.dropped;
        recorded.push(launch.profile.clone());
        let go_on = matches!(launch.over, Over::TimeUp) || ended(launch.over).is_some_and(|status| status.success());
        if !go_on || recorded.len() >= arguments.runs as usize {
            break launch;
        }
    };
    let runs = recorded.len() as u32;
    let profile = Profile::merge(&recorded).context("nothing was recorded")?;
    if totals(&profile).bytes_read == 0 {
        ended(last.over).map_or(Ok(()), child::check)?;
        return Err(anyhow!(
            "the program read nothing of the package, so there is nothing to record; start what is in the package (bin/x, or {{mount}}/bin/x), not a copy elsewhere"
        ))
        .with_context(what);
    }
    written.finish(&profile.to_bytes())?;
    let failure = ended(last.over).map_or(Ok(()), child::check);
    if let Err(error) = &failure {
        report::warn(format!("{error}; {} holds what it did until then", output.display()));
    }
    if let (Some(to), Ok(())) = (report_to, &failure) {
        let launch = trace::Launch {
            package: &package,
            arguments: &arguments.launch,
            launch: LaunchWish::First,
            longest: arguments.longest,
            cold: true,
        };
        to.finish(trace::trace(&launch, settings, context).await?.page.as_bytes())?;
    }
    let facts = ProfileReport {
        profile: output.into(),
        package: profile.header.package.clone(),
        version: profile.header.version.clone(),
        name: profile.header.name.clone(),
        runs,
        seconds: last.seconds,
        exit_status: ended(last.over).map(child::code),
        totals: RecordedTotals { dropped, ..totals(&profile) },
        report: arguments.report.as_deref().map(WirePath::from),
    };
    print(&facts, arguments.json)?;
    failure
}

/// One recorded launch.
struct Recorded {
    profile: Profile,
    totals: RecordedTotals,
    over: Over,
    seconds: f64,
}

fn ended(over: Over) -> Option<ExitStatus> {
    match over {
        Over::Ended(status) => Some(status),
        Over::Interrupted | Over::TimeUp => None,
    }
}

async fn record(
    arguments: &ProfileArguments,
    package: &Package,
    settings: &InForce,
    context: &Context,
) -> anyhow::Result<Recorded> {
    let mut folder = RunFolder::make()?;
    let dir = match &arguments.dir {
        Some(dir) => {
            let dir = mount_point::resolve(dir)?;
            mount_point::check_mountable(&dir)?;
            dir
        }
        None => folder.mount_point(&package.location.package.to_string())?,
    };
    let file = folder.file("profile");
    let options = PrivateMountOptions {
        package: arguments.launch.wire(package, settings),
        // What the launch asks for is what is wanted, not what is thought that it will.
        launch: LaunchWish::Off,
        watch: Some(Watch::Record),
    };
    let mut mount = PrivateMount::make(&dir, options, settings, &context.interrupt).await?;
    let (version, trust) = (&mount.report().version, &mount.report().trust);
    context.tell(version, trust);
    let package_name = mount.report().package.clone();
    let default = if is_launch_name(&package_name) { package_name } else { "default".to_owned() };
    let name = arguments.name.clone().unwrap_or(default);
    let recorded = async {
        let mut child = Child::start(arguments.launch.command()?, mount.dir())?;
        let over = child.wait(arguments.longest, &context.interrupt).await;
        let seconds = child.age().as_secs_f64();
        let request =
            Request::Recording { dir: dir.as_path().into(), name, profile: Some(file.as_path().into()), trace: None };
        // Before the program is ended: how it ends is no part of its launch.
        let totals = mount.agent().request::<RecordedTotals>(&request, |_, _, _| {}).await;
        if !matches!(over, Ok(Over::Ended(_))) {
            child.end().await;
        }
        anyhow::Ok(Recorded { totals: totals?, over: over?, seconds, profile: read_profile(&file)? })
    };
    let recorded = recorded.await;
    super::run::end(mount, context).await;
    recorded
}

/// Counts what `profile` tells.
fn totals(profile: &Profile) -> RecordedTotals {
    let mut files = HashSet::new();
    let mut totals = RecordedTotals { uses: profile.events.len() as u64, ..RecordedTotals::default() };
    for event in &profile.events {
        if let Use::Read { length, .. } = event.use_ {
            files.insert(&event.path);
            totals.bytes_read += length;
        }
    }
    totals.files_read = files.len() as u64;
    totals
}

fn print(facts: &ProfileReport, json: bool) -> anyhow::Result<()> {
    if json {
        return report::json(facts);
    }
    if facts.totals.dropped > 0 {
        report::warn(format!("{} uses were too many to be recorded", facts.totals.dropped));
    }
    let RecordedTotals { files_read, bytes_read, .. } = facts.totals;
    let of = if facts.runs == 1 { String::new() } else { format!(" by {} launches", facts.runs) };
    report::line(format!(
        "recorded {} {} in {}: {} of {files_read} files read{of}",
        facts.package,
        facts.version,
        facts.profile,
        report::bytes(bytes_read)
    ))?;
    facts.report.as_ref().map_or(Ok(()), |file| report::line(format!("report: {file}")))
}

fn merge(arguments: &ProfileArguments, output: &Path) -> anyhow::Result<()> {
    let profiles: Vec<Profile> = arguments.merge.iter().map(|file| read_profile(file)).collect::<Result<_, _>>()?;
    let mut merged = Profile::merge(&profiles).context("there is nothing to merge")?;
    if let Some(other) = profiles.iter().find(|other| other.header.package != merged.header.package) {
        bail!("cannot merge profiles of different packages: {} and {}", merged.header.package, other.header.package);
    }
    if let Some(name) = &arguments.name {
        merged.header.name.clone_from(name);
    }
    Output::begin(output)?.finish(&merged.to_bytes())?;
    let facts = ProfileReport {
        profile: output.into(),
        package: merged.header.package.clone(),
        version: merged.header.version.clone(),
        name: merged.header.name.clone(),
        runs: profiles.len() as u32,
        seconds: 0.0,
        exit_status: None,
        totals: totals(&merged),
        report: None,
    };
    print(&facts, arguments.json)
}

/// Reads the profile in `file`.
pub(super) fn read_profile(file: &Path) -> anyhow::Result<Profile> {
    let what = || format!("cannot read the profile {}", file.display());
    let length = fs::metadata(file).with_context(what)?.len();
    if length > PROFILE_MAX_BYTES {
        bail!("{}: it is longer than any profile ({})", what(), report::bytes(length));
    }
    let bytes = fs::read(file).with_context(what)?;
    parse_profile(&bytes, file)
}

/// The profile that stands in `bytes`, which are `file`'s.
pub(super) fn parse_profile(bytes: &[u8], file: &Path) -> anyhow::Result<Profile> {
    let what = || format!("cannot use {} as a recording of a launch, as `streamfs profile` makes them", file.display());
    Profile::parse(bytes, &file.display().to_string()).with_context(what)
}

/// A file that appears whole or not at all; what is no file (`/dev/null`, a pipe) is written to as it is.
pub(super) struct Output {
    path: PathBuf,
    /// `None` if there is something at the path that must not be replaced.
    file: Option<NamedTempFile>,
}

impl Output {
    /// Makes sure that `path` can be written, without touching what is there.
    pub(super) fn begin(path: &Path) -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let what = || format!("cannot write {}", path.display());
        if path.is_dir() {
            bail!("{}: it is a directory; name a file", what());
        }
        if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            return Ok(Self { path: path.to_owned(), file: None });
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Asked first, because what fails below is named by the name that the file has meanwhile.
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        rustix::fs::access(folder, access).map_err(std::io::Error::from).with_context(what)?;
        // As any file that a program writes, less what the user's mask takes away.
        let mode = fs::Permissions::from_mode(0o666);
        let file = tempfile::Builder::new().permissions(mode).tempfile_in(folder).with_context(what)?;
        Ok(Self { path: path.to_owned(), file: Some(file) })
    }

    /// Puts it in place with `content`.
    pub(super) fn finish(self, content: &[u8]) -> anyhow::Result<()> {
        let what = || format!("cannot write {}", self.path.display());
        let Some(mut file) = self.file else {
            let mut there = fs::OpenOptions::new().write(true).open(&self.path).with_context(what)?;
            return there.write_all(content).with_context(what);
        };
        file.write_all(content).with_context(what)?;
        file.persist(&self.path).with_context(what)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        fs::write(&path, "old").unwrap();
        drop(Output::begin(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        Output::begin(&path).unwrap().finish(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let null = dir.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &null).unwrap();
        Output::begin(&null).unwrap().finish(b"nothing").unwrap();
        assert!(fs::symlink_metadata(&null).unwrap().is_symlink(), "what is no file is not replaced");
        fs::remove_file(&null).unwrap();
        let error = Output::begin(dir.path()).err().unwrap().to_string();
        assert!(error.contains("is a directory"), "{error}");
        let error = format!("{:#}", Output::begin(&dir.path().join("absent/out")).err().unwrap());
        assert!(error.starts_with("cannot write ") && error.contains("No such file"), "{error}");
    }
}
