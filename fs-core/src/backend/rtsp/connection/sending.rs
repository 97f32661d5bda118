//! The task that writes: orders become messages.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rtsp_types::Version;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Ended, Expected, Inner, Order};
use crate::backend::rtsp::asked::{ASKED_TYPE, Asked};
use crate::backend::rtsp::wire::Outgoing;
use crate::backend::rtsp::{NOTICES_FEATURE, PARAMETERS_TYPE, READ_FEATURE};

/// Orders that are taken at once: no message has more lines than a server must take.
const ORDERS_MAX: usize = 128;
/// Longest body of a message. Servers take four times as much.
const BODY_MAX_BYTES: usize = 16 << 10;
/// How often the server hears of us at least, until it has told how often it wants to.
const SPEAK_EVERY: Duration = Duration::from_secs(20);
/// Number of the pipeline that SETUP and what is sent before its answer belong to.
const PIPELINE: u32 = 1;

/// Writes until that fails, or nobody is left to order anything.
pub(super) async fn send<W: AsyncWrite + Unpin>(
    write: W,
    mut queue: mpsc::UnboundedReceiver<Order>,
    inner: &Arc<Inner>,
) -> Ended {
    let mut writer = Writer { write, inner, cseq: 0, spoke: Instant::now() };
    match writer.run(&mut queue).await {
        Ok(()) => Ended::broken("the connection was closed"),
        Err(ended) => ended,
    }
}

struct Writer<'a, W> {
    write: W,
    inner: &'a Arc<Inner>,
    cseq: u32,
    /// When something was sent last.
    spoke: Instant,
}

impl<W: AsyncWrite + Unpin> Writer<'_, W> {
    async fn run(&mut self, queue: &mut mpsc::UnboundedReceiver<Order>) -> Result<(), Ended> {
        let setup = self.setup();
        self.write(&setup).await?;
        loop {
            let first = tokio::select! {
                order = queue.recv() => order,
                () = tokio::time::sleep_until(self.next_keep_alive()) => {
                    self.keep_alive().await?;
                    continue;
                }
            };
            let Some(first) = first else { return Ok(()) };
            let mut orders = vec![first];
            while orders.len() < ORDERS_MAX
                && let Ok(order) = queue.try_recv()
            {
                orders.push(order);
            }
            let messages = self.messages(orders);
            self.write(&messages).await?;
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        let stall = self.inner.context.stall_timeout;
        let all = async {
            self.write.write_all(bytes).await?;
            self.write.flush().await
        };
        match tokio::time::timeout(stall, all).await {
            Ok(Ok(())) => {
                self.spoke = Instant::now();
                Ok(())
            }
            Ok(Err(e)) => Err(Ended::broken(format!("the connection broke: {e}"))),
            Err(_) => Err(Ended::broken(format!("the server took nothing for {} ms", stall.as_millis()))),
        }
    }

    /// A third of what the server waits for, so that a lost second is no lost session.
    fn keep_alive_interval(&self) -> Duration {
        self.inner.session.get().map_or(SPEAK_EVERY, |session| (session.timeout / 3).min(SPEAK_EVERY))
    }

    fn next_keep_alive(&self) -> Instant {
        self.spoke + self.keep_alive_interval()
    }

    /// Says that we are there (RFC 2326 §10.8, RFC 7826 §10.5), unless the last time this was not answered.
    async fn keep_alive(&mut self) -> Result<(), Ended> {
        let quiet = self.inner.heard.lock().elapsed();
        if quiet > self.keep_alive_interval() + self.inner.context.stall_timeout {
            return Err(Ended::broken(format!("the server said nothing for {} s", quiet.as_secs())));
        }
        let message = self.message("GET_PARAMETER", &self.url(), Expected::Nothing).empty();
        self.write(&message).await
    }

    fn url(&self) -> String {
        self.inner.context.url.clone()
    }

    /// A request as all are made, within the session.
    fn message(&mut self, method: &str, url: &str, expected: Expected) -> Outgoing {
        let session = self.inner.session.get();
        let message = self.bare(method, url, expected);
        match session {
            Some(session) => message.header("Session", &session.id),
            None => message.header("Pipelined-Requests", PIPELINE),
        }
    }

    /// A request without a session.
    fn bare(&mut self, method: &str, url: &str, expected: Expected) -> Outgoing {
        self.cseq = self.cseq.wrapping_add(1);
        self.inner.expected.lock().insert(self.cseq, expected);
        Outgoing::request(method, url, Version::V2_0, self.cseq)
            .header_if("Authorization", self.inner.authorization.as_deref())
    }

    fn setup(&mut self) -> Bytes {
        self.message("SETUP", &self.url(), Expected::Setup)
            .header("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1")
            .header("Require", READ_FEATURE)
            .header("Supported", format!("{READ_FEATURE}, {NOTICES_FEATURE}"))
            .header("User-Agent", concat!("streamfs/", env!("CARGO_PKG_VERSION")))
            .empty()
    }

    fn messages(&mut self, orders: Vec<Order>) -> Vec<u8> {
        let (mut reads, mut credits, mut cancels, mut others) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for order in orders {
            match order {
                Order::Read(asked) => reads.push(asked),
                Order::Credit(id, bytes) => credits.push(format!("{id} {bytes}")),
                Order::Cancel(id) => cancels.push(id.to_string()),
                other => others.push(other),
            }
        }
        let mut out = Vec::new();
        // Credits and cancels are of requests that were made before, at the latest by the lines above them.
        for (asked, body) in in_bodies(reads, Asked::to_string) {
            let ids = asked.iter().map(|asked| asked.id).collect();
            self.lines(&mut out, "READ", &body, Expected::Reads(ids));
        }
        for (_, body) in in_bodies(credits, String::clone) {
            self.lines(&mut out, "CREDIT", &body, Expected::Nothing);
        }
        for (_, body) in in_bodies(cancels, String::clone) {
            self.lines(&mut out, "CANCEL", &body, Expected::Nothing);
        }
        for other in others {
            match other {
                Order::Hold(version) => {
                    let url = format!("{}@{version}", self.url());
                    let setup = self
                        .bare("SETUP", &url, Expected::Hold(version))
                        .header("Transport", "RTP/AVP/TCP;unicast")
                        .empty();
                    out.extend_from_slice(&setup);
                }
                Order::Release(version, session) => {
                    let url = format!("{}@{version}", self.url());
                    let teardown = self.bare("TEARDOWN", &url, Expected::Nothing).header("Session", session).empty();
                    out.extend_from_slice(&teardown);
                }
                Order::Report(body) => {
                    let report = self.message("SET_PARAMETER", &self.url(), Expected::Nothing);
                    out.extend_from_slice(&report.body(PARAMETERS_TYPE, body.as_bytes()));
                }
                Order::Reply(reply) => out.extend_from_slice(&reply),
                Order::Read(_) | Order::Credit(..) | Order::Cancel(_) => {}
            }
        }
        out
    }

    fn lines(&mut self, out: &mut Vec<u8>, method: &str, body: &str, expected: Expected) {
        let message = self.message(method, &self.url(), expected).header("Require", READ_FEATURE);
        out.extend_from_slice(&message.body(ASKED_TYPE, body.as_bytes()));
    }
}

/// Items in groups, each with its lines, of which no group has too many bytes.
fn in_bodies<T>(items: Vec<T>, line: impl Fn(&T) -> String) -> Vec<(Vec<T>, String)> {
    let mut groups: Vec<(Vec<T>, String)> = Vec::new();
    for item in items {
        let text = line(&item);
        match groups.last_mut() {
            Some((group, body)) if body.len() + text.len() < BODY_MAX_BYTES => {
                body.push('\n');
                body.push_str(&text);
                group.push(item);
            }
            _ => groups.push((vec![item], text)),
        }
    }
    groups
}
