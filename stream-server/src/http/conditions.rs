//! Conditions and ranges of a request, against an object's state (RFC 9110, sections 13 and 14).

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderName, header};

/// What an object is like.
pub(super) struct State {
    /// Its ETag, in quotes.
    pub(super) etag: String,
    pub(super) modified: Option<SystemTime>,
    pub(super) length: u64,
}

/// What a request is to be answered with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All of it.
    Whole,
    /// These bytes of it, at least one.
    Part(Range<u64>),
    /// That it is as the client knows it.
    NotModified,
    /// That it is not as the client demands.
    Failed,
    /// That it has no such bytes.
    Unsatisfiable,
}

/// Decides, for a GET or HEAD request, in the order of RFC 9110, section 13.2.2.
pub(super) fn judge(is_get: bool, headers: &HeaderMap, state: &State) -> Verdict {
    if headers.contains_key(header::IF_MATCH) {
        if !names(headers, &header::IF_MATCH, &state.etag, false) {
            return Verdict::Failed;
        }
    } else if let (Some(date), Some(modified)) = (date(headers, &header::IF_UNMODIFIED_SINCE), state.modified)
        && whole_seconds(modified) > date
    {
        return Verdict::Failed;
    }
    if headers.contains_key(header::IF_NONE_MATCH) {
        if names(headers, &header::IF_NONE_MATCH, &state.etag, true) {
            return Verdict::NotModified;
        }
    } else if let (Some(date), Some(modified)) = (date(headers, &header::IF_MODIFIED_SINCE), state.modified)
        && whole_seconds(modified) <= date
    {
        return Verdict::NotModified;
    }
    // Ranges have a meaning for GET alone.
    let range = headers.get(header::RANGE).filter(|_| is_get && may_be_part(headers, state));
    match range.and_then(|range| range.to_str().ok()) {
        Some(range) => part(range, state.length),
        None => Verdict::Whole,
    }
}

/// Whether the client's list of ETags has this one, or is `*`. `weakly` lets marks of weakness pass.
pub(super) fn names(headers: &HeaderMap, name: &HeaderName, etag: &str, weakly: bool) -> bool {
    // No ETag of this server holds a comma, so one that does may come apart.
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(|one| {
        let one = one.trim();
        let one = if weakly { one.strip_prefix("W/").unwrap_or(one) } else { one };
        one == "*" || one == etag
    })
}

/// Whether a part is wanted of the object as it is now (If-Range).
fn may_be_part(headers: &HeaderMap, state: &State) -> bool {
    let Some(condition) = headers.get(header::IF_RANGE) else { return true };
    let Ok(condition) = condition.to_str() else { return false };
    let condition = condition.trim();
    if condition.starts_with('"') || condition.starts_with("W/") {
        return condition == state.etag;
    }
    let date = httpdate::parse_http_date(condition).ok();
    date.is_some() && date == state.modified.map(whole_seconds)
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

/// As precise as HTTP's dates are.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// What `Range: TEXT` asks of an object of this length. What is not understood, and several ranges at once, are as if
/// they were not there, which the standard allows.
fn part(text: &str, length: u64) -> Verdict {
    let Some((unit, range)) = text.split_once('=') else { return Verdict::Whole };
    let Some((first, last)) = range.trim().split_once('-') else { return Verdict::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Verdict::Whole;
    }
    match (number(first), number(last)) {
        // The last so many bytes.
        (Number::None, Number::Is(count)) => match count.min(length) {
            0 => Verdict::Unsatisfiable,
            count => Verdict::Part(length - count..length),
        },
        (Number::Is(first), Number::Is(last)) if last < first => Verdict::Whole,
        (Number::Is(first), Number::Is(_) | Number::None) if first >= length => Verdict::Unsatisfiable,
        (Number::Is(first), Number::Is(last)) => Verdict::Part(first..last.saturating_add(1).min(length)),
        (Number::Is(first), Number::None) => Verdict::Part(first..length),
        _ => Verdict::Whole,
    }
}

enum Number {
    None,
    Is(u64),
    Nonsense,
}

fn number(text: &str) -> Number {
    let text = text.trim();
    match text.bytes().all(|b| b.is_ascii_digit()) {
        true if text.is_empty() => Number::None,
        // A position that no counter holds is behind every object's end.
        true => Number::Is(text.parse().unwrap_or(u64::MAX)),
        false => Number::Nonsense,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETAG: &str = "\"abc\"";
    const DATE: &str = "Tue, 03 Mar 2026 04:05:06 GMT";
    const LATER: &str = "Tue, 03 Mar 2026 04:05:07 GMT";
    const EARLIER: &str = "Tue, 03 Mar 2026 04:05:05 GMT";

    fn verdict(headers: &[(HeaderName, &str)]) -> Verdict {
        let modified = httpdate::parse_http_date(DATE).unwrap() + Duration::from_millis(700);
        let state = State { etag: ETAG.to_owned(), modified: Some(modified), length: 1000 };
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        judge(true, &headers, &state)
    }

    #[test]
    fn ranges_are_understood() {
        use Verdict::{Part, Unsatisfiable, Whole};
        for (range, expected) in [
            ("bytes=0-0", Part(0..1)),
            ("bytes=5-9", Part(5..10)),
            ("Bytes = 5-9", Part(5..10)),
            ("bytes=5-", Part(5..1000)),
            ("bytes=-5", Part(995..1000)),
            ("bytes=-5000", Part(0..1000)),
            ("bytes=990-5000", Part(990..1000)),
            ("bytes=0-99999999999999999999999", Part(0..1000)),
            ("bytes=1000-", Unsatisfiable),
            ("bytes=1000-2000", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=9-5", Whole),
            ("bytes=0-0,5-9", Whole),
            ("bytes=a-b", Whole),
            ("bytes=--5", Whole),
            ("bytes=-", Whole),
            ("bytes", Whole),
            ("items=0-1", Whole),
        ] {
            assert_eq!(verdict(&[(header::RANGE, range)]), expected, "{range}");
        }
        let empty = State { etag: ETAG.to_owned(), modified: None, length: 0 };
        for range in ["bytes=0-", "bytes=-1", "bytes=0-0"] {
            let headers = HeaderMap::from_iter([(header::RANGE, range.parse().unwrap())]);
            assert_eq!(judge(true, &headers, &empty), Unsatisfiable, "{range}");
            assert_eq!(judge(false, &headers, &empty), Whole, "{range} of a HEAD request");
        }
    }

    #[test]
    fn conditions_are_judged_in_their_order() {
        use Verdict::{Failed, NotModified, Part, Whole};
        let range = (header::RANGE, "bytes=0-9");
        let cases: Vec<(Vec<(HeaderName, &str)>, Verdict)> = vec![
            (vec![(header::IF_NONE_MATCH, ETAG)], NotModified),
            (vec![(header::IF_NONE_MATCH, "W/\"abc\"")], NotModified),
            (vec![(header::IF_NONE_MATCH, "\"x\", \"abc\"")], NotModified),
            (vec![(header::IF_NONE_MATCH, "*")], NotModified),
            (vec![(header::IF_NONE_MATCH, "\"x\"")], Whole),
            // The ETag goes before the date.
            (vec![(header::IF_NONE_MATCH, "\"x\""), (header::IF_MODIFIED_SINCE, LATER)], Whole),
            (vec![(header::IF_MODIFIED_SINCE, DATE)], NotModified),
            (vec![(header::IF_MODIFIED_SINCE, EARLIER)], Whole),
            (vec![(header::IF_MODIFIED_SINCE, "yesterday")], Whole),
            (vec![(header::IF_MATCH, ETAG)], Whole),
            (vec![(header::IF_MATCH, "W/\"abc\"")], Failed),
            (vec![(header::IF_MATCH, "\"x\"")], Failed),
            (vec![(header::IF_UNMODIFIED_SINCE, EARLIER)], Failed),
            (vec![(header::IF_UNMODIFIED_SINCE, DATE)], Whole),
            (vec![range.clone(), (header::IF_RANGE, ETAG)], Part(0..10)),
            (vec![range.clone(), (header::IF_RANGE, "W/\"abc\"")], Whole),
            (vec![range.clone(), (header::IF_RANGE, "\"x\"")], Whole),
            (vec![range.clone(), (header::IF_RANGE, DATE)], Part(0..10)),
            (vec![range.clone(), (header::IF_RANGE, LATER)], Whole),
            (vec![range.clone(), (header::IF_RANGE, "nonsense")], Whole),
            (vec![range, (header::IF_NONE_MATCH, ETAG)], NotModified),
        ];
        for (headers, expected) in cases {
            assert_eq!(verdict(&headers), expected, "{headers:?}");
        }
    }
}
