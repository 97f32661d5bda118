//! The task that reads: records go to whoever asked, responses and the server's own requests are seen to.

use std::sync::Arc;
use std::time::Duration;

use rtsp_types::{Headers, Method, Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

use super::{Cause, Ended, Event, Expected, Inner, Order, Session, Told};
use crate::backend::rtsp::NEW_VERSION_REASON;
use crate::backend::rtsp::record::{FRAME_MAX_BYTES, Kind, Record, State};
use crate::backend::rtsp::transport::interleaved;
use crate::backend::rtsp::wire::{Item, Outgoing, Splitter, WireLimits, cseq, header, reason};

/// What a server may send. Its messages are short.
const LIMITS: WireLimits = WireLimits { head_bytes: 64 << 10, body_bytes: 1 << 20, frame_bytes: FRAME_MAX_BYTES };
/// Room that is made for what comes: a frame does not fit into less, and four of them cost one read.
const ROOM_BYTES: usize = 256 << 10;
/// A session's timeout if the server tells none (RFC 2326 §12.37).
const SESSION_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest session id that is taken.
const SESSION_MAX_BYTES: usize = 256;

/// Reads until that fails.
pub(super) async fn receive<R: AsyncRead + Unpin>(mut read: R, inner: &Arc<Inner>) -> Ended {
    let mut splitter = Splitter::new(LIMITS);
    loop {
        loop {
            match splitter.next() {
                Ok(Some(item)) => {
                    if let Err(ended) = inner.take(item) {
                        return ended;
                    }
                }
                Ok(None) => break,
                Err(e) => return Ended::bad(e.to_string()),
            }
        }
        let buffer = splitter.buffer();
        if buffer.capacity() - buffer.len() < FRAME_MAX_BYTES {
            buffer.reserve(ROOM_BYTES);
        }
        match read.read_buf(buffer).await {
            Ok(0) => return Ended::broken("the server closed the connection"),
            Ok(_) => *inner.heard.lock() = Instant::now(),
            Err(e) => return Ended::broken(format!("the connection broke: {e}")),
        }
    }
}

impl Inner {
    fn take(&self, item: Item) -> Result<(), Ended> {
        match item {
            Item::Frame { channel, payload } => {
                // RTCP on the channel beside is of no concern, nor is what belongs to no session of ours.
                if self.session.get().is_none_or(|session| session.channel != channel) {
                    return Ok(());
                }
                let (_, record) = Record::parse(payload).map_err(|e| Ended::bad(e.to_string()))?;
                self.take_record(record)
            }
            Item::Response(response) => self.take_response(&response),
            Item::Request(request) => {
                self.take_request(&request);
                Ok(())
            }
            Item::OtherVersion { .. } => Err(Ended::bad("it speaks another version of RTSP")),
        }
    }

    fn take_record(&self, record: Record) -> Result<(), Ended> {
        let Record { head, data } = record;
        let mut flights = self.flights.lock();
        // Without one it was cancelled, and this was on its way.
        let Some(flight) = flights.by_id.get_mut(&head.id) else { return Ok(()) };
        let event = match head.kind {
            Kind::Data => {
                flight.received += data.len() as u64;
                if flight.received > flight.granted {
                    return Err(Ended::bad("it sent more than it was given room for"));
                }
                Event::Data { position: head.position, bytes: data }
            }
            Kind::State => {
                let state = State::parse(data).map_err(|e| Ended::bad(e.to_string()))?;
                Event::State { state, unchanged: head.status == 304 }
            }
            Kind::Failure => {
                let words = String::from_utf8_lossy(&data);
                let plain: String = words.chars().filter(|c| !c.is_control()).take(200).collect();
                let reason = if plain.is_empty() { reason(head.status).to_owned() } else { plain };
                Event::Failed { status: head.status, reason, position: head.position, retry_after: None }
            }
        };
        // Nothing follows a failure, whatever it says.
        let last = head.last || head.kind == Kind::Failure;
        let gone = flight.events.send(Told { event, last }).is_err();
        if last || gone {
            flights.by_id.remove(&head.id);
        }
        Ok(())
    }

    fn take_response(&self, response: &Response<Vec<u8>>) -> Result<(), Ended> {
        let Some(cseq) = cseq(response) else { return Err(Ended::bad("it answered without saying what")) };
        let Some(expected) = self.expected.lock().remove(&cseq) else { return Ok(()) };
        let status = u16::from(response.status());
        let retry_after = header(response, "Retry-After").and_then(|v| v.parse().ok()).map(Duration::from_secs);
        match expected {
            Expected::Setup if status == 200 => self.begin_session(response),
            Expected::Setup => {
                Err(Ended { cause: Cause::Refused { status, retry_after }, reason: reason(status).to_owned() })
            }
            Expected::Reads(_) if status == 200 => Ok(()),
            // The server does not believe any more who this is: a new connection says so anew, with a new ticket.
            Expected::Reads(_) if status == 401 => {
                Err(Ended { cause: Cause::Refused { status, retry_after }, reason: reason(status).to_owned() })
            }
            Expected::Reads(_) if status == 454 => Err(Ended::broken("the server has ended the session")),
            Expected::Reads(ids) => {
                for id in ids {
                    self.fail(id, status, reason(status), retry_after);
                }
                Ok(())
            }
            Expected::Hold(version) => {
                self.begin_hold(version, status, response);
                Ok(())
            }
            Expected::Nothing => Ok(()),
        }
    }

    fn begin_session(&self, response: &Response<Vec<u8>>) -> Result<(), Ended> {
        let (id, timeout) = session_of(response).ok_or_else(|| Ended::bad("it made a session without an id"))?;
        let channel = header(response, "Transport").and_then(interleaved).and_then(|transport| transport.channel);
        let channel = channel.ok_or_else(|| Ended::bad("it does not say on which channel it will send"))?;
        let timeout = timeout.unwrap_or(SESSION_TIMEOUT);
        // It is sent once, so there is no other answer to it.
        let _ = self.session.set(Session { id, channel, timeout });
        self.session_told.notify_one();
        Ok(())
    }

    fn begin_hold(&self, version: String, status: u16, response: &Response<Vec<u8>>) {
        let session = session_of(response).filter(|_| status == 200).map(|(id, _)| id);
        let Some(session) = session else {
            tracing::warn!(version, status, origin = %self.context.url, "the server makes no session for this version");
            return;
        };
        match self.held.lock().get_mut(&version) {
            Some(known @ None) => *known = Some(session),
            // Released meanwhile, or that and held again.
            Some(Some(_)) | None => self.order(Order::Release(version, session)),
        }
    }

    /// Answers a request of the server's, and does what it asks for.
    fn take_request(&self, request: &Request<Vec<u8>>) {
        let status = match request.method() {
            Method::PlayNotify if header(request, "Notify-Reason") == Some(NEW_VERSION_REASON) => {
                self.context.news.send_modify(|news| *news = news.wrapping_add(1));
                200
            }
            Method::PlayNotify => 465,
            Method::Redirect => {
                self.leave();
                200
            }
            Method::Teardown => {
                let of_ours = session_of(request).zip(self.session.get()).filter(|((id, _), ours)| *id == ours.id);
                if of_ours.is_some() {
                    self.end(Ended::broken("the server has ended the session"));
                }
                200
            }
            Method::Options | Method::GetParameter => 200,
            _ => 501,
        };
        let reply = Outgoing::response(request.version(), status, cseq(request))
            .header_if("Session", header(request, "Session"))
            .empty();
        self.order(Order::Reply(reply));
    }
}

/// A session's id, and how long it lives without requests.
fn session_of(message: &impl AsRef<Headers>) -> Option<(String, Option<Duration>)> {
    let mut parts = header(message, "Session")?.split(';').map(str::trim);
    let id = parts.next().filter(|id| (1..=SESSION_MAX_BYTES).contains(&id.len()))?;
    let timeout = parts.find_map(|part| part.strip_prefix("timeout=")?.parse().ok());
    let timeout = timeout.filter(|seconds| *seconds > 0).map(Duration::from_secs);
    Some((id.to_owned(), timeout))
}
