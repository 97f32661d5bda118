//! Users and groups of a real Active Directory (Samba), by password over LDAPS and StartTLS, and by Kerberos tickets.
//!
//! The domain and everything here is in a network namespace of its own. Who is in which group: harness/active_directory.rs.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tests::{ActiveDirectory, Served, Streamfs, assert_same_tree, wait_for};

use crate::{forget_pages, in_folder, sample};

/// Longer than anything here takes, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// What is remembered of somebody is believed for a second.
const ACCESS: &str = "[cache]\nttl = \"1s\"\n[failed_logins]\nper_user = 3\n[[package]]\nname = \"app\"\nread = { groups = [\"Engineering\"] }\n";

/// Both encrypted ways to one port.
const SCHEMES: [&str; 2] = ["https", "rtsps"];

/// A server whose package `app` is for the group Engineering.
struct Guarded {
    /// Whoever published, and runs the server.
    _keeper: Streamfs,
    source: PathBuf,
    log: PathBuf,
    authority: PathBuf,
    server: Served,
}

impl Guarded {
    /// `sources` says where users come from.
    #[track_caller]
    fn start(domain: &ActiveDirectory, sources: &str) -> Self {
        let keeper = Streamfs::new().with_variable("KRB5_CONFIG", domain.krb5_conf());
        // Tickets that were seen, and a keytab that is none: the access file's counts.
        let replays = keeper.folder("replays");
        let keeper = keeper.with_variable("KRB5RCACHEDIR", &replays).with_variable("KRB5_KTNAME", "FILE:/nowhere");
        let (source, content, trial) = (keeper.folder("source"), keeper.folder("content"), keeper.folder("tls"));
        sample(&source);
        keeper.publish(&source, &in_folder(&content, "app"), "1.0");
        let (access, log) = (keeper.home().join("access.toml"), keeper.home().join("access.jsonl"));
        fs::write(&access, format!("{ACCESS}{sources}")).expect("the own home");
        let plain = |path: &Path| path.to_str().expect("tests use plain paths").to_owned();
        let arguments =
            ["--tls-trial", &plain(&trial), "--access", &plain(&access), "--access-log", &plain(&log), "--verbose"];
        let server = Served::start(&keeper, &content, &arguments);
        Self { authority: trial.join("ca.pem"), _keeper: keeper, source, log, server }
    }

    /// URL of a package; by name, since tickets are for names.
    fn package(&self, scheme: &str, package: &str) -> String {
        format!("{scheme}://localhost:{}/{package}", self.server.address().port())
    }

    /// Somebody who trusts the server's certificate.
    fn stranger(&self) -> Streamfs {
        Streamfs::new().with_variable("SSL_CERT_FILE", &self.authority)
    }

    fn user(&self, name: &str) -> Streamfs {
        self.user_with(name, &ActiveDirectory::password(name))
    }

    fn user_with(&self, name: &str, password: &str) -> Streamfs {
        let user = self.stranger().with_variable("STREAMFS_HTTP_USER", name);
        user.with_variable("STREAMFS_HTTP_PASSWORD", password)
    }

    /// Asks for the package's head in clear, which counts as private on one machine; gives the answer's head.
    #[track_caller]
    fn ask(&self, user: &str, password: &str) -> String {
        let mut stream = TcpStream::connect(self.server.address()).expect("the server listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
        let login = STANDARD.encode(format!("{user}:{password}"));
        write!(
            stream,
            "GET /app/head HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Basic {login}\r\n\r\n"
        )
        .expect("the server reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers and ends");
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        text.split("\r\n\r\n").next().unwrap_or_default().to_owned()
    }

    /// Waits until a user's request is answered with `status`.
    #[track_caller]
    fn wait_for_status(&self, user: &str, status: u16) {
        let line = format!("http/1.1 {status}");
        wait_for(&format!("{user} to be answered with {status}"), DEADLINE, || {
            self.ask(user, &ActiveDirectory::password(user)).starts_with(&line).then_some(())
        });
    }

    /// Lines of the access log about failed logins of `user`, once there are `count` of them.
    #[track_caller]
    fn failed_logins(&self, user: &str, count: usize) -> Vec<String> {
        let user = format!("\"{user}\"");
        wait_for("failed logins in the access log", DEADLINE, || {
            // It is written when there is something to write.
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let failed = log.lines().filter(|line| line.contains("failed_login") && line.contains(&user));
            let failed: Vec<String> = failed.map(str::to_owned).collect();
            (failed.len() >= count).then_some(failed)
        })
    }

    /// Mounts the package for `user` and reads all of it.
    #[track_caller]
    fn is_read_by(&self, user: &Streamfs) {
        for scheme in SCHEMES {
            let mount = user.mount(&self.package(scheme, "app"), scheme);
            assert_same_tree(&self.source, mount.path());
            mount.unmount();
        }
    }

    /// A package that `user` may not read looks like one that is not there.
    #[track_caller]
    fn is_absent_for(&self, user: &Streamfs) {
        for scheme in SCHEMES {
            let (denied, absent) = (self.package(scheme, "app"), self.package(scheme, "none"));
            let line = user.fails(["versions", denied.as_str()]);
            assert_eq!(line.replace(&denied, "it"), user.fails(["versions", absent.as_str()]).replace(&absent, "it"));
            assert!(!line.contains("refuses"), "{line}");
        }
    }
}

#[test]
fn groups_of_the_directory_decide_by_password_over_ldaps() {
    let (domain, _inside) = ActiveDirectory::enter();
    let served = Guarded::start(domain, &domain.directory_by_account());
    served.is_read_by(&served.user("ann"));
    // By the down-level name, and two groups away.
    served.is_read_by(&served.user_with("CORP\\bea", &ActiveDirectory::password("bea")));
    served.is_absent_for(&served.user("carl"));
    // Each fails twice, since clients try twice, and the third time of one user would be held back.
    for (scheme, user) in SCHEMES.into_iter().zip(["hal", "gus"]) {
        let wrong = served.user_with(user, "wr0ng");
        let line = wrong.fails(["versions", &served.package(scheme, "app")]);
        assert!(line.contains("refuses access") && !line.contains("wr0ng"), "{line}");
    }
    for user in ["hal", "gus"] {
        let failed = served.failed_logins(user, 2);
        assert!(failed.iter().all(|line| line.contains("basic")), "{failed:?}");
    }
    let log = fs::read_to_string(&served.log).expect("the log is written");
    assert!(!log.contains("wr0ng") && !log.contains(&ActiveDirectory::password("ann")), "{log}");
}

/// Without an account of its own the server asks as whoever logs in.
#[test]
fn users_bind_for_themselves_by_start_tls() {
    let (domain, _inside) = ActiveDirectory::enter();
    let served = Guarded::start(domain, &domain.directory_by_user());
    let status = |user: &str, password: &str| served.ask(user, password)[..12].to_owned();
    for (user, answer) in [("ann", "http/1.1 200"), ("bea", "http/1.1 200"), ("carl", "http/1.1 404")] {
        assert_eq!(status(user, &ActiveDirectory::password(user)), answer, "{user}");
    }
    assert_eq!(status("ann@corp.example", &ActiveDirectory::password("ann")), "http/1.1 200");
    assert_eq!(status("ann", "wr0ng"), "http/1.1 401");
}

#[test]
fn failed_logins_are_held_back() {
    let (domain, _inside) = ActiveDirectory::enter();
    let served = Guarded::start(domain, &domain.directory_by_account());
    for _ in 0..3 {
        let answer = served.ask("gus", "wr0ng");
        assert!(answer.starts_with("http/1.1 401") && answer.contains("www-authenticate: basic"), "{answer}");
    }
    // From then on the right one is not looked at either.
    for password in ["wr0ng", &ActiveDirectory::password("gus")] {
        let answer = served.ask("gus", password);
        assert!(answer.starts_with("http/1.1 429") && answer.contains("retry-after: "), "{answer}");
    }
    served.wait_for_status("ann", 200);
    assert_eq!(served.failed_logins("gus", 3).len(), 3);
}

#[test]
fn a_disabled_account_is_refused() {
    let (domain, _inside) = ActiveDirectory::enter();
    let served = Guarded::start(domain, &domain.directory_by_account());
    served.wait_for_status("dora", 200);
    domain.disable("dora");
    served.wait_for_status("dora", 401);
}

#[test]
fn who_leaves_the_group_while_mounted_reads_what_is_cached_and_nothing_else() {
    let (domain, _inside) = ActiveDirectory::enter();
    let served = Guarded::start(domain, &domain.directory_by_account());
    let (emil, fay) = (served.user("emil"), served.user("fay"));
    let options = ["--prefetch", "none", "--deadline", "5s"];
    let mounts = [
        ("emil", emil.mount_with(&served.package("https", "app"), "mnt", &options)),
        ("fay", fay.mount_with(&served.package("rtsps", "app"), "mnt", &options)),
    ];
    for (user, mount) in &mounts {
        assert_eq!(fs::read(mount.join("small")).expect("still a member"), b"small content\n", "{user}");
        domain.remove_member("Engineering", user);
    }
    for (user, mount) in &mounts {
        served.wait_for_status(user, 404);
        let read = fs::read(mount.join("folder/large")).map(|bytes| bytes.len());
        let error = read.expect_err("the server gives nothing any more");
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{user}: {error}");
        forget_pages(&mount.join("small"));
        assert_eq!(fs::read(mount.join("small")).expect("it is cached"), b"small content\n", "{user}");
    }
    // Errors are not remembered.
    for (user, mount) in mounts {
        domain.add_member("Engineering", user);
        served.wait_for_status(user, 200);
        assert_same_tree(&served.source, mount.path());
        mount.unmount();
    }
}

#[cfg(feature = "kerberos")]
mod kerberos {
    use super::*;
    use crate::login::with_input;

    /// Somebody with a ticket, and no password in the environment.
    fn with_ticket(domain: &ActiveDirectory, served: &Guarded, name: &str) -> Streamfs {
        let user = without_ticket(domain, served);
        let mut kinit = user.command("kinit");
        kinit.arg(name);
        let outcome = with_input(&user, kinit, &format!("{}\n", ActiveDirectory::password(name)));
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
        for scheme in SCHEMES {
            let url = served.package(scheme, "");
            user.ok(["login", url.as_str(), "--kerberos"]);
        }
        user
    }

    fn without_ticket(domain: &ActiveDirectory, served: &Guarded) -> Streamfs {
        let user = served.stranger().with_variable("KRB5_CONFIG", domain.krb5_conf());
        let tickets = format!("FILE:{}", user.home().join("tickets").display());
        user.with_variable("KRB5CCNAME", tickets)
    }

    #[test]
    fn tickets_of_kinit_let_in_whom_the_directory_knows_to_be_a_member() {
        let (domain, _inside) = ActiveDirectory::enter();
        let served = Guarded::start(domain, &(domain.directory_by_account() + &domain.kerberos()));
        served.is_read_by(&with_ticket(domain, &served, "ann"));
        served.is_read_by(&with_ticket(domain, &served, "bea"));
        served.is_absent_for(&with_ticket(domain, &served, "carl"));
        let stranger = without_ticket(domain, &served);
        for scheme in SCHEMES {
            let line = stranger.fails(["login", &served.package(scheme, ""), "--kerberos"]);
            assert!(line.contains("kinit"), "{line}");
        }
    }

    /// A mount that outlives what the server believes: on RTSP it is the same connection.
    #[test]
    fn a_ticket_is_no_longer_worth_than_the_membership() {
        let (domain, _inside) = ActiveDirectory::enter();
        let served = Guarded::start(domain, &(domain.directory_by_account() + &domain.kerberos()));
        let gus = with_ticket(domain, &served, "gus");
        let options = ["--prefetch", "none", "--deadline", "5s", "--poll-interval", "1s"];
        let mounts = SCHEMES.map(|scheme| gus.mount_with(&served.package(scheme, "app"), scheme, &options));
        for mount in &mounts {
            fs::read(mount.join("small")).expect("a member");
        }
        domain.remove_member("Engineering", "gus");
        for mount in &mounts {
            // Denied looks like absent, and that like an origin that is away.
            wait_for("gus to be refused", DEADLINE, || {
                (gus.status_of(mount.path())["freshness"]["state"] == "offline").then_some(())
            });
            let read = fs::read(mount.join("folder/large")).map(|bytes| bytes.len());
            read.expect_err("no member any more");
        }
        domain.add_member("Engineering", "gus");
        for mount in mounts {
            // What the server remembers of tickets is not what it remembers of passwords.
            wait_for("gus to be let in again", DEADLINE, || fs::read(mount.join("text")).ok());
            assert_same_tree(&served.source, mount.path());
            mount.unmount();
        }
    }
}
