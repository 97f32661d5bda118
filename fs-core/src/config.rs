//! Settings of an agent and of its origins.
//!
//! Read from TOML; unknown keys are errors, so that a typing mistake is not silently a default. Where files lie and
//! how environment variables override them is the command line's business.

mod origins;
mod quantities;
mod serving;
mod settings;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub use origins::{OriginTable, nearest_origin, normalized_origin};
pub use quantities::{parse_duration, parse_size};
pub use serving::ServeSettings;
pub use settings::{
    AgentSettings, CredentialSource, OriginRule, PublishSettings, SETTINGS_MAX_BYTES, SecretSource, Settings,
    explain_toml,
};

/// Whether a launch may be brought what it has not asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefetch {
    /// While a program starts.
    #[default]
    Launch,
    /// Never.
    None,
}

impl FromStr for Prefetch {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "launch" => Ok(Prefetch::Launch),
            "none" => Ok(Prefetch::None),
            other => Err(Error::InvalidInput(format!("{other:?} is neither launch nor none"))),
        }
    }
}

/// How an origin is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OriginConfig {
    /// Extra certificate authorities (PEM files), beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// Credentials, if the origin wants any.
    pub credentials: Credentials,
    /// Send credentials over plain `http://` to other machines, where anybody on the way can read them.
    pub allow_plaintext_credentials: bool,
    /// Tell a streaming server how long launches took.
    pub report_launches: bool,
    /// Retry and deadlines.
    pub retry: RetryPolicy,
}

/// Credentials for one origin. `Debug` shows only which kind it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// None.
    #[default]
    None,
    /// HTTP Basic.
    Basic {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// HTTP Bearer token.
    Bearer(String),
    /// The user's Kerberos tickets.
    Kerberos,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Credentials::None => "None",
            Credentials::Basic { .. } => "Basic(..)",
            Credentials::Bearer(_) => "Bearer(..)",
            Credentials::Kerberos => "Kerberos",
        })
    }
}

/// When to try again, and when to give up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Give up a whole read after this long. DESIGN default: 60 s.
    pub read_deadline: Duration,
    /// Give up reading a whole small object (metadata, descriptors) after this long.
    pub metadata_deadline: Duration,
    /// Give up one request when no byte came for this long.
    pub stall_timeout: Duration,
    /// Give up connecting after this long.
    pub connect_timeout: Duration,
    /// First pause before a retry; doubles each time, with full jitter.
    pub first_backoff: Duration,
    /// Longest pause.
    pub max_backoff: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            read_deadline: Duration::from_secs(60),
            metadata_deadline: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            first_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(5),
        }
    }
}
