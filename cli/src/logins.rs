//! What `streamfs login` keeps: for which servers there are credentials, and where the secrets are.
//!
//! ```toml
//! # ~/.config/streamfs/logins.toml, mode 0600
//! [[login]]
//! url = "https://apps.example/content"
//! user = "ann"                   # none: a token
//! store = "keyring"
//!
//! [[login]]
//! url = "https://ci.example"
//! store = "file"
//! secret = "…"
//! ```
//!
//! Secrets are in the desktop's keyring where there is one, else in this file. A keyring is asked only for a location
//! that needs it, and once for each command.

mod keyring;

use std::collections::HashMap;
use std::fmt;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use fs_core::config::{Credentials, explain_toml, nearest_origin};
use fs_core::location::PackageLocation;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use stream_server::Secret;

pub(crate) use self::keyring::{Keyring, SystemKeyring};

/// Longest file: some thousand logins with tokens.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// Where a secret is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Store {
    /// The desktop's keyring
    Keyring,
    /// A file that only the user may read
    File,
    /// Nowhere: the user's Kerberos tickets are the login
    #[value(skip)]
    Ticket,
}

/// One login. `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    /// A content root, a folder of them or a package, normalized.
    pub(crate) url: String,
    /// `None`: the secret is a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    pub(crate) store: Store,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, user, store, secret: _ } = self;
        f.debug_struct("Login").field("url", url).field("user", user).field("store", store).finish_non_exhaustive()
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LoginFile {
    #[serde(rename = "login")]
    logins: Vec<Login>,
}

/// All logins of the user.
#[derive(Clone)]
pub(crate) struct Logins {
    /// `None`: nothing says where the user's files are; then there are no logins.
    path: Option<PathBuf>,
    logins: Vec<Login>,
    keyring: Arc<dyn Keyring>,
    /// What the keyring said, by URL.
    asked: Arc<Mutex<HashMap<String, Credentials>>>,
}

impl fmt::Debug for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.logins).finish()
    }
}

impl Logins {
    /// Reads the file at `path`; one that does not exist has no logins.
    ///
    /// # Errors
    /// If it cannot be read or understood, or others may read it.
    pub(crate) fn read(path: Option<PathBuf>, keyring: Arc<dyn Keyring>) -> anyhow::Result<Self> {
        let logins = match &path {
            Some(path) => read(path).with_context(|| format!("cannot use the logins in {}", path.display()))?,
            None => Vec::new(),
        };
        Ok(Self { path, logins, keyring, asked: Arc::default() })
    }

    /// All of them, in the order of their making.
    pub(crate) fn all(&self) -> &[Login] {
        &self.logins
    }

    /// Credentials for `location`, if there is a login for it. A keyring that does not give its secret is warned of:
    /// the server will say what is missing.
    pub(crate) fn credentials(&self, location: &PackageLocation) -> Credentials {
        let urls = self.logins.iter().map(|login| login.url.as_str());
        let Some(url) = nearest_origin(urls, location) else { return Credentials::None };
        let Some(login) = self.logins.iter().find(|login| login.url == url) else { return Credentials::None };
        let mut asked = self.asked.lock();
        if let Some(known) = asked.get(url) {
            return known.clone();
        }
        if login.store == Store::Ticket {
            return Credentials::Kerberos;
        }
        let credentials = match self.secret(login) {
            Ok(secret) => credentials(login.user.clone(), &secret),
            Err(error) => {
                crate::report::warn(format_args!(
                    "the login for {url} cannot be used: {error:#}; run: streamfs login {url}"
                ));
                Credentials::None
            }
        };
        asked.insert(url.to_owned(), credentials.clone());
        credentials
    }

    fn secret(&self, login: &Login) -> anyhow::Result<Secret> {
        match (login.store, &login.secret) {
            (Store::Keyring, _) => self.keyring.get(&account(login)),
            (Store::File, Some(secret)) => Ok(secret.as_str().into()),
            (Store::File, None) => bail!("its secret is missing from the file"),
            (Store::Ticket, _) => bail!("it has no secret"),
        }
    }

    /// Keeps a login in place of one for the same URL. Without a wish, the secret goes into the keyring, or into the
    /// file if there is no keyring. Tells where it went.
    ///
    /// # Errors
    /// If it cannot be kept.
    pub(crate) fn keep(
        &mut self,
        url: String,
        user: Option<String>,
        secret: &Secret,
        wish: Option<Store>,
    ) -> anyhow::Result<Store> {
        let path = self.path.clone().context("HOME is not set; set it, or XDG_CONFIG_HOME")?;
        let mut login = Login { url, user, store: Store::Keyring, secret: None };
        if wish != Some(Store::File) {
            match self.keyring.set(&account(&login), secret) {
                Ok(()) => {}
                Err(error) if wish.is_none() => {
                    tracing::info!(error = format!("{error:#}"), "the keyring cannot be used");
                    login.store = Store::File;
                }
                Err(error) => {
                    return Err(error.context("cannot keep the secret in the keyring; --store file keeps it in a file"));
                }
            }
        } else {
            login.store = Store::File;
        }
        if login.store == Store::File {
            login.secret = Some(secret.expose().to_owned());
        }
        let store = login.store;
        self.forget(&login.url.clone(), Some(&login));
        self.logins.push(login);
        write(&path, &self.logins)?;
        Ok(store)
    }

    /// Keeps that `url` is reached with Kerberos tickets.
    ///
    /// # Errors
    /// If it cannot be kept.
    pub(crate) fn keep_ticket(&mut self, url: String) -> anyhow::Result<()> {
        let path = self.path.clone().context("HOME is not set; set it, or XDG_CONFIG_HOME")?;
        self.forget(&url, None);
        self.logins.push(Login { url, user: None, store: Store::Ticket, secret: None });
        write(&path, &self.logins)
    }

    /// Forgets the login for `url`, and says whether there was one.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn remove(&mut self, url: &str) -> anyhow::Result<bool> {
        let known = self.forget(url, None);
        if known && let Some(path) = &self.path {
            write(path, &self.logins)?;
        }
        Ok(known)
    }

    /// Takes the logins for `url` out, and their secrets out of the keyring unless `kept` is there under the same name.
    fn forget(&mut self, url: &str, kept: Option<&Login>) -> bool {
        let (old, others): (Vec<Login>, Vec<Login>) = self.logins.drain(..).partition(|login| login.url == url);
        self.logins = others;
        self.asked.lock().clear();
        for login in &old {
            let replaced = kept.is_some_and(|kept| kept.store == Store::Keyring && account(kept) == account(login));
            if login.store == Store::Keyring
                && !replaced
                && let Err(error) = self.keyring.delete(&account(login))
            {
                crate::report::warn(format_args!("the secret for {url} stays in the keyring: {error:#}"));
            }
        }
        !old.is_empty()
    }
}

/// Under which name a login's secret is in the keyring.
fn account(login: &Login) -> String {
    match &login.user {
        Some(user) => format!("{user} at {}", login.url),
        None => format!("token for {}", login.url),
    }
}

/// What is sent for a user, or with a token.
pub(crate) fn credentials(user: Option<String>, secret: &Secret) -> Credentials {
    let secret = secret.expose().to_owned();
    match user {
        Some(user) => Credentials::Basic { user, password: secret },
        None => Credentials::Bearer(secret),
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<Login>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    if file.metadata()?.mode() & 0o077 != 0 {
        bail!("others may read it; run: chmod 600 {}", path.display());
    }
    let mut text = String::new();
    file.take(FILE_MAX_BYTES).read_to_string(&mut text)?;
    let file: LoginFile = toml::from_str(&text).map_err(|e| anyhow::anyhow!(explain_toml(&text, &e)))?;
    Ok(file.logins)
}

/// Replaces the file whole; nobody else can read it at any moment.
fn write(path: &Path, logins: &[Login]) -> anyhow::Result<()> {
    let what = || format!("cannot write the logins to {}", path.display());
    let folder = path.parent().with_context(what)?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(what)?;
    let text = toml::to_string(&LoginFile { logins: logins.to_vec() }).with_context(what)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(what)?;
    file.write_all(text.as_bytes()).with_context(what)?;
    file.as_file().sync_all().with_context(what)?;
    file.persist(path).with_context(what)?;
    Ok(())
}

#[cfg(test)]
mod tests;
