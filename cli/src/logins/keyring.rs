//! The desktop's keyring.

use std::fmt;

use stream_server::Secret;

/// Keeps secrets by name.
pub(crate) trait Keyring: Send + Sync {
    /// The secret of that name.
    ///
    /// # Errors
    /// If there is none, or no keyring.
    fn get(&self, account: &str) -> anyhow::Result<Secret>;

    /// Keeps a secret in place of the one of that name.
    ///
    /// # Errors
    /// If there is no keyring, or it is locked.
    fn set(&self, account: &str, secret: &Secret) -> anyhow::Result<()>;

    /// Removes the secret of that name; there need not be one.
    ///
    /// # Errors
    /// If there is no keyring, or it is locked.
    fn delete(&self, account: &str) -> anyhow::Result<()>;
}

/// The keyring of the user's session: GNOME Keyring, KWallet and others, by the Secret Service over D-Bus.
pub(crate) struct SystemKeyring;

impl fmt::Debug for SystemKeyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SystemKeyring")
    }
}

#[cfg(feature = "keyring")]
mod session {
    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::time::Duration;

    use anyhow::{Context as _, bail};
    use keyring::Entry;

    use super::{Keyring, Secret, SystemKeyring};

    /// What the entries belong to.
    const SERVICE: &str = "streamfs";

    /// Long enough for somebody to type the keyring's own password.
    const DEADLINE: Duration = Duration::from_secs(60);

    impl Keyring for SystemKeyring {
        fn get(&self, account: &str) -> anyhow::Result<Secret> {
            let secret = ask(account, |entry| entry.get_password())?;
            Ok(secret.into())
        }

        fn set(&self, account: &str, secret: &Secret) -> anyhow::Result<()> {
            let secret = secret.clone();
            ask(account, move |entry| entry.set_password(secret.expose()))
        }

        fn delete(&self, account: &str) -> anyhow::Result<()> {
            ask(account, |entry| match entry.delete_credential() {
                Err(keyring::Error::NoEntry) => Ok(()),
                result => result,
            })
        }
    }

    /// Asks on a thread of its own: the library blocks, with a runtime of its own that must not be started within ours,
    /// and may wait for a prompt that nobody sees.
    fn ask<T: Send + 'static>(
        account: &str,
        question: impl FnOnce(&Entry) -> keyring::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let account = account.to_owned();
        let (done, answer) = channel();
        let work = move || {
            let answer = Entry::new(SERVICE, &account).and_then(|entry| question(&entry));
            // Whoever asked may have given up.
            let _ = done.send(answer);
        };
        std::thread::Builder::new().name("keyring".to_owned()).spawn(work).context("cannot start a thread")?;
        match answer.recv_timeout(DEADLINE) {
            Ok(answer) => answer.context("the keyring does not do it"),
            Err(RecvTimeoutError::Timeout) => bail!("the keyring did not answer within {} seconds", DEADLINE.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("the keyring's library failed"),
        }
    }
}

#[cfg(not(feature = "keyring"))]
mod session {
    use anyhow::bail;

    use super::{Keyring, Secret, SystemKeyring};

    const NONE: &str = "this program was built without keyrings";

    impl Keyring for SystemKeyring {
        fn get(&self, _: &str) -> anyhow::Result<Secret> {
            bail!(NONE)
        }

        fn set(&self, _: &str, _: &Secret) -> anyhow::Result<()> {
            bail!(NONE)
        }

        fn delete(&self, _: &str) -> anyhow::Result<()> {
            bail!(NONE)
        }
    }
}
