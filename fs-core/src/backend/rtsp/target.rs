//! What an RTSP URL's path names: `/PACKAGE[@VERSION]`, and the one stream of it; for both sides of the connection.

use std::fmt;

use crate::location::Selector;

/// Last part of the path of a presentation's one stream. A package's folder cannot have such a name.
pub const STREAM_CONTROL: &str = "streamid=0";
/// Longest path.
pub const PATH_MAX_BYTES: usize = 1024;

/// A package, or one version of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The package's folder below the content root: names separated by `/`. Nothing is checked but that it is text without
    /// control characters; empty for the content root itself.
    pub package: String,
    /// The version, or a channel; all of the package without.
    pub version: Option<Selector>,
    /// Whether it names the stream, not the presentation.
    pub is_stream: bool,
}

impl Target {
    /// Reads the path of a URL as it stands there, escapes and all. A slash at its end means nothing.
    pub fn parse(path: &str) -> Option<Self> {
        if path.len() > PATH_MAX_BYTES {
            return None;
        }
        let path = path.strip_prefix('/').unwrap_or(path);
        let path = path.strip_suffix('/').unwrap_or(path);
        let (path, is_stream) = match path.strip_suffix(STREAM_CONTROL) {
            Some(rest) => (rest.strip_suffix('/')?, true),
            None => (path, false),
        };
        let mut names = path.split('/').map(unescaped).collect::<Option<Vec<String>>>()?;
        let last = names.last_mut()?;
        let version = match last.split_once('@') {
            None => None,
            Some((name, version)) => {
                let version = version.parse().ok()?;
                *last = name.to_owned();
                Some(version)
            }
        };
        Some(Self { package: names.join("/"), version, is_stream })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.package)?;
        if let Some(version) = &self.version {
            write!(f, "@{version}")?;
        }
        f.write_str(if self.is_stream { "/" } else { "" })?;
        f.write_str(if self.is_stream { STREAM_CONTROL } else { "" })
    }
}

/// A part of a path without its escapes; none if it is not text, or holds what no part can.
fn unescaped(part: &str) -> Option<String> {
    let mut out = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            other => other,
        });
    }
    let text = String::from_utf8(out).ok()?;
    (!text.contains(|c: char| c.is_control() || c == '/')).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(package: &str, version: Option<&str>, is_stream: bool) -> Option<Target> {
        Some(Target { package: package.into(), version: version.map(|v| v.parse().unwrap()), is_stream })
    }

    #[test]
    fn paths_are_read_and_written_back() {
        for (path, expected) in [
            ("/app", target("app", None, false)),
            ("/team/app@1.0", target("team/app", Some("1.0"), false)),
            ("/team/app@stable/streamid=0", target("team/app", Some("stable"), true)),
            ("/", target("", None, false)),
        ] {
            assert_eq!(Target::parse(path), expected, "{path}");
            assert_eq!(expected.unwrap().to_string(), path);
        }
        assert_eq!(Target::parse("/app%401.0/"), target("app", Some("1.0"), false));
        assert_eq!(Target::parse("/a%2eb/"), target("a.b", None, false));
        assert_eq!(Target::parse(""), target("", None, false));
    }

    #[test]
    fn tricks_are_refused() {
        for path in
            ["/a%2fb", "/a%00", "/a%", "/a%4", "/a%zz", "/a%ff", "/a@", "/a@b@c", "/a@b c", "/streamid=0", "/a\u{85}"]
        {
            assert_eq!(Target::parse(path), None, "{path}");
        }
        assert_eq!(Target::parse(&"/a".repeat(600)), None);
    }
}
