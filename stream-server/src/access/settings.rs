//! The server's access file (`streamfs serve --access FILE`): where identities come from, and rules of packages.
//!
//! docs/ACCESS.md describes it. It holds no secrets itself: passwords and keys lie in files of their own, named by it.
//! Parsing touches no file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_core::config::{explain_toml, parse_duration};
use jsonwebtoken::Algorithm;
use serde::{Deserialize, Deserializer};
use url::Url;

use super::rules::{Allowed, PackageAccess, RulesByName};

/// Longest access file: some thousand packages.
pub(crate) const SETTINGS_MAX_BYTES: usize = 1 << 20;

/// What the file says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessSettings {
    /// Accept passwords and tokens over connections that others can read.
    #[serde(default)]
    pub(crate) allow_in_clear: bool,
    /// Whether an `access.toml` in a package's folder counts.
    #[serde(default = "yes")]
    pub(crate) package_files: bool,
    #[serde(default)]
    pub(crate) cache: CacheSettings,
    #[serde(default)]
    pub(crate) failed_logins: FailedLogins,
    #[serde(default)]
    pub(crate) passwords: Option<PasswordSettings>,
    #[serde(default, rename = "token")]
    pub(crate) tokens: Vec<TokenSettings>,
    #[serde(default)]
    pub(crate) certificates: Option<CertificateSettings>,
    #[serde(default)]
    pub(crate) directory: Option<DirectorySettings>,
    #[serde(default)]
    pub(crate) kerberos: Option<KerberosSettings>,
    /// Who sees the status page and the metrics.
    #[serde(default)]
    pub(crate) status: Allowed,
    /// What applies to packages without a rule.
    #[serde(default)]
    default: PackageAccess,
    #[serde(default, rename = "package")]
    packages: Vec<NamedRule>,
    /// Made of `default` and `packages`.
    #[serde(skip)]
    pub(super) rules: RulesByName,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedRule {
    name: String,
    #[serde(default)]
    read: Allowed,
    #[serde(default)]
    publish: Allowed,
}

/// `[cache]`: how long an answer of an identity source is believed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CacheSettings {
    /// A removed member keeps access for at most this long.
    #[serde(deserialize_with = "duration")]
    pub(crate) ttl: Duration,
    /// Most identities and memberships that are remembered.
    pub(crate) entries: usize,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(300), entries: 10_000 }
    }
}

/// `[failed_logins]`: how many are answered before the next must wait.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FailedLogins {
    /// For one user, from addresses where that user did not log in before.
    pub(crate) per_user: u32,
    /// From one address (IPv6: one /64).
    pub(crate) per_address: u32,
    /// Within this time; afterwards all of them may be tried again.
    #[serde(deserialize_with = "duration")]
    pub(crate) window: Duration,
}

impl Default for FailedLogins {
    fn default() -> Self {
        Self { per_user: 10, per_address: 30, window: Duration::from_secs(300) }
    }
}

/// `[passwords]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PasswordSettings {
    pub(crate) file: PathBuf,
}

/// `[[token]]`: one issuer of tokens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenSettings {
    /// `iss`, exactly.
    pub(crate) issuer: String,
    /// One of these must be in `aud`.
    pub(crate) audience: Vec<String>,
    #[serde(default)]
    pub(crate) jwks_file: Option<PathBuf>,
    #[serde(default)]
    pub(crate) jwks_url: Option<Url>,
    /// A further certificate authority (PEM) for `jwks_url`.
    #[serde(default)]
    pub(crate) ca_file: Option<PathBuf>,
    #[serde(default = "asymmetric")]
    pub(crate) algorithms: Vec<Algorithm>,
    /// Which claim names the user.
    #[serde(default = "sub")]
    pub(crate) user_claim: String,
    /// Which claim lists the groups; dots lead into objects (`realm_access.roles`).
    #[serde(default = "groups")]
    pub(crate) groups_claim: String,
    /// Put before the names of users and groups, so that an issuer cannot name those of other sources.
    #[serde(default)]
    pub(crate) prefix: String,
    /// How much clocks may differ.
    #[serde(default = "a_minute", deserialize_with = "duration")]
    pub(crate) leeway: Duration,
}

/// `[certificates]`: users of certificates that the TLS layer verified.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateSettings {
    /// Which part of a certificate is the user's name, for those not listed.
    #[serde(default)]
    pub(crate) user_from: Option<UserFrom>,
    /// Ask the directory for the groups of these users.
    #[serde(default)]
    pub(crate) directory_groups: bool,
    #[serde(default, rename = "user")]
    pub(crate) users: Vec<CertificateUser>,
}

/// Part of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum UserFrom {
    /// The subject's only CN.
    CommonName,
    /// The only alternative name with an `@`: a mail address or user principal name.
    Email,
    /// The only alternative name that is a URI.
    Uri,
}

/// A user by certificate.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateUser {
    /// The whole subject, as the access log shows it.
    #[serde(default)]
    pub(crate) subject: Option<String>,
    /// One of the alternative names.
    #[serde(default)]
    pub(crate) name: Option<String>,
    pub(crate) user: String,
    #[serde(default)]
    pub(crate) groups: Vec<String>,
}

/// What kind of directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DirectoryKind {
    /// Microsoft's, or Samba's.
    ActiveDirectory,
    /// Any other by RFC 4519: OpenLDAP, 389 Directory Server and so on.
    Ldap,
}

/// `[directory]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DirectorySettings {
    pub(crate) kind: DirectoryKind,
    /// Tried in this order.
    pub(crate) urls: Vec<Url>,
    /// Upgrade `ldap://` to TLS.
    #[serde(default)]
    pub(crate) start_tls: bool,
    /// Certificate authorities (PEM) beside the system's.
    #[serde(default)]
    pub(crate) ca_file: Option<PathBuf>,
    /// Where users and groups are.
    pub(crate) base: String,
    /// How a user binds: `{user}@corp.example`, or `uid={user},ou=people,dc=corp,dc=example`.
    #[serde(default)]
    pub(crate) bind_as: Option<String>,
    /// An account that may look users up.
    #[serde(default)]
    pub(crate) account: Option<String>,
    /// Its password, alone in a file.
    #[serde(default)]
    pub(crate) password_file: Option<PathBuf>,
    /// Which attribute is a user's name, if not `sAMAccountName` or `uid`.
    #[serde(default)]
    pub(crate) user_attribute: Option<String>,
    /// Which attribute is a group's name, if not `sAMAccountName` or `cn`.
    #[serde(default)]
    pub(crate) group_attribute: Option<String>,
    /// Count groups of groups, too.
    #[serde(default = "yes")]
    pub(crate) nested: bool,
    /// Each question and each log-in may take this long.
    #[serde(default = "ten_seconds", deserialize_with = "duration")]
    pub(crate) deadline: Duration,
}

/// `[kerberos]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KerberosSettings {
    /// Holds the key of `HTTP/this.host@REALM`.
    pub(crate) keytab: PathBuf,
    /// Realms whose users are known by their names alone; others keep `@REALM`.
    pub(crate) realms: Vec<String>,
    /// Ask the directory for the groups of these users.
    #[serde(default = "yes")]
    pub(crate) directory_groups: bool,
}

fn yes() -> bool {
    true
}

fn a_minute() -> Duration {
    Duration::from_secs(60)
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn sub() -> String {
    "sub".to_owned()
}

fn groups() -> String {
    "groups".to_owned()
}

/// Signatures that only the issuer can make.
fn asymmetric() -> Vec<Algorithm> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    vec![RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA]
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map_err(serde::de::Error::custom)
}

impl AccessSettings {
    /// Reads the text of an access file. Paths in it are taken relative to `folder`.
    ///
    /// # Errors
    /// What is wrong with it, for a message that names the file. Values are not repeated where they may be secrets.
    pub(crate) fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        if text.len() > SETTINGS_MAX_BYTES {
            return Err(format!("it is longer than {SETTINGS_MAX_BYTES} bytes"));
        }
        let mut it: Self = toml::from_str(text).map_err(|e| explain_toml(text, &e))?;
        it.check()?;
        it.default.check().map_err(|why| format!("default: {why}"))?;
        it.status.check().map_err(|why| format!("status: {why}"))?;
        for rule in std::mem::take(&mut it.packages) {
            let access = PackageAccess { read: rule.read, publish: rule.publish };
            access.check().map_err(|why| format!("package {:?}: {why}", rule.name))?;
            it.rules.add(&rule.name, access)?;
        }
        for path in it.paths() {
            *path = folder.join(&path);
        }
        Ok(it)
    }

    /// What applies to `package` unless its own file says something.
    pub(crate) fn rule_of(&self, package: &str) -> &PackageAccess {
        self.rules.of(package).unwrap_or(&self.default)
    }

    fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let passwords = self.passwords.iter_mut().map(|p| &mut p.file);
        let tokens = self.tokens.iter_mut().flat_map(|t| t.jwks_file.iter_mut().chain(t.ca_file.iter_mut()));
        let directory = self.directory.iter_mut().flat_map(|d| d.ca_file.iter_mut().chain(d.password_file.iter_mut()));
        let kerberos = self.kerberos.iter_mut().map(|k| &mut k.keytab);
        passwords.chain(tokens).chain(directory).chain(kerberos)
    }

    fn check(&self) -> Result<(), String> {
        if self.cache.entries == 0 || self.cache.ttl.is_zero() {
            return Err("cache: entries and ttl must be more than nothing".to_owned());
        }
        let logins = &self.failed_logins;
        if logins.per_user == 0 || logins.per_address == 0 || logins.window.is_zero() {
            return Err("failed_logins: all three must be more than nothing, or nobody could log in".to_owned());
        }
        for token in &self.tokens {
            token.check().map_err(|why| format!("token of {:?}: {why}", token.issuer))?;
        }
        let issuers: Vec<&str> = self.tokens.iter().map(|t| t.issuer.as_str()).collect();
        if let Some(twice) = issuers.iter().enumerate().find(|(at, issuer)| issuers[..*at].contains(*issuer)) {
            return Err(format!("token: {:?} stands twice", twice.1));
        }
        if let Some(certificates) = &self.certificates {
            certificates.check().map_err(|why| format!("certificates: {why}"))?;
        }
        if let Some(directory) = &self.directory {
            directory.check().map_err(|why| format!("directory: {why}"))?;
        }
        let asks_directory = self.certificates.as_ref().is_some_and(|c| c.directory_groups)
            || self.kerberos.as_ref().is_some_and(|k| k.directory_groups);
        if asks_directory && self.directory.as_ref().is_none_or(|d| d.account.is_none()) {
            return Err("directory_groups needs a [directory] with an account that may look users up".to_owned());
        }
        if self.kerberos.as_ref().is_some_and(|k| k.realms.is_empty()) {
            return Err("kerberos: name at least one realm".to_owned());
        }
        Ok(())
    }
}

impl TokenSettings {
    fn check(&self) -> Result<(), String> {
        if self.jwks_file.is_some() == self.jwks_url.is_some() {
            return Err("give one of jwks_file and jwks_url".to_owned());
        }
        if let Some(url) = &self.jwks_url
            && url.scheme() != "https"
            && !(url.scheme() == "http" && is_loopback(url))
        {
            return Err("jwks_url must be https: whoever can change the keys can be anybody".to_owned());
        }
        if self.jwks_url.as_ref().is_some_and(names_somebody) {
            return Err("jwks_url must hold no user and no password".to_owned());
        }
        if self.issuer.is_empty() || self.audience.is_empty() || self.audience.iter().any(String::is_empty) {
            return Err("issuer and audience must be named; a token made for somebody else must not count".to_owned());
        }
        let symmetric = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
        if self.algorithms.is_empty() || self.algorithms.iter().any(|a| symmetric.contains(a)) {
            return Err("algorithms must be of public keys (RS…, PS…, ES…, EdDSA)".to_owned());
        }
        if self.user_claim.is_empty() || self.groups_claim.is_empty() {
            return Err("user_claim and groups_claim must be named".to_owned());
        }
        Ok(())
    }
}

impl CertificateSettings {
    fn check(&self) -> Result<(), String> {
        if self.user_from.is_none() && self.users.is_empty() {
            return Err("say user_from, or list users".to_owned());
        }
        for user in &self.users {
            if user.subject.is_some() == user.name.is_some() {
                return Err(format!("user {:?}: give one of subject and name", user.user));
            }
            if user.user.is_empty() {
                return Err("a user has no name".to_owned());
            }
        }
        Ok(())
    }
}

impl DirectorySettings {
    fn check(&self) -> Result<(), String> {
        if self.urls.is_empty() || self.base.is_empty() {
            return Err("urls and base must be named".to_owned());
        }
        for url in &self.urls {
            if names_somebody(url) {
                return Err("urls must hold no user and no password; see account and password_file".to_owned());
            }
            let usable = match url.scheme() {
                "ldaps" if self.start_tls => return Err("start_tls goes with ldap://, not with ldaps://".to_owned()),
                "ldaps" => true,
                "ldap" => self.start_tls || is_loopback(url),
                _ => false,
            };
            if !usable || url.host_str().is_none_or(str::is_empty) {
                return Err(format!("{url} cannot be used; write ldaps://HOST, or ldap://HOST with start_tls = true"));
            }
        }
        if self.account.is_some() != self.password_file.is_some() {
            return Err("account and password_file go together".to_owned());
        }
        match &self.bind_as {
            None if self.account.is_none() => {
                return Err("give bind_as, or an account that may look users up".to_owned());
            }
            Some(template) if template.matches("{user}").count() != 1 => {
                return Err("bind_as must hold {user} once".to_owned());
            }
            _ => {}
        }
        let attributes = self.user_attribute.iter().chain(&self.group_attribute);
        for attribute in attributes {
            if attribute.is_empty() || !attribute.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
                return Err(format!("{attribute:?} is no attribute"));
            }
        }
        if self.deadline.is_zero() {
            return Err("deadline must be more than nothing".to_owned());
        }
        Ok(())
    }
}

/// Whether a user or password is in `url`, which is shown in messages.
fn names_somebody(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// Whether `url` is on this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        // Of schemes that are not the web's, url leaves IPv4 addresses as names.
        Some(url::Host::Domain(name)) => {
            name == "localhost" || name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
        }
        None => false,
    }
}

#[cfg(test)]
mod tests;
