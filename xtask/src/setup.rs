//! The system packages that building and testing need.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::steps::succeed;

/// How to tell that a package is there without asking a package manager, which takes seconds.
enum Probe {
    /// A program of this name.
    Program(&'static str),
    /// A file at this path.
    File(&'static str),
    /// A module that Python 3.11 can run.
    PythonModule(&'static str),
    /// A file of this name in the folder of that name that every architecture has its own of.
    Library(&'static str, &'static str),
}

/// What is needed, with the Debian package that brings it.
const NEEDED: &[(Probe, &str)] = &[
    // aws-lc (hashing and TLS) and zstd are C; libFuzzer is C++.
    (Probe::Program("gcc"), "gcc"),
    (Probe::Program("g++"), "g++"),
    (Probe::Program("fusermount3"), "fuse3"),
    (Probe::Program("nginx"), "nginx-light"),
    (Probe::Program("squid"), "squid"),
    (Probe::Program("openssl"), "openssl"),
    // The benchmark of first launches, whose working is tested: what is downloaded whole, and the file system of which
    // it is asked what a launch reads.
    (Probe::Program("curl"), "curl"),
    (Probe::Program("zstd"), "zstd"),
    (Probe::Program("mkfs.ext4"), "e2fsprogs"),
    (Probe::File("/etc/ssl/certs/ca-certificates.crt"), "ca-certificates"),
    (Probe::File("/usr/bin/python3.11"), "python3.11"),
    (Probe::PythonModule("pip"), "python3-pip"),
    // Clients of RTSP and HTTP that are not ours: libcurl (0.2 MB), ffprobe (162 MB with what it needs, which is Debian's
    // smallest package that has it), and GStreamer's source (28 MB) with TLS (0.5 MB).
    (Probe::File("/usr/lib/python3/dist-packages/curl/__init__.py"), "python3-pycurl"),
    (Probe::Program("ffprobe"), "ffmpeg"),
    (Probe::Program("gst-launch-1.0"), "gstreamer1.0-tools"),
    (Probe::Library("gstreamer-1.0", "libgstrtsp.so"), "gstreamer1.0-plugins-good"),
    (Probe::Library("gio/modules", "libgiognutls.so"), "glib-networking"),
    // Kerberos: what it is built with (bindgen loads libclang), and what users have.
    (Probe::File("/usr/include/gssapi/gssapi_krb5.h"), "libkrb5-dev"),
    (Probe::File("/usr/lib/llvm-14/lib/libclang.so"), "libclang-dev"),
    (Probe::Program("kinit"), "krb5-user"),
    // A domain to log in to: Active Directory as Samba has it, in a network namespace.
    (Probe::Program("samba"), "samba"),
    (Probe::Program("samba-tool"), "samba-common-bin"),
    (Probe::Program("winbindd"), "winbind"),
    (Probe::File("/usr/share/samba/setup/provision.ldif"), "samba-ad-provision"),
    (Probe::File("/usr/lib/x86_64-linux-gnu/samba/ldb/samldb.so"), "samba-dsdb-modules"),
    (Probe::File("/usr/lib/x86_64-linux-gnu/samba/vfs/acl_xattr.so"), "samba-vfs-modules"),
    (Probe::File("/usr/lib/python3/dist-packages/samba/__init__.py"), "python3-samba"),
    (Probe::Program("ldapmodify"), "ldap-utils"),
    (Probe::Program("unshare"), "util-linux"),
    (Probe::Program("ip"), "iproute2"),
    // Reports are looked at as their readers do.
    (Probe::Program("chromium"), "chromium"),
];

impl Probe {
    fn is_there(&self) -> bool {
        match self {
            Probe::Program(name) => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let more = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(Into::into);
                std::env::split_paths(&path).chain(more).any(|folder| folder.join(name).is_file())
            }
            Probe::File(path) => Path::new(path).exists(),
            Probe::Library(folder, name) => {
                // /usr/lib/x86_64-linux-gnu and the like.
                let architectures = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
                architectures.map(|entry| entry.path().join(folder).join(name)).any(|path| path.is_file())
            }
            Probe::PythonModule(name) => Command::new("/usr/bin/python3.11")
                .args(["-m", name, "--version"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success()),
        }
    }
}

fn missing() -> Vec<&'static str> {
    NEEDED.iter().filter(|(probe, _)| !probe.is_there()).map(|(_, package)| *package).collect()
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.trim_ascii() == b"0")
}

/// Installs what is missing. Does nothing, and needs no network, when all is there.
pub(crate) fn run() -> Result<()> {
    let packages = missing();
    if !packages.is_empty() {
        let list = packages.join(" ");
        if !is_root() || !Path::new("/usr/bin/apt-get").exists() {
            bail!("these Debian packages are missing; install them as root: apt-get install {list}");
        }
        println!("installing {list}");
        let apt = || {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
            command
        };
        succeed(apt().args(["-qq", "update"]))?;
        succeed(apt().args(["-qq", "install", "--yes", "--no-install-recommends"]).args(&packages))?;
        let still = missing();
        if !still.is_empty() {
            bail!("apt-get installed {list}, but these are still missing: {}", still.join(" "));
        }
    }
    if !Path::new("/dev/fuse").exists() {
        bail!("/dev/fuse is missing: load the module (modprobe fuse), or start the container with --device /dev/fuse");
    }
    Ok(())
}
