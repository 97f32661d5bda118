//! `streamfs login URL` and `streamfs logout URL`

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use fs_core::backend;
use fs_core::config::{Credentials, OriginConfig, normalized_origin};
use fs_core::location::PackageLocation;
use fs_core::{Error, ErrorKind};
use serde_json::json;

use super::Context;
use crate::logins::{Store, credentials};
use crate::{report, secret_input};

/// A package that nobody has: who is let in is told that it does not exist, who is not is told so.
const NO_PACKAGE: &str = "streamfs-login";

/// The answer to it is small.
const ANSWER_MAX_BYTES: u64 = 1 << 20;

/// Checking takes this long at most.
const CHECK_DEADLINE: Duration = Duration::from_secs(15);

/// Arguments of `login`.
#[derive(Debug, Args)]
pub struct LoginArguments {
    /// The server's content root, a folder of it or one package; without it, the logins are listed
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// Log in as this user; the password is asked for, or read from standard input
    #[arg(long, value_name = "NAME", requires = "url", conflicts_with = "token")]
    user: Option<String>,
    /// Keep an access token, which is asked for or read from standard input
    #[arg(long, requires = "url")]
    token: bool,
    /// Use the Kerberos tickets of kinit
    #[arg(long, requires = "url", conflicts_with_all = ["user", "token", "store"])]
    kerberos: bool,
    /// Where the secret is kept [default: the keyring if there is one, else a file]
    #[arg(long, value_enum, requires = "url")]
    store: Option<Store>,
    /// Do not ask the server whether it takes them
    #[arg(long, requires = "url")]
    no_check: bool,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `logout`.
#[derive(Debug, Args)]
pub struct LogoutArguments {
    /// As it was given to `login`
    #[arg(value_name = "URL")]
    url: String,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: LoginArguments, context: &Context) -> anyhow::Result<()> {
    let LoginArguments { url, user, token, kerberos, store, no_check, json } = arguments;
    let mut settings = context.settings(None)?;
    let Some(url) = url else {
        return list(settings.logins_mut().all().iter(), json);
    };
    let url = normalized_origin(&url)?;
    if !url.contains("://") {
        bail!("{url} is a folder; who may read it is not asked for");
    }
    let location: PackageLocation = format!("{url}/{NO_PACKAGE}").parse()?;
    let mut config = settings.origin_without_credentials(&location);
    if kerberos {
        config.credentials = Credentials::Kerberos;
        if !no_check {
            check(&location, &config).await.with_context(|| format!("cannot log in to {url}"))?;
        }
        settings.logins_mut().keep_ticket(url.clone())?;
        if json {
            return report::json(&json!({ "url": url, "store": Store::Ticket, "checked": !no_check }));
        }
        return report::line(format!("{url} is used with Kerberos tickets"));
    }
    let user = match (user, token) {
        (Some(user), _) if user.trim().is_empty() => bail!("the user has no name"),
        (Some(user), _) => Some(user),
        (None, true) => None,
        (None, false) if secret_input::is_interactive() => match secret_input::read_visible("User: ").await?.as_str() {
            "" => bail!("the user has no name"),
            user => Some(user.to_owned()),
        },
        (None, false) => bail!("give --user NAME, --token or --kerberos"),
    };
    let prompt = match &user {
        Some(user) => format!("Password of {user} at {url}: "),
        None => format!("Token for {url}: "),
    };
    let secret = secret_input::read_secret(&prompt, false).await?;
    config.credentials = credentials(user.clone(), &secret);
    if !no_check {
        check(&location, &config).await.with_context(|| format!("cannot log in to {url}"))?;
    }
    let place = settings.logins_mut().keep(url.clone(), user.clone(), &secret, store)?;
    if json {
        return report::json(&json!({ "url": url, "user": user, "store": place, "checked": !no_check }));
    }
    let place = match place {
        Store::Keyring => "in the keyring",
        Store::File => "in a file that only you may read",
        Store::Ticket => "nowhere",
    };
    report::line(format!("logged in to {url} as {}; kept {place}", user.as_deref().unwrap_or("the token's user")))
}

pub(super) async fn run_logout(arguments: LogoutArguments, context: &Context) -> anyhow::Result<()> {
    let url = normalized_origin(&arguments.url)?;
    let mut settings = context.settings(None)?;
    if !settings.logins_mut().remove(&url)? {
        bail!("there is no login for {url}; streamfs login lists them");
    }
    if arguments.json {
        return report::json(&json!({ "url": url, "forgotten": true }));
    }
    report::line(format!("forgot the login for {url}"))
}

fn list<'a>(logins: impl Iterator<Item = &'a crate::logins::Login>, json: bool) -> anyhow::Result<()> {
    if json {
        let all: Vec<_> = logins.map(|l| json!({ "url": l.url, "user": l.user, "store": l.store })).collect();
        return report::json(&all);
    }
    for login in logins {
        let store = match login.store {
            Store::Keyring => "keyring",
            Store::File => "file",
            Store::Ticket => "Kerberos",
        };
        let who = login.user.as_deref().unwrap_or(if login.store == Store::Ticket { "ticket" } else { "token" });
        report::line(format!("{}  {who}  ({store})", login.url))?;
    }
    Ok(())
}

/// Asks the server whether it takes the credentials.
async fn check(location: &PackageLocation, config: &OriginConfig) -> anyhow::Result<()> {
    debug_assert!(config.credentials != Credentials::None);
    let backend = backend::open(location, config)?;
    let head = backend::ObjectPath::new("head")?;
    // Somebody waits at the terminal: a few attempts must do.
    let enough = backend::Enough::when(&|_| true);
    let answer = backend.read_beginning_within(CHECK_DEADLINE, &head, ANSWER_MAX_BYTES, None, enough).await;
    match answer.map(drop) {
        Ok(()) => Ok(()),
        Err(error) => match error.kind() {
            ErrorKind::NotFound => Ok(()),
            ErrorKind::Denied => bail!("the server does not take them ({})", reason(&error)),
            _ => Err(anyhow::Error::new(error).context("the server cannot be asked (--no-check keeps them unasked)")),
        },
    }
}

/// The status alone: the error's own words advise to set variables, which would go before this login.
fn reason(error: &Error) -> String {
    match error {
        Error::Denied { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}
