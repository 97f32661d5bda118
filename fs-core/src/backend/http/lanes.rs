//! Two connections to one server, so that whoever waits does not stand behind what nobody waits for yet.
//!
//! All streams of an HTTP/2 connection share one socket. What the server has written into it goes first: up to some
//! megabytes of a launch stream, which take the better part of a second on a slow line. So while long bodies come, reads
//! that somebody waits for take another connection, which is opened ahead of them, beside the bodies. With HTTP/1.1 every
//! read under way has a connection of its own, and opening it ahead saves the round trips of that.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Client, RequestBuilder, StatusCode};
use tokio::sync::watch;

use crate::backend::ReadOptions;
use crate::config::OriginConfig;

/// What is shorter, all together, leaves the line so soon that it holds nobody up.
const LONG_BODIES_BYTES: u64 = 256 << 10;
/// Servers close connections that are idle for longer (nginx after 75 s); then a read is as well off with the other. One
/// that failed is not tried again before.
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
    /// Bytes that were asked for, and that nobody waits for, of bodies that are coming.
    in_advance: Arc<AtomicU64>,
    config: Arc<OriginConfig>,
}

/// Counts the bytes of a body that nobody waits for until it is dropped.
struct InAdvance(Arc<AtomicU64>, u64);

impl Drop for InAdvance {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// What one range is read by. To be kept until its body ends.
pub(super) struct Lane {
    pub(super) client: Client,
    express: Option<Arc<watch::Sender<Express>>>,
    _in_advance: Option<InAdvance>,
}

impl Lane {
    /// What it was taken for failed. A server behind it may be another one than behind the ordinary connection, and out of
    /// order: whoever tries again takes that.
    pub(super) fn failed(&self) {
        if let Some(express) = &self.express {
            express.send_replace(Express::Opening(Instant::now()));
        }
    }
}

impl Lanes {
    /// `config` is what `ordinary` was made from; another client is made from it when it is needed.
    pub(super) fn new(ordinary: Client, config: Arc<OriginConfig>) -> Self {
        Self { ordinary, express: Arc::default(), in_advance: Arc::default(), config }
    }

    /// For everything that is short and the only thing asked for.
    pub(super) fn ordinary(&self) -> &Client {
        &self.ordinary
    }

    /// The one to read a range by. `open` makes a request for a byte, which opens the other connection.
    pub(super) fn take(
        &self,
        range: &Range<u64>,
        options: ReadOptions,
        open: impl FnOnce(&Client) -> RequestBuilder + Send + 'static,
    ) -> Lane {
        let ordinary = |in_advance| Lane { client: self.ordinary.clone(), express: None, _in_advance: in_advance };
        let bytes = range.end - range.start;
        let ahead = match options.waited_for {
            true => self.in_advance.load(Ordering::Relaxed),
            false => self.in_advance.fetch_add(bytes, Ordering::Relaxed) + bytes,
        };
        let mut lane = ordinary((!options.waited_for).then(|| InAdvance(self.in_advance.clone(), bytes)));
        if ahead < LONG_BODIES_BYTES {
            return lane;
        }
        if !options.waited_for {
            // Once, for whoever comes; later only when somebody does.
            if matches!(*self.express.borrow(), Express::Closed) {
                self.open_express(open);
            }
            return lane;
        }
        match self.express() {
            Some(client) => {
                lane.client = client;
                lane.express = Some(self.express.clone());
            }
            None => self.open_express(open),
        }
        lane
    }

    fn express(&self) -> Option<Client> {
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

    fn open_express(&self, open: impl FnOnce(&Client) -> RequestBuilder + Send + 'static) {
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
        let credentials = config.credentials.clone();
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
            let byte = async {
                let answer = super::authorized(open(&client), &credentials).await.ok()?.send().await.ok()?;
                let good = answer.status() == StatusCode::PARTIAL_CONTENT;
                // Only a connection of which the answer was read to its end can be used again.
                (good && answer.bytes().await.is_ok()).then_some(())
            };
            if let Ok(Some(())) = tokio::time::timeout(patience, byte).await {
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
