//! How packages are named: `CONTENT/PACKAGE[@VERSION|@CHANNEL]`.
//!
//! ```
//! use fs_core::location::{PackageLocation, Origin};
//! let it: PackageLocation = "https://apps.example/content/gimp@2.10".parse().unwrap();
//! assert_eq!(it.package.as_str(), "gimp");
//! assert_eq!(it.selector.unwrap().as_str(), "2.10");
//! assert!(matches!(it.origin, Origin::Http(_)));
//! ```

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use crate::error::{Error, Result};

/// Channel that `publish` sets and `mount` follows unless told otherwise.
pub const DEFAULT_CHANNEL: &str = "stable";

/// Port of `rtsp://` without one (RFC 2326 §3.2).
pub const RTSP_PORT: u16 = 554;
/// Port of `rtsps://` without one (RFC 7826 §4.2).
pub const RTSPS_PORT: u16 = 322;

/// Longest package, version or channel name, in bytes; leaves room for suffixes within 255-byte file names.
pub const NAME_MAX_BYTES: usize = 128;

fn check_name(what: &str, s: &str) -> Result<()> {
    let ok = !s.is_empty()
        && s.len() <= NAME_MAX_BYTES
        && !s.starts_with(['.', '-'])
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-~".contains(&b));
    if ok {
        return Ok(());
    }
    Err(Error::InvalidInput(format!(
        "{what} {s:?} cannot be used: 1 to {NAME_MAX_BYTES} ASCII letters, digits and . _ + - ~ are allowed, not beginning with . or -"
    )))
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self> {
                check_name($what, s)?;
                Ok(Self(s.to_owned()))
            }
        }
        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(s: String) -> Result<Self> {
                s.parse()
            }
        }
        impl From<$name> for String {
            fn from(n: $name) -> String {
                n.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// Name of a package: one folder of the content root.
    PackageName, "package name");
name_type!(
    /// Name of one immutable version of a package.
    PackageVersion, "version");
name_type!(
    /// Name of a channel: a signed pointer at a version.
    Channel, "channel");
name_type!(
    /// What follows the `@`: a version or a channel. A version of that name wins.
    Selector, "version or channel");

/// Where a content root is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A folder on this machine (or one that the operating system mounted).
    Folder(PathBuf),
    /// A web server; the URL of the content root, its path ending in `/`, without user or password.
    Http(Url),
    /// A streaming server; the URL of the content root, as that of a web server.
    Rtsp(Url),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Folder(p) => write!(f, "{}", p.display()),
            Origin::Http(u) | Origin::Rtsp(u) => f.write_str(u.as_str().trim_end_matches('/')),
        }
    }
}

/// A package at a content root, and which version of it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PackageLocation {
    /// The content root.
    pub origin: Origin,
    /// The package's folder in it.
    pub package: PackageName,
    /// The version or channel after `@`; `None` means the default channel.
    pub selector: Option<Selector>,
}

impl PackageLocation {
    /// Same package, without version or channel: what a catalog, pinned trust and polling are keyed by.
    pub fn package_key(&self) -> String {
        format!("{}/{}", self.origin.to_string().trim_end_matches('/'), self.package)
    }
}

impl fmt::Display for PackageLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.package_key())?;
        match &self.selector {
            Some(s) => write!(f, "@{s}"),
            None => Ok(()),
        }
    }
}

/// What begins like these is no folder, also if it is mistyped.
const SCHEMES: [&str; 5] = ["http", "https", "rtsp", "rtsps", "file"];

const NO_SECRETS: &str = "a user or password does not belong into a URL (others can see command lines); use STREAMFS_HTTP_USER and STREAMFS_HTTP_PASSWORD, STREAMFS_TOKEN, or the configuration file";

impl FromStr for PackageLocation {
    type Err = Error;

    /// Parses `CONTENT/PACKAGE[@VERSION|@CHANNEL]`. A relative folder is made absolute against the current
    /// directory, so that the location means the same to the agent.
    fn from_str(s: &str) -> Result<Self> {
        let shown = without_password(s);
        let bad = |why: &str| {
            Error::InvalidInput(format!(
                "cannot read the package location {shown:?}: {why}; expected CONTENT/PACKAGE[@VERSION|@CHANNEL], for example https://apps.example/content/gimp@2.10 or /srv/content/gimp"
            ))
        };
        if s.chars().any(char::is_control) {
            return Err(bad("it contains a control character"));
        }
        // Before anything else, which would take a part of the password for a version and repeat it.
        if shown != s && ["http://", "https://", "rtsp://", "rtsps://"].iter().any(|scheme| s.starts_with(scheme)) {
            return Err(bad(NO_SECRETS));
        }
        if let Some((scheme, rest)) = s.split_once(':').filter(|(scheme, _)| SCHEMES.contains(scheme)) {
            if !rest.starts_with("//") {
                return Err(bad(&format!("two slashes belong behind {scheme}:")));
            }
            if !rest[2..].trim_end_matches('/').contains('/') {
                return Err(bad(&format!("it names no package; after {scheme}://HOST there is the package, /PACKAGE")));
            }
        }
        let trimmed = s.trim_end_matches('/');
        let slash = trimmed.rfind('/').ok_or_else(|| bad("there is no / between content root and package"))?;
        let (content, last) = (&trimmed[..slash], &trimmed[slash + 1..]);
        let (name, selector) = match last.split_once('@') {
            Some((n, v)) => (n, Some(v.parse().map_err(|e: Error| bad(&e.to_string()))?)),
            None => (last, None),
        };
        let package: PackageName = name.parse().map_err(|e: Error| bad(&e.to_string()))?;
        let origin = match content.split_once("://") {
            Some(("http" | "https", _)) => Origin::Http(parse_http(content, &bad)?),
            Some(("rtsp" | "rtsps", _)) => Origin::Rtsp(parse_rtsp(content, &bad)?),
            Some(("file", path)) => {
                let url = Url::parse(&format!("file://{path}/")).map_err(|e| bad(&e.to_string()))?;
                Origin::Folder(
                    url.to_file_path().map_err(|()| bad("a file:// URL must name an absolute local folder"))?,
                )
            }
            Some((scheme, _)) => return Err(bad(&format!("the scheme {scheme}:// is not supported by this build"))),
            None => {
                let path = if content.is_empty() { "/" } else { content };
                Origin::Folder(std::path::absolute(path).map_err(|e| bad(&e.to_string()))?)
            }
        };
        Ok(Self { origin, package, selector })
    }
}

/// `location` as messages may show it: whatever may be a user and password is left out, for messages end up in logs.
pub(crate) fn without_password(location: &str) -> String {
    let Some((scheme, rest)) = location.split_once("://") else { return location.to_owned() };
    // A version stands after the last slash; a password that was not escaped may itself have slashes in it.
    match rest.rsplit_once('/').map_or(rest, |(content, _)| content).rsplit_once('@') {
        Some((secret, _)) => format!("{scheme}://…{}", &rest[secret.len()..]),
        None => location.to_owned(),
    }
}

fn parse_http(content: &str, bad: &impl Fn(&str) -> Error) -> Result<Url> {
    let mut url = Url::parse(&format!("{content}/")).map_err(|e| bad(&e.to_string()))?;
    // However many slashes were typed before the package, it is the same content root.
    let path = format!("{}/", url.path().trim_end_matches('/'));
    url.set_path(&path);
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad(NO_SECRETS));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("a content root has neither ? nor #"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(bad("there is no host"));
    }
    Ok(url)
}

/// As for a web server. The URL standard knows nothing of RTSP, so that the host's forms and the port that need not be
/// written are made one here: the same server shall have one name.
fn parse_rtsp(content: &str, bad: &impl Fn(&str) -> Error) -> Result<Url> {
    let mut url = parse_http(content, bad)?;
    let host = Host::parse(url.host_str().unwrap_or_default()).map_err(|e| bad(&e.to_string()))?;
    url.set_host(Some(&host.to_string())).map_err(|e| bad(&e.to_string()))?;
    let usual = if url.scheme() == "rtsps" { RTSPS_PORT } else { RTSP_PORT };
    if url.port() == Some(usual) {
        url.set_port(None).map_err(|()| bad("it cannot have a port"))?;
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_and_written_back() {
        for (input, shown) in [
            ("/srv/content/gimp", "/srv/content/gimp"),
            ("/srv/content/gimp/", "/srv/content/gimp"),
            ("file:///srv/a%20b/gimp@stable", "/srv/a b/gimp@stable"),
            ("http://h:8080/x/y/gimp@1.0", "http://h:8080/x/y/gimp@1.0"),
            ("https://h/gimp", "https://h/gimp"),
            ("https://h://gimp", "https://h/gimp"),
            ("https://h/x//gimp", "https://h/x/gimp"),
            ("rtsp://H.Example:554/x/gimp@1.0", "rtsp://h.example/x/gimp@1.0"),
            ("rtsp://h:322/gimp", "rtsp://h:322/gimp"),
            ("rtsps://[::1]:322//gimp", "rtsps://[::1]/gimp"),
            ("rtsp://127.1:8554/x//gimp", "rtsp://127.0.0.1:8554/x/gimp"),
            ("/gimp", "/gimp"),
        ] {
            assert_eq!(input.parse::<PackageLocation>().unwrap().to_string(), shown, "{input}");
        }
    }

    #[test]
    fn bad_locations_say_why() {
        for (input, part) in [
            ("gimp", "no /"),
            ("http://user:pw@h/x/gimp", "does not belong"),
            ("ftp://h/x", "scheme ftp"),
            ("/srv/ge t", "package name"),
            ("/srv/..", "package name"),
            ("/srv/a@", "version or channel"),
            ("http:///x", "package location"),
            ("rtsp:///x", "package location"),
            ("rtsp://user:pw@h/x/gimp", "does not belong"),
            ("rtsp://a b/x/gimp", "package location"),
            ("/srv/a\n", "control"),
            // These were taken for folders named `http:`, or for packages named like a host.
            ("http://127.0.0.1/", "names no package"),
            ("https://127.0.0.1:18711", "names no package"),
            ("http:/h/x/app", "two slashes"),
            ("https:h/x/app", "two slashes"),
            ("file:/srv/app", "two slashes"),
        ] {
            let e = input.parse::<PackageLocation>().unwrap_err().to_string();
            assert!(e.contains(part), "{input}: {e}");
        }
    }

    #[test]
    fn messages_repeat_no_password() {
        for location in [
            "http://user:secret@host/content/app",
            "http://user:secret@host",
            "http://user:a/secret@host/content/app",
            "http://a@secret@host/x/app",
            "rtsps://user:secret@host/content/app",
            "ftp://user:secret@host/app",
        ] {
            let e = location.parse::<PackageLocation>().unwrap_err().to_string();
            assert!(!e.contains("secret") && e.contains("…@host"), "{e}");
        }
        for location in ["/content/app@1", "http://h/app@1", "ftp://h/x@1.0"] {
            assert_eq!(without_password(location), location);
        }
    }
}
