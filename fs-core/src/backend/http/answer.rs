//! What a web server's answer means, and the words for answers that are no object.

use std::ops::Range;
use std::time::Duration;

use reqwest::header::{self, HeaderName, HeaderValue};
use reqwest::{Response, StatusCode};

use super::super::{ObjectPath, ObjectState, Validator};
use crate::error::{Error, Result};

/// As much of a page as is read to find its title.
pub(super) const SAMPLE_BYTES: usize = 16 * 1024;

pub(super) const PROXY_WANTS_LOGIN: &str = "407: the proxy between here and the server wants a login; put user and password into HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or except this server with NO_PROXY";

/// What an answer is about.
pub(super) struct Context<'a> {
    pub(super) object: &'a ObjectPath,
    pub(super) origin: &'a str,
}

impl Context<'_> {
    fn bad(&self, reason: impl Into<String>) -> Error {
        Error::BadAnswer { object: self.object.to_string(), origin: self.origin.to_owned(), reason: reason.into() }
    }

    fn unreachable(&self, reason: String) -> Error {
        Error::Unreachable { object: self.object.to_string(), origin: self.origin.to_owned(), reason }
    }

    /// The error that the status is, if it is one.
    pub(super) fn refusal(&self, response: &Response) -> Result<()> {
        let (object, origin) = (self.object.to_string(), self.origin.to_owned());
        let status = response.status();
        let reason = status.to_string();
        match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Error::NotFound { what: object, origin }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Error::Denied { object, origin, reason }),
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                Err(Error::Denied { object, origin, reason: PROXY_WANTS_LOGIN.to_owned() })
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                Err(self.bad("416: the object is shorter than published; it was truncated or replaced"))
            }
            _ if status == StatusCode::TOO_MANY_REQUESTS
                || status == StatusCode::REQUEST_TIMEOUT
                || status.is_server_error() =>
            {
                Err(match retry_after(response) {
                    Some(retry_after) => Error::Overloaded { object, origin, reason, retry_after },
                    None => self.unreachable(reason),
                })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn unexpected(&self, status: StatusCode) -> Error {
        self.bad(format!("the status {status} makes no sense here"))
    }

    /// Refuses a transformed body: its bytes are not the object's.
    pub(super) fn plain_encoding(&self, response: &Response) -> Result<()> {
        match response.headers().get(header::CONTENT_ENCODING) {
            Some(v) if !v.as_bytes().eq_ignore_ascii_case(b"identity") => Err(self.bad(format!(
                "it was encoded as {:?} though that was not asked for; switch compression off for the content root at the server",
                String::from_utf8_lossy(v.as_bytes())
            ))),
            _ => Ok(()),
        }
    }

    /// Checks that the answer is for `wanted`.
    pub(super) fn content_range(&self, response: &Response, wanted: &Range<u64>) -> Result<()> {
        let text = response.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok());
        let Some(text) = text else {
            return Err(self.bad("206 without a Content-Range that says which bytes these are"));
        };
        let Some((got, total)) = parse_content_range(text) else {
            return Err(self.bad(format!("the Content-Range {text:?} cannot be read")));
        };
        if got == *wanted {
            return Ok(());
        }
        if let Some(total) = total.filter(|t| *t < wanted.end) {
            return Err(self.bad(format!(
                "the object is shorter than published: {total} bytes, bytes {}..{} are needed; it was truncated or replaced",
                wanted.start, wanted.end
            )));
        }
        Err(self.bad(format!("it sent other bytes ({text:?}) than asked for ({}-{})", wanted.start, wanted.end - 1)))
    }

    /// Of an answer to a request for the first `wanted` bytes: how many these are, and of how many.
    pub(super) fn first_bytes(&self, response: &Response, wanted: u64) -> Result<(u64, Option<u64>)> {
        let text = response.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok());
        match text.and_then(parse_content_range) {
            Some((Range { start: 0, end }, total)) if end <= wanted && total.is_none_or(|total| end <= total) => {
                Ok((end, total))
            }
            _ => Err(self.bad(format!("its Content-Range ({text:?}) is not that of the first {wanted} bytes"))),
        }
    }

    /// What the answer to a HEAD request says of the object.
    pub(super) fn state(&self, response: &Response) -> Result<ObjectState> {
        let text = |name| response.headers().get(name).and_then(|v: &HeaderValue| v.to_str().ok());
        // The body of such an answer is empty, whatever its length would be.
        let length = text(header::CONTENT_LENGTH).and_then(|v| v.trim().parse().ok());
        let length = length.ok_or_else(|| self.bad("it does not say how long the object is"))?;
        let modified = text(header::LAST_MODIFIED).and_then(|v| jiff::fmt::rfc2822::parse(v).ok());
        let modified = modified.map(|zoned| zoned.timestamp().into());
        Ok(ObjectState { length, validator: validator(response), modified })
    }

    pub(super) fn ignores_range(&self) -> Error {
        self.bad("the server ignores Range (it answered 200 with the whole object instead of 206 with a part); let it serve the content root as static files, with byte ranges on (nginx: no `max_ranges 0`, and `slice` or `proxy_force_ranges on` where it is a proxy; Apache: no `MaxRanges none`), or use `streamfs serve`")
    }

    pub(super) fn html(&self, page: &[u8]) -> Error {
        let what = match title(page) {
            Some(title) => format!("an HTML page (title {title:?})"),
            None => "an HTML page".to_owned(),
        };
        self.bad(format!("{what} came instead of the object; this may be a login or captive portal, a proxy's message, or a server that answers every address with its start page"))
    }

    pub(super) fn too_long(&self, limit_bytes: u64) -> Error {
        self.bad(format!("it is longer than the {limit_bytes} bytes allowed"))
    }

    pub(super) fn short(&self, came: u64, promised: u64) -> Error {
        self.unreachable(format!("the answer ended after {came} of {promised} bytes"))
    }
}

/// `bytes FIRST-LAST/TOTAL`, TOTAL possibly `*`.
fn parse_content_range(text: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (unit, rest) = text.trim().split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?);
    let total = match total.trim() {
        "*" => None,
        n => Some(n.parse().ok()?),
    };
    (first <= last).then_some((first..last.checked_add(1)?, total))
}

/// `Retry-After` in seconds. Its other form, a date, is rare on such answers and treated as absent.
fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

pub(super) fn says_html(response: &Response) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let kind = kind.to_ascii_lowercase();
    kind.starts_with(b"text/html") || kind.starts_with(b"application/xhtml")
}

/// Whether a body is a page. The header alone does not decide: some servers call everything without a known suffix
/// HTML. No object of a package begins with `<`.
pub(super) fn is_html(body: &[u8], says_html: bool) -> bool {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start();
    let start = body[..body.len().min(14)].to_ascii_lowercase();
    (says_html && body.starts_with(b"<")) || start.starts_with(b"<!doctype html") || start.starts_with(b"<html")
}

fn title(page: &[u8]) -> Option<String> {
    let page = String::from_utf8_lossy(&page[..page.len().min(SAMPLE_BYTES)]);
    // ASCII lower-casing keeps byte positions.
    let lower = page.to_ascii_lowercase();
    let open = lower.find("<title")?;
    let start = open + lower[open..].find('>')? + 1;
    let end = start + lower[start..].find("</title")?;
    let words = page[start..end].split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = words.chars().filter(|c| !c.is_control()).take(80).collect();
    (!short.is_empty()).then_some(short)
}

/// What identifies the object's state: a strong or weak ETag, else its date.
pub(super) fn validator(response: &Response) -> Option<Validator> {
    let text = |name| response.headers().get(name).and_then(|v: &HeaderValue| v.to_str().ok());
    let etag = text(header::ETAG).map(|v| format!("etag {v}"));
    etag.or_else(|| text(header::LAST_MODIFIED).map(|v| format!("date {v}"))).map(Validator)
}

/// The request header that makes a read conditional on `known`.
pub(super) fn condition(known: &Validator) -> Option<(HeaderName, HeaderValue)> {
    let (kind, value) = known.0.split_once(' ')?;
    let name = match kind {
        "etag" => header::IF_NONE_MATCH,
        "date" => header::IF_MODIFIED_SINCE,
        _ => return None,
    };
    Some((name, HeaderValue::from_str(value).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(parse_content_range("bytes 2-5/10"), Some((2..6, Some(10))));
        assert_eq!(parse_content_range("Bytes 0-0/*"), Some((0..1, None)));
        for bad in
            ["", "bytes", "bytes 5-2/10", "bytes */10", "items 0-1/2", "bytes 0-18446744073709551615/*", "bytes a-b/c"]
        {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn pages_are_recognised_and_objects_are_not() {
        assert!(is_html(b"\xef\xbb\xbf \n<!DOCTYPE html><p>", false));
        assert!(is_html(b"<HTML>", false));
        assert!(is_html(b"<p>", true));
        assert!(!is_html(b"{\"signed\":{}}", true));
        assert!(!is_html(b"", true));
        assert_eq!(title(b"<title lang=en>\n Sign\tin </TITLE>").as_deref(), Some("Sign in"));
        assert_eq!(title(b"<title"), None);
    }
}
