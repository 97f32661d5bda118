//! A version as a TUF target: what the signed custom data says, and its checks.
//!
//! ```json
//! "1.2.json": { "length": 812, "hashes": { "sha256": "…" }, "custom": { "streamfs": {
//!     "version": "1.2", "sequence": 3, "published": 1790000000, "channels": ["stable"], "revoked": false } } }
//! ```

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use tough::TargetName;
use tough::schema::{Hashes, Target};

use super::{Catalog, VersionRecord};
use crate::location::{Channel, PackageVersion};

/// Key of our data in a target's custom data.
const CUSTOM_KEY: &str = "streamfs";

#[derive(Serialize, Deserialize)]
struct Custom {
    version: PackageVersion,
    sequence: u64,
    published: i64,
    channels: Vec<Channel>,
    revoked: bool,
}

/// Reads the catalog from verified targets. Targets without our data are of no concern.
pub(super) fn catalog(targets: &HashMap<TargetName, Target>) -> Result<Catalog, String> {
    let mut versions = BTreeMap::new();
    let mut channels = BTreeMap::new();
    for (name, target) in targets {
        let Some(custom) = target.custom.get(CUSTOM_KEY) else { continue };
        let custom = Custom::deserialize(custom).map_err(|e| format!("the target {:?}: {e}", name.raw()))?;
        if name.raw() != target_name(&custom.version) {
            return Err(format!("the target {:?} says that it is version {}", name.raw(), custom.version));
        }
        for channel in custom.channels {
            if let Some(other) = channels.insert(channel.clone(), custom.version.clone()) {
                return Err(format!("channel {channel} points at both {other} and {}", custom.version));
            }
        }
        let descriptor_sha256 = target.hashes.sha256.as_ref().try_into();
        let record = VersionRecord {
            descriptor_bytes: target.length,
            descriptor_sha256: descriptor_sha256.map_err(|_| format!("version {}: bad SHA-256", custom.version))?,
            version: custom.version,
            sequence: custom.sequence,
            published: custom.published,
            revoked: custom.revoked,
        };
        if let Some(other) = versions.insert(record.sequence, record) {
            return Err(format!("two versions have the sequence number {}", other.sequence));
        }
    }
    Ok(Catalog { versions: versions.into_values().collect(), channels })
}

/// Writes the catalog as targets.
pub(super) fn targets(catalog: &Catalog) -> HashMap<TargetName, Target> {
    let target = |record: &VersionRecord| {
        let channels = catalog.channels.iter().filter(|(_, v)| **v == record.version).map(|(c, _)| c.clone());
        let custom = Custom {
            version: record.version.clone(),
            sequence: record.sequence,
            published: record.published,
            channels: channels.collect(),
            revoked: record.revoked,
        };
        let custom = serde_json::to_value(custom).expect("plain fields have a form in JSON");
        let name = TargetName::new(target_name(&record.version)).expect("a version's name holds no slash");
        let hashes = Hashes { sha256: record.descriptor_sha256.to_vec().into(), _extra: HashMap::new() };
        let custom = HashMap::from([(CUSTOM_KEY.to_owned(), custom)]);
        (name, Target { length: record.descriptor_bytes, hashes, custom, _extra: HashMap::new() })
    };
    catalog.versions.iter().map(target).collect()
}

fn target_name(version: &PackageVersion) -> String {
    format!("{version}.json")
}
