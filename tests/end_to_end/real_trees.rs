//! Real applications, published, mounted from a web server over TLS, compared with their source, and launched.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tests::{Nginx, Streamfs, assert_same_tree, node_tree, python_tree};

/// A user, a server with the published tree, and where to mount it from.
fn published(source: &Path, package: &str) -> (Streamfs, Nginx, String) {
    let user = Streamfs::new();
    let content = user.folder("content");
    let summary = user.publish(source, &crate::in_folder(&content, package), "1.0");
    println!("published {package}: {summary}");
    let server = Nginx::https(&content);
    let user = user.with_variable("SSL_CERT_FILE", server.ca_file());
    let url = format!("{}/{package}", server.url());
    (user, server, url)
}

fn succeeds(mut command: Command) -> String {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shown}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn python_with_numpy_and_pandas() {
    let source = python_tree();
    let (user, server, url) = published(&source, "python");
    // What is counted is what the launch itself asks for.
    let mount = user.mount_with(&url, "mnt", &["--prefetch", "none"]);
    let script = "import sys, numpy, pandas
frame = pandas.DataFrame({'a': numpy.arange(10), 'b': numpy.arange(10) ** 2})
print(sys.prefix, frame.b.sum(), frame.groupby(frame.a % 2).b.sum().tolist())";
    let mut python = user.command(mount.join("bin/python3.11"));
    python.env("LD_LIBRARY_PATH", mount.join("lib")).arg("-c").arg(script);
    let said = succeeds(python);
    assert_eq!(said.trim(), format!("{} 285 [120, 165]", mount.path().display()));
    let launched: u64 = server.requests().iter().map(|r| r.body_bytes).sum();
    let stored: u64 = folder_bytes(&user.home().join("content"));
    assert!(launched < stored / 2, "a launch fetched {launched} of {stored} stored bytes: that is not streaming");
    assert_same_tree(&source, mount.path());
    // HTTP/2 was offered, so it is used.
    assert!(server.requests().iter().all(|r| r.protocol == "HTTP/2.0"));
    mount.unmount();
}

#[test]
fn node_with_eslint_typescript_and_webpack() {
    let source = node_tree();
    let (user, _server, url) = published(&source, "node");
    let mount = user.mount(&url, "mnt");
    let work = user.folder("work");
    fs::write(
        work.join("hello.ts"),
        "function greet(name: string): string { return `hello ${name}`; }\nconsole.log(greet('mount'));\n",
    )
    .expect("a folder of the test");
    let node = |arguments: &[&OsStr]| {
        let mut command = user.command(mount.join("bin/node"));
        command.current_dir(&work).args(arguments);
        succeeds(command)
    };
    node(&[mount.join("node_modules/typescript/bin/tsc").as_os_str(), "hello.ts".as_ref()]);
    assert_eq!(node(&["hello.js".as_ref()]), "hello mount\n");
    node(&[mount.join("node_modules/eslint/bin/eslint.js").as_os_str(), "--version".as_ref()]);
    assert_same_tree(&source, mount.path());
    mount.unmount();
}

#[test]
fn python_with_numpy_and_pandas_from_a_recorded_launch() {
    let source = python_tree();
    let publisher = Streamfs::new();
    let content = publisher.folder("content");
    let location = crate::in_folder(&content, "python");
    publisher.publish(&source, &location, "1.0");
    let profile = publisher.home().join("python.profile");
    let script = "import numpy, pandas; print(pandas.Series(numpy.arange(10)).sum())";
    let record = ["profile", &location, "-o"].map(OsStr::new).into_iter().chain([profile.as_os_str()]);
    let launch = ["--", "env", "LD_LIBRARY_PATH={mount}/lib", "{mount}/bin/python3.11", "-c", script];
    publisher.ok(record.chain(launch.map(OsStr::new)));
    let publish = [OsStr::new("publish"), source.as_os_str(), location.as_ref(), "--json".as_ref()];
    let of_launch = [OsStr::new("--version"), "1.1".as_ref(), "--profile".as_ref(), profile.as_os_str()];
    let summary = publisher.ok(publish.into_iter().chain(of_launch)).json();
    println!("published python: {summary}");
    let object = summary["launch"][0]["bytes"].as_u64().expect("a launch set");

    let server = Nginx::https(&content);
    let user = Streamfs::new().with_variable("SSL_CERT_FILE", server.ca_file());
    let mount = user.mount(&format!("{}/python", server.url()), "mnt");
    let mut python = user.command(mount.join("bin/python3.11"));
    python.env("LD_LIBRARY_PATH", mount.join("lib")).args(["-c", script]);
    assert_eq!(succeeds(python), "45\n");
    let statistics = || user.status_of(mount.path())["statistics"].clone();
    tests::wait_for("the launch set", std::time::Duration::from_secs(120), || {
        (statistics()["launch"]["phase"] == "complete").then_some(())
    });
    let requests = server.requests();
    assert!(requests.len() < 20, "{} requests: {requests:#?}", requests.len());
    let bytes: u64 = requests.iter().map(|r| r.body_bytes).sum();
    assert!(bytes <= object * 12 / 10, "{bytes} bytes for a launch object of {object}");
    mount.unmount();
}

fn folder_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).expect("the content root").map(|e| e.expect("the content root"));
    entries
        .map(|e| {
            let meta = e.metadata().expect("the content root");
            if meta.is_dir() { folder_bytes(&e.path()) } else { meta.len() }
        })
        .sum()
}
