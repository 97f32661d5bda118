//! `[server]` in the settings file: what `streamfs serve` serves, where, and within what limits.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::settings::{duration, size};

/// `[server]`. What it does not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeSettings {
    /// The content root: a folder, or the URL of one.
    pub content: Option<PathBuf>,
    /// Addresses to listen on, each `HOST:PORT`.
    pub listen: Vec<String>,
    /// Certificate chain (PEM), the server's own first.
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM).
    pub tls_key: Option<PathBuf>,
    /// Refuse whoever does not speak TLS.
    pub tls_only: Option<bool>,
    /// Authorities (PEM) whose certificates clients may show.
    pub client_ca: Option<PathBuf>,
    /// File that says who may read and publish which package.
    pub access: Option<PathBuf>,
    /// File to which each request is written as a line of JSON; `-` for standard output.
    pub access_log: Option<PathBuf>,
    /// Most bytes per second to one client.
    #[serde(deserialize_with = "size")]
    pub client_rate: Option<u64>,
    /// Most bytes per second to all clients together.
    #[serde(deserialize_with = "size")]
    pub total_rate: Option<u64>,
    /// How long running transfers may take to finish once the end was asked for.
    #[serde(deserialize_with = "duration")]
    pub drain: Option<Duration>,
    /// Most connections at a time.
    #[serde(deserialize_with = "at_least_one")]
    pub connections: Option<u32>,
    /// Most connections at a time from one address.
    #[serde(deserialize_with = "at_least_one")]
    pub connections_per_address: Option<u32>,
    /// A connection without requests is closed after this long.
    #[serde(deserialize_with = "duration")]
    pub idle_timeout: Option<Duration>,
    /// How often the content root is looked through for new versions where the system does not tell of them.
    #[serde(deserialize_with = "duration")]
    pub poll_interval: Option<Duration>,
}

fn at_least_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    match u32::deserialize(deserializer)? {
        0 => Err(serde::de::Error::custom("it must be at least 1")),
        number => Ok(Some(number)),
    }
}
