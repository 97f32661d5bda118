//! Profiles as lines of JSON, and as words.

use std::fmt::Write as _;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    PROFILE_EVENTS_MAX, PROFILE_FORMAT, PROFILE_LINE_MAX_BYTES, PROFILE_MAX_BYTES, Profile, ProfileEvent,
    ProfileHeader, Use,
};
use crate::error::{Error, Result};
use crate::package::launch::is_launch_name;

/// Longest package and version in a header.
const HEADER_NAME_MAX_BYTES: usize = 256;

#[derive(Serialize, Deserialize)]
struct HeaderLine {
    streamfs_profile: u64,
    package: String,
    version: String,
    name: String,
}

#[derive(Default, Serialize, Deserialize)]
struct EventLine {
    t: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lookup: Option<PathText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    list: Option<PathText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    readlink: Option<PathText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    xattrs: Option<PathText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read: Option<PathText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PathText {
    Text(String),
    Hex { hex: String },
}

impl PathText {
    fn of(path: &Bytes) -> Self {
        match std::str::from_utf8(path) {
            Ok(text) => PathText::Text(text.to_owned()),
            Err(_) => PathText::Hex { hex: hex::encode(path) },
        }
    }

    fn path(self) -> std::result::Result<Bytes, String> {
        let path = match self {
            PathText::Text(text) => text.into_bytes(),
            PathText::Hex { hex } => hex::decode(hex).map_err(|e| format!("a path is not hexadecimal: {e}"))?,
        };
        let Some(rest) = path.strip_prefix(b"/") else { return Err("a path does not begin with /".into()) };
        let odd = |name: &[u8]| name.is_empty() || name == b"." || name == b".." || name.contains(&0);
        if !rest.is_empty() && rest.split(|byte| *byte == b'/').any(odd) {
            return Err("a path has an empty name, `.`, `..` or a NUL in it".into());
        }
        Ok(Bytes::from(path))
    }
}

impl Profile {
    /// Reads a profile. `whence` names it in errors.
    ///
    /// # Errors
    /// `UnsupportedFormat` for a newer format; `Damaged`, naming the line, if it is not a profile or breaks a limit.
    pub fn parse(bytes: &[u8], whence: &str) -> Result<Self> {
        let broken = |line: usize, reason: &str| Error::damaged(whence, format!("line {line}: {reason}"));
        if bytes.len() > PROFILE_MAX_BYTES {
            return Err(Error::damaged(whence, format!("it is longer than {PROFILE_MAX_BYTES} bytes")));
        }
        let mut lines = bytes.split(|byte| *byte == b'\n').enumerate().map(|(at, line)| (at + 1, line));
        let (_, first) = lines.next().ok_or_else(|| broken(1, "it is missing"))?;
        let header = parse_header(first, whence)?;
        let mut events = Vec::new();
        for (number, line) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()) {
            let event = parse_event(line).map_err(|reason| broken(number, &reason))?;
            if events.len() == PROFILE_EVENTS_MAX {
                return Err(broken(number, &format!("there are more than {PROFILE_EVENTS_MAX} events")));
            }
            events.extend(event);
        }
        Ok(Self { header, events })
    }

    /// The profile as text; events whose path is too long for a line are left out.
    pub fn to_bytes(&self) -> Vec<u8> {
        let ProfileHeader { package, version, name } = self.header.clone();
        let header = HeaderLine { streamfs_profile: PROFILE_FORMAT, package, version, name };
        let mut out = serde_json::to_vec(&header).expect("a header has only string keys");
        out.push(b'\n');
        for event in &self.events {
            let path = Some(PathText::of(&event.path));
            let mut line = EventLine { t: event.at_micros, ..EventLine::default() };
            match event.use_ {
                Use::Lookup => line.lookup = path,
                Use::List => line.list = path,
                Use::ReadLink => line.readlink = path,
                Use::Xattrs => line.xattrs = path,
                Use::Read { offset, length } => {
                    (line.read, line.at, line.bytes) = (path, Some(offset), Some(length));
                }
            }
            let start = out.len();
            serde_json::to_writer(&mut out, &line).expect("writing to memory does not fail");
            if out.len() - start > PROFILE_LINE_MAX_BYTES {
                out.truncate(start);
                continue;
            }
            out.push(b'\n');
        }
        out
    }

    /// The profile for people: a line of sums, then what was asked for, when and of what.
    pub fn to_text(&self) -> String {
        let ProfileHeader { package, version, name } = &self.header;
        let (paths, bytes) = (self.paths(), self.read_bytes());
        let questions = self.events.len();
        let mut out =
            format!("{name}: {questions} questions about {paths} paths of {package} {version}, {bytes} bytes read\n");
        for event in &self.events {
            let millis = event.at_micros as f64 / 1000.0;
            let path = String::from_utf8_lossy(&event.path);
            let path = path.escape_debug();
            let _ = match event.use_ {
                Use::Lookup => writeln!(out, "{millis:>11.1} ms  look up  {path}"),
                Use::List => writeln!(out, "{millis:>11.1} ms  list     {path}"),
                Use::ReadLink => writeln!(out, "{millis:>11.1} ms  link     {path}"),
                Use::Xattrs => writeln!(out, "{millis:>11.1} ms  xattrs   {path}"),
                Use::Read { offset, length } => {
                    writeln!(out, "{millis:>11.1} ms  read     {path}  {length} bytes at {offset}")
                }
            };
        }
        out
    }
}

fn parse_header(line: &[u8], whence: &str) -> Result<ProfileHeader> {
    let broken = |reason: String| Error::damaged(whence, format!("line 1: {reason}"));
    if line.len() > PROFILE_LINE_MAX_BYTES {
        return Err(broken(format!("it is longer than {PROFILE_LINE_MAX_BYTES} bytes")));
    }
    // The format number is read first and alone: a newer format may have any other fields.
    #[derive(Deserialize)]
    struct Format {
        streamfs_profile: u64,
    }
    let not_profile = |e: serde_json::Error| broken(format!("it is not the header of a profile: {e}"));
    let Format { streamfs_profile: format } = serde_json::from_slice(line).map_err(not_profile)?;
    if format != PROFILE_FORMAT {
        let what = whence.to_owned();
        return Err(Error::UnsupportedFormat { what, found: format, supported: PROFILE_FORMAT });
    }
    let HeaderLine { package, version, name, .. } = serde_json::from_slice(line).map_err(not_profile)?;
    if package.len() > HEADER_NAME_MAX_BYTES || version.len() > HEADER_NAME_MAX_BYTES {
        return Err(broken(format!("its package or version is longer than {HEADER_NAME_MAX_BYTES} bytes")));
    }
    if !is_launch_name(&name) {
        return Err(broken(format!(
            "{name:?} does not name an application: a name has 1 to 64 letters, digits, `.`, `_` and `-`"
        )));
    }
    Ok(ProfileHeader { package, version, name })
}

/// `None` for a question of a kind that is not known here.
fn parse_event(line: &[u8]) -> std::result::Result<Option<ProfileEvent>, String> {
    if line.len() > PROFILE_LINE_MAX_BYTES {
        return Err(format!("it is longer than {PROFILE_LINE_MAX_BYTES} bytes"));
    }
    let line: EventLine = serde_json::from_slice(line).map_err(|e| format!("it is not an event: {e}"))?;
    let mut found = None;
    let read = match (&line.read, line.at, line.bytes) {
        (None, ..) => Use::Lookup,
        (Some(_), Some(offset), Some(length))
            if offset.checked_add(length).is_some_and(|end| end <= i64::MAX as u64) =>
        {
            Use::Read { offset, length }
        }
        (Some(_), Some(_), Some(_)) => return Err("it reads past the end of any file".into()),
        (Some(_), ..) => return Err("it does not say `at` and `bytes` of what was read".into()),
    };
    let questions = [
        (Use::Lookup, line.lookup),
        (Use::List, line.list),
        (Use::ReadLink, line.readlink),
        (Use::Xattrs, line.xattrs),
        (read, line.read),
    ];
    for (use_, path) in questions {
        let Some(path) = path else { continue };
        let event = ProfileEvent { at_micros: line.t, path: path.path()?, use_ };
        if found.replace(event).is_some() {
            return Err("it asks more than one thing".into());
        }
    }
    Ok(found)
}
