//! Which part of a URL's path names a package, and which an object of it.

use std::fmt;
use std::str::FromStr;

use fs_core::backend::ObjectPath;
use fs_core::location::PackageName;
use fs_core::package::{LAUNCH_DIR, PACK_DIR, PROFILE_DIR, TREE_DIR};
use fs_core::trust::{DESCRIPTOR_DIR, HEAD_OBJECT, METADATA_DIR};
use fs_core::{Error, Result};

/// The folders of docs/FORMAT.md: what is in a package's folder and not in one of them is `head`, or no object.
const FOLDERS: [&str; 6] = [METADATA_DIR, DESCRIPTOR_DIR, TREE_DIR, PACK_DIR, LAUNCH_DIR, PROFILE_DIR];
/// Folders between a content root and a package's own. Deeper ones are not looked for either.
pub(crate) const DEPTH_MAX: usize = 8;
/// Longest path that is looked at: eight names of 128 bytes, and an object's.
const PATH_MAX_BYTES: usize = 2048;

/// Name of a package below the content root: one or more folder names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PackagePath(String);

impl PackagePath {
    /// The folder names, separated by `/`.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PackagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PackagePath {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.split('/').count() > DEPTH_MAX {
            return Err(Error::InvalidInput(format!(
                "a package is at most {DEPTH_MAX} folders below the content root"
            )));
        }
        // Every folder is named as a package may be: nothing hidden, nothing that leads upwards.
        for name in text.split('/') {
            name.parse::<PackageName>()?;
        }
        Ok(Self(text.to_owned()))
    }
}

/// Splits a decoded URL path (without leading slash) in package and object: the object is `head`, or one of the
/// folders of docs/FORMAT.md and a name.
pub(crate) fn split(path: &str) -> Option<(PackagePath, ObjectPath)> {
    let (front, name) = path.rsplit_once('/')?;
    if name == HEAD_OBJECT {
        return Some((front.parse().ok()?, ObjectPath::new(name).ok()?));
    }
    let (package, folder) = front.rsplit_once('/')?;
    if !FOLDERS.contains(&folder) {
        return None;
    }
    Some((package.parse().ok()?, ObjectPath::new(format!("{folder}/{name}")).ok()?))
}

/// Whether this path within a package's folder names something that is served: the package's own rules, and the packages
/// in folders below it, are nothing that who may read the package may read.
pub(crate) fn is_served(object: &ObjectPath) -> bool {
    match object.as_str().split_once('/') {
        None => object.as_str() == HEAD_OBJECT,
        Some((folder, name)) => FOLDERS.contains(&folder) && !name.contains('/'),
    }
}

/// The path of a URL without its leading slash, decoded once; `None` if it could not name anything that is served.
pub(crate) fn decode(raw: &str) -> Option<String> {
    let raw = raw.strip_prefix('/')?;
    // No name holds a slash, so one in percent code is somebody's trick.
    if raw.len() > PATH_MAX_BYTES || raw.to_ascii_lowercase().contains("%2f") {
        return None;
    }
    let decoded = percent_encoding::percent_decode_str(raw).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

/// Hexadecimal digits in a row that make a name a hash: 128 bits, which nobody writes by hand.
const HASH_DIGITS: usize = 32;

/// Whether the object is named by the hash of its bytes: the name then says all about its state.
pub(crate) fn is_named_by_hash(object: &ObjectPath) -> bool {
    let name = object.as_str().rsplit('/').next().unwrap_or_default();
    name.split(|c: char| !c.is_ascii_hexdigit()).any(|run| run.len() >= HASH_DIGITS)
}

/// Whether the object is metadata whose name carries its number (`metadata/12.targets.json`): the next one gets another.
pub(crate) fn is_numbered_metadata(object: &ObjectPath) -> bool {
    let name = object.as_str().strip_prefix(METADATA_DIR).and_then(|rest| rest.strip_prefix('/'));
    let number = name.and_then(|name| name.strip_suffix(".json")?.split_once('.')).map(|(number, _)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn packages_and_objects_are_told_apart() {
        for (path, package, object) in [
            ("app/head", "app", "head"),
            ("a/b/app/head", "a/b/app", "head"),
            ("packs/head", "packs", "head"),
            ("app/packs/head", "app/packs", "head"),
            ("app/packs/0a", "app", "packs/0a"),
            ("x/app/metadata/1.root.json", "x/app", "metadata/1.root.json"),
            ("launch/launch/0a", "launch", "launch/0a"),
        ] {
            let (found, named) = split(path).unwrap_or_else(|| panic!("{path}"));
            assert_eq!((found.as_str(), named.as_str()), (package, object), "{path}");
        }
        for path in [
            "",
            "head",
            "/head",
            "app",
            "app/",
            "app/other",
            "app/packs",
            "app/packs/",
            "app/packs/a/b",
            "packs/0a",
            "app//packs/0a",
            "app/.secret",
            ".git/packs/0a",
            "app/packs/.a",
            "../app/head",
            "app/../head",
            "app/packs/..",
            "-app/head",
            "a p/head",
            "app\0/head",
            "äpp/head",
            "1/2/3/4/5/6/7/8/9/head",
        ] {
            assert!(split(path).is_none(), "{path}");
        }
    }

    #[test]
    fn only_objects_of_the_package_itself_are_served() {
        let served = |path: &str| is_served(&ObjectPath::new(path).unwrap());
        for path in ["head", "packs/0a", "metadata/1.root.json", "launch/0a", "descriptors/1.0.json"] {
            assert!(served(path), "{path}");
        }
        for path in ["access.toml", "other", "inner/head", "inner/packs/0a", "packs/inner/head", "packs"] {
            assert!(!served(path), "{path}");
        }
    }

    #[test]
    fn paths_are_decoded_once() {
        assert_eq!(decode("/app/head").as_deref(), Some("app/head"));
        assert_eq!(decode("/a%2Bb/he%61d").as_deref(), Some("a+b/head"));
        assert_eq!(decode("/%252e%252e/head").as_deref(), Some("%2e%2e/head"), "which then names nothing");
        for raw in ["app/head", "/app%2fhead", "/app%2Fhead", "/%ff/head"] {
            assert_eq!(decode(raw), None, "{raw}");
        }
        for raw in ["/%2e%2e/head", "/app/%2esecret/head", "/app%00/head", "/%252e/head", "/app%5c..%5cx/head"] {
            assert!(split(&decode(raw).unwrap()).is_none(), "{raw}");
        }
        assert_eq!(decode(&format!("/{}", "a".repeat(3000))), None);
    }

    #[test]
    fn only_names_with_a_hash_are_told_to_have_one() {
        let object = |path: &str| ObjectPath::new(path).unwrap();
        assert!(is_named_by_hash(&object(&format!("packs/{HASH}"))));
        assert!(is_named_by_hash(&object(&format!("descriptors/{HASH}{HASH}.1.0.json"))));
        for path in ["head", "metadata/timestamp.json", &format!("{HASH}/head")] {
            assert!(!is_named_by_hash(&object(path)), "{path}");
        }
    }

    #[test]
    fn numbered_metadata_is_told_from_the_timestamp() {
        let object = |path: &str| ObjectPath::new(path).unwrap();
        for path in ["metadata/12.root.json", "metadata/1.targets.json"] {
            assert!(is_numbered_metadata(&object(path)), "{path}");
        }
        for path in ["metadata/timestamp.json", "12.root.json", "metadata/x.json", "metadata/12", "packs/1.root.json"] {
            assert!(!is_numbered_metadata(&object(path)), "{path}");
        }
    }
}
