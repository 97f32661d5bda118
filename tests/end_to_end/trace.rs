//! Reports of launches, looked at in a real browser.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::{Nginx, Streamfs};

use crate::{in_folder, sample};

/// A name that would be a script if it were ever taken for HTML.
const HOSTILE: &str = "<img src=x onerror=document.body.dataset.hurt=1>\u{2028}<!--";

/// Lets Chromium look at `page`; gives what it printed.
fn chromium(user: &Streamfs, page: &str, what: &[String]) -> String {
    let mut browser = Command::new("chromium");
    browser.args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1600"]);
    browser.arg(format!("--user-data-dir={}", user.folder("browser").display())).args(what).arg(page);
    let output = browser.stdin(Stdio::null()).output().expect("chromium is installed (cargo xtask setup)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn url(page: &Path) -> String {
    format!("file://{}", page.display())
}

/// Length of a picture of `page`: of one colour it would be some kilobytes.
fn picture_bytes(user: &Streamfs, page: &str, name: &str) -> u64 {
    let picture = user.home().join(name);
    chromium(user, page, &[format!("--screenshot={}", picture.display())]);
    fs::metadata(&picture).expect("a picture").len()
}

/// A user, a web server with the sample and a file of a hostile name in it, and where it is.
fn published() -> (Streamfs, Nginx, String, PathBuf) {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    fs::write(source.join(HOSTILE), "hostile\n").expect("a folder of the test");
    fs::create_dir_all(source.join("</script>")).expect("a folder of the test");
    fs::write(source.join("</script>/inside"), "inside\n").expect("a folder of the test");
    user.publish(&source, &in_folder(&content, "app"), "1.0");
    let server = Nginx::http(&content);
    let location = format!("{}/app", server.url());
    (user, server, location, content)
}

const LAUNCH: &str =
    "cat \"{mount}\"/* >/dev/null; cat {mount}/*/*/inside; head -c 100000 {mount}/folder/large >/dev/null";

#[test]
fn a_report_shows_what_was_read_and_what_waited() {
    let (user, _server, location, _) = published();
    let page = user.home().join("report.html");
    let fixed = [OsStr::new("trace"), location.as_ref(), "--json".as_ref(), "-o".as_ref(), page.as_os_str()];
    let outcome = user.run(fixed.into_iter().chain(["--", "sh", "-c", LAUNCH].map(OsStr::new)));
    // `cat` complains of the directories.
    let facts: serde_json::Value = serde_json::from_str(outcome.stdout.lines().last().expect("facts"))
        .expect("JSON after the program's own words");
    assert!(facts["waited"].as_u64() > Some(0) && facts["by_source"]["origin"]["count"].as_u64() > Some(0), "{facts}");
    assert!(facts["bytes_fetched"].as_u64() > Some(100_000) && facts["requests"].as_u64() > Some(2), "{facts}");

    let seen = chromium(&user, &url(&page), &["--dump-dom".to_owned()]);
    assert!(seen.contains("data-drawn=\"true\""), "the script came to its end");
    assert!(seen.contains("id=\"errors\" hidden=\"\"></pre>"), "without any error");
    assert!(!seen.contains("data-hurt"), "a file's name is no script");
    let shown = HOSTILE.replace('<', "&lt;").replace('>', "&gt;");
    for path in [format!("<bdi>/{shown}</bdi>"), "<bdi>/&lt;/script&gt;/inside</bdi>".into(), "<bdi>/text</bdi>".into()]
    {
        assert!(seen.contains(&path), "{path} has a row");
    }
    assert!(seen.matches("class=\"row\"").count() >= 5);
    assert!(seen.matches("fill:var(--origin)").count() > 2, "waits are drawn");
    assert!(seen.contains("No launch set was streamed"), "says what to do");
    let (drawn, blank) =
        (picture_bytes(&user, &url(&page), "page.png"), picture_bytes(&user, "about:blank", "blank.png"));
    assert!(drawn > 4 * blank, "{drawn} bytes of picture, a blank one has {blank}");
}

#[test]
fn a_report_shows_what_the_launch_stream_brought_and_what_for() {
    let (user, _server, location, content) = published();
    let (profile, page) = (user.home().join("profile"), user.home().join("report.html"));
    let script = "cat {mount}/text {mount}/small {mount}/folder/large >/dev/null";
    let fixed = [OsStr::new("profile"), location.as_ref(), "-o".as_ref(), profile.as_os_str()];
    user.ok(fixed.into_iter().chain(["--", "sh", "-c", script].map(OsStr::new)));
    let source = user.home().join("source");
    let package = in_folder(&content, "app");
    let fixed = [OsStr::new("publish"), source.as_os_str(), package.as_ref(), "--version".as_ref(), "2.0".as_ref()];
    user.ok(fixed.into_iter().chain([OsStr::new("--profile"), profile.as_os_str()]));

    // Only half of what was recorded is read.
    let fixed = [OsStr::new("trace"), location.as_ref(), "--json".as_ref(), "-o".as_ref(), page.as_os_str()];
    let script = "cat {mount}/text {mount}/small >/dev/null; sleep 0.5";
    let facts = user.ok(fixed.into_iter().chain(["--", "sh", "-c", script].map(OsStr::new))).json();
    let number = |name: &str| facts[name].as_u64().expect("a number");
    assert!(number("bytes_streamed") > 3_000_000 && number("bytes_wasted") >= 2_900_000, "{facts}");
    let seen = chromium(&user, &url(&page), &["--dump-dom".to_owned()]);
    assert!(seen.contains("data-drawn=\"true\"") && seen.contains("id=\"errors\" hidden=\"\"></pre>"));
    assert!(seen.contains("fill:var(--unused)") && seen.contains("fill:var(--brought)"));
    assert!(seen.contains("<bdi>/folder/large</bdi>"), "the name of what nobody looked up is found in the tree");

    // With the cache as it is, nothing waits the second time.
    let warm = ["trace", &location, "--warm", "-o", page.to_str().unwrap(), "--json", "--", "sh", "-c", script];
    user.ok(warm);
    let facts = user.ok(warm).json();
    assert!(facts["by_source"].get("origin").is_none(), "{facts}");
}

#[test]
fn a_recording_comes_with_a_report_of_a_cold_launch() {
    let (user, _server, location, _) = published();
    let (profile, page) = (user.home().join("profile"), user.home().join("report.html"));
    let script = "cat {mount}/text >/dev/null";
    let fixed = [OsStr::new("profile"), location.as_ref(), "-o".as_ref(), profile.as_os_str(), "--report".as_ref()];
    user.ok(fixed.into_iter().chain([page.as_os_str()]).chain(["--", "sh", "-c", script].map(OsStr::new)));
    let seen = chromium(&user, &url(&page), &["--dump-dom".to_owned()]);
    assert!(seen.contains("launch, nothing cached") && seen.contains("data-drawn=\"true\""));
    assert!(seen.contains("<bdi>/text</bdi>"));
}
