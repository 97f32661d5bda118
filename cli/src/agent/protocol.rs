//! What client and agent say to each other: one JSON object a line, requests one way, replies the other.
//!
//! ```text
//! > {"v":1,"id":1,"request":{"type":"load","location":"https://h/c/app","origin":{...}}}
//! < {"id":1,"reply":{"type":"progress","done":1048576,"total":9437184,"message":"lib/libfoo.so"}}
//! < {"id":1,"reply":{"type":"done","value":{"files":12,...}}}
//! ```
//!
//! Every request has an id, and its replies carry it: any number of progress reports, then one `done` or `failed`.
//! Closing the connection cancels what is still running.

use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::commands::mount::OpenAnswer;
use fs_core::config::{Credentials, OriginConfig, RetryPolicy};
use fs_core::mount::host::LoadWish;
use fs_core::mount::launch::LaunchChoice;
use fs_core::mount::prefetch::PrefetchPolicy;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// Version of this protocol. An agent refuses others by name, so that an upgraded client can say what to do.
pub(crate) const PROTOCOL: u32 = 1;

/// Longest request, in bytes: two paths of 4 KiB, escaped, with room for credentials.
pub(crate) const REQUEST_MAX_BYTES: u64 = 128 << 10;

/// Longest reply, in bytes: the status of some thousand mounts.
pub(crate) const REPLY_MAX_BYTES: u64 = 16 << 20;

/// A line from client to agent.
#[derive(Serialize, Deserialize)]
pub(crate) struct RequestLine {
    pub(crate) v: u32,
    pub(crate) id: u64,
    pub(crate) request: serde_json::Value,
}

/// A line from agent to client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReplyLine {
    pub(crate) id: u64,
    pub(crate) reply: Reply,
}

/// What can be asked of an agent.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Are you there?
    Ping {},
    /// Mount a package at a directory.
    Mount(MountRequest),
    /// Answers when the mount at `dir` has ended. The mount belongs to this connection: it ends with it.
    Hold { dir: WirePath },
    /// Write what was seen so far of the mount at `dir`, which was mounted to be watched: a profile of that name, and
    /// a trace. Both are new files in a folder of the asker's.
    Recording { dir: WirePath, name: String, profile: Option<WirePath>, trace: Option<WirePath> },
    /// Unmount a directory.
    Unmount { dir: WirePath, lazy: bool },
    /// Show another version at a directory.
    Remount { dir: WirePath, to: Option<String>, lazy: bool, origin: Option<OriginWire> },
    /// Tell about mounts and the cache.
    Status {},
    /// List versions and channels.
    Versions { package: PackageWire },
    /// Fetch everything and keep it.
    Load {
        package: PackageWire,
        #[serde(default)]
        load: LoadWire,
    },
    /// No longer keep it.
    Unload { package: PackageWire },
    /// Check everything stored.
    Verify { package: PackageWire },
    /// Unmount everything and end.
    Shutdown {},
}

/// A package, and how to reach it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PackageWire {
    pub(crate) location: String,
    pub(crate) trust_root: Option<WirePath>,
    pub(crate) origin: OriginWire,
}

/// See [`Request::Mount`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MountRequest {
    pub(crate) package: PackageWire,
    pub(crate) dir: WirePath,
    pub(crate) allow_other: bool,
    pub(crate) open_policy: Option<OpenAnswer>,
    /// Which launch set to bring.
    #[serde(default)]
    pub(crate) launch: LaunchWish,
    /// Whether to watch what is asked of it.
    #[serde(default)]
    pub(crate) watch: Option<Watch>,
    /// How launches without a launch set are helped.
    #[serde(default)]
    pub(crate) prefetch: PrefetchPolicy,
    /// Set to bring the whole version while it is mounted.
    #[serde(default)]
    pub(crate) background_load: Option<LoadWire>,
    pub(crate) poll_interval_ms: u64,
    /// Sizes that were asked for on the command line, to tell if the running agent has others.
    pub(crate) cache_size_bytes: Option<u64>,
    pub(crate) memory_bytes: Option<u64>,
}

/// How a version is to be loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoadWire {
    pub(crate) bytes_per_second: Option<u64>,
    pub(crate) jitter_ms: u64,
}

impl LoadWire {
    pub(crate) fn wish(self, in_background: bool) -> LoadWish {
        let jitter = Duration::from_millis(self.jitter_ms);
        LoadWish { bytes_per_second: self.bytes_per_second, jitter, in_background }
    }
}

/// Which launch set a mount brings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LaunchWish {
    /// The version's first.
    #[default]
    First,
    /// The one of this name.
    Named(String),
    /// None.
    Off,
}

impl LaunchWish {
    /// `none`, or the name of a launch set; without a name the first.
    pub(crate) fn named(name: Option<&str>) -> Self {
        match name {
            None => LaunchWish::First,
            Some("none") => LaunchWish::Off,
            Some(name) => LaunchWish::Named(name.to_owned()),
        }
    }
}

impl From<LaunchWish> for LaunchChoice {
    fn from(wish: LaunchWish) -> Self {
        match wish {
            LaunchWish::First => LaunchChoice::First,
            LaunchWish::Named(name) => LaunchChoice::Named(name),
            LaunchWish::Off => LaunchChoice::Off,
        }
    }
}

/// How a mount is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Watch {
    /// For a profile: the kernel asks for exactly what is used.
    Record,
    /// For a report: as in real use.
    Trace,
}

/// What an agent answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Reply {
    /// The request is being worked on.
    Progress {
        /// Bytes done.
        done: u64,
        /// Bytes in all; 0 while unknown.
        total: u64,
        /// What is being done.
        message: String,
    },
    /// It succeeded.
    Done {
        /// The result, as the request has it.
        value: serde_json::Value,
    },
    /// It failed.
    Failed {
        /// Why, in one line.
        message: String,
    },
}

/// How an origin is reached, with its credentials: never written anywhere but to the socket.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OriginWire {
    ca_files: Vec<WirePath>,
    credentials: CredentialsWire,
    allow_plaintext_credentials: bool,
    report_launches: bool,
    read_deadline_ms: u64,
    stall_timeout_ms: u64,
    connect_timeout_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum CredentialsWire {
    None {},
    Basic { user: String, password: String },
    Bearer { token: String },
    Kerberos {},
}

impl OriginWire {
    /// After how long reads fail.
    pub(crate) fn read_deadline(&self) -> Duration {
        Duration::from_millis(self.read_deadline_ms)
    }

    /// Makes reads fail after `deadline`.
    pub(crate) fn set_read_deadline(&mut self, deadline: Duration) {
        self.read_deadline_ms = millis(deadline);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<OriginConfig> for OriginWire {
    fn from(config: OriginConfig) -> Self {
        Self {
            ca_files: config.ca_files.into_iter().map(WirePath).collect(),
            credentials: match config.credentials {
                Credentials::None => CredentialsWire::None {},
                Credentials::Basic { user, password } => CredentialsWire::Basic { user, password },
                Credentials::Bearer(token) => CredentialsWire::Bearer { token },
                Credentials::Kerberos => CredentialsWire::Kerberos {},
            },
            allow_plaintext_credentials: config.allow_plaintext_credentials,
            report_launches: config.report_launches,
            read_deadline_ms: millis(config.retry.read_deadline),
            stall_timeout_ms: millis(config.retry.stall_timeout),
            connect_timeout_ms: millis(config.retry.connect_timeout),
        }
    }
}

impl From<OriginWire> for OriginConfig {
    fn from(wire: OriginWire) -> Self {
        Self {
            ca_files: wire.ca_files.into_iter().map(|path| path.0).collect(),
            credentials: match wire.credentials {
                CredentialsWire::None {} => Credentials::None,
                CredentialsWire::Basic { user, password } => Credentials::Basic { user, password },
                CredentialsWire::Bearer { token } => Credentials::Bearer(token),
                CredentialsWire::Kerberos {} => Credentials::Kerberos,
            },
            allow_plaintext_credentials: wire.allow_plaintext_credentials,
            report_launches: wire.report_launches,
            retry: RetryPolicy {
                read_deadline: Duration::from_millis(wire.read_deadline_ms),
                // Whoever wants answers sooner than usual wants metadata so, too.
                metadata_deadline: RetryPolicy::default()
                    .metadata_deadline
                    .min(Duration::from_millis(wire.read_deadline_ms)),
                stall_timeout: Duration::from_millis(wire.stall_timeout_ms),
                connect_timeout: Duration::from_millis(wire.connect_timeout_ms),
                ..RetryPolicy::default()
            },
        }
    }
}

/// A path of any bytes in JSON: text where it is text, else `{"hex": "…"}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WirePath(pub(crate) PathBuf);

impl From<&Path> for WirePath {
    fn from(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl fmt::Display for WirePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PathForm {
    Text(String),
    Hex { hex: String },
}

impl Serialize for WirePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let form = match self.0.to_str() {
            Some(text) => PathForm::Text(text.to_owned()),
            None => PathForm::Hex { hex: hex::encode(self.0.as_os_str().as_bytes()) },
        };
        form.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for WirePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = match PathForm::deserialize(deserializer)? {
            PathForm::Text(text) => text.into_bytes(),
            PathForm::Hex { hex } => hex::decode(hex).map_err(serde::de::Error::custom)?,
        };
        Ok(Self(PathBuf::from(std::ffi::OsString::from_vec(bytes))))
    }
}

/// Reads the next line without its end; `None` at the end of the stream.
///
/// # Errors
/// `InvalidData` for a line longer than `limit_bytes` or cut off by the end of the stream.
pub(crate) async fn next_line<R: AsyncBufRead + Unpin>(
    reader: &mut R,
    limit_bytes: u64,
) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.take(limit_bytes + 1).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        let why = if line.len() as u64 >= limit_bytes { "a line is too long" } else { "a line is cut off" };
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
    }
    Ok(Some(line))
}

/// `value` as a line.
pub(crate) fn to_line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("these types have only string keys and finite numbers");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        let config = OriginConfig {
            ca_files: vec!["/ca.pem".into()],
            credentials: Credentials::Basic { user: "u".into(), password: "p".into() },
            allow_plaintext_credentials: true,
            report_launches: true,
            retry: RetryPolicy {
                read_deadline: Duration::from_millis(1500),
                metadata_deadline: Duration::from_millis(1500),
                ..RetryPolicy::default()
            },
        };
        let package = PackageWire { location: "/a/b".into(), trust_root: None, origin: config.clone().into() };
        let text = serde_json::to_string(&Request::Load { package, load: LoadWire::default() }).unwrap();
        let Request::Load { package, .. } = serde_json::from_str(&text).unwrap() else { panic!("{text}") };
        let back = OriginConfig::from(package.origin);
        assert!(
            back.credentials == config.credentials && back.retry == config.retry && back.ca_files == config.ca_files
        );
    }

    #[test]
    fn unknown_requests_and_fields_are_refused() {
        for text in
            [r#"{"type":"explode"}"#, r#"{"type":"status","x":1}"#, r#"{"type":"unmount","dir":"/m"}"#, "[]", "1"]
        {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_of_any_bytes_survive() {
        for bytes in [&b"/plain/path"[..], b"/with \xff byte"] {
            let path = WirePath(PathBuf::from(OsStr::from_bytes(bytes)));
            let text = serde_json::to_string(&path).unwrap();
            assert_eq!(serde_json::from_str::<WirePath>(&text).unwrap(), path, "{text}");
        }
    }

    #[tokio::test]
    async fn lines_are_bounded() {
        let mut input = &b"one\ntwo\n"[..];
        assert_eq!(next_line(&mut input, 10).await.unwrap().unwrap(), b"one");
        assert_eq!(next_line(&mut input, 3).await.unwrap().unwrap(), b"two");
        assert_eq!(next_line(&mut input, 10).await.unwrap(), None);
        let error = next_line(&mut &b"12345678\n"[..], 4).await.unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
        let error = next_line(&mut &b"12"[..], 4).await.unwrap_err();
        assert!(error.to_string().contains("cut off"), "{error}");
    }
}
