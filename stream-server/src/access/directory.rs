//! Users and groups of Active Directory and other LDAP directories.
//!
//! A login binds as the user, over TLS, on a connection of its own. Who that was is then asked of the directory, never
//! taken from what was typed, and so are the groups. Without a password (Kerberos, certificates) an account of the
//! server looks the user up.
//!
//! In Active Directory the groups are `tokenGroups`, which holds nested ones, the primary one, and nothing twice; one
//! more question turns the identifiers into names. In other directories groups of groups are followed step by step.

mod search;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ldap3::exop::WhoAmI;
use ldap3::{Ldap, LdapConnAsync, LdapConnSettings, LdapError, Scope, SearchEntry, SearchOptions};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::{Mutex, Semaphore};
use url::Url;

use self::search::{Schema, Who, is_sid};
use super::secret::read_secret;
use super::settings::{DirectoryKind, DirectorySettings};
use super::{AccessError, Refusal, Secret};

/// Logins that talk to the directory at the same time.
const LOGINS_AT_ONCE_MAX: usize = 16;

/// Identifiers or members in one question: far below the 10,000 values and the message sizes that servers take.
const PER_QUESTION: usize = 50;

/// Steps from a user through groups of groups. Deeper ones are a loop, or nobody knows what they mean.
const NESTING_MAX: usize = 10;

/// Most groups of one user.
const GROUPS_MAX: usize = 2_000;

/// Connecting to one server may take this long, before the next is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// protocolError (RFC 4511 §A.1): also how an unknown operation is answered.
const PROTOCOL_ERROR: u32 = 2;

/// invalidCredentials (RFC 4511 §A.1).
const INVALID_CREDENTIALS: u32 = 49;
/// Results of a bind that say something of the user and nothing of the server: no such object, invalid syntax of the
/// name, inappropriate authentication, insufficient rights, unwilling to perform, constraint violation (a locked
/// account).
const REFUSED_BINDS: [u32; 7] = [INVALID_CREDENTIALS, 32, 34, 48, 50, 53, 19];

/// A user as the directory knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// In lower case: directories do not tell cases apart.
    pub(super) user: String,
    pub(super) groups: Arc<[String]>,
}

/// A directory to ask.
pub(super) struct Directory {
    schema: Schema,
    urls: Vec<Url>,
    /// Of `urls`, the one that answered last.
    preferred: AtomicUsize,
    connection: LdapConnSettings,
    account: Option<(String, Secret)>,
    /// The account's connection, kept.
    service: Mutex<Option<Ldap>>,
    turns: Semaphore,
    deadline: Duration,
}

/// A user's entry.
struct Found {
    dn: String,
    user: String,
}

impl Directory {
    /// Reads certificates and the account's password; connects to nothing yet.
    pub(super) fn new(settings: &DirectorySettings) -> Result<Self, AccessError> {
        let account = match (&settings.account, &settings.password_file) {
            (Some(account), Some(file)) => Some((account.clone(), read_secret(file)?)),
            _ => None,
        };
        let connection = LdapConnSettings::new()
            .set_conn_timeout(CONNECT_TIMEOUT.min(settings.deadline))
            .set_starttls(settings.start_tls)
            .set_config(Arc::new(tls(settings.ca_file.as_deref())?));
        Ok(Self {
            schema: Schema::new(settings),
            urls: settings.urls.clone(),
            preferred: AtomicUsize::new(0),
            connection,
            account,
            service: Mutex::new(None),
            turns: Semaphore::new(LOGINS_AT_ONCE_MAX),
            deadline: settings.deadline,
        })
    }

    /// Whether users can be looked up without their passwords.
    pub(super) fn can_look_up(&self) -> bool {
        self.account.is_some()
    }

    /// Checks a login and finds the user's groups.
    pub(super) async fn log_in(&self, user: &str, password: &Secret) -> Result<Member, Refusal> {
        // A bind with a name and no password succeeds as nobody (RFC 4513 §5.1.2).
        if password.is_empty() {
            return Err(Refusal::Wrong);
        }
        let work = async {
            let _turn = self.turns.acquire().await.map_err(|_| unavailable("it is shut"))?;
            self.log_in_now(user, password).await
        };
        tokio::time::timeout(self.deadline, work).await.unwrap_or_else(|_| Err(self.late()))
    }

    /// Finds a user and the user's groups; `None` if there is no such user, or not any more.
    pub(super) async fn look_up(&self, user: &str) -> Result<Option<Member>, Refusal> {
        let work = async {
            // A kept connection may have been closed since by the other side, which only shows when it is used.
            for fresh in [false, true] {
                let mut ldap = self.service(fresh).await?;
                match self.look_up_with(&mut ldap, user).await {
                    Err(Failure::Broken(_)) if !fresh => {}
                    result => return result.map_err(Failure::told),
                }
            }
            Err(unavailable("its connection broke"))
        };
        tokio::time::timeout(self.deadline, work).await.unwrap_or_else(|_| Err(self.late()))
    }

    async fn look_up_with(&self, ldap: &mut Ldap, user: &str) -> Result<Option<Member>, Failure> {
        match self.find(ldap, user).await? {
            Some(found) => Ok(Some(self.member(ldap, found).await?)),
            None => Ok(None),
        }
    }

    async fn log_in_now(&self, user: &str, password: &Secret) -> Result<Member, Refusal> {
        if self.account.is_some() {
            // The entry is found first, so that there is no doubt whom the password belongs to.
            let mut service = self.service(false).await?;
            let found = match self.find(&mut service, user).await {
                Err(Failure::Broken(_)) => {
                    service = self.service(true).await?;
                    self.find(&mut service, user).await
                }
                found => found,
            };
            let found = found.map_err(Failure::told)?.ok_or(Refusal::Wrong)?;
            self.bind(&found.dn, password).await?;
            return self.member(&mut service, found).await.map_err(Failure::told);
        }
        let name = self.schema.bind_name(user).ok_or(Refusal::Wrong)?;
        let mut own = self.bind(&name, password).await?;
        let found = self.find_self(&mut own, user).await.map_err(Failure::told)?.ok_or(Refusal::Wrong)?;
        self.member(&mut own, found).await.map_err(Failure::told)
    }

    /// Binds on a new connection.
    async fn bind(&self, name: &str, password: &Secret) -> Result<Ldap, Refusal> {
        let mut ldap = self.connect().await?;
        let result = ldap.simple_bind(name, password.expose()).await.map_err(|e| Failure::from(e).told())?;
        match result.rc {
            0 => Ok(ldap),
            code if REFUSED_BINDS.contains(&code) => Err(Refusal::Wrong),
            code => Err(unavailable(&format!("it answered a bind with result {code}"))),
        }
    }

    /// A connection to the first server that can be reached.
    async fn connect(&self) -> Result<Ldap, Refusal> {
        let start = self.preferred.load(Ordering::Relaxed);
        let mut last = String::new();
        for step in 0..self.urls.len() {
            let at = (start + step) % self.urls.len();
            let url = &self.urls[at];
            match LdapConnAsync::with_settings(self.connection.clone(), url.as_str()).await {
                Ok((connection, ldap)) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    tokio::spawn(async move {
                        if let Err(error) = connection.drive().await {
                            tracing::debug!(%error, "a connection to the directory ended");
                        }
                    });
                    return Ok(ldap);
                }
                Err(error) => {
                    tracing::warn!(%url, %error, "cannot connect to the directory");
                    last = format!("cannot connect to {url}: {error}");
                }
            }
        }
        Err(unavailable(&last))
    }

    /// The account's connection: the one that is kept, or a new one.
    async fn service(&self, fresh: bool) -> Result<Ldap, Refusal> {
        let (name, password) = self.account.as_ref().ok_or_else(|| unavailable("no account is configured"))?;
        let mut kept = self.service.lock().await;
        if let Some(ldap) = kept.as_mut()
            && !fresh
            && !ldap.is_closed()
        {
            return Ok(ldap.clone());
        }
        *kept = None;
        let ldap = self.bind(name, password).await.map_err(|refusal| match refusal {
            // It is the server's own password that is wrong, not the client's.
            Refusal::Wrong => unavailable("it refuses the account of the access file"),
            other => other,
        })?;
        *kept = Some(ldap.clone());
        Ok(ldap)
    }

    /// The entry of the user who typed `user`.
    async fn find(&self, ldap: &mut Ldap, user: &str) -> Result<Option<Found>, Failure> {
        let filter = self.schema.user_filter(user);
        let attributes = [self.schema.user_attribute.as_str()];
        let mut entries = self.search(ldap, &self.schema.base, Scope::Subtree, &filter, &attributes, 2).await?;
        // Of two, nobody knows which is meant.
        match (entries.pop(), entries.pop()) {
            (Some(only), None) => Ok(self.found(only)),
            _ => Ok(None),
        }
    }

    /// The entry of the user that the connection is bound as.
    async fn find_self(&self, ldap: &mut Ldap, typed: &str) -> Result<Option<Found>, Failure> {
        let answer = ldap.with_timeout(self.deadline).extended(WhoAmI).await?;
        let (answer, _) = match answer.success() {
            // Samba does not have this question.
            Err(LdapError::LdapResult { result })
                if result.rc == PROTOCOL_ERROR && self.schema.kind == DirectoryKind::ActiveDirectory =>
            {
                return self.find_by_token(ldap).await;
            }
            answer => answer?,
        };
        let authzid = String::from_utf8(answer.val.unwrap_or_default()).unwrap_or_default();
        match self.schema.who(&authzid) {
            Some(Who::Dn(dn)) => {
                let attributes = [self.schema.user_attribute.as_str()];
                let mut entries = self.search(ldap, &dn, Scope::Base, "(objectClass=*)", &attributes, 1).await?;
                Ok(entries.pop().and_then(|entry| self.found(entry)))
            }
            Some(Who::Name(name)) => self.find(ldap, &name).await,
            None => {
                tracing::warn!(user = typed, "the directory does not say who was bound; configure an account");
                Ok(None)
            }
        }
    }

    /// The same by the identifiers that the server holds the connection's user to have: the user's own and groups'. Users
    /// and groups have none in common, so the one user among them is who it is.
    async fn find_by_token(&self, ldap: &mut Ldap) -> Result<Option<Found>, Failure> {
        let entries = self.search(ldap, "", Scope::Base, "(objectClass=*)", &["tokenGroups"], 1).await?;
        let sids = entries.iter().flat_map(|entry| values(entry, "tokenGroups"));
        let sids: Vec<Vec<u8>> = sids.filter(|sid| is_sid(sid)).take(GROUPS_MAX).collect();
        let mut users = Vec::new();
        for some in sids.chunks(PER_QUESTION) {
            let (filter, attribute) = (Schema::user_of_sids_filter(some), self.schema.user_attribute.as_str());
            users.extend(self.search(ldap, &self.schema.base, Scope::Subtree, &filter, &[attribute], 2).await?);
        }
        match (users.pop(), users.pop()) {
            (Some(only), None) => Ok(self.found(only)),
            _ => Ok(None),
        }
    }

    fn found(&self, entry: SearchEntry) -> Option<Found> {
        let name = values(&entry, &self.schema.user_attribute).into_iter().next()?;
        let user = String::from_utf8(name).ok()?.to_lowercase();
        super::name_is_usable(&user).then_some(Found { dn: entry.dn, user })
    }

    async fn member(&self, ldap: &mut Ldap, found: Found) -> Result<Member, Failure> {
        let mut groups = match self.schema.kind {
            DirectoryKind::ActiveDirectory if self.schema.nested => self.token_groups(ldap, &found).await?,
            _ => self.walk_groups(ldap, &found).await?,
        };
        groups.sort();
        groups.dedup();
        Ok(Member { user: found.user, groups: groups.into() })
    }

    async fn token_groups(&self, ldap: &mut Ldap, found: &Found) -> Result<Vec<String>, Failure> {
        // It is computed, and only for a question about one entry.
        let entries = self.search(ldap, &found.dn, Scope::Base, "(objectClass=*)", &["tokenGroups"], 1).await?;
        let sids = entries.iter().flat_map(|entry| values(entry, "tokenGroups"));
        let sids: Vec<Vec<u8>> = sids.filter(|sid| is_sid(sid)).take(GROUPS_MAX).collect();
        let mut names = Vec::new();
        for some in sids.chunks(PER_QUESTION) {
            let filter = Schema::sids_filter(some);
            names.extend(self.groups(ldap, &filter).await?.into_iter().map(|(_, name)| name));
        }
        Ok(names)
    }

    async fn walk_groups(&self, ldap: &mut Ldap, found: &Found) -> Result<Vec<String>, Failure> {
        let mut seen = HashSet::new();
        let mut names = Vec::new();
        let mut members = vec![found.dn.clone()];
        let mut uid = Some(found.user.as_str());
        let steps = if self.schema.nested { NESTING_MAX } else { 1 };
        for _ in 0..steps {
            let mut next = Vec::new();
            for some in members.chunks(PER_QUESTION) {
                let filter = self.schema.groups_filter(some, uid.take());
                for (dn, name) in self.groups(ldap, &filter).await? {
                    if seen.len() < GROUPS_MAX && seen.insert(dn.to_lowercase()) {
                        names.push(name);
                        next.push(dn);
                    }
                }
            }
            if next.is_empty() {
                break;
            }
            members = next;
        }
        Ok(names)
    }

    /// Distinguished names and names, the latter in lower case.
    async fn groups(&self, ldap: &mut Ldap, filter: &str) -> Result<Vec<(String, String)>, Failure> {
        let attribute = self.schema.group_attribute.as_str();
        let limit = i32::try_from(GROUPS_MAX).unwrap_or(i32::MAX);
        let entries = self.search(ldap, &self.schema.base, Scope::Subtree, filter, &[attribute], limit).await?;
        let named = entries.into_iter().filter_map(|entry| {
            let name = values(&entry, attribute).into_iter().next()?;
            Some((entry.dn, String::from_utf8(name).ok()?.to_lowercase()))
        });
        Ok(named.collect())
    }

    async fn search(
        &self,
        ldap: &mut Ldap,
        base: &str,
        scope: Scope,
        filter: &str,
        attributes: &[&str],
        limit: i32,
    ) -> Result<Vec<SearchEntry>, Failure> {
        ldap.with_search_options(SearchOptions::new().sizelimit(limit)).with_timeout(self.deadline);
        let result = ldap.search(base, scope, filter, attributes.to_vec()).await?;
        let (entries, outcome) = (result.0, result.1);
        match outcome.rc {
            // More than the limit: enough to know that, for whoever set it.
            0 | 4 => Ok(entries.into_iter().filter(|e| !e.is_ref()).map(SearchEntry::construct).collect()),
            // No such object.
            32 => Ok(Vec::new()),
            _ => Err(Failure::Refused(outcome.to_string())),
        }
    }

    fn late(&self) -> Refusal {
        unavailable(&format!("it did not answer within {:?}", self.deadline))
    }
}

/// Values of an attribute. `ldap3` sorts them by whether they happen to be text.
fn values(entry: &SearchEntry, attribute: &str) -> Vec<Vec<u8>> {
    let is_it = |name: &&String| name.eq_ignore_ascii_case(attribute);
    let text = entry.attrs.iter().filter(|(name, _)| is_it(name)).flat_map(|(_, values)| values.iter());
    let binary = entry.bin_attrs.iter().filter(|(name, _)| is_it(name)).flat_map(|(_, values)| values.iter());
    text.map(|value| value.as_bytes().to_vec()).chain(binary.cloned()).collect()
}

/// Why a question was not answered.
#[derive(Debug)]
enum Failure {
    /// The connection; another may do.
    Broken(String),
    /// The directory does not want to.
    Refused(String),
}

impl Failure {
    fn told(self) -> Refusal {
        let (Failure::Broken(why) | Failure::Refused(why)) = self;
        unavailable(&why)
    }
}

impl From<LdapError> for Failure {
    fn from(error: LdapError) -> Self {
        match &error {
            LdapError::LdapResult { .. } => Failure::Refused(error.to_string()),
            _ => Failure::Broken(error.to_string()),
        }
    }
}

fn unavailable(why: &str) -> Refusal {
    Refusal::Unavailable(format!("the directory cannot be asked: {why}"))
}

/// The system's certificate authorities, and those of a file.
fn tls(ca_file: Option<&Path>) -> Result<rustls::ClientConfig, AccessError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let failed = |why: String| AccessError::about(path, why);
        let pem = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
        let mut any = false;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|e| failed(format!("it is no PEM: {e:?}")))?;
            roots.add(certificate).map_err(|e| failed(e.to_string()))?;
            any = true;
        }
        if !any {
            return Err(failed("it holds no certificates in PEM".to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| AccessError::Content(format!("cannot set up TLS for the directory: {e}")))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests;
