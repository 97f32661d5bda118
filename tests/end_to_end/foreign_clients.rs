//! Clients that are not ours, and know nothing of streamfs: as far as the protocols are standard, they get through.
//! Each test asks both sides: what the client says that it got, and what the server says that it gave.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use fs_core::backend::rtsp::record::{Kind, Record};
use rustix::process::Signal;
use serde_json::Value;
use tests::{Served, Streamfs, wait_for, wait_for_exit};

use crate::{in_folder, sample};

/// Longer than any of these takes, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(60);
/// What Debian's python3-pycurl is for.
const PYTHON: &str = "/usr/bin/python3.11";

/// A server of package `app`, whose version 2.0 has a launch object of some MB, and what it writes down.
struct Stage {
    user: Streamfs,
    content: PathBuf,
    server: Served,
    authority: PathBuf,
    log: PathBuf,
}

fn stage() -> Stage {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    let package = in_folder(&content, "app");
    user.publish(&source, &package, "1.0");
    let profile = user.home().join("profile");
    let profile = profile.to_str().expect("plain");
    let script = "cat \"$STREAMFS_MOUNT/folder/large\" > /dev/null";
    user.ok(["profile", package.as_str(), "-o", profile, "--", "sh", "-c", script]);
    let source = source.to_str().expect("plain").to_owned();
    user.ok(["publish", source.as_str(), package.as_str(), "--version", "2.0", "--profile", profile]);
    let (trial, log) = (user.folder("tls"), user.home().join("access.log"));
    let arguments = ["--tls-trial", trial.to_str().expect("plain"), "--access-log", log.to_str().expect("plain")];
    let server = Served::start(&user, &content, &arguments);
    Stage { user, content, server, authority: trial.join("ca.pem"), log }
}

impl Stage {
    /// What the access log says of sessions that are over, when there are so many.
    fn sessions(&self, count: usize) -> Vec<Value> {
        wait_for("the session to be written down", DEADLINE, || {
            let text = fs::read_to_string(&self.log).ok()?;
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let found: Vec<Value> = lines.filter(|line| line["event"] == "session").collect();
            (found.len() >= count).then_some(found)
        })
    }

    /// How many requests over `protocol` were answered with `status`.
    fn answered(&self, protocol: &str, status: &str) -> u64 {
        self.server.counted("streamfs_server_requests_total", &[("protocol", protocol), ("status", status)])
    }

    /// The only launch object.
    fn launch(&self) -> PathBuf {
        let mut objects = fs::read_dir(self.content.join("app/launch")).expect("there is one").flatten();
        let object = objects.next().expect("one was published").path();
        assert!(objects.next().is_none());
        object
    }

    /// Nobody has left anything, and the server ends.
    fn end(mut self) {
        assert_eq!(self.server.counted("streamfs_server_sessions", &[]), 0);
        self.server.signal(Signal::TERM);
        assert!(self.server.ended().success());
    }
}

/// Runs a client to its end, which must be a good one.
#[track_caller]
fn ran(command: Command) -> Output {
    let shown = format!("{command:?}");
    let said = ended(command);
    let [out, err] = [&said.stdout, &said.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(said.status.success(), "{shown}: {}\n{out}{err}", said.status);
    said
}

/// Runs a client to its end, whatever that is.
#[track_caller]
fn ended(mut command: Command) -> Output {
    let shown = format!("{command:?}");
    let (out, err) = (tempfile(), tempfile());
    command.stdin(Stdio::null()).stdout(clone(&out)).stderr(clone(&err));
    let mut child =
        command.spawn().unwrap_or_else(|e| panic!("cannot start {shown} ({e}); `cargo xtask test` installs it"));
    let status = wait_for_exit(&mut child, &shown, DEADLINE);
    let (stdout, stderr) = (content(out), content(err));
    Output { status, stdout, stderr }
}

fn tempfile() -> fs::File {
    rustix::fs::open(
        std::env::temp_dir(),
        rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )
    .expect("a temporary file")
    .into()
}

fn clone(file: &fs::File) -> fs::File {
    file.try_clone().expect("a descriptor")
}

fn content(mut file: fs::File) -> Vec<u8> {
    use std::io::{Read as _, Seek as _};
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("an own file");
    bytes
}

#[test]
fn libcurl_holds_a_whole_dialogue_of_rtsp() {
    let stage = stage();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("end_to_end/foreign_clients/talk.py");
    let url = format!("{}/app@2.0", stage.server.url("rtsp"));
    let mut command = stage.user.command(PYTHON);
    command.arg(script).arg(&url);
    let said = ran(command);
    let answers: Vec<Value> =
        String::from_utf8_lossy(&said.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let [options, describe, setup, play, receive, teardown] = &answers[..] else { panic!("{answers:?}") };
    for answer in [options, describe, setup, play, teardown] {
        assert_eq!(answer["status"], 200, "{answer}");
    }
    let header = |answer: &Value, name: &str| answer["headers"][name].as_str().unwrap_or_default().to_owned();
    for method in ["DESCRIBE", "SETUP", "PLAY", "TEARDOWN", "READ"] {
        assert!(header(options, "Public").contains(method), "{options}");
    }
    assert_eq!(header(describe, "Content-Type"), "application/sdp");
    let presentation = describe["body"].as_str().expect("text");
    assert!(
        presentation.contains("m=application 0 RTP/AVP 96") && presentation.contains("s=app 2.0"),
        "{presentation}"
    );
    assert!(header(setup, "Transport").contains("interleaved=0-1"), "{setup}");
    assert!(header(play, "RTP-Info").contains("streamid=0"), "{play}");
    assert_eq!(header(play, "Session"), header(setup, "Session").split(';').next().unwrap_or_default());
    // The first frame is the beginning of the launch object.
    let bytes: Vec<u8> = receive["body"].as_str().expect("bytes").chars().map(|c| c as u8).collect();
    assert_eq!(bytes[..2], *b"$\0", "on the first channel");
    let record = Record::parse(bytes[4..].to_vec().into()).expect("a record in RTP").1;
    let launch = fs::read(stage.launch()).expect("it is published");
    assert_eq!((record.head.id, record.head.kind, record.head.position), (0, Kind::Data, 0));
    assert!(!record.data.is_empty() && launch.starts_with(&record.data));
    let session = &stage.sessions(1)[0];
    assert_eq!(
        (&session["package"], &session["version"], &session["tls"]),
        (&"app".into(), &"2.0".into(), &false.into())
    );
    assert!(session["bytes"].as_u64().is_some_and(|bytes| bytes >= record.data.len() as u64), "{session}");
    assert!(stage.answered("rtsp", "200") >= 5);
    stage.end();
}

#[test]
fn ffprobe_sees_the_stream_by_rtsps() {
    let stage = stage();
    for (round, scheme) in ["rtsps", "rtsp"].into_iter().enumerate() {
        let url = format!("{}/app@2.0", stage.server.url(scheme));
        let mut command = stage.user.command("ffprobe");
        command.args(["-v", "error", "-rtsp_transport", "tcp", "-show_format", "-show_streams", "-of", "json", &url]);
        let said = ran(command);
        let seen: Value = serde_json::from_slice(&said.stdout).expect("JSON");
        assert_eq!(seen["format"]["format_name"], "rtsp", "{seen}");
        assert_eq!(seen["format"]["tags"]["title"], "app 2.0", "{seen}");
        assert_eq!(seen["streams"][0]["codec_type"], "data", "{seen}");
        assert_eq!(seen["streams"][0]["time_base"], "1/90000", "{seen}");
        let session = &stage.sessions(round + 1)[round];
        assert_eq!((&session["version"], &session["tls"]), (&"2.0".into(), &(scheme == "rtsps").into()));
        // OPTIONS, DESCRIBE, SETUP and PLAY; it knows enough then, and may leave before anything has come.
        assert!(stage.answered("rtsp", "200") >= 4 * (round as u64 + 1), "{session}");
    }
    stage.end();
}

#[test]
fn gstreamer_takes_packets_by_rtsp_2_and_by_tls() {
    let stage = stage();
    let cases = [("rtsp", "2-0"), ("rtsps", "2-0"), ("rtsps", "1-0")];
    for (round, (scheme, version)) in cases.into_iter().enumerate() {
        let location = format!("location={}/app@2.0", stage.server.url(scheme));
        let mut command = stage.user.command("gst-launch-1.0");
        // Of the dialogue it tells in its own log.
        command.env("GST_DEBUG", "rtspsrc:6").env("GST_DEBUG_NO_COLOR", "1");
        command.args(["--messages", "rtspsrc", &location, "debug=true"]);
        command.arg(format!("default-rtsp-version={version}"));
        // The trial's authority is no system's; that certificates are looked at is tested with clients that know it.
        command.args(["protocols=tcp", "tls-validation-flags=0", "latency=0", "!", "fakesink", "num-buffers=5"]);
        // Its status says little: when the sink has had enough, its PAUSE and its TEARDOWN get into each other's way.
        let said = ended(command);
        let (messages, log) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        assert!(messages.contains("Sent PLAY request") && messages.contains("Got EOS"), "{messages}\n{log}");
        let wanted = version.replace('-', ".");
        assert!(version == "1-0" || log.contains(&format!("Now using version: {wanted}")), "{log}");
        // Whether it still gets to say TEARDOWN is a matter of that, too.
        for method in ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"] {
            assert!(log.contains(&format!("method: '{method}'")), "{method}: {log}");
        }
        let answers: Vec<&str> = log.lines().filter(|line| line.contains("code:   '")).collect();
        assert!(answers.len() >= 4 && answers.iter().all(|line| line.contains("'200'")), "{answers:?}");
        let session = &stage.sessions(round + 1)[round];
        assert_eq!((&session["version"], &session["tls"]), (&"2.0".into(), &(scheme == "rtsps").into()));
        assert!(session["bytes"].as_u64().is_some_and(|bytes| bytes > 100_000), "{session}");
    }
    stage.end();
}

#[test]
fn curl_reads_objects_by_every_http_there_is() {
    let stage = stage();
    let launch = stage.launch();
    let name = launch.file_name().and_then(|name| name.to_str()).expect("plain").to_owned();
    let bytes = fs::read(&launch).expect("it is published");
    let curl = |url: &str, more: &[&str]| {
        let mut command = stage.user.command("curl");
        command.args(["--silent", "--show-error", "--max-time", "50", "--cacert"]).arg(&stage.authority);
        command.args(["--write-out", "%{stderr}%{http_version} %{http_code} %header{etag} %header{content-range}"]);
        let said = ran({
            command.args(more).arg(url);
            command
        });
        (said.stdout, String::from_utf8_lossy(&said.stderr).into_owned())
    };
    let [https, http] = ["https", "http"].map(|scheme| format!("{}/app/launch/{name}", stage.server.url(scheme)));
    let total = bytes.len();
    for (url, version, shown) in [
        (&https, "--http2", "2"),
        (&https, "--http1.1", "1.1"),
        (&http, "--http2-prior-knowledge", "2"),
        (&http, "--http1.1", "1.1"),
        (&http, "--http1.0", "1"),
    ] {
        let (whole, told) = curl(url, &[version]);
        assert!(whole == bytes && told.starts_with(&format!("{shown} 200 \"{name}\"")), "{version} {url}: {told}");
        for (range, part) in [
            ("5-9", &bytes[5..10]),
            ("0-0", &bytes[..1]),
            ("-7", &bytes[total - 7..]),
            ("1000000-", &bytes[1_000_000..]),
        ] {
            let (came, told) = curl(url, &[version, "--range", range]);
            assert!(came == part && told.starts_with(&format!("{shown} 206 ")), "{version} {range}: {told}");
            assert!(told.contains("bytes ") && told.ends_with(&format!("/{total}")), "{told}");
        }
        let (_, told) = curl(url, &[version, "--range", &format!("{total}-")]);
        assert!(told.starts_with(&format!("{shown} 416 ")) && told.ends_with(&format!("bytes */{total}")), "{told}");
        let (none, told) = curl(url, &[version, "--header", &format!("If-None-Match: \"{name}\"")]);
        assert!(none.is_empty() && told.starts_with(&format!("{shown} 304 ")), "{told}");
    }
    // A download that broke off is taken up where it was.
    let part = stage.user.home().join("part");
    fs::write(&part, &bytes[..total / 3]).expect("own home");
    curl(&https, &["--http2", "--continue-at", "-", "--output", part.to_str().expect("plain")]);
    assert!(fs::read(&part).expect("it is there") == bytes);
    // Many at a time on one connection.
    let before = stage.server.counted("streamfs_server_connections_total", &[("protocol", "http")]);
    let folder = stage.user.folder("many");
    let output = format!("{}/#1", folder.to_str().expect("plain"));
    let many = https.replace(&name, "[1-1]").replace("[1-1]", &format!("{name}?[1-20]"));
    curl(&many, &["--http2", "--parallel", "--parallel-max", "20", "--output", &output]);
    for number in 1..=20 {
        assert!(fs::read(folder.join(number.to_string())).expect("it came") == bytes, "{number}");
    }
    let connections = stage.server.counted("streamfs_server_connections_total", &[("protocol", "http")]) - before;
    assert!(connections <= 4, "{connections} connections, with those that ask for the counts");
    // Who trusts somebody else is not served.
    let mut stranger = stage.user.command("curl");
    let refused = stranger.args(["--silent", "--max-time", "50", &https]).output().expect("it runs");
    assert_eq!(refused.status.code(), Some(60), "the certificate is looked at");
    assert!(
        stage.answered("http", "206") >= 21 && stage.answered("http", "304") == 5 && stage.answered("http", "416") == 5
    );
    stage.end();
}
