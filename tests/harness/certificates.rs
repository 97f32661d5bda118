//! Certificates for servers of tests.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Certificate of the authority that clients must trust.
pub(crate) const AUTHORITY: &str = "ca.pem";

/// Makes an authority in `folder` (`ca.pem`) and a certificate by it for 127.0.0.1 and localhost (`leaf.pem`,
/// `leaf.key`): rustls accepts no self-signed leaf.
#[track_caller]
pub(crate) fn make_certificates(folder: &Path) {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256"];
    let mut ca =
        vec!["req", "-x509", "-days", "30", "-subj", "/CN=streamfs test CA", "-keyout", "ca.key", "-out", AUTHORITY];
    ca.extend(["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]);
    ca.extend(key);
    run("openssl", &ca, folder);
    let mut request = vec!["req", "-subj", "/CN=localhost", "-keyout", "leaf.key", "-out", "leaf.csr"];
    request.extend(key);
    run("openssl", &request, folder);
    fs::write(
        folder.join("leaf.ext"),
        "basicConstraints=critical,CA:FALSE\nsubjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n",
    )
    .expect("own folder");
    let sign =
        ["x509", "-req", "-days", "30", "-in", "leaf.csr", "-CA", AUTHORITY, "-CAkey", "ca.key", "-CAcreateserial"];
    run("openssl", &[&sign[..], &["-extfile", "leaf.ext", "-out", "leaf.pem", "-sha256"]].concat(), folder);
}

/// Runs a program in `folder`, which must succeed; gives what it prints.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str], folder: &Path) -> String {
    let outcome = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("cannot start {program}: {e}; `cargo xtask setup` installs it"));
    assert!(outcome.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&outcome.stderr));
    // A TLS connection may end in bytes of HTTP/2.
    String::from_utf8_lossy(&outcome.stdout).into_owned()
}
