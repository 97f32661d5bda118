use super::*;
use crate::access::{Action, Identity};

pub(crate) const FULL: &str = r#"
allow_in_clear = false
package_files = false

[cache]
ttl = "30s"
entries = 500

[failed_logins]
per_user = 5
per_address = 50
window = "10m"

[passwords]
file = "users"

[[token]]
issuer = "https://login.example/"
audience = ["streamfs"]
jwks_url = "https://login.example/keys"
algorithms = ["RS256", "EdDSA"]
user_claim = "preferred_username"
groups_claim = "realm_access.roles"
prefix = "oidc:"
leeway = "30s"

[[token]]
issuer = "ci"
audience = ["streamfs", "other"]
jwks_file = "/etc/ci.jwks"

[certificates]
user_from = "common_name"
directory_groups = true
[[certificates.user]]
subject = "CN=build,O=Example"
user = "build"
groups = ["release"]

[directory]
kind = "active-directory"
urls = ["ldaps://dc1.corp.example", "ldaps://dc2.corp.example:3269"]
ca_file = "corp-ca.pem"
base = "DC=corp,DC=example"
account = "streamfs@corp.example"
password_file = "directory.password"
deadline = "3s"

[status]
groups = ["Operators"]

[default.read]
logged_in = true

[[package]]
name = "team/*"
read = { groups = ["Team"] }
publish = { users = ["build"] }
"#;

fn parse(text: &str) -> Result<AccessSettings, String> {
    AccessSettings::parse(text, Path::new("/etc/streamfs"))
}

#[test]
fn everything_can_be_said() {
    let it = parse(FULL).unwrap();
    assert_eq!((it.cache.ttl, it.cache.entries), (Duration::from_secs(30), 500));
    assert_eq!(it.failed_logins.window, Duration::from_secs(600));
    assert_eq!(it.passwords.as_ref().unwrap().file, Path::new("/etc/streamfs/users"));
    assert_eq!(it.tokens[0].algorithms, [Algorithm::RS256, Algorithm::EdDSA]);
    assert_eq!((it.tokens[0].user_claim.as_str(), it.tokens[1].user_claim.as_str()), ("preferred_username", "sub"));
    assert_eq!(it.tokens[1].jwks_file.as_deref(), Some(Path::new("/etc/ci.jwks")));
    let directory = it.directory.as_ref().unwrap();
    assert_eq!(directory.password_file.as_deref(), Some(Path::new("/etc/streamfs/directory.password")));
    assert!(directory.nested && directory.kind == DirectoryKind::ActiveDirectory);
    assert!(!it.package_files && !it.allow_in_clear);
    let build = Identity::for_test("build", &[]);
    assert!(it.rule_of("team/app").allows(&build, Action::Publish));
    assert!(!it.rule_of("app").allows(&build, Action::Publish));
    assert!(it.rule_of("app").allows(&build, Action::Read));
}

#[test]
fn nothing_said_means_nobody() {
    let it = parse("").unwrap();
    assert!(it.package_files);
    assert!(!it.rule_of("app").allows(&Identity::anonymous(), Action::Read));
    assert!(!it.rule_of("app").allows(&Identity::for_test("ann", &[]), Action::Read));
}

#[test]
fn mistakes_are_told() {
    let token = |more: &str| format!("[[token]]\nissuer = \"i\"\naudience = [\"a\"]\n{more}");
    let directory = |more: &str| format!("[directory]\nkind = \"ldap\"\nbase = \"dc=x\"\n{more}");
    for (text, part) in [
        ("[cache]\nttl = \"0s\"".to_owned(), "cache"),
        ("[cache]\nttl = 5".to_owned(), "line 2"),
        ("[failed_logins]\nper_user = 0".to_owned(), "failed_logins"),
        ("[passwords]\nfiel = \"x\"".to_owned(), "line 2: unknown field `fiel`"),
        (token(""), "one of jwks_file and jwks_url"),
        (token("jwks_url = \"http://login.example/keys\""), "must be https"),
        (token("jwks_file = \"k\"\nalgorithms = [\"HS256\"]"), "public keys"),
        (token("jwks_file = \"k\"\nalgorithms = [\"none\"]"), "line"),
        ("[[token]]\nissuer = \"i\"\naudience = []\njwks_file = \"k\"".to_owned(), "audience"),
        (format!("{}\n{}", token("jwks_file = \"k\""), token("jwks_file = \"k\"")), "stands twice"),
        ("[certificates]".to_owned(), "user_from"),
        ("[certificates]\n[[certificates.user]]\nuser = \"u\"".to_owned(), "subject and name"),
        (directory("urls = [\"ldap://dc\"]\nbind_as = \"{user}\""), "start_tls = true"),
        (directory("urls = [\"ldaps://dc\"]\nstart_tls = true\nbind_as = \"{user}\""), "start_tls goes"),
        (directory("urls = [\"http://dc\"]\nbind_as = \"{user}\""), "cannot be used"),
        (directory("urls = [\"ldaps://u:77777@dc\"]\nbind_as = \"{user}\""), "no password"),
        (token("jwks_url = \"https://u:77777@x/keys\""), "no password"),
        (directory("urls = [\"ldaps://dc\"]"), "bind_as"),
        (directory("urls = [\"ldaps://dc\"]\nbind_as = \"user\""), "{user}"),
        (directory("urls = [\"ldaps://dc\"]\naccount = \"a\""), "go together"),
        (directory("urls = [\"ldaps://dc\"]\nbind_as = \"{user}\"\nuser_attribute = \"a)(b\""), "no attribute"),
        ("[certificates]\nuser_from = \"email\"\ndirectory_groups = true".to_owned(), "needs a [directory]"),
        ("[kerberos]\nkeytab = \"k\"\nrealms = []\ndirectory_groups = false".to_owned(), "realm"),
        ("[default.publish]\neveryone = true".to_owned(), "default: publishing"),
        ("[[package]]\nname = \"a*\"".to_owned(), "no package"),
        ("[[package]]\nname = \"a\"\n[[package]]\nname = \"a\"".to_owned(), "two rules"),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(error.contains(part) && !error.contains("77777"), "{text}: {error}");
    }
}

#[test]
fn plain_ldap_is_for_this_machine_only() {
    for url in ["ldap://127.0.0.1:3890", "ldap://localhost", "ldap://[::1]:389"] {
        parse(&format!("[directory]\nkind = \"ldap\"\nbase = \"dc=x\"\nurls = [\"{url}\"]\nbind_as = \"cn={{user}}\""))
            .unwrap();
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_not_repeated() {
    for line in ["password_file = 77777", "password = \"77777\"", "account = [\"77777\"]"] {
        let error = parse(&format!("[directory]\n{line}")).unwrap_err();
        assert!(!error.contains("77777"), "{line}: {error}");
    }
}
