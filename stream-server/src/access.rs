//! Who asks, and who may read or publish which package.
//!
//! ```text
//! Authorization: …  ──> Presented ──> Gate::identify ──> Identity ──> Gate::may(package, read) ──> yes or no
//! client certificate ─┘                 │                               │
//!                     failed logins ────┤                               ├── access.toml in the package's folder
//!                     what is remembered┤                               └── rules in the server's access file
//!                     password file, tokens, certificates, directory, Kerberos
//! ```
//!
//! Both protocols use the same gate. Who is denied is told the same as where nothing is: that is the callers' part.
//! An identity is believed for the time to live in the access file (`[cache] ttl`), then established anew, so a removed
//! member loses access within it; also who stays connected, because [`Gate::may`] looks.
//!
//! Nothing here shows or logs a password, token or ticket.

mod certificates;
mod directory;
mod failures;
mod header;
mod kerberos;
mod passwords;
mod per_package;
mod remembered;
mod rules;
mod secret;
mod settings;
mod sources;
mod tokens;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;

use self::failures::Failures;
use self::settings::AccessSettings;
use self::sources::Sources;
use crate::access_log::{AccessLog, Entry, Event};
use crate::content::{Content, PackagePath};
use crate::metrics::{LoginOutcome, Metrics};

pub(crate) use self::certificates::subject_text;
pub use self::passwords::{PasswordFile, PasswordFileError};
pub(crate) use self::rules::PackageAccess;
pub use self::secret::Secret;

/// Longest name of a user or group.
const NAME_MAX_BYTES: usize = 256;

/// An access file, or what it names, that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file.
    #[error("cannot use {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The password file.
    #[error(transparent)]
    Passwords(#[from] PasswordFileError),
    /// What it asks for.
    #[error("{0}")]
    Content(String),
}

impl AccessError {
    fn about(path: &Path, reason: String) -> Self {
        Self::File { path: path.to_owned(), reason }
    }
}

/// What a client presented to say who it is.
#[derive(Clone)]
pub(crate) enum Presented {
    Nothing,
    Basic {
        user: String,
        password: Secret,
    },
    Bearer(Secret),
    /// The token of a Kerberos client.
    Negotiate(Vec<u8>),
    /// A certificate that the TLS layer verified: its subject by RFC 4514, and its alternative names.
    Certificate {
        subject: String,
        names: Vec<String>,
    },
}

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Presented::Nothing => f.write_str("Nothing"),
            Presented::Basic { user, .. } => write!(f, "Basic({user:?}, ..)"),
            Presented::Bearer(_) => f.write_str("Bearer(..)"),
            Presented::Negotiate(_) => f.write_str("Negotiate(..)"),
            Presented::Certificate { subject, .. } => write!(f, "Certificate({subject:?})"),
        }
    }
}

/// By what somebody is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Basic,
    Bearer,
    Negotiate,
    Certificate,
}

impl Method {
    /// All, in the order of their declaration.
    pub(crate) const ALL: [Method; 4] = [Method::Basic, Method::Bearer, Method::Negotiate, Method::Certificate];

    /// For metrics and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Method::Basic => "basic",
            Method::Bearer => "bearer",
            Method::Negotiate => "negotiate",
            Method::Certificate => "certificate",
        }
    }
}

impl Presented {
    fn method(&self) -> Option<Method> {
        Some(match self {
            Presented::Nothing => return None,
            Presented::Basic { .. } => Method::Basic,
            Presented::Bearer(_) => Method::Bearer,
            Presented::Negotiate(_) => Method::Negotiate,
            Presented::Certificate { .. } => Method::Certificate,
        })
    }
}

/// Who somebody is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// Empty: nobody said.
    pub(crate) user: String,
    pub(crate) groups: Arc<[String]>,
    source: Source,
    /// To be established anew from here on.
    fresh_until: Option<Instant>,
    /// What to answer to a `Negotiate` that was accepted.
    reply: Option<Arc<str>>,
}

/// Where an identity comes from, and therefore where to ask whether it is still so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Nobody,
    PasswordFile,
    Directory,
    Token,
    Certificate,
}

impl Identity {
    /// Nobody in particular.
    pub(crate) fn anonymous() -> Self {
        Self { user: String::new(), groups: Arc::new([]), source: Source::Nobody, fresh_until: None, reply: None }
    }

    pub(crate) fn is_anonymous(&self) -> bool {
        self.source == Source::Nobody
    }

    /// The user's name, if somebody said.
    pub(crate) fn name(&self) -> Option<&str> {
        (!self.is_anonymous()).then_some(self.user.as_str())
    }

    /// The value of a `WWW-Authenticate` header for the answer that grants what was asked: proves the server to a
    /// Kerberos client.
    pub(crate) fn reply(&self) -> Option<&str> {
        self.reply.as_deref()
    }

    /// Whether it has to be established anew.
    fn is_stale(&self, now: Instant) -> bool {
        self.fresh_until.is_some_and(|until| now >= until)
    }

    /// Whether `name`, as it stands in a rule, is this user. To password files and directories case means nothing;
    /// tokens and certificates have exact names.
    fn is_called(&self, name: &str) -> bool {
        let exact = matches!(self.source, Source::Token | Source::Certificate);
        is_same(&self.user, name, exact)
    }

    /// Whether `name`, as it stands in a rule, is one of the groups.
    fn is_member_of(&self, name: &str) -> bool {
        self.groups.iter().any(|group| is_same(group, name, self.source == Source::Token))
    }
}

fn is_same(own: &str, name: &str, exact: bool) -> bool {
    own == name || !exact && own.to_lowercase() == name.to_lowercase()
}

/// What somebody wants to do with a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Read,
    Publish,
}

/// Why somebody is not identified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The credentials are wrong, or nobody here takes them.
    Wrong,
    /// Too many failed; come back later.
    TooMany { retry_after: Duration },
    /// They cannot be checked at the moment. For the log, not for the client.
    Unavailable(String),
    /// They came over a connection that others can read, and must not.
    NotInClear,
}

/// Lets clients in, or not. Clones are the same gate.
#[derive(Clone)]
pub(crate) struct Gate {
    /// `None`: everybody may read, and nobody is asked.
    guarded: Option<Arc<Guarded>>,
    metrics: Metrics,
    log: AccessLog,
}

struct Guarded {
    path: PathBuf,
    content: Option<Content>,
    in_force: RwLock<Arc<Sources>>,
    failures: Arc<Failures>,
}

impl Gate {
    /// Everybody reads and nobody publishes.
    pub(crate) fn open_to_all() -> Self {
        Self { guarded: None, metrics: Metrics::default(), log: AccessLog::off() }
    }

    /// Reads the access file at `path`. With `content`, an `access.toml` in a package's folder counts for that package.
    /// Failed logins are written to `log`.
    ///
    /// # Errors
    /// If it, or a file that it names, cannot be used.
    pub(crate) fn open(
        path: &Path,
        content: Option<Content>,
        metrics: Metrics,
        log: AccessLog,
    ) -> Result<Self, AccessError> {
        let settings = read(path)?;
        let failures = Arc::new(Failures::new(settings.failed_logins.clone()));
        let sources = Sources::open(settings, content.clone(), metrics.clone())?;
        let guarded = Guarded { path: path.to_owned(), content, in_force: RwLock::new(Arc::new(sources)), failures };
        Ok(Self { guarded: Some(Arc::new(guarded)), metrics, log })
    }

    /// Reads the access file again. What was remembered is forgotten, failed logins are not; their limits change with
    /// the next start only.
    ///
    /// # Errors
    /// If it cannot be used; then everything stays as it was.
    pub(crate) fn reload(&self) -> Result<(), AccessError> {
        let Some(guarded) = &self.guarded else { return Ok(()) };
        let sources = Sources::open(read(&guarded.path)?, guarded.content.clone(), self.metrics.clone())?;
        *guarded.in_force.write() = Arc::new(sources);
        Ok(())
    }

    /// Establishes who presented something.
    ///
    /// # Errors
    /// [`Refusal`]; failed logins are counted and logged.
    pub(crate) async fn identify(
        &self,
        presented: Presented,
        peer: IpAddr,
        encrypted: bool,
    ) -> Result<Identity, Refusal> {
        let (Some(guarded), Some(method)) = (&self.guarded, presented.method()) else {
            return Ok(Identity::anonymous());
        };
        let sources = guarded.in_force.read().clone();
        let user = match &presented {
            Presented::Basic { user, .. } => Some(user.clone()),
            _ => None,
        };
        let outcome = if readable_by_others(method, peer, encrypted) && !sources.settings.allow_in_clear {
            Err(Refusal::NotInClear)
        } else {
            sources.identify(presented, peer, &guarded.failures).await
        };
        self.note(method, peer, encrypted, user.as_deref(), &outcome);
        outcome
    }

    /// Whether `identity` may do `action` with `package`.
    ///
    /// # Errors
    /// If the identity was established so long ago that it counts for nothing any more: [`Refusal::Unavailable`] if
    /// whoever knows does not answer, which is no reason to treat anybody as denied; [`Refusal::Wrong`] if there is no such
    /// user any more, or the client has to present something again.
    pub(crate) async fn may(
        &self,
        identity: &Identity,
        package: &PackagePath,
        action: Action,
    ) -> Result<bool, Refusal> {
        let Some(guarded) = &self.guarded else { return Ok(action == Action::Read) };
        let sources = guarded.in_force.read().clone();
        let allowed = match sources.current(identity).await {
            Ok(identity) => Ok(sources.allow(&identity, package, action).await),
            Err(refusal) => Err(refusal),
        };
        if !matches!(allowed, Ok(true) | Err(Refusal::Unavailable(_))) && !identity.is_anonymous() {
            self.metrics.denied();
        }
        allowed
    }

    /// Whether `identity` may see the status page and the metrics. A server that is open to all shows them to all.
    ///
    /// # Errors
    /// As [`Self::may`].
    pub(crate) async fn may_see_status(&self, identity: &Identity) -> Result<bool, Refusal> {
        let Some(guarded) = &self.guarded else { return Ok(true) };
        let sources = guarded.in_force.read().clone();
        let identity = sources.current(identity).await?;
        Ok(sources.settings.status.includes(&identity))
    }

    /// Values of `WWW-Authenticate` for an answer 401 to `peer`, one header each: what would be taken on that connection.
    pub(crate) fn challenges(&self, peer: IpAddr, encrypted: bool) -> Vec<String> {
        let Some(guarded) = &self.guarded else { return Vec::new() };
        guarded.in_force.read().challenges(is_private(peer, encrypted))
    }

    fn note(
        &self,
        method: Method,
        peer: IpAddr,
        encrypted: bool,
        user: Option<&str>,
        outcome: &Result<Identity, Refusal>,
    ) {
        // Somebody's own words: quoted, and no longer than a name.
        let shown = user.map(|user| user.chars().take(64).collect::<String>());
        let method_name = method.as_str();
        let counted = match outcome {
            Ok(_) => LoginOutcome::Accepted,
            Err(Refusal::Wrong) => {
                tracing::warn!(target: "streamfs::login", %peer, method = method_name, user = ?shown, "failed login");
                let entry = Entry::new(Event::FailedLogin, peer, encrypted);
                self.log.record(Entry { user: shown.as_deref(), method: Some(method_name), ..entry });
                LoginOutcome::Wrong
            }
            Err(Refusal::TooMany { retry_after }) => {
                // Not louder: whoever is held back must not be able to fill the disk with it.
                tracing::debug!(target: "streamfs::login", %peer, method = method_name, user = ?shown, ?retry_after, "too many failed logins");
                LoginOutcome::TooMany
            }
            Err(Refusal::Unavailable(why)) => {
                // Whoever answers the client says it louder.
                tracing::debug!(target: "streamfs::login", %peer, method = method_name, why, "a login cannot be checked");
                LoginOutcome::Unavailable
            }
            Err(Refusal::NotInClear) => {
                tracing::debug!(target: "streamfs::login", %peer, method = method_name, "credentials came in clear");
                LoginOutcome::NotInClear
            }
        };
        self.metrics.login(method, counted);
    }
}

/// Whether nobody between the client and here can read along.
fn is_private(peer: IpAddr, encrypted: bool) -> bool {
    encrypted || peer.to_canonical().is_loopback()
}

/// A Kerberos token is good once, and a certificate needs TLS anyway.
fn readable_by_others(method: Method, peer: IpAddr, encrypted: bool) -> bool {
    matches!(method, Method::Basic | Method::Bearer) && !is_private(peer, encrypted)
}

fn read(path: &Path) -> Result<AccessSettings, AccessError> {
    let failed = |why: String| AccessError::about(path, why);
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    let absolute = std::path::absolute(path).map_err(|e| failed(e.to_string()))?;
    AccessSettings::parse(&text, absolute.parent().unwrap_or(Path::new("/"))).map_err(failed)
}

/// Whether a name of a user or group can be compared, logged and shown.
fn name_is_usable(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_MAX_BYTES && name.trim() == name && !name.chars().any(char::is_control)
}

/// How an `Authorization` header is shown, if it is one.
pub(crate) fn fuzz_authorization(value: &str) -> Option<String> {
    match Presented::from_header(value) {
        Ok(presented) => Some(format!("{presented:?}")),
        Err(refusal) => {
            assert_eq!(refusal, Refusal::Wrong);
            None
        }
    }
}

pub(crate) fn fuzz_settings(text: &str) -> Result<String, String> {
    AccessSettings::parse(text, Path::new("/etc/streamfs")).map(|settings| format!("{settings:?}"))
}

/// Whether `subject` names a user, who then has a usable name.
pub(crate) fn fuzz_subject(subject: &str) -> bool {
    let by_name = settings::CertificateSettings {
        user_from: Some(settings::UserFrom::CommonName),
        directory_groups: false,
        users: Vec::new(),
    };
    match certificates::holder(&by_name, subject, &[]) {
        Some(user) => {
            assert!(name_is_usable(&user), "{user:?}");
            true
        }
        None => false,
    }
}

#[cfg(test)]
impl Identity {
    /// As from a directory.
    pub(crate) fn for_test(user: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Self { user: user.to_owned(), groups, source: Source::Directory, ..Self::anonymous() }
    }

    fn of_token_for_test(user: &str, groups: &[&str]) -> Self {
        Self { source: Source::Token, ..Self::for_test(user, groups) }
    }

    fn fresh_for_test(self, until: Instant) -> Self {
        Self { fresh_until: Some(until), ..self }
    }
}

#[cfg(test)]
mod tests;
