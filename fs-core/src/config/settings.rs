//! The settings file.
//!
//! ```toml
//! [agent]
//! cache_dir = "/var/cache/streamfs"
//! cache_size = "20G"
//! keep_free = "1G"
//! memory = "64M"
//! poll_interval = "60s"
//! read_deadline = "60s"
//! prefetch = "launch"
//! prefetch_budget = "512M"
//! learn = true
//!
//! [publish]
//! keys_dir = "/root/streamfs-keys"
//!
//! [server]
//! content = "/srv/content"
//! listen = ["0.0.0.0:443"]
//! tls_cert = "/etc/streamfs/server.pem"
//! tls_key = "/etc/streamfs/server.key"
//!
//! [[origin]]
//! url = "https://apps.example/content"
//! ca_file = "/etc/ssl/company-ca.pem"
//! credentials = { user = "reader", password_file = "/etc/streamfs/reader.password" }
//! ```
//!
//! Parsing touches no file and no environment: reading secrets and checking who may read them is left to the caller,
//! who knows the operating system.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::Prefetch;
use super::origins::normalized_prefix;
use super::quantities::{parse_duration, parse_size};
use super::serving::ServeSettings;
use crate::error::{Error, Result};

/// Longest settings file that is read, in bytes: far above any real one, and small enough to parse at once.
pub const SETTINGS_MAX_BYTES: usize = 1 << 20;

/// What a settings file says. What it does not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `[agent]`
    pub agent: AgentSettings,
    /// `[publish]`
    pub publish: PublishSettings,
    /// `[server]`
    pub server: ServeSettings,
    /// `[[origin]]`, in the file's order.
    #[serde(rename = "origin")]
    pub origins: Vec<OriginRule>,
}

/// `[agent]`: the cache and how origins are watched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentSettings {
    /// Folder of the cache.
    pub cache_dir: Option<PathBuf>,
    /// Most bytes of verified blocks on disk.
    #[serde(deserialize_with = "size")]
    pub cache_size: Option<u64>,
    /// Bytes of the disk that stay free, whatever `cache_size` says.
    #[serde(deserialize_with = "size")]
    pub keep_free: Option<u64>,
    /// Most bytes of decoded blocks in memory.
    #[serde(deserialize_with = "size")]
    pub memory: Option<u64>,
    /// How often each mounted package is asked for a newer version.
    #[serde(deserialize_with = "duration")]
    pub poll_interval: Option<Duration>,
    /// Whether a program that starts may be brought what it has not asked for yet: `launch` or `none`.
    pub prefetch: Option<Prefetch>,
    /// Most bytes that one launch may be brought unasked.
    #[serde(deserialize_with = "size")]
    pub prefetch_budget: Option<u64>,
    /// Whether launches are learned from.
    pub learn: Option<bool>,
    /// A read that could not be answered for this long fails.
    #[serde(deserialize_with = "duration")]
    pub read_deadline: Option<Duration>,
    /// A request whose bytes stop coming for this long is tried again.
    #[serde(deserialize_with = "duration")]
    pub stall_timeout: Option<Duration>,
    /// Connecting is given up after this long.
    #[serde(deserialize_with = "duration")]
    pub connect_timeout: Option<Duration>,
    /// An agent without mounts and requests ends after this long.
    #[serde(deserialize_with = "duration")]
    pub idle_exit: Option<Duration>,
}

/// `[publish]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PublishSettings {
    /// Folder of the private signing keys.
    pub keys_dir: Option<PathBuf>,
}

/// One `[[origin]]`: how the content roots below a URL are reached.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OriginRule {
    /// Prefix of content roots: a URL or an absolute path. It matches whole path components only.
    pub url: String,
    /// A further certificate authority (PEM), beside the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Certificate chain (PEM) to show to servers that ask for one.
    #[serde(default)]
    pub client_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[serde(default)]
    pub client_key: Option<PathBuf>,
    /// Credentials, if the origin wants any.
    #[serde(default)]
    pub credentials: Option<CredentialSource>,
    /// Send them over plain `http://` to other machines, too.
    #[serde(default)]
    pub allow_plaintext_credentials: bool,
    /// Tell a streaming server how long launches took.
    #[serde(default)]
    pub report_launches: bool,
}

/// Credentials as the file names them: in place, or by the path of a file that holds nothing else.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "CredentialFields")]
pub enum CredentialSource {
    /// HTTP Basic.
    Basic {
        /// User name.
        user: String,
        /// Password.
        password: SecretSource,
    },
    /// HTTP Bearer token.
    Bearer(SecretSource),
    /// The user's Kerberos tickets.
    Kerberos,
}

/// A secret, or where it lies. `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// Written in the settings file itself.
    Inline(String),
    /// Alone in a file.
    File(PathBuf),
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretSource::Inline(_) => f.write_str("Inline(..)"),
            SecretSource::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

impl fmt::Debug for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CredentialSource::Basic { password, .. } => write!(f, "Basic({password:?})"),
            CredentialSource::Bearer(token) => write!(f, "Bearer({token:?})"),
            CredentialSource::Kerberos => f.write_str("Kerberos"),
        }
    }
}

impl CredentialSource {
    /// Whether the secret itself stands in the settings file, which then nobody else may read.
    pub fn is_inline(&self) -> bool {
        match self {
            CredentialSource::Basic { password: secret, .. } | CredentialSource::Bearer(secret) => {
                matches!(secret, SecretSource::Inline(_))
            }
            CredentialSource::Kerberos => false,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CredentialFields {
    user: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    #[serde(default)]
    kerberos: bool,
}

impl TryFrom<CredentialFields> for CredentialSource {
    type Error = &'static str;

    fn try_from(fields: CredentialFields) -> Result<Self, Self::Error> {
        let CredentialFields { user, password, password_file, token, token_file, kerberos } = fields;
        let one = |inline: Option<String>, file: Option<PathBuf>| match (inline, file) {
            (Some(text), None) => Some(SecretSource::Inline(text)),
            (None, Some(path)) => Some(SecretSource::File(path)),
            _ => None,
        };
        match (user, password.is_some() || password_file.is_some(), token.is_some() || token_file.is_some()) {
            (Some(user), true, false) if !kerberos => match one(password, password_file) {
                Some(password) => Ok(CredentialSource::Basic { user, password }),
                None => Err("give one of password and password_file, not both"),
            },
            (None, false, true) if !kerberos => match one(token, token_file) {
                Some(token) => Ok(CredentialSource::Bearer(token)),
                None => Err("give one of token and token_file, not both"),
            },
            (None, false, false) if kerberos => Ok(CredentialSource::Kerberos),
            _ => Err(
                "credentials are either user with password_file (or password), or token_file (or token), or kerberos = true",
            ),
        }
    }
}

impl Settings {
    /// Reads the text of a settings file.
    ///
    /// # Errors
    /// `InvalidInput`, naming line and column of what cannot be read, but never quoting it: it may be a secret.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > SETTINGS_MAX_BYTES {
            return Err(Error::InvalidInput(format!("it is longer than {SETTINGS_MAX_BYTES} bytes")));
        }
        let settings: Settings = toml::from_str(text).map_err(|e| Error::InvalidInput(explain_toml(text, &e)))?;
        for rule in &settings.origins {
            normalized_prefix(&rule.url)?;
        }
        Ok(settings)
    }
}

/// Why the TOML in `text` cannot be read: the line and what is wrong with it, but never a value, for that may be a
/// secret.
pub fn explain_toml(text: &str, error: &toml::de::Error) -> String {
    let place = error.span().map_or_else(String::new, |span| line_of(text, span.start));
    format!("{place}{}", without_value(error.message()))
}

/// `message` without the value that is of the wrong type: `invalid type: string "…", expected …` quotes it.
fn without_value(message: &str) -> String {
    let Some((what @ ("invalid type" | "invalid value"), rest)) = message.split_once(": ") else {
        return message.to_owned();
    };
    let kind = rest.split(['"', '`', ',']).next().unwrap_or_default().trim_end();
    match rest.rsplit_once(", expected ") {
        Some((_, expected)) => format!("{what}: {kind}, expected {expected}"),
        None => format!("{what}: {kind}"),
    }
}

fn line_of(text: &str, offset: usize) -> String {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = 1 + before.iter().filter(|b| **b == b'\n').count();
    format!("line {line}: ")
}

pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_size(&text).map(Some).map_err(serde::de::Error::custom)
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"
        [agent]
        cache_dir = "/c"
        cache_size = "2G"
        keep_free = "100M"
        memory = "8M"
        poll_interval = "5s"
        read_deadline = "20s"
        stall_timeout = "3s"
        connect_timeout = "1s"
        idle_exit = "1m"
        prefetch = "none"
        prefetch_budget = "64M"
        learn = false
        [publish]
        keys_dir = "/k"
        [server]
        content = "/srv/content"
        listen = ["127.0.0.1:8080", "[::1]:8080"]
        tls_cert = "/cert"
        tls_key = "/key"
        tls_only = true
        client_ca = "/clients"
        drain = "10s"
        connections = 100
        connections_per_address = 10
        idle_timeout = "2m"
        poll_interval = "3s"
        [[origin]]
        url = "https://a.example/content"
        ca_file = "/ca.pem"
        credentials = { user = "u", password_file = "/p" }
        [[origin]]
        url = "https://b.example"
        credentials = { token = "t0psecret" }
        [[origin]]
        url = "https://c.example"
        credentials = { kerberos = true }
    "#;

    #[test]
    fn a_secret_in_the_wrong_place_is_not_repeated() {
        for line in
            ["credentials = \"7777\"", "credentials = { token = 7777 }", "credentials = [\"7777\"]", "ca_file = 7777"]
        {
            let text = format!("[[origin]]\nurl = \"http://h/c\"\n{line}");
            let error = Settings::parse(&text).unwrap_err().to_string();
            assert!(!error.contains("7777") && error.contains("line 3: invalid "), "{line}: {error}");
        }
    }

    #[test]
    fn everything_can_be_said() {
        let it = Settings::parse(FULL).unwrap();
        assert_eq!(it.agent.cache_size, Some(2 << 30));
        assert_eq!(it.agent.poll_interval, Some(Duration::from_secs(5)));
        assert_eq!((it.agent.prefetch, it.agent.prefetch_budget), (Some(Prefetch::None), Some(64 << 20)));
        assert_eq!(it.agent.learn, Some(false));
        assert_eq!(it.publish.keys_dir, Some(PathBuf::from("/k")));
        assert_eq!((it.server.listen.len(), it.server.tls_only), (2, Some(true)));
        assert_eq!((it.server.drain, it.server.connections), (Some(Duration::from_secs(10)), Some(100)));
        assert_eq!(it.origins.len(), 3);
        assert_eq!(it.origins[2].credentials, Some(CredentialSource::Kerberos));
        assert!(!it.origins[0].credentials.as_ref().unwrap().is_inline());
        assert!(it.origins[1].credentials.as_ref().unwrap().is_inline());
    }

    #[test]
    fn nothing_need_be_said() {
        assert_eq!(Settings::parse("").unwrap(), Settings::default());
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, part) in [
            ("[server]\nport = 80", "line 2: unknown field `port`"),
            ("[server]\nconnections = 0", "at least 1"),
            ("[agent]\ncache_siez = \"1G\"", "line 2: unknown field `cache_siez`"),
            ("[agent]\ncache_size = \"much\"", "is not a size"),
            ("[agent]\npoll_interval = 5", "line 2"),
            ("[[origin]]\nurl = \"ftp://x/y\"", "scheme"),
            ("[[origin]]\nurl = \"relative/path\"", "absolute"),
            ("[[origin]]\nurl = \"https://h\"\ncredentials = { user = \"u\" }", "credentials are either"),
            ("[[origin]]\nurl = \"https://h\"\ncredentials = { token = \"a\", token_file = \"b\" }", "not both"),
            ("[[origin]]\nca_file = \"/x\"", "url"),
            (
                "[[origin]]\nurl = \"https://h\"\ncredentials = { user = \"u\", kerberos = true }",
                "credentials are either",
            ),
            ("[[origin]]\nurl = \"https://h\"\ncredentials = { kerberos = false }", "credentials are either"),
            ("x", "line 1"),
        ] {
            let message = Settings::parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn secrets_are_shown_neither_by_debug_nor_by_errors() {
        let shown = format!("{:?}", Settings::parse(FULL).unwrap());
        assert!(!shown.contains("t0psecret"), "{shown}");
        let broken = FULL.replace("token = \"t0psecret\"", "token = \"t0psecret\", tokne = \"t0psecret\"");
        let message = Settings::parse(&broken).unwrap_err().to_string();
        assert!(!message.contains("t0psecret"), "{message}");
    }
}
