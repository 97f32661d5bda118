//! Who may read what: stands in for access control until it is there. Everybody may read everything.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::content::PackagePath;

/// Something that nobody shall see.
#[derive(Clone)]
pub(crate) struct Secret(#[allow(dead_code, reason = "nothing asks for it while everybody may read")] String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What somebody showed to be recognised by.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "nothing asks for it while everybody may read")]
pub(crate) enum Presented {
    Nothing,
    Basic { user: String, password: Secret },
    Bearer(Secret),
    Negotiate(Vec<u8>),
    Certificate { subject: String, names: Vec<String> },
}

impl Presented {
    /// Reads the value of `Authorization`.
    pub(crate) fn from_header(value: &str) -> Result<Self, Refusal> {
        match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Ok(Presented::Bearer(Secret(token.trim().to_owned())))
            }
            _ => Ok(Presented::Nothing),
        }
    }
}

/// Who somebody is.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "nothing asks for it while everybody may read")]
pub(crate) struct Identity {
    pub(crate) user: String,
    pub(crate) groups: Arc<[String]>,
}

impl Identity {
    /// Whoever showed nothing.
    pub(crate) fn anonymous() -> Self {
        Self { user: String::new(), groups: Arc::new([]) }
    }

    /// Whether nothing was shown.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.user.is_empty()
    }

    /// What to answer in `WWW-Authenticate` to a `Negotiate` that was accepted.
    pub(crate) fn reply(&self) -> Option<&str> {
        None
    }
}

/// What somebody wants to do with a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "nothing publishes here yet")]
pub(crate) enum Action {
    Read,
    Publish,
}

/// Why somebody is not recognised.
#[derive(Debug)]
#[allow(dead_code, reason = "nobody is refused while everybody may read")]
pub(crate) enum Refusal {
    Wrong,
    TooMany { retry_after: Duration },
    Unavailable(String),
    NotInClear,
}

/// Decides.
#[derive(Clone)]
pub(crate) struct Gate;

impl Gate {
    /// Everybody reads, nobody publishes.
    pub(crate) fn open_to_all() -> Self {
        Self
    }

    /// Who showed this.
    pub(crate) async fn identify(
        &self,
        presented: Presented,
        _peer: IpAddr,
        _encrypted: bool,
    ) -> Result<Identity, Refusal> {
        let _ = presented;
        Ok(Identity::anonymous())
    }

    /// Whether they may.
    pub(crate) async fn may(&self, _identity: &Identity, _package: &PackagePath, action: Action) -> bool {
        action == Action::Read
    }

    /// Whether they may see the status page and the metrics.
    pub(crate) async fn may_see_status(&self, _identity: &Identity) -> bool {
        true
    }

    /// How somebody could make themselves known: values of `WWW-Authenticate`.
    pub(crate) fn challenges(&self, _encrypted: bool) -> Vec<String> {
        Vec::new()
    }
}

/// A subject as text by RFC 4514, from its types and values in their order from left to right.
pub(crate) fn subject_text<'a>(parts: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let escape = |value: &str| value.replace('\\', "\\\\").replace(',', "\\,");
    parts.into_iter().map(|(kind, value)| format!("{kind}={}", escape(value))).collect::<Vec<_>>().join(",")
}
