//! `streamfs passwd FILE USER`

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use serde_json::json;
use stream_server::PasswordFile;

use super::Context;
use crate::{report, secret_input};

/// Arguments of `passwd`.
#[derive(Debug, Args)]
pub struct PasswdArguments {
    /// Password file, as the access file of `serve` names it; made if it does not exist
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The user, whose password is asked for or read from standard input; without it, users are listed
    #[arg(value_name = "USER")]
    user: Option<String>,
    /// Make the user a member of this group and of no others; any number. Without it the groups stay as they are
    #[arg(long = "group", value_name = "GROUP", requires = "user", conflicts_with = "delete")]
    groups: Vec<String>,
    /// Remove the user
    #[arg(long, requires = "user")]
    delete: bool,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: PasswdArguments, context: &Context) -> anyhow::Result<()> {
    let PasswdArguments { file, user, groups, delete, json } = arguments;
    let mut passwords = PasswordFile::open(&file)?;
    let Some(user) = user else {
        return list(&passwords, json);
    };
    if delete {
        if !passwords.remove(&user) {
            bail!("there is no user {user:?} in {}", file.display());
        }
        passwords.save()?;
        if json {
            return report::json(&json!({ "user": user, "removed": true }));
        }
        return report::line(format!("removed {user}"));
    }
    let password = secret_input::read_secret(&format!("New password of {user}: "), true).await?;
    let groups = (!groups.is_empty()).then_some(groups.as_slice());
    // Some 20 ms of work and much memory: not on a thread that others wait for, though here nobody does.
    tokio::task::block_in_place(|| passwords.set(&user, &password, groups))?;
    passwords.save()?;
    if json {
        let groups = passwords.users().find(|(name, _)| name.to_lowercase() == user.to_lowercase()).map(|(_, g)| g);
        return report::json(&json!({ "user": user, "groups": groups.unwrap_or_default() }));
    }
    report::line(format!("set the password of {user}"))?;
    context.remark("a running server uses it at once");
    Ok(())
}

fn list(passwords: &PasswordFile, json: bool) -> anyhow::Result<()> {
    if json {
        let users: Vec<_> = passwords.users().map(|(user, groups)| json!({ "user": user, "groups": groups })).collect();
        return report::json(&users);
    }
    for (user, groups) in passwords.users() {
        let groups = if groups.is_empty() { String::new() } else { format!("  ({})", groups.join(", ")) };
        report::line(format!("{user}{groups}"))?;
    }
    Ok(())
}
