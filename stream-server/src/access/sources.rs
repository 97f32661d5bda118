//! Where identities come from, as one reading of the access file says.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use tokio::time::Instant;

use super::certificates;
use super::directory::{Directory, Member};
use super::failures::{Attempt, Failures};
use super::kerberos::Kerberos;
use super::passwords::{Checked, Passwords};
use super::per_package::PerPackage;
use super::remembered::{Check, Key, Outcome, Remembered};
use super::settings::AccessSettings;
use super::tokens::{TokenRefusal, Tokens};
use super::{AccessError, Action, Identity, Presented, Refusal, Secret, Source, name_is_usable};
use crate::content::{Content, PackagePath};
use crate::metrics::Metrics;

/// A login may take this long altogether. The sources have deadlines of their own; this one is for their sum.
const LOGIN_DEADLINE: Duration = Duration::from_secs(30);

/// Longest password that is looked at.
const PASSWORD_MAX_BYTES: usize = 1024;

pub(super) struct Sources {
    pub(super) settings: AccessSettings,
    passwords: Option<Passwords>,
    tokens: Tokens,
    directory: Option<Directory>,
    kerberos: Option<Kerberos>,
    per_package: Option<PerPackage>,
    remembered: Remembered,
    metrics: Metrics,
}

impl Sources {
    /// Reads the files that the settings name.
    pub(super) fn open(
        settings: AccessSettings,
        content: Option<Content>,
        metrics: Metrics,
    ) -> Result<Self, AccessError> {
        let passwords = settings.passwords.as_ref().map(|p| Passwords::open(&p.file)).transpose()?;
        let directory = settings.directory.as_ref().map(Directory::new).transpose()?;
        let kerberos = settings.kerberos.as_ref().map(Kerberos::new).transpose()?;
        let tokens = Tokens::new(&settings.tokens)?;
        let per_package = content.filter(|_| settings.package_files).map(PerPackage::new);
        let remembered = Remembered::new(settings.cache.entries);
        Ok(Self { passwords, tokens, directory, kerberos, per_package, remembered, settings, metrics })
    }

    /// Whether the rules of `package` let `identity` do `action`.
    pub(super) async fn allow(&self, identity: &Identity, package: &PackagePath, action: Action) -> bool {
        if let Some(per_package) = &self.per_package
            && let Some(own) = per_package.of(package).await
        {
            return own.allows(identity, action);
        }
        self.settings.rule_of(&package.to_string()).allows(identity, action)
    }

    pub(super) fn challenges(&self, private: bool) -> Vec<String> {
        let mut out = Vec::new();
        if self.kerberos.is_some() {
            out.push("Negotiate".to_owned());
        }
        if private || self.settings.allow_in_clear {
            if self.tokens.are_known() {
                out.push("Bearer realm=\"streamfs\"".to_owned());
            }
            if self.passwords.is_some() || self.directory.is_some() {
                out.push("Basic realm=\"streamfs\", charset=\"UTF-8\"".to_owned());
            }
        }
        out
    }

    pub(super) async fn identify(
        self: &Arc<Self>,
        presented: Presented,
        peer: IpAddr,
        failures: &Arc<Failures>,
    ) -> Outcome {
        match presented {
            Presented::Nothing => Ok(Identity::anonymous()),
            Presented::Basic { user, password } => self.password(user, password, peer, failures).await,
            Presented::Bearer(token) => self.token(token, peer, failures).await,
            Presented::Negotiate(token) => self.ticket(token, peer, failures).await,
            Presented::Certificate { subject, names } => self.certificate(&subject, &names).await,
        }
    }

    /// `identity` as it is now: itself while it is fresh, else as its source says now.
    ///
    /// # Errors
    /// `Wrong` if the source knows no such user any more, or cannot be asked without the client; `Unavailable` if the
    /// source does not answer.
    pub(super) async fn current<'a>(self: &Arc<Self>, identity: &'a Identity) -> Result<Cow<'a, Identity>, Refusal> {
        if !identity.is_stale(Instant::now()) {
            return Ok(Cow::Borrowed(identity));
        }
        let (groups, fresh_until) = match identity.source {
            // What the client presented has to be looked at again.
            Source::Nobody | Source::Token | Source::Certificate => return Err(Refusal::Wrong),
            Source::PasswordFile => {
                let Some(passwords) = &self.passwords else { return Err(Refusal::Wrong) };
                (passwords.groups(&identity.user).await.ok_or(Refusal::Wrong)?, self.fresh())
            }
            Source::Directory => {
                let member = self.member(&identity.user).await?.ok_or(Refusal::Wrong)?;
                (member.groups, member.fresh_until)
            }
        };
        Ok(Cow::Owned(Identity { groups, fresh_until, ..identity.clone() }))
    }

    async fn password(
        self: &Arc<Self>,
        user: String,
        password: Secret,
        peer: IpAddr,
        failures: &Arc<Failures>,
    ) -> Outcome {
        let typed = password.expose();
        if !name_is_usable(&user) || typed.is_empty() || typed.len() > PASSWORD_MAX_BYTES {
            // Counted like a wrong one, so that it is no way around the limit.
            failures.attempt(None, peer)?;
            return Err(Refusal::Wrong);
        }
        let key = self.remembered.key(&["basic", &user, typed]);
        let (me, for_check) = (self.clone(), failures.clone());
        let name = user.clone();
        let check = move || {
            async move {
                let attempt = for_check.attempt(Some(&name), peer)?;
                let checked = tokio::time::timeout(LOGIN_DEADLINE, me.check_password(&name, &password)).await;
                settle(attempt, checked.unwrap_or_else(|_| Err(late())))
            }
            .boxed()
        };
        let identity = self.or_check(key, check).await?;
        failures.succeeded(&user, peer);
        Ok(identity)
    }

    async fn check_password(&self, user: &str, password: &Secret) -> Outcome {
        if let Some(passwords) = &self.passwords {
            match passwords.check(user, password, self.directory.is_none()).await? {
                Checked::Right { user, groups } => return Ok(self.identity(user, groups, Source::PasswordFile)),
                Checked::Wrong => return Err(Refusal::Wrong),
                Checked::Unknown => {}
            }
        }
        let Some(directory) = &self.directory else { return Err(Refusal::Wrong) };
        self.metrics.directory_asked();
        let Member { user, groups } = directory.log_in(user, password).await?;
        Ok(self.identity(user, groups, Source::Directory))
    }

    async fn token(self: &Arc<Self>, token: Secret, peer: IpAddr, failures: &Arc<Failures>) -> Outcome {
        let key = self.remembered.key(&["bearer", token.expose()]);
        let (me, failures) = (self.clone(), failures.clone());
        let check = move || {
            async move {
                let attempt = failures.attempt(None, peer)?;
                let verified = match tokio::time::timeout(LOGIN_DEADLINE, me.tokens.verify(&token)).await {
                    Ok(verified) => verified,
                    Err(_) => return settle(attempt, Err(late())),
                };
                match verified {
                    Ok(verified) => {
                        attempt.forgive();
                        let mut identity = me.identity(verified.user, verified.groups.into(), Source::Token);
                        // Whichever is sooner; a token cannot be asked whether it is still so.
                        let expires = Instant::now() + verified.expires_in;
                        identity.fresh_until = identity.fresh_until.map(|until| until.min(expires));
                        Ok(identity)
                    }
                    // It was right once: nobody guesses signatures, and forgetful clients must not block their address.
                    Err(TokenRefusal::Outdated) => {
                        attempt.forgive();
                        Err(Refusal::Wrong)
                    }
                    Err(TokenRefusal::Wrong(why)) => {
                        tracing::debug!(target: "streamfs::login", %peer, why, "a token was refused");
                        Err(Refusal::Wrong)
                    }
                    Err(TokenRefusal::Unavailable(why)) => settle(attempt, Err(Refusal::Unavailable(why))),
                }
            }
            .boxed()
        };
        self.or_check(key, check).await
    }

    async fn ticket(self: &Arc<Self>, token: Vec<u8>, peer: IpAddr, failures: &Arc<Failures>) -> Outcome {
        let Some(kerberos) = &self.kerberos else { return Err(Refusal::Wrong) };
        let attempt = failures.attempt(None, peer)?;
        // Never remembered: a ticket is good once, which the Kerberos library sees to.
        let accepted = match kerberos.accept(token).await {
            Ok(accepted) => accepted,
            Err(refusal) => return settle(attempt, Err(refusal)),
        };
        attempt.forgive();
        let mut identity = self.identity(accepted.user, Arc::new([]), Source::Directory);
        if self.settings.kerberos.as_ref().is_some_and(|k| k.directory_groups)
            && let Some(member) = self.member(&identity.user).await?
        {
            // As old as what was remembered: groups must not get a second time to live.
            (identity.groups, identity.fresh_until) = (member.groups, member.fresh_until);
        }
        identity.reply = accepted.reply.map(|reply| format!("Negotiate {}", STANDARD.encode(reply)).into());
        Ok(identity)
    }

    async fn certificate(self: &Arc<Self>, subject: &str, names: &[String]) -> Outcome {
        let Some(settings) = &self.settings.certificates else { return Ok(Identity::anonymous()) };
        // A certificate that nobody is known by lets its holder still log in otherwise.
        let Some(user) = certificates::holder(settings, subject, names) else { return Ok(Identity::anonymous()) };
        let (groups, fresh_until) = self.groups_of_holder(&user).await?;
        Ok(Identity { fresh_until, ..self.identity(user, groups, Source::Certificate) })
    }

    /// The groups of a certificate's holder: those listed, and the directory's if it is to be asked. And until when
    /// that is to be believed.
    async fn groups_of_holder(self: &Arc<Self>, user: &str) -> Result<(Arc<[String]>, Option<Instant>), Refusal> {
        let Some(settings) = &self.settings.certificates else { return Err(Refusal::Wrong) };
        let listed = settings.users.iter().filter(|listed| listed.user == user);
        let mut groups: Vec<String> = listed.flat_map(|listed| listed.groups.iter().cloned()).collect();
        let mut fresh_until = self.fresh();
        if settings.directory_groups
            && let Some(member) = self.member(user).await?
        {
            groups.extend(member.groups.iter().cloned());
            fresh_until = member.fresh_until;
        }
        Ok((groups.into(), fresh_until))
    }

    /// A user as the directory knows it, remembered for the time to live; `None` if it knows no such user.
    async fn member(self: &Arc<Self>, user: &str) -> Result<Option<Identity>, Refusal> {
        if !self.directory.as_ref().is_some_and(Directory::can_look_up) {
            return Ok(None);
        }
        let key = self.remembered.key(&["member", user]);
        let (me, name) = (self.clone(), user.to_owned());
        let check = move || {
            async move {
                let Some(directory) = &me.directory else { return Err(Refusal::Wrong) };
                me.metrics.directory_asked();
                Ok(match directory.look_up(&name).await? {
                    Some(member) => me.identity(member.user, member.groups, Source::Directory),
                    // That there is none is remembered, too.
                    None => Identity { fresh_until: me.fresh(), ..Identity::anonymous() },
                })
            }
            .boxed()
        };
        let found = self.or_check(key, check).await?;
        Ok((!found.is_anonymous()).then_some(found))
    }

    async fn or_check(&self, key: Key, check: impl FnOnce() -> Check) -> Outcome {
        if let Some(identity) = self.remembered.get(&key) {
            self.metrics.identity_remembered();
            return Ok(identity);
        }
        self.remembered.or_check(key, check).await
    }

    fn identity(&self, user: String, groups: Arc<[String]>, source: Source) -> Identity {
        Identity { user, groups, source, fresh_until: self.fresh(), reply: None }
    }

    fn fresh(&self) -> Option<Instant> {
        Some(Instant::now() + self.settings.cache.ttl)
    }
}

/// Counts an attempt as failed only if the credentials are wrong.
fn settle(attempt: Attempt, outcome: Outcome) -> Outcome {
    if !matches!(outcome, Err(Refusal::Wrong)) {
        attempt.forgive();
    }
    outcome
}

fn late() -> Refusal {
    Refusal::Unavailable(format!("it was not known within {LOGIN_DEADLINE:?} who it is"))
}
