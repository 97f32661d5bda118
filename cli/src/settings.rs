//! What applies in the end: flag, else environment, else settings file, else default.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use fs_core::config::{
    CredentialSource, Credentials, OriginConfig, OriginTable, RetryPolicy, SETTINGS_MAX_BYTES, SecretSource,
    ServeSettings, Settings,
};
use fs_core::location::PackageLocation;
use fs_core::mount::prefetch::{DEFAULT_BUDGET_BYTES, PrefetchPolicy};

use crate::logins::{Logins, SystemKeyring};

/// Most bytes of blocks on disk unless told otherwise: several large applications.
const DEFAULT_CACHE_SIZE_BYTES: u64 = 20 << 30;
/// Most bytes of decoded blocks in memory unless told otherwise: some hundred blocks at their largest.
const DEFAULT_MEMORY_BYTES: u64 = 64 << 20;
const DEFAULT_POLL_INTERVAL: Duration = Duration::from_secs(60);
/// Long enough that a script of several commands finds the same agent.
const DEFAULT_IDLE_EXIT: Duration = Duration::from_secs(10);
/// A token or password is one line; a longer file is the wrong file.
const SECRET_MAX_BYTES: u64 = 64 << 10;

/// Environment variables, so that tests need not change the process's.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Reads the process's environment; an empty variable counts as unset.
pub fn process_environment(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The settings in force for one command.
#[derive(Debug, Clone)]
pub struct InForce {
    /// Folder of the cache; only commands that use the agent need one.
    cache_dir: Option<PathBuf>,
    /// Most bytes of blocks on disk.
    pub cache_size_bytes: u64,
    /// Bytes of the disk that stay free; `None`: 1 GiB or 5 % of it, whichever is smaller.
    pub keep_free_bytes: Option<u64>,
    /// Most bytes of decoded blocks in memory.
    pub memory_bytes: u64,
    /// How often a mounted package is asked for a newer version.
    pub poll_interval: Duration,
    /// How launches without a launch set are helped.
    pub prefetch: PrefetchPolicy,
    /// After how long without mounts and requests the agent ends.
    pub idle_exit: Duration,
    /// What `serve` serves, where, and within what limits.
    pub serving: ServeSettings,
    /// Folder of the private signing keys; only publishers need one.
    keys_dir: Option<PathBuf>,
    origins: OriginTable,
    logins: Logins,
    environment_credentials: Credentials,
}

impl InForce {
    /// Puts together what applies, `config` being the settings file of the command line.
    ///
    /// # Errors
    /// A settings file that cannot be read or understood, secrets that others may read, half of a user and password.
    pub fn load(config: Option<&Path>, environment: Environment<'_>) -> anyhow::Result<Self> {
        let settings = match find_file(config, environment) {
            Some(path) => {
                read_settings(&path).with_context(|| format!("cannot use the settings file {}", path.display()))?
            }
            None => Settings::default(),
        };
        let home = || environment("HOME").map(PathBuf::from);
        let base = |variable: &str, below_home: &str| {
            environment(variable)
                .map(PathBuf::from)
                .filter(|p| p.is_absolute())
                .or_else(|| Some(home()?.join(below_home)))
        };
        let cache_default = || {
            if rustix::process::geteuid().is_root() {
                return Some(PathBuf::from("/var/cache/streamfs"));
            }
            Some(base("XDG_CACHE_HOME", ".cache")?.join("streamfs"))
        };
        let absolute =
            |path: PathBuf| std::path::absolute(&path).with_context(|| format!("cannot use {}", path.display()));
        let cache_dir = environment("STREAMFS_CACHE")
            .map(PathBuf::from)
            .or(settings.agent.cache_dir.clone())
            .or_else(cache_default);
        let keys_dir = environment("STREAMFS_KEYS")
            .map(PathBuf::from)
            .or(settings.publish.keys_dir.clone())
            .or_else(|| Some(base("XDG_CONFIG_HOME", ".config")?.join("streamfs/keys")));
        let logins = base("XDG_CONFIG_HOME", ".config").map(|folder| folder.join("streamfs/logins.toml"));
        let fallback = OriginConfig { retry: retry_policy(&settings), ..OriginConfig::default() };
        let origins = OriginTable::new(fallback.clone());
        for rule in &settings.origins {
            let credentials = match &rule.credentials {
                Some(source) => {
                    read_credentials(source).with_context(|| format!("cannot use the origin {}", rule.url))?
                }
                None => Credentials::None,
            };
            let ca_files = rule.ca_file.iter().cloned().collect();
            let allow_plaintext_credentials = rule.allow_plaintext_credentials;
            let report_launches = rule.report_launches;
            let config = OriginConfig {
                ca_files,
                credentials,
                allow_plaintext_credentials,
                report_launches,
                ..fallback.clone()
            };
            origins.set(&rule.url, config)?;
        }
        Ok(Self {
            cache_dir: cache_dir.map(absolute).transpose()?,
            cache_size_bytes: settings.agent.cache_size.unwrap_or(DEFAULT_CACHE_SIZE_BYTES),
            keep_free_bytes: settings.agent.keep_free,
            memory_bytes: settings.agent.memory.unwrap_or(DEFAULT_MEMORY_BYTES),
            poll_interval: settings.agent.poll_interval.unwrap_or(DEFAULT_POLL_INTERVAL),
            prefetch: PrefetchPolicy {
                prefetch: settings.agent.prefetch.unwrap_or_default(),
                learn: settings.agent.learn.unwrap_or(true),
                budget_bytes: settings.agent.prefetch_budget.unwrap_or(DEFAULT_BUDGET_BYTES),
                ..PrefetchPolicy::default()
            },
            idle_exit: settings.agent.idle_exit.unwrap_or(DEFAULT_IDLE_EXIT),
            serving: settings.server,
            keys_dir: keys_dir.map(absolute).transpose()?,
            origins,
            logins: Logins::read(logins, Arc::new(SystemKeyring))?,
            environment_credentials: environment_credentials(environment)?,
        })
    }

    /// Uses the folder that was named on the command line.
    ///
    /// # Errors
    /// If the current folder is unknown.
    pub fn set_cache_dir(&mut self, dir: &Path) -> anyhow::Result<()> {
        let dir = std::path::absolute(dir).with_context(|| format!("cannot use {}", dir.display()))?;
        self.cache_dir = Some(dir);
        Ok(())
    }

    /// Folder of the cache, absolute.
    ///
    /// # Errors
    /// If nothing says where it is.
    pub fn cache_dir(&self) -> anyhow::Result<&Path> {
        self.cache_dir.as_deref().context("HOME is not set; set it, or STREAMFS_CACHE, or give --cache")
    }

    /// Folder of the private signing keys, absolute.
    ///
    /// # Errors
    /// If nothing says where it is.
    pub fn keys_dir(&self) -> anyhow::Result<&Path> {
        self.keys_dir.as_deref().context("HOME is not set; set it, or STREAMFS_KEYS, or give --keys")
    }

    /// How the package at `location` is reached. Credentials in the environment were set for this very command, so
    /// they go before the settings file's, and those before what `login` kept.
    pub fn origin_config(&self, location: &PackageLocation) -> OriginConfig {
        let mut config = self.origins.lookup(location);
        if self.environment_credentials != Credentials::None {
            config.credentials = self.environment_credentials.clone();
        } else if config.credentials == Credentials::None {
            config.credentials = self.logins.credentials(location);
        }
        config
    }

    /// How the package at `location` is reached, apart from who asks.
    pub(crate) fn origin_without_credentials(&self, location: &PackageLocation) -> OriginConfig {
        OriginConfig { credentials: Credentials::None, ..self.origins.lookup(location) }
    }

    /// What `login` keeps.
    pub(crate) fn logins_mut(&mut self) -> &mut Logins {
        &mut self.logins
    }
}

fn retry_policy(settings: &Settings) -> RetryPolicy {
    let default = RetryPolicy::default();
    RetryPolicy {
        read_deadline: settings.agent.read_deadline.unwrap_or(default.read_deadline),
        stall_timeout: settings.agent.stall_timeout.unwrap_or(default.stall_timeout),
        connect_timeout: settings.agent.connect_timeout.unwrap_or(default.connect_timeout),
        ..default
    }
}

/// The settings file: the one that was named (it must exist), else the user's, else the system's.
fn find_file(named: Option<&Path>, environment: Environment<'_>) -> Option<PathBuf> {
    if let Some(path) = named.map(Path::to_owned).or_else(|| environment("STREAMFS_CONFIG").map(PathBuf::from)) {
        return Some(path);
    }
    let users = environment("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(environment("HOME")?).join(".config")));
    let candidates = [users.map(|base| base.join("streamfs/config.toml")), Some("/etc/streamfs/config.toml".into())];
    candidates.into_iter().flatten().find(|path| path.exists())
}

fn read_settings(path: &Path) -> anyhow::Result<Settings> {
    let file = File::open(path)?;
    let private = file.metadata()?.mode() & 0o077 == 0;
    let mut text = String::new();
    file.take(SETTINGS_MAX_BYTES as u64 + 1).read_to_string(&mut text)?;
    let mut settings = Settings::parse(&text)?;
    if !private && settings.origins.iter().filter_map(|o| o.credentials.as_ref()).any(CredentialSource::is_inline) {
        bail!("it holds a password or token and others may read it; run: chmod 600 {}", path.display());
    }
    // Paths in the file are relative to the file, not to wherever the command is run.
    let base = std::path::absolute(path)?.parent().map(Path::to_owned).unwrap_or_default();
    let rebase = |path: &mut PathBuf| *path = base.join(&path);
    settings.agent.cache_dir.as_mut().map(rebase);
    settings.publish.keys_dir.as_mut().map(rebase);
    let server = &mut settings.server;
    for path in [&mut server.tls_cert, &mut server.tls_key, &mut server.client_ca] {
        path.as_mut().map(rebase);
    }
    // It may also be a location elsewhere.
    server.content.as_mut().filter(|content| !content.to_string_lossy().contains("://")).map(rebase);
    for rule in &mut settings.origins {
        rule.ca_file.as_mut().map(rebase);
        if let Some(CredentialSource::Basic { password: secret, .. } | CredentialSource::Bearer(secret)) =
            &mut rule.credentials
            && let SecretSource::File(path) = secret
        {
            rebase(path);
        }
    }
    Ok(settings)
}

fn read_credentials(source: &CredentialSource) -> anyhow::Result<Credentials> {
    Ok(match source {
        CredentialSource::Basic { user, password } => {
            Credentials::Basic { user: user.clone(), password: read_secret(password)? }
        }
        CredentialSource::Bearer(token) => Credentials::Bearer(read_secret(token)?),
        CredentialSource::Kerberos => Credentials::Kerberos,
    })
}

fn read_secret(source: &SecretSource) -> anyhow::Result<String> {
    let path = match source {
        SecretSource::Inline(text) => return Ok(text.clone()),
        SecretSource::File(path) => path,
    };
    let read = || -> anyhow::Result<String> {
        let file = File::open(path)?;
        if file.metadata()?.mode() & 0o077 != 0 {
            bail!("others may read it; run: chmod 600 {}", path.display());
        }
        let mut text = String::new();
        file.take(SECRET_MAX_BYTES).read_to_string(&mut text)?;
        let secret = text.trim_end_matches(['\r', '\n']);
        if secret.is_empty() || secret.contains(['\r', '\n']) {
            bail!("it must hold the secret and nothing else, on one line");
        }
        Ok(secret.to_owned())
    };
    read().with_context(|| format!("cannot use the secret in {}", path.display()))
}

fn environment_credentials(environment: Environment<'_>) -> anyhow::Result<Credentials> {
    let text = |name: &str| -> anyhow::Result<Option<String>> {
        environment(name)
            .map(|value| value.into_string().map_err(|_| anyhow::anyhow!("{name} is not valid UTF-8")))
            .transpose()
    };
    let (token, user, password) =
        (text("STREAMFS_TOKEN")?, text("STREAMFS_HTTP_USER")?, text("STREAMFS_HTTP_PASSWORD")?);
    match (token, user, password) {
        (None, None, None) => Ok(Credentials::None),
        (Some(token), None, None) => Ok(Credentials::Bearer(token)),
        (None, Some(user), Some(password)) => Ok(Credentials::Basic { user, password }),
        (Some(_), _, _) => {
            bail!("STREAMFS_TOKEN and STREAMFS_HTTP_USER or STREAMFS_HTTP_PASSWORD are both set; unset one")
        }
        (None, Some(_), None) => bail!("STREAMFS_HTTP_USER is set without STREAMFS_HTTP_PASSWORD; set both"),
        (None, None, Some(_)) => bail!("STREAMFS_HTTP_PASSWORD is set without STREAMFS_HTTP_USER; set both"),
    }
}

#[cfg(test)]
mod tests;
