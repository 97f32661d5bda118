//! A page for people: what is served, and how much.
//!
//! The server writes the page's changing part, and sends it anew while somebody looks, so that the script in the browser
//! only has to put it in its place. Without a script the page is as it was when it was loaded.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Extension;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures::stream;

use super::{asking, events};
use crate::access::{Action, Identity};
use crate::content::Known;
use crate::{Connection, Shared};

const PAGE: &str = include_str!("status/page.html");
const STYLE: &str = include_str!("status/page.css");
const SCRIPT: &str = include_str!("status/page.js");
/// Where the changing part stands in the page.
const PLACE: &str = "<!--live-->";
/// How often the part is sent anew, if it changed.
const INTERVAL: Duration = Duration::from_secs(2);
/// Who looks on asks anew after so long, so that who may no longer see it does not.
const LOOKING_MAX: Duration = Duration::from_secs(600);
/// More rows than anybody reads.
const ROWS_MAX: usize = 500;
/// Nothing from elsewhere, and no script but the page's own, whatever a package is called.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'",
);

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/status", get(page))
        // No package's name begins with a dash.
        .route("/-/status.css", get(|| async { file("text/css", STYLE) }))
        .route("/-/status.js", get(|| async { file("text/javascript", SCRIPT) }))
        .route("/-/status/events", get(live))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn page(
    State(shared): State<Arc<Shared>>,
    Extension(connection): Extension<Arc<Connection>>,
    request: Request,
) -> Response {
    match asking::insider(&shared, &connection, request.headers()).await {
        Ok(identity) => {
            let page = PAGE.replacen(PLACE, &part(&shared, &identity).await, 1);
            let headers = [
                (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
                (header::CONTENT_SECURITY_POLICY, POLICY),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            ];
            (headers, page).into_response()
        }
        Err(refused) => refused,
    }
}

async fn live(
    State(shared): State<Arc<Shared>>,
    Extension(connection): Extension<Arc<Connection>>,
    request: Request,
) -> Response {
    let identity = match asking::insider(&shared, &connection, request.headers()).await {
        Ok(identity) => identity,
        Err(refused) => return refused,
    };
    if request.method() != Method::GET {
        return events::streamed(Body::empty());
    }
    let until = tokio::time::Instant::now() + LOOKING_MAX;
    let events = stream::unfold((shared, identity, String::new()), move |(shared, identity, last)| {
        let connection = connection.clone();
        async move {
            loop {
                let now = part(&shared, &identity).await;
                if now != last {
                    let text = event(&now);
                    return Some((Ok::<_, Infallible>(Bytes::from(text)), (shared, identity, now)));
                }
                tokio::select! {
                    () = connection.is_ending() => return None,
                    () = tokio::time::sleep_until(until) => return None,
                    () = tokio::time::sleep(INTERVAL) => {}
                }
            }
        }
    });
    events::streamed(Body::from_stream(events))
}

/// HTML as an event: each of its lines is one of the event's data.
fn event(html: &str) -> String {
    let mut text = "event: live\n".to_owned();
    for line in html.lines() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "data: {line}");
    }
    text.push('\n');
    text
}

/// The page's changing part, with what `identity` may see.
async fn part(shared: &Shared, identity: &Identity) -> String {
    let mut html = String::new();
    // Coarse, as all ages here, so that the page does not change all the time.
    let up = shared.since.elapsed().as_secs();
    let _ = writeln!(html, "<p>streamfs {}, up for {}</p>", env!("CARGO_PKG_VERSION"), age(up));
    let (mut rows, mut left_out) = (String::new(), 0usize);
    let mut shown = 0;
    for package in shared.notices.packages().iter() {
        if !shared.gate.may(identity, package, Action::Read).await {
            continue;
        }
        if shown == ROWS_MAX {
            left_out += 1;
            continue;
        }
        shown += 1;
        match shared.content.known(package).await {
            Ok(known) => row(&mut rows, package.as_str(), &known),
            Err(error) => {
                let (package, error) = (escaped(package.as_str()), escaped(&error.to_string()));
                let _ = writeln!(rows, "<tr class=\"bad\"><td>{package}</td><td colspan=\"4\">{error}</td></tr>");
            }
        }
    }
    if rows.is_empty() {
        rows.push_str("<tr><td colspan=\"5\">none</td></tr>\n");
    }
    html.push_str("<h2>Packages</h2>\n<table id=\"packages\"><thead><tr><th>package</th><th>channels</th><th>versions</th><th>newest</th><th>published</th></tr></thead>\n<tbody>\n");
    html.push_str(&rows);
    html.push_str("</tbody></table>\n");
    if left_out > 0 {
        let _ = writeln!(html, "<p>and {left_out} more</p>");
    }
    html.push_str(&in_use(shared, identity).await);
    html.push_str(&clients(shared));
    html.push_str(&launches(shared));
    html.push_str("<h2>Counters</h2>\n<table id=\"counters\"><tbody>\n");
    for line in shared.metrics.text().lines().filter(|line| !line.starts_with('#')) {
        if let Some((name, value)) = line.rsplit_once(' ') {
            let _ = writeln!(html, "<tr><td>{}</td><td class=\"number\">{}</td></tr>", escaped(name), escaped(value));
        }
    }
    html.push_str("</tbody></table>\n");
    html
}

/// Which versions clients have sessions of.
async fn in_use(shared: &Shared, identity: &Identity) -> String {
    let mut rows = String::new();
    for (package, version, sessions) in shared.uses.list().into_iter().take(ROWS_MAX) {
        if shared.gate.may(identity, &package, Action::Read).await {
            let (package, version) = (escaped(package.as_str()), escaped(version.as_str()));
            let _ = writeln!(rows, "<tr><td>{package}</td><td>{version}</td><td class=\"number\">{sessions}</td></tr>");
        }
    }
    if rows.is_empty() {
        return rows;
    }
    format!(
        "<h2>In use</h2>\n<table id=\"uses\"><thead><tr><th>package</th><th>version</th><th>sessions</th></tr></thead>\n<tbody>\n{rows}</tbody></table>\n"
    )
}

/// Who is connected. What they read is not sorted by who may see that: who sees this page sees who uses the server.
fn clients(shared: &Shared) -> String {
    let (count, shown) = shared.clients.list(ROWS_MAX);
    let mut rows = String::new();
    for client in &shown {
        let reads: Vec<String> = client
            .reads
            .iter()
            .map(|(package, version)| match version {
                Some(version) => format!("{package} {version}"),
                None => package.to_string(),
            })
            .collect();
        let cells = [
            client.peer.to_string(),
            escaped(client.user.as_deref().unwrap_or("")),
            client.protocol.as_str().to_owned(),
            escaped(&reads.join(", ")),
            age(client.seconds),
        ];
        let _ = writeln!(
            rows,
            "<tr><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{}/s</td></tr>",
            cells.join("</td><td>"),
            size(client.sent_bytes),
            size(client.bytes_per_second)
        );
    }
    let more = count - shown.len();
    let more = if more > 0 { format!("<p>and {more} more</p>\n") } else { String::new() };
    format!(
        "<h2>Connections</h2>\n<table id=\"clients\"><thead><tr><th>from</th><th>user</th><th>by</th><th>reads</th><th>for</th><th>sent</th><th>now</th></tr></thead>\n<tbody>\n{rows}</tbody></table>\n{more}"
    )
}

/// What clients told of launches.
fn launches(shared: &Shared) -> String {
    let mut rows = String::new();
    for launch in shared.clients.launches() {
        let report = &launch.report;
        let cells = [
            escaped(launch.package.as_str()),
            escaped(report.version.as_str()),
            escaped(report.app.as_deref().unwrap_or("")),
            launch.peer.to_string(),
            escaped(launch.user.as_deref().unwrap_or("")),
            format!("{} ago", age(launch.when.elapsed().as_secs())),
        ];
        let seconds = report.ms as f64 / 1000.0;
        let _ = writeln!(rows, "<tr><td>{}</td><td class=\"number\">{seconds:.2} s</td></tr>", cells.join("</td><td>"));
    }
    if rows.is_empty() {
        return rows;
    }
    format!(
        "<h2>Launches</h2>\n<table id=\"launches\"><thead><tr><th>package</th><th>version</th><th>application</th><th>from</th><th>user</th><th>when</th><th>took</th></tr></thead>\n<tbody>\n{rows}</tbody></table>\n"
    )
}

/// Bytes in the unit that suits them.
fn size(bytes: u64) -> String {
    let mut amount = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if amount < 999.5 {
            return format!("{amount:.0} {unit}");
        }
        amount /= 1000.0;
    }
    format!("{amount:.0} TB")
}

fn row(rows: &mut String, package: &str, known: &Known) {
    let catalog = &known.catalog;
    let channels: Vec<_> =
        catalog.channels.iter().map(|(channel, version)| format!("{}: {}", channel, version)).collect();
    let revoked = catalog.versions.iter().filter(|version| version.revoked).count();
    let mut versions = catalog.versions.len().to_string();
    if revoked > 0 {
        let _ = write!(versions, " ({revoked} revoked)");
    }
    let newest = catalog.versions.last();
    let published = newest.map_or_else(String::new, |newest| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let ago = now.saturating_sub(u64::try_from(newest.published).unwrap_or(0));
        format!("{} ago", age(ago))
    });
    let cells = [
        escaped(package),
        escaped(&channels.join(", ")),
        escaped(&versions),
        escaped(newest.map_or("", |newest| newest.version.as_str())),
        escaped(&published),
    ];
    let _ = writeln!(rows, "<tr><td>{}</td></tr>", cells.join("</td><td>"));
}

/// A duration, in the two units that matter.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => "less than a minute".to_owned(),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// `text` as text in HTML, also within quotes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escaped("<b title=\"a\">'&"), "&lt;b title=&quot;a&quot;&gt;&#39;&amp;");
        assert!(PAGE.contains(PLACE));
    }

    #[test]
    fn ages_are_readable() {
        for (seconds, text) in [(5, "less than a minute"), (61, "1 min"), (3_700, "1 h 1 min"), (90_000, "1 d 1 h")] {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn sizes_are_readable() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1 kB"),
            (999_600, "1 MB"),
            (12_345_678, "12 MB"),
            (u64::MAX, "18446744 TB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn events_have_one_data_line_for_each_of_the_text() {
        assert_eq!(event("<p>\na</p>\n"), "event: live\ndata: <p>\ndata: a</p>\n\n");
    }
}
