//! Which profiles a version's launch sets are made from: those given, else those of the version before.

use std::path::Path;

use super::PublishRequest;
use crate::error::{Error, Result};
use crate::location::PackageVersion;
use crate::package::Hash;
use crate::package::block::{self, Encoder};
use crate::package::descriptor::{Descriptor, LaunchRef, ProfileRef};
use crate::package::launch::{LAUNCH_LEVEL, LAUNCH_SETS_MAX};
use crate::package::profile::{PROFILE_MAX_BYTES, Profile};
use crate::trust::{Catalog, VersionRecord};

/// A profile that a launch set is made from.
pub(super) struct ChosenProfile {
    pub(super) profile: Profile,
    /// Its stored form, and what refers to that.
    pub(super) stored: Vec<u8>,
    pub(super) reference: ProfileRef,
    pub(super) inherited: bool,
}

/// Profiles that were given, one of each name, in the order of the names' first.
pub(super) fn given(profiles: &[Profile]) -> Result<Vec<ChosenProfile>> {
    let mut names: Vec<&str> = Vec::new();
    for profile in profiles {
        let name = &profile.header.name[..];
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.len() > LAUNCH_SETS_MAX {
        return Err(Error::InvalidInput(format!(
            "profiles of {} applications were given, and a version can have {LAUNCH_SETS_MAX} launch sets; leave some out",
            names.len()
        )));
    }
    names.into_iter().map(|name| merged(profiles, name)).collect()
}

fn merged(profiles: &[Profile], name: &str) -> Result<ChosenProfile> {
    let same: Vec<Profile> = profiles.iter().filter(|profile| profile.header.name == name).cloned().collect();
    let profile = Profile::merge(&same).expect("the name is one of theirs");
    let text = profile.to_bytes();
    // What is stored is read again by later versions: then it must still be a profile, and the same one.
    let profile = Profile::parse(&text, &format!("the profile of {name}"))?;
    let length = text.len() as u64;
    let stored = Encoder::new(LAUNCH_LEVEL)?.encode(text);
    let reference = ProfileRef { object: Hash::of(&stored), bytes: stored.len() as u64, length };
    Ok(ChosenProfile { profile, stored, reference, inherited: false })
}

/// The version whose launch sets the new one inherits: itself, if it is there already, since versions never change; else
/// what the first of its channels pointed at; else the newest.
pub(super) fn ancestor<'a>(catalog: &'a Catalog, request: &PublishRequest) -> Option<&'a VersionRecord> {
    let by_name = |name: &PackageVersion| catalog.versions.iter().find(|record| record.version == *name);
    let of_channel = || request.channels.first().and_then(|channel| catalog.channels.get(channel)).and_then(by_name);
    by_name(&request.version).or_else(of_channel).or_else(|| catalog.versions.last())
}

/// The profiles of an earlier version.
pub(super) fn inherited(package_dir: &Path, ancestor: &Descriptor) -> Result<Vec<ChosenProfile>> {
    ancestor.launch.iter().map(|set| inherit(package_dir, ancestor, set)).collect()
}

fn inherit(package_dir: &Path, ancestor: &Descriptor, set: &LaunchRef) -> Result<ChosenProfile> {
    let reference = &set.profile;
    let path = package_dir.join(reference.path().as_str());
    let give_up = |reason: String| {
        Error::damaged(
            path.display().to_string(),
            format!(
                "it is the profile of launch set {} of version {}, from which the new version would inherit it, but {reason}; restore it, publish with --profile, or go without by --no-profile",
                set.name, ancestor.version
            ),
        )
    };
    let stored = match std::fs::metadata(&path)
        .and_then(|meta| (meta.len() == reference.bytes).then(|| std::fs::read(&path)).transpose())
    {
        Ok(Some(stored)) if Hash::of(&stored) == reference.object => stored,
        Ok(_) => return Err(give_up("its bytes do not have the BLAKE3 hash that is its name".into())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(give_up("it is missing".into())),
        Err(e) => return Err(Error::local("read", &path, e)),
    };
    let text = block::decompress(&stored, reference.length as usize, PROFILE_MAX_BYTES).map_err(give_up)?;
    let profile = Profile::parse(&text, &path.display().to_string())?;
    // Another program may have stored it, in another form and under another name.
    let mut profile = profile.normalised();
    profile.header.name.clone_from(&set.name);
    Ok(ChosenProfile { profile, stored, reference: reference.clone(), inherited: true })
}
