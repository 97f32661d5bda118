//! Two connections to one server, so that whoever waits does not stand behind what nobody waits for yet.
//!
//! All streams of an HTTP/2 connection share one socket. What the server has written into it goes first: up to some
//! megabytes of a launch stream, which take the better part of a second on a slow line. So while a long body comes, reads
//! that somebody waits for take another connection, which is opened ahead of them, beside the body. With HTTP/1.1 every
//! read under way has a connection of its own, and opening it ahead saves the round trips of that.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::Client;
use tokio::sync::watch;

use crate::backend::ReadOptions;
use crate::config::OriginConfig;

/// What is shorter leaves the line so soon that it holds nobody up.
const LONG_BODY_BYTES: u64 = 256 << 10;
/// Servers close connections that are idle for longer (nginx after 75 s); then a read is as well off with the other.
const FRESH_FOR: Duration = Duration::from_secs(60);

#[derive(Default)]
enum Express {
    #[default]
    Closed,
    /// Being opened, or that failed: since when.
    Opening(Instant),
    /// Open: last used when.
    Open(Client, Instant),
}

/// The connections to one server.
pub(super) struct Lanes {
    ordinary: Client,
    express: Arc<watch::Sender<Express>>,
    /// Long bodies that are coming.
    long_bodies: Arc<AtomicUsize>,
    config: Arc<OriginConfig>,
}

/// Counts a long body until it is dropped.
pub(super) struct LongBody(Arc<AtomicUsize>);

impl Drop for LongBody {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lanes {
    /// `config` is what `ordinary` was made from; another client is made from it when it is needed.
    pub(super) fn new(ordinary: Client, config: Arc<OriginConfig>) -> Self {
        Self { ordinary, express: Arc::default(), long_bodies: Arc::default(), config }
    }

    /// For everything that is short and the only thing asked for.
    pub(super) fn ordinary(&self) -> &Client {
        &self.ordinary
    }

    /// The one to read a range by, and what to keep until its body ends. `open` makes the request that opens the other
    /// connection; its answer does not matter.
    pub(super) fn take(
        &self,
        range: &Range<u64>,
        options: ReadOptions,
        open: impl FnOnce(&Client) -> reqwest::RequestBuilder + Send + 'static,
    ) -> (Client, Option<LongBody>) {
        if options.waited_for {
            return (self.express().unwrap_or_else(|| self.ordinary.clone()), None);
        }
        if range.end - range.start < LONG_BODY_BYTES {
            return (self.ordinary.clone(), None);
        }
        self.open_express(open);
        self.long_bodies.fetch_add(1, Ordering::Relaxed);
        (self.ordinary.clone(), Some(LongBody(self.long_bodies.clone())))
    }

    fn express(&self) -> Option<Client> {
        if self.long_bodies.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut fresh = None;
        self.express.send_if_modified(|express| {
            if let Express::Open(client, used) = express
                && used.elapsed() < FRESH_FOR
            {
                *used = Instant::now();
                fresh = Some(client.clone());
            }
            false
        });
        fresh
    }

    fn open_express(&self, open: impl FnOnce(&Client) -> reqwest::RequestBuilder + Send + 'static) {
        let mut known = None;
        let begun = self.express.send_if_modified(|express| {
            let since = match express {
                Express::Closed => None,
                Express::Opening(since) => Some(*since),
                Express::Open(client, used) => {
                    known = Some(client.clone());
                    Some(*used)
                }
            };
            let begin = since.is_none_or(|since| since.elapsed() >= FRESH_FOR);
            if begin {
                *express = Express::Opening(Instant::now());
            }
            begin
        });
        if !begun {
            return;
        }
        let (express, config) = (self.express.clone(), self.config.clone());
        let patience = config.retry.connect_timeout + config.retry.stall_timeout;
        tokio::spawn(async move {
            let client = match known {
                Some(client) => client,
                // It reads certificates.
                None => match tokio::task::spawn_blocking(move || super::client(&config)).await {
                    Ok(Ok(client)) => client,
                    // The files that the other one was made from have changed, perhaps. There is still that one.
                    Ok(Err(_)) | Err(_) => return,
                },
            };
            let answered = tokio::time::timeout(patience, open(&client).send()).await;
            if matches!(answered, Ok(Ok(_))) {
                express.send_replace(Express::Open(client, Instant::now()));
            }
        });
    }
}

#[cfg(test)]
impl Lanes {
    /// Waits until the other connection is open.
    pub(super) async fn until_open(&self) {
        let mut express = self.express.subscribe();
        express.wait_for(|express| matches!(express, Express::Open(..))).await.expect("the sender lives in self");
    }
}
