//! A real domain: Samba as Active Directory domain controller, in a network namespace of its own, because its ports are
//! fixed. Tests enter that namespace, and so do the servers and clients that they start.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fd::AsFd as _;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::certificates::{AUTHORITY, make_certificates};

const SCRIPT: &str = include_str!("active_directory.sh");

/// Provisioning takes 10 to 20 seconds, on a machine that does other things longer.
const START_DEADLINE: Duration = Duration::from_secs(300);

const REALM: &str = "CORP.EXAMPLE";
const DOMAIN: &str = "CORP";
const BASE: &str = "DC=corp,DC=example";
const ADMINISTRATOR_PASSWORD: &str = "Adm1nistrator-Secret";

/// The account of servers, whose keys are in the keytab.
const SERVICE: &str = "svc-streamfs";

/// Who is in the domain. Tests that change somebody have somebody of their own.
const USERS: [&str; 8] = ["ann", "bea", "carl", "dora", "emil", "fay", "gus", "hal"];

/// Groups, in an order in which members exist before they are put in.
const GROUPS: [(&str, &[&str]); 4] = [
    // bea is in Engineering by two groups between.
    ("Compilers", &["bea"]),
    ("Builders", &["Compilers"]),
    ("Engineering", &["ann", "Builders", "dora", "emil", "fay", "gus", "hal"]),
    ("Sales", &["carl"]),
];

/// A running domain. It ends when the test program does, however it does.
#[derive(Debug)]
pub struct ActiveDirectory {
    folder: PathBuf,
    namespace: File,
    /// While it is open the domain lives: when this process is gone, nobody holds it any more.
    _keeper: (Child, ChildStdin),
}

/// While it lives, the thread that made it is in the domain's network, with everything that it starts.
#[derive(Debug)]
pub struct Inside {
    before: File,
    /// Threads are where they are.
    _not_send: PhantomData<*const ()>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        // Nothing else can be done about it, and the thread ends with its test.
        let _ = move_into_link_name_space(self.before.as_fd(), Some(LinkNameSpaceType::Network));
    }
}

impl ActiveDirectory {
    /// The domain of this test program, which is started when it is asked for first, and the calling thread inside its
    /// network.
    ///
    /// # Panics
    /// When it cannot be started: without root, without Samba.
    #[track_caller]
    pub fn enter() -> (&'static Self, Inside) {
        static SHARED: OnceLock<ActiveDirectory> = OnceLock::new();
        let domain = SHARED.get_or_init(ActiveDirectory::start);
        let before = File::open("/proc/thread-self/ns/net").expect("threads have a network namespace");
        move_into_link_name_space(domain.namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter a namespace");
        (domain, Inside { before, _not_send: PhantomData })
    }

    fn start() -> Self {
        assert!(rustix::process::geteuid().is_root(), "a domain controller needs root, for namespaces and owners");
        let folder = tempfile::Builder::new().prefix("domain-test-").tempdir().expect("a temporary folder");
        // The script removes it, also when this process is killed.
        let folder = folder.keep();
        make_certificates(&folder);
        write(&folder, "smb.conf", 0o644, &smb_conf(&folder));
        write(&folder, "users.ldif", 0o600, &users_ldif());
        write(&folder, "krb5.conf", 0o644, &krb5_conf());
        write(&folder, "account.password", 0o600, &Self::password(SERVICE));
        write(&folder, "administrator.password", 0o600, ADMINISTRATOR_PASSWORD);
        let script = write(&folder, "run.sh", 0o700, SCRIPT);
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin:/usr/local/sbin";
        let mut keeper = Command::new("unshare")
            .args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh"])
            .arg(script)
            .arg(&folder)
            .args([REALM, DOMAIN, ADMINISTRATOR_PASSWORD])
            .env("PATH", path)
            .env("KRB5_CONFIG", folder.join("krb5.conf"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("util-linux has unshare");
        let (stdin, stdout) = (keeper.stdin.take().expect("it is a pipe"), keeper.stdout.take().expect("it is a pipe"));
        let (told, said) = mpsc::channel();
        std::thread::spawn(move || {
            let mut lines = String::new();
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line == "ready" {
                    break;
                }
                let _ = writeln!(lines, "{line}");
            }
            // Whoever waited may have given up.
            let _ = told.send(lines);
        });
        let lines = said.recv_timeout(START_DEADLINE).expect("the domain controller starts within the deadline");
        assert!(folder.join("http.keytab").exists(), "the domain controller did not start:\n{lines}");
        // `unshare` made the namespace before it started the script.
        let namespace = File::open(format!("/proc/{}/ns/net", keeper.id())).expect("it runs");
        Self { folder, namespace, _keeper: (keeper, stdin) }
    }

    /// A user's password.
    pub fn password(user: &str) -> String {
        format!("Secret-0f-{user}")
    }

    /// The domain's configuration for Kerberos, for `KRB5_CONFIG`.
    pub fn krb5_conf(&self) -> PathBuf {
        self.folder.join("krb5.conf")
    }

    /// Tables for an access file: the directory by TLS, looked at with an account.
    pub fn directory_by_account(&self) -> String {
        format!(
            "{}urls = [\"ldaps://localhost\"]\naccount = \"{SERVICE}@corp.example\"\npassword_file = \"{}\"\n",
            self.directory(),
            self.folder.join("account.password").display(),
        )
    }

    /// Tables for an access file: the directory by StartTLS, looked at by whoever logs in.
    pub fn directory_by_user(&self) -> String {
        format!(
            "{}urls = [\"ldap://localhost\"]\nstart_tls = true\nbind_as = \"{{user}}@corp.example\"\n",
            self.directory()
        )
    }

    fn directory(&self) -> String {
        let authority = self.folder.join(AUTHORITY);
        format!("[directory]\nkind = \"active-directory\"\nbase = \"{BASE}\"\nca_file = \"{}\"\n", authority.display())
    }

    /// A table for an access file: tickets for `HTTP/localhost`.
    pub fn kerberos(&self) -> String {
        format!("[kerberos]\nkeytab = \"{}\"\nrealms = [\"{REALM}\"]\n", self.folder.join("http.keytab").display())
    }

    /// Puts a user into a group.
    #[track_caller]
    pub fn add_member(&self, group: &str, user: &str) {
        self.change(group, &format!("add: member\nmember: {}\n", dn(user)));
    }

    /// Takes a user out of a group.
    #[track_caller]
    pub fn remove_member(&self, group: &str, user: &str) {
        self.change(group, &format!("delete: member\nmember: {}\n", dn(user)));
    }

    /// Disables a user's account.
    #[track_caller]
    pub fn disable(&self, user: &str) {
        self.change(user, "replace: userAccountControl\nuserAccountControl: 514\n");
    }

    #[track_caller]
    fn change(&self, name: &str, what: &str) {
        let mut tool = Command::new("ldapmodify")
            // By address: it puts the machine's own name in the place of localhost.
            .args(["-x", "-H", "ldaps://127.0.0.1", "-D", &format!("Administrator@{REALM}"), "-y"])
            .arg(self.folder.join("administrator.password"))
            .env("LDAPTLS_CACERT", self.folder.join(AUTHORITY))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ldapmodify is needed for the tests; `cargo xtask setup` installs it");
        let mut input = tool.stdin.take().expect("it is a pipe");
        write!(input, "dn: {}\nchangetype: modify\n{what}", dn(name)).expect("it reads");
        drop(input);
        let outcome = tool.wait_with_output().expect("it ends");
        assert!(outcome.status.success(), "{name}, {what}: {}", String::from_utf8_lossy(&outcome.stderr));
    }
}

fn write(folder: &Path, name: &str, mode: u32, text: &str) -> PathBuf {
    let path = folder.join(name);
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).expect("a fresh folder");
    path
}

fn dn(name: &str) -> String {
    format!("CN={name},CN=Users,{BASE}")
}

fn users_ldif() -> String {
    let mut text = String::new();
    let mut user = |name: &str, more: &str| {
        // Quoted and in UTF-16, as Active Directory wants passwords.
        let password = format!("\"{}\"", ActiveDirectory::password(name));
        let password: Vec<u8> = password.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let _ = write!(
            text,
            "dn: {}\nobjectClass: user\nsAMAccountName: {name}\nuserPrincipalName: {name}@corp.example\nunicodePwd:: {}\nuserAccountControl: 512\n{more}\n",
            dn(name),
            STANDARD.encode(password),
        );
    };
    for name in USERS {
        user(name, "");
    }
    // 24: AES keys only; without it keytabs get RC4.
    user(SERVICE, "servicePrincipalName: HTTP/localhost\nmsDS-SupportedEncryptionTypes: 24\n");
    for (name, members) in GROUPS {
        let _ = writeln!(text, "dn: {}\nobjectClass: group\nsAMAccountName: {name}", dn(name));
        for member in members {
            let _ = writeln!(text, "member: {}", dn(member));
        }
        text.push('\n');
    }
    text
}

fn smb_conf(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "[global]\nserver role = active directory domain controller\nnetbios name = DC1\nrealm = {REALM}\nworkgroup = {DOMAIN}\n\
         server services = ldap, kdc, rpc, winbindd\ninterfaces = lo\nbind interfaces only = yes\n\
         private dir = {folder}/dc/private\nstate directory = {folder}/dc/state\ncache directory = {folder}/dc/cache\n\
         lock directory = {folder}/dc\npid directory = {folder}/dc\nncalrpc dir = {folder}/dc/ncalrpc\n\
         winbindd socket directory = {folder}/dc/winbindd\nbinddns dir = {folder}/dc/bind-dns\nlog file = {folder}/samba.log\n\
         idmap_ldb:use rfc2307 = yes\n\
         tls enabled = yes\ntls cafile = {folder}/{AUTHORITY}\ntls certfile = {folder}/leaf.pem\ntls keyfile = {folder}/leaf.key\n"
    )
}

fn krb5_conf() -> String {
    format!(
        "[libdefaults]\ndefault_realm = {REALM}\ndns_lookup_kdc = false\ndns_lookup_realm = false\nrdns = false\n\
         dns_canonicalize_hostname = false\nqualify_shortname = \"\"\n\
         [realms]\n{REALM} = {{\nkdc = 127.0.0.1:88\n}}\n[domain_realm]\nlocalhost = {REALM}\n"
    )
}
