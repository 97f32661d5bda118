//! What DESCRIBE tells of a package: its `head`, or a presentation of one stream in SDP, for clients that know no more.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rtsp_types::{Request, Version};

use fs_core::backend::ObjectPath;
use fs_core::backend::rtsp::record::{CLOCK_HZ, PAYLOAD_TYPE, Tag};
use fs_core::backend::rtsp::target::{STREAM_CONTROL, Target};
use fs_core::backend::rtsp::wire::{header, list};
use fs_core::location::{PackageVersion, Selector};
use fs_core::package::descriptor::{DESCRIPTOR_MAX_BYTES, Descriptor};
use fs_core::trust::HEAD_OBJECT;

use super::replies::Refused;
use super::sending::status_of;
use crate::content::{Content, Object, PackagePath};

/// Media type of a package's `head`, without its tail.
pub(super) const HEAD_TYPE: &str = "application/vnd.streamfs.head";
/// Media type of a presentation (RFC 8866).
pub(super) const SDP_TYPE: &str = "application/sdp";

/// Longest `head` that a response carries; a longer one can be had by READ.
const HEAD_BODY_MAX_BYTES: usize = 4 << 20;

/// In what form a package is described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Sdp,
    Head,
}

/// The first form that a client accepts; SDP if it says nothing.
pub(super) fn form(request: &Request<Vec<u8>>) -> Result<Form, Refused> {
    if header(request, "Accept").is_none() {
        return Ok(Form::Sdp);
    }
    let accepted = list(request, "Accept").find_map(|range| {
        let kind = range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            SDP_TYPE | "application/*" | "*/*" => Some(Form::Sdp),
            HEAD_TYPE => Some(Form::Head),
            _ => None,
        }
    });
    accepted.ok_or_else(|| Refused::of(406))
}

/// The state of a package: that of its `head`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Freshness {
    pub(super) tag: Option<Tag>,
    pub(super) modified: Option<SystemTime>,
}

impl Freshness {
    pub(super) fn of(object: &Object) -> Self {
        Self { tag: Tag::new(object.tag()), modified: object.modified }
    }

    /// The tag as it stands in headers.
    pub(super) fn quoted(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("\"{}\"", tag.as_str()))
    }

    /// The header that tells the tag, which RTSP 1.0 has from HTTP (RFC 2326 §12, RFC 7826 §18.31).
    pub(super) fn tag_header(version: Version) -> &'static str {
        match version {
            Version::V1_0 => "ETag",
            Version::V2_0 => "MTag",
        }
    }

    pub(super) fn last_modified(&self) -> Option<String> {
        self.modified.map(httpdate::fmt_http_date)
    }

    /// Whether the client says that it has what there is (RFC 7826 §18.25, §18.26). The tag goes before the date.
    pub(super) fn is_known_to(&self, request: &Request<Vec<u8>>) -> bool {
        if header(request, "If-None-Match").is_some() {
            return self.is_among(request, "If-None-Match");
        }
        let date = header(request, "If-Modified-Since").and_then(|date| httpdate::parse_http_date(date).ok());
        date.zip(self.modified).is_some_and(|(date, modified)| whole_seconds(modified) <= date)
    }

    /// Whether it is what the client demands, if it demands something (RFC 2326 §12.22, RFC 7826 §18.24).
    pub(super) fn is_demanded_by(&self, request: &Request<Vec<u8>>) -> bool {
        header(request, "If-Match").is_none() || self.is_among(request, "If-Match")
    }

    fn is_among(&self, request: &Request<Vec<u8>>, name: &'static str) -> bool {
        let ours = self.quoted();
        list(request, name).any(|tag| {
            let tag = tag.strip_prefix("W/").unwrap_or(tag);
            tag == "*" || Some(tag) == ours.as_deref()
        })
    }
}

/// As precise as dates in headers are.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// A package's `head` as it is now, or what stands in for it where there is none.
pub(super) async fn freshness(content: &Content, package: &PackagePath) -> Result<Freshness, Refused> {
    let refused = |e: &fs_core::Error| Refused::of(status_of(e));
    match content.object(package, &object(HEAD_OBJECT)).await {
        Ok(head) => Ok(Freshness::of(&head)),
        Err(e) if e.kind() == fs_core::ErrorKind::NotFound => {
            let known = content.known(package).await.map_err(|e| refused(&e))?;
            Ok(Freshness { tag: Tag::new(known.tag.clone()), modified: None })
        }
        Err(e) => Err(refused(&e)),
    }
}

fn object(path: &str) -> ObjectPath {
    ObjectPath::new(path).expect("a plain path")
}

/// The version that is asked for; none if the package as a whole is. Then nothing need be known of its metadata, which may
/// be of a newer form than this server knows.
///
/// # Errors
/// 404 if there is no such version or channel.
pub(super) async fn version(
    content: &Content,
    package: &PackagePath,
    selector: Option<&Selector>,
) -> Result<Option<PackageVersion>, Refused> {
    let Some(selector) = selector else { return Ok(None) };
    let known = content.known(package).await.map_err(|e| Refused::of(status_of(&e)))?;
    let record = known.catalog.resolve(Some(selector), package.as_str()).map_err(|_| Refused::of(404))?;
    Ok(Some(record.version.clone()))
}

/// The package's `head` without its tail, as DESCRIBE carries it.
///
/// # Errors
/// 406 if there is none, or it is too long for that.
pub(super) async fn head(content: &Content, package: &PackagePath) -> Result<Bytes, Refused> {
    let known = content.known(package).await.map_err(|e| Refused::of(status_of(&e)))?;
    let head = known.head.as_ref().ok_or_else(|| Refused::of(406))?;
    let bytes = head.encode().map_err(|e| Refused::of(status_of(&e)))?;
    if bytes.len() > HEAD_BODY_MAX_BYTES { Err(Refused::of(406)) } else { Ok(bytes) }
}

/// What PLAY streams of a version, or of the default channel's: its first launch object, or `head` where it has none.
pub(super) async fn played(
    content: &Content,
    package: &PackagePath,
    version: Option<&PackageVersion>,
) -> Result<ObjectPath, Refused> {
    let known = content.known(package).await.map_err(|e| Refused::of(status_of(&e)))?;
    let selector = version.and_then(|version| version.as_str().parse::<Selector>().ok());
    let Ok(record) = known.catalog.resolve(selector.as_ref(), package.as_str()) else { return Ok(object(HEAD_OBJECT)) };
    let path = record.descriptor_object();
    let bundled = known.head.as_ref().and_then(|head| head.get(&path)).cloned();
    let bytes = match bundled {
        Some(bytes) => bytes,
        None => whole(content, package, &path).await.map_err(|e| Refused::of(status_of(&e)))?,
    };
    let descriptor = Descriptor::parse(&bytes, path.as_str()).map_err(|e| Refused::of(status_of(&e)))?;
    Ok(descriptor.launch.first().map_or_else(|| object(HEAD_OBJECT), |launch| launch.path()))
}

async fn whole(content: &Content, package: &PackagePath, path: &ObjectPath) -> fs_core::Result<Bytes> {
    let object = content.object(package, path).await?;
    let length = object.length.min(DESCRIPTOR_MAX_BYTES);
    fs_core::backend::collect(object.read(0..length).await?, usize::try_from(length).unwrap_or(usize::MAX)).await
}

/// A presentation in SDP: one stream of records, which control URLs name relative to the package's.
pub(super) fn sdp(target: &Target, freshness: &Freshness, rtsp: Version) -> String {
    let name = target.version.as_ref().map_or_else(String::new, |version| format!(" {version}"));
    // Any number that is the same for the same state (RFC 8866 §5.2).
    let number = freshness.modified.and_then(|m| m.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs());
    let tag = match (freshness.quoted(), rtsp) {
        (None, _) => String::new(),
        (Some(tag), Version::V1_0) => format!("a=etag:{tag}\r\n"),
        (Some(tag), Version::V2_0) => format!("a=mtag:{tag}\r\n"),
    };
    let mut text = String::new();
    for line in [
        "v=0".to_owned(),
        format!("o=- {number} {number} IN IP4 0.0.0.0"),
        format!("s={}{name}", target.package),
        "c=IN IP4 0.0.0.0".to_owned(),
        "t=0 0".to_owned(),
        "a=control:*".to_owned(),
        "a=range:npt=0-".to_owned(),
    ] {
        text.push_str(&line);
        text.push_str("\r\n");
    }
    text.push_str(&tag);
    for line in [
        format!("m=application 0 RTP/AVP {PAYLOAD_TYPE}"),
        format!("a=rtpmap:{PAYLOAD_TYPE} vnd.streamfs.record/{CLOCK_HZ}"),
        format!("a=control:{STREAM_CONTROL}"),
    ] {
        text.push_str(&line);
        text.push_str("\r\n");
    }
    text
}

/// Whether PLAY can do what its `Range` asks for, which is to begin at the beginning: `Ok(false)` if there is none, so that a
/// stream that pauses goes on.
///
/// # Errors
/// 457 for another place; in RTSP 2.0, 456 for another unit than npt (RFC 7826 §18.40).
pub(super) fn from_beginning(request: &Request<Vec<u8>>) -> Result<bool, Refused> {
    let Some(range) = header(request, "Range") else { return Ok(false) };
    let range = range.split(';').next().unwrap_or_default().trim();
    let (unit, places) = range.split_once('=').unwrap_or((range, ""));
    if !unit.trim().eq_ignore_ascii_case("npt") {
        return Err(match request.version() {
            Version::V1_0 => Refused::of(457),
            Version::V2_0 => Refused::of(456).with("Accept-Ranges", "npt"),
        });
    }
    let from = places.split('-').next().unwrap_or_default().trim();
    match from {
        "now" => Ok(false),
        _ if from.parse::<f64>().is_ok_and(|from| from == 0.0) || from == "0:00:00" || from == "00:00:00" => Ok(true),
        _ => Err(Refused::of(457)),
    }
}

#[cfg(test)]
mod tests {
    use rtsp_types::{HeaderName, Method};

    use super::*;

    fn request(version: Version, headers: &[(&str, &str)]) -> Request<Vec<u8>> {
        let request = Request::builder(Method::Describe, version);
        let named = headers
            .iter()
            .fold(request, |request, (name, value)| request.header(HeaderName::try_from(*name).unwrap(), *value));
        named.build(Vec::new())
    }

    #[test]
    fn clients_choose_the_form() {
        let form_of = |accept: &str| form(&request(Version::V1_0, &[("Accept", accept)]));
        assert_eq!(form(&request(Version::V1_0, &[])), Ok(Form::Sdp));
        assert_eq!(form_of("application/sdp"), Ok(Form::Sdp));
        assert_eq!(form_of("text/html, Application/SDP;q=1"), Ok(Form::Sdp));
        assert_eq!(form_of("application/vnd.streamfs.head, application/sdp"), Ok(Form::Head));
        assert_eq!(form_of("*/*"), Ok(Form::Sdp));
        assert_eq!(form_of("text/html").unwrap_err().status, 406);
    }

    #[test]
    fn conditions_are_judged() {
        let modified = httpdate::parse_http_date("Tue, 03 Mar 2026 04:05:06 GMT").unwrap();
        let it = Freshness { tag: Tag::new("abc"), modified: Some(modified + Duration::from_millis(700)) };
        let with = |name, value| request(Version::V2_0, &[(name, value)]);
        for (value, known) in
            [("\"abc\"", true), ("\"x\", W/\"abc\"", true), ("*", true), ("\"x\"", false), ("abc", false)]
        {
            assert_eq!(it.is_known_to(&with("If-None-Match", value)), known, "{value}");
            assert_eq!(it.is_demanded_by(&with("If-Match", value)), known, "{value}");
        }
        assert!(it.is_known_to(&with("If-Modified-Since", "Tue, 03 Mar 2026 04:05:06 GMT")));
        assert!(!it.is_known_to(&with("If-Modified-Since", "Tue, 03 Mar 2026 04:05:05 GMT")));
        assert!(!it.is_known_to(&with("If-Modified-Since", "yesterday")));
        assert!(it.is_demanded_by(&request(Version::V2_0, &[])) && !it.is_known_to(&request(Version::V2_0, &[])));
    }

    #[test]
    fn presentations_are_as_documented() {
        let freshness = Freshness { tag: Tag::new("abc"), modified: Some(UNIX_EPOCH + Duration::from_secs(9)) };
        let target = Target::parse("/team/app@1.0").unwrap();
        let text = sdp(&target, &freshness, Version::V1_0);
        let expected = "v=0\r\no=- 9 9 IN IP4 0.0.0.0\r\ns=team/app 1.0\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=control:*\r\n\
            a=range:npt=0-\r\na=etag:\"abc\"\r\nm=application 0 RTP/AVP 96\r\na=rtpmap:96 vnd.streamfs.record/90000\r\n\
            a=control:streamid=0\r\n";
        assert_eq!(text, expected);
        assert!(sdp(&target, &freshness, Version::V2_0).contains("a=mtag:\"abc\"\r\n"));
    }

    #[test]
    fn streams_begin_at_their_beginning() {
        let range = |version, value| from_beginning(&request(version, &[("Range", value)]));
        assert_eq!(from_beginning(&request(Version::V1_0, &[])), Ok(false));
        for value in ["npt=0-", "npt=0.000-", "npt=0-10", "NPT = 0-", "npt=0:00:00-", "npt=0-;time=x"] {
            assert_eq!(range(Version::V1_0, value), Ok(true), "{value}");
        }
        assert_eq!(range(Version::V1_0, "npt=now-"), Ok(false));
        for value in ["npt=5-", "npt=-5", "npt=", "npt=nan-", "npt=x"] {
            assert_eq!(range(Version::V2_0, value).unwrap_err().status, 457, "{value}");
        }
        for value in ["bytes=0-", "clock=19961108T142300Z-", "smpte=0:00:00-", ""] {
            assert_eq!(range(Version::V1_0, value).unwrap_err().status, 457, "{value}");
            assert_eq!(range(Version::V2_0, value).unwrap_err().status, 456, "{value}");
        }
    }
}
