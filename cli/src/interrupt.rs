//! Ctrl-C and its kin.

use std::fmt;
use std::future::Future;

use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::sync::watch;

/// A signal that asks the program to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGINT
    Interrupt,
    /// SIGTERM
    Terminate,
    /// SIGHUP
    HangUp,
}

impl Signal {
    /// As shells report it: 128 plus the signal's number.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Signal::HangUp => 129,
            Signal::Interrupt => 130,
            Signal::Terminate => 143,
        }
    }
}

/// The work ended because of a signal.
#[derive(Debug)]
pub(crate) struct Interrupted(pub(crate) Signal);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Tells whether a signal asked the program to end. Clones watch the same signals.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    seen: watch::Receiver<Option<Signal>>,
}

impl Interrupt {
    /// Takes SIGINT and SIGTERM over from here on, and SIGHUP where that shall end the program, too.
    pub(crate) fn listen(hang_up_ends: bool) -> std::io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = hang_up_ends.then(|| signal(SignalKind::hangup())).transpose()?;
        let (told, seen) = watch::channel(None);
        tokio::spawn(async move {
            let which = tokio::select! {
                _ = interrupt.recv() => Signal::Interrupt,
                _ = terminate.recv() => Signal::Terminate,
                () = received(&mut hang_up) => Signal::HangUp,
            };
            told.send_replace(Some(which));
            // Later signals change nothing, and the sender must live for as long as somebody may ask.
            told.closed().await;
        });
        Ok(Self { seen })
    }

    /// The signal that came, if one came.
    pub(crate) fn signalled(&self) -> Option<Signal> {
        *self.seen.borrow()
    }

    /// Waits for a signal.
    pub(crate) async fn wait(&self) -> Signal {
        let mut seen = self.seen.clone();
        let told = seen.wait_for(Option::is_some).await.ok().and_then(|signal| *signal);
        match told {
            Some(signal) => signal,
            // The listening task lives as long as its receivers; without it no signal can come.
            None => std::future::pending().await,
        }
    }

    /// Runs `work`, or drops it when a signal comes.
    pub(crate) async fn or<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::select! {
            result = work => result,
            signal = self.wait() => Err(Interrupted(signal).into()),
        }
    }
}

/// Waits for one of these, if they are listened to.
async fn received(signals: &mut Option<Signals>) {
    match signals {
        Some(signals) => {
            signals.recv().await;
        }
        None => std::future::pending().await,
    }
}
