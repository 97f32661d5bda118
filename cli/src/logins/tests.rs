use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::anyhow;

use super::*;

/// A keyring of the test's own.
#[derive(Default)]
struct Ring {
    secrets: Mutex<HashMap<String, Secret>>,
    absent: AtomicBool,
    asked: AtomicUsize,
}

impl Ring {
    fn check(&self) -> anyhow::Result<()> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.absent.load(Ordering::Relaxed) { Err(anyhow!("no keyring")) } else { Ok(()) }
    }
}

impl Keyring for Ring {
    fn get(&self, account: &str) -> anyhow::Result<Secret> {
        self.check()?;
        self.secrets.lock().get(account).cloned().context("no such entry")
    }

    fn set(&self, account: &str, secret: &Secret) -> anyhow::Result<()> {
        self.check()?;
        self.secrets.lock().insert(account.to_owned(), secret.clone());
        Ok(())
    }

    fn delete(&self, account: &str) -> anyhow::Result<()> {
        self.check()?;
        self.secrets.lock().remove(account);
        Ok(())
    }
}

struct User {
    dir: tempfile::TempDir,
    ring: Arc<Ring>,
}

impl User {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), ring: Arc::default() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("streamfs/logins.toml")
    }

    fn logins(&self) -> Logins {
        Logins::read(Some(self.path()), self.ring.clone()).unwrap()
    }

    fn credentials(&self, location: &str) -> Credentials {
        self.logins().credentials(&location.parse().unwrap())
    }
}

fn basic(user: &str, password: &str) -> Credentials {
    Credentials::Basic { user: user.to_owned(), password: password.to_owned() }
}

#[test]
fn secrets_go_into_the_keyring_and_are_found_by_location() {
    let user = User::new();
    let kept = user.logins().keep("https://h/c".to_owned(), Some("ann".to_owned()), &"s3cret".into(), None).unwrap();
    assert_eq!(kept, Store::Keyring);
    let text = std::fs::read_to_string(user.path()).unwrap();
    assert!(!text.contains("s3cret") && text.contains("ann"), "{text}");
    assert!(user.credentials("https://h/c/app@1") == basic("ann", "s3cret"));
    assert!(user.credentials("https://h/content/app") == Credentials::None);
    assert!(user.credentials("https://h:8443/c/app") == Credentials::None);
    let asked = user.ring.asked.load(Ordering::Relaxed);
    let logins = user.logins();
    for _ in 0..3 {
        logins.credentials(&"https://h/c/app".parse().unwrap());
        logins.clone().credentials(&"https://else/app".parse().unwrap());
    }
    assert_eq!(user.ring.asked.load(Ordering::Relaxed), asked + 1, "once for a command");
}

#[test]
fn without_a_keyring_they_go_into_a_private_file() {
    let user = User::new();
    user.ring.absent.store(true, Ordering::Relaxed);
    let mut logins = user.logins();
    assert_eq!(logins.keep("https://h/c".to_owned(), None, &"t0ken".into(), None).unwrap(), Store::File);
    assert_eq!(std::fs::metadata(user.path()).unwrap().mode() & 0o777, 0o600);
    assert!(user.credentials("https://h/c/app") == Credentials::Bearer("t0ken".to_owned()));
    assert!(!format!("{:?}", user.logins()).contains("t0ken"));
    let error = logins.keep("https://h/d".to_owned(), None, &"t0ken".into(), Some(Store::Keyring)).unwrap_err();
    assert!(format!("{error:#}").contains("--store file"), "{error:#}");
}

#[test]
fn a_new_login_replaces_the_old_one_and_its_secret() {
    let user = User::new();
    let mut logins = user.logins();
    logins.keep("https://h/c".to_owned(), Some("ann".to_owned()), &"one".into(), None).unwrap();
    logins.keep("https://h/c".to_owned(), Some("ann".to_owned()), &"two".into(), None).unwrap();
    assert!(user.credentials("https://h/c/app") == basic("ann", "two"));
    logins.keep("https://h/c".to_owned(), Some("bob".to_owned()), &"three".into(), Some(Store::File)).unwrap();
    assert!(user.credentials("https://h/c/app") == basic("bob", "three"));
    assert!(user.ring.secrets.lock().is_empty(), "nothing is left behind");
    assert_eq!(user.logins().all().len(), 1);
    assert!(user.logins().remove("https://h/c").unwrap());
    assert!(!user.logins().remove("https://h/c").unwrap());
    assert!(user.credentials("https://h/c/app") == Credentials::None);
}

#[test]
fn the_nearest_login_counts() {
    let user = User::new();
    let mut logins = user.logins();
    for (url, name) in [("https://h", "wide"), ("https://h/team", "near")] {
        logins.keep(url.to_owned(), Some(name.to_owned()), &"x".into(), Some(Store::File)).unwrap();
    }
    assert!(user.credentials("https://h/team/app") == basic("near", "x"));
    assert!(user.credentials("https://h/other/app") == basic("wide", "x"));
}

#[test]
fn tickets_are_a_login_without_a_secret() {
    let user = User::new();
    user.logins().keep("https://h".to_owned(), None, &"t".into(), None).unwrap();
    user.logins().keep_ticket("https://h".to_owned()).unwrap();
    assert!(user.credentials("https://h/app") == Credentials::Kerberos);
    assert!(user.ring.secrets.lock().is_empty());
}

#[test]
fn a_keyring_that_forgot_is_no_login() {
    let user = User::new();
    user.logins().keep("https://h/c".to_owned(), None, &"t".into(), None).unwrap();
    user.ring.secrets.lock().clear();
    assert!(user.credentials("https://h/c/app") == Credentials::None);
}

#[test]
fn files_that_others_may_read_or_that_are_damaged_are_refused() {
    let user = User::new();
    user.logins().keep("https://h/c".to_owned(), None, &"t0ken".into(), Some(Store::File)).unwrap();
    std::fs::set_permissions(user.path(), Permissions::from_mode(0o640)).unwrap();
    let read = || format!("{:#}", Logins::read(Some(user.path()), user.ring.clone()).unwrap_err());
    assert!(read().contains("chmod 600"), "{}", read());
    std::fs::set_permissions(user.path(), Permissions::from_mode(0o600)).unwrap();
    std::fs::write(user.path(), "[[login]]\nurl = \"https://h\"\nstore = \"file\"\nsecret = 77777").unwrap();
    assert!(read().contains("line 4") && !read().contains("77777"), "{}", read());
    assert!(Logins::read(None, user.ring.clone()).unwrap().all().is_empty());
}
