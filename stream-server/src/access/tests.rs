use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::access_log::LogTarget;

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

const RULES: &str = r#"
[passwords]
file = "users"
[cache]
ttl = "60s"
[failed_logins]
per_user = 3
per_address = 100
[certificates]
user_from = "common_name"
[status]
groups = ["operators"]
[default.read]
logged_in = true
[[package]]
name = "public"
read = { everyone = true }
[[package]]
name = "team/*"
read = { groups = ["Team"] }
publish = { users = ["build"] }
"#;

struct Server {
    dir: tempfile::TempDir,
    gate: Gate,
}

impl Server {
    fn new(rules: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("content/own")).unwrap();
        std::fs::write(dir.path().join("access.toml"), rules).unwrap();
        let password = dir.path().join("password");
        std::fs::write(&password, "its").unwrap();
        std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
        let users = dir.path().join("users");
        let mut file = PasswordFile::open(&users).unwrap();
        file.set("Ann", &"right".into(), Some(&["team".to_owned()])).unwrap();
        file.set("build", &"its".into(), Some(&["operators".to_owned()])).unwrap();
        file.save().unwrap();
        let content = Content::new(crate::ContentRoot::Folder(dir.path().join("content"))).unwrap();
        let log = AccessLog::open(LogTarget::File(dir.path().join("log")), Metrics::default()).unwrap();
        let gate = Gate::open(&dir.path().join("access.toml"), Some(content), Metrics::default(), log)
            .unwrap_or_else(|e| panic!("{e}"));
        Self { dir, gate }
    }

    async fn log_in(&self, user: &str, password: &str) -> Result<Identity, Refusal> {
        self.gate.identify(basic(user, password), PEER, true).await
    }

    async fn may(&self, identity: &Identity, package: &str, action: Action) -> bool {
        self.gate.may(identity, &package.parse().unwrap(), action).await.unwrap()
    }

    /// Why an identity counts for nothing any more.
    async fn outdated(&self, identity: &Identity) -> Option<Refusal> {
        self.gate.may(identity, &"app".parse().unwrap(), Action::Read).await.err()
    }

    fn users(&self) -> PasswordFile {
        PasswordFile::open(&self.dir.path().join("users")).unwrap()
    }
}

fn basic(user: &str, password: &str) -> Presented {
    Presented::Basic { user: user.to_owned(), password: password.into() }
}

/// Moves the clock; the paused runtime must not wait for threads that check passwords.
async fn later(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn without_an_access_file_everybody_reads_and_nobody_publishes() {
    let gate = Gate::open_to_all();
    let identity = gate.identify(basic("ann", "x"), PEER, false).await.unwrap();
    assert!(identity.is_anonymous());
    let package = "any/app".parse().unwrap();
    assert_eq!(gate.may(&identity, &package, Action::Read).await, Ok(true));
    assert_eq!(gate.may(&identity, &package, Action::Publish).await, Ok(false));
    assert!(gate.challenges(PEER, true).is_empty());
    assert_eq!(gate.may_see_status(&identity).await, Ok(true));
    gate.reload().unwrap();
}

#[tokio::test]
async fn rules_decide_who_may_do_what() {
    let server = Server::new(RULES);
    let nobody = server.gate.identify(Presented::Nothing, PEER, true).await.unwrap();
    let ann = server.log_in("ANN", "right").await.unwrap();
    let build = server.log_in("build", "its").await.unwrap();
    assert_eq!((ann.name(), nobody.name()), (Some("ann"), None));
    for (package, nobody_reads, ann_reads, build_reads, build_publishes) in [
        ("public", true, true, true, false),
        ("app", false, true, true, false),
        ("team/app", false, true, true, true),
        ("team/deep/app", false, true, true, true),
    ] {
        assert_eq!(server.may(&nobody, package, Action::Read).await, nobody_reads, "{package}");
        assert_eq!(server.may(&ann, package, Action::Read).await, ann_reads, "{package}");
        assert_eq!(server.may(&build, package, Action::Read).await, build_reads, "{package}");
        assert_eq!(server.may(&build, package, Action::Publish).await, build_publishes, "{package}");
        assert!(!server.may(&ann, package, Action::Publish).await, "{package}");
        assert!(!server.may(&nobody, package, Action::Publish).await, "{package}");
    }
    for (identity, sees) in [(&build, true), (&ann, false), (&nobody, false)] {
        assert_eq!(server.gate.may_see_status(identity).await, Ok(sees), "{identity:?}");
    }
}

#[tokio::test]
async fn a_packages_own_file_goes_first_unless_it_shall_not_count() {
    let own = "[read]\nusers = [\"build\"]";
    let server = Server::new(RULES);
    std::fs::write(server.dir.path().join("content/own/access.toml"), own).unwrap();
    let (ann, build) = (server.log_in("ann", "right").await.unwrap(), server.log_in("build", "its").await.unwrap());
    assert!(!server.may(&ann, "own", Action::Read).await);
    assert!(server.may(&build, "own", Action::Read).await);

    let server = Server::new(&format!("package_files = false\n{RULES}"));
    std::fs::write(server.dir.path().join("content/own/access.toml"), "[read]").unwrap();
    let ann = server.log_in("ann", "right").await.unwrap();
    assert!(server.may(&ann, "own", Action::Read).await, "the default rule");
}

#[tokio::test]
async fn wrong_logins_are_refused_and_then_held_back() {
    let server = Server::new(RULES);
    for (user, password) in [("ann", "wrong"), ("eve", "right"), ("", "right"), ("ann", ""), ("a\nb", "x")] {
        assert_eq!(server.log_in(user, password).await.unwrap_err(), Refusal::Wrong, "{user}");
    }
    for _ in 0..2 {
        assert_eq!(server.log_in("ann", "wrong").await.unwrap_err(), Refusal::Wrong);
    }
    match server.log_in("ann", "right").await {
        Err(Refusal::TooMany { retry_after }) => assert!(!retry_after.is_zero()),
        other => panic!("{other:?}"),
    }
    let text = server.gate.metrics.text();
    assert!(text.contains("streamfs_server_logins_total{method=\"basic\",outcome=\"too_many\"} 1"), "{text}");
    assert!(text.contains("streamfs_server_logins_total{method=\"basic\",outcome=\"wrong\"} 7"), "{text}");
    server.gate.log.close();
    let log = std::fs::read_to_string(server.dir.path().join("log")).unwrap();
    assert_eq!(log.matches("\"event\":\"failed_login\"").count(), 7, "{log}");
    assert!(log.contains("\"user\":\"eve\"") && !log.contains("right") && !log.contains("wrong"), "{log}");
}

#[tokio::test]
async fn what_is_remembered_is_not_held_back_and_not_checked_again() {
    let server = Server::new(RULES);
    server.log_in("ann", "right").await.unwrap();
    // Strangers fail as often as they can.
    for last in 1..=10 {
        let _ = server.gate.identify(basic("ann", "wrong"), IpAddr::from([198, 51, 100, last]), true).await;
    }
    server.log_in("ann", "right").await.unwrap();
    later(61).await;
    server.log_in("ann", "right").await.unwrap();
}

#[tokio::test]
async fn secrets_are_not_taken_in_clear_but_from_this_machine() {
    let server = Server::new(RULES);
    let clear = |peer| server.gate.identify(basic("ann", "right"), peer, false);
    assert_eq!(clear(PEER).await.unwrap_err(), Refusal::NotInClear);
    clear(HERE).await.unwrap();
    clear("::ffff:127.0.0.1".parse().unwrap()).await.unwrap();
    let bearer = Presented::Bearer("token".into());
    assert_eq!(server.gate.identify(bearer, PEER, false).await.unwrap_err(), Refusal::NotInClear);
    assert!(server.gate.challenges(PEER, false).is_empty());
    assert_eq!(server.gate.challenges(HERE, false), server.gate.challenges(PEER, true), "nobody reads along");
    assert_eq!(server.gate.challenges(PEER, true), ["Basic realm=\"streamfs\", charset=\"UTF-8\""]);

    let server = Server::new(&format!("allow_in_clear = true\n{RULES}"));
    server.gate.identify(basic("ann", "right"), PEER, false).await.unwrap();
    assert_eq!(server.gate.challenges(PEER, false).len(), 1);
}

#[tokio::test]
async fn a_removed_user_loses_access_within_the_time_to_live_though_connected() {
    let server = Server::new(RULES);
    let ann = server.log_in("ann", "right").await.unwrap();
    let mut users = server.users();
    users.remove("ann");
    users.save().unwrap();
    assert!(server.may(&ann, "app", Action::Read).await, "believed for a while");
    later(61).await;
    assert_eq!(server.outdated(&ann).await, Some(Refusal::Wrong));
    assert_eq!(server.gate.may_see_status(&ann).await, Err(Refusal::Wrong));
    assert_eq!(server.log_in("ann", "right").await.unwrap_err(), Refusal::Wrong);
}

#[tokio::test]
async fn a_user_who_changes_groups_gets_the_rights_of_the_new_ones() {
    let server = Server::new(RULES);
    let ann = server.log_in("ann", "right").await.unwrap();
    assert!(server.may(&ann, "team/app", Action::Read).await);
    let mut users = server.users();
    users.set("ann", &"right".into(), Some(&[])).unwrap();
    users.save().unwrap();
    later(61).await;
    assert!(!server.may(&ann, "team/app", Action::Read).await);
    assert!(server.may(&ann, "app", Action::Read).await);
    assert_eq!(server.outdated(&ann).await, None);
}

#[tokio::test]
async fn certificates_name_users_and_unknown_ones_nobody() {
    let server = Server::new(RULES);
    let with = |subject: &str| Presented::Certificate { subject: subject.to_owned(), names: Vec::new() };
    let build = server.gate.identify(with("CN=build,O=Example"), PEER, true).await.unwrap();
    assert_eq!(build.name(), Some("build"));
    assert!(server.may(&build, "team/app", Action::Publish).await);
    later(61).await;
    // Only the connection knows whether the certificate is still shown.
    assert_eq!(server.outdated(&build).await, Some(Refusal::Wrong));
    let other = server.gate.identify(with("O=Example"), PEER, true).await.unwrap();
    assert!(other.is_anonymous());
    // Exactly: certificates have case.
    let shout = server.gate.identify(with("CN=BUILD"), PEER, true).await.unwrap();
    assert!(!server.may(&shout, "team/app", Action::Publish).await);
}

/// An outage of the directory once looked like absence, and clients gave up for good.
#[tokio::test]
async fn a_directory_that_is_away_is_no_reason_to_deny() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ldap://{}", gone.local_addr().unwrap());
    drop(gone);
    let more = format!(
        "[directory]\nkind = \"active-directory\"\nurls = [{url:?}]\nstart_tls = true\nbase = \"DC=corp\"\naccount = \"service\"\npassword_file = \"password\"\n"
    );
    let server = Server::new(&format!("{RULES}{more}"));
    let ann = Identity::for_test("ann", &["team"]).fresh_for_test(Instant::now() + Duration::from_secs(60));
    assert!(server.may(&ann, "team/app", Action::Read).await, "believed for a while");
    later(61).await;
    let refusal = server.outdated(&ann).await;
    assert!(matches!(&refusal, Some(Refusal::Unavailable(why)) if why.contains(&url)), "{refusal:?}");
    assert!(matches!(server.gate.may_see_status(&ann).await, Err(Refusal::Unavailable(_))));
}

#[tokio::test]
async fn methods_that_are_not_configured_are_refused() {
    let server = Server::new(RULES);
    for presented in [Presented::Bearer("a.b.c".into()), Presented::Negotiate(vec![1, 2, 3])] {
        assert_eq!(server.gate.identify(presented, PEER, true).await.unwrap_err(), Refusal::Wrong);
    }
}

#[tokio::test]
async fn a_reload_counts_at_once_and_a_broken_file_changes_nothing() {
    let server = Server::new(RULES);
    let ann = server.log_in("ann", "right").await.unwrap();
    let path = server.dir.path().join("access.toml");
    std::fs::write(&path, "[default.read]\nusers = [\"bob\"]\n[passwords]\nfile = \"users\"").unwrap();
    server.gate.reload().unwrap();
    assert!(!server.may(&ann, "app", Action::Read).await);
    for broken in ["[default", "[passwords]\nfile = \"absent\""] {
        std::fs::write(&path, broken).unwrap();
        let error = server.gate.reload().unwrap_err().to_string();
        assert!(error.contains("access.toml") || error.contains("absent"), "{error}");
    }
    server.log_in("ann", "right").await.unwrap();
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.toml");
    let open = || Gate::open(&path, None, Metrics::default(), AccessLog::off()).err().unwrap().to_string();
    assert!(open().contains("access.toml"));
    std::fs::write(dir.path().join("users"), "").unwrap();
    std::fs::set_permissions(dir.path().join("users"), std::fs::Permissions::from_mode(0o644)).unwrap();
    for (text, part) in [
        ("[passwords]\nfile = \"users\"", "chmod o="),
        ("[passwords]\nfile = \"absent\"", "absent"),
        ("[[token]]\nissuer = \"i\"\naudience = [\"a\"]\njwks_file = \"absent\"", "absent"),
        (
            "[directory]\nkind = \"ldap\"\nurls = [\"ldaps://dc\"]\nbase = \"dc=x\"\nbind_as = \"cn={user}\"\nca_file = \"absent.pem\"",
            "absent.pem",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = open();
        assert!(error.contains(part), "{text}: {error}");
    }
}
