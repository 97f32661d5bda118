use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn load(config: Option<&Path>, variables: &[(&str, &str)]) -> anyhow::Result<InForce> {
    let mut known: BTreeMap<String, String> = variables.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    known.entry("HOME".to_owned()).or_insert_with(|| "/nowhere/home".to_owned());
    InForce::load(config, &|name| known.get(name).map(OsString::from))
}

fn file(dir: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path
}

fn credentials(settings: &InForce, location: &str) -> Credentials {
    settings.origin_config(&location.parse().unwrap()).credentials
}

#[test]
fn defaults_need_no_file() {
    let it = load(None, &[("XDG_CONFIG_HOME", "/nowhere/config")]).unwrap();
    assert_eq!(it.keys_dir().unwrap(), Path::new("/nowhere/config/streamfs/keys"));
    assert_eq!((it.cache_size_bytes, it.memory_bytes), (20 << 30, 64 << 20));
    assert_eq!(it.poll_interval, Duration::from_secs(60));
    assert!(it.cache_dir().unwrap().ends_with("streamfs"));
}

#[test]
fn the_environment_goes_before_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path =
        file(dir.path(), "c.toml", "[agent]\ncache_dir = \"cache\"\nmemory = \"1M\"\nread_deadline = \"7s\"", 0o644);
    let it = load(Some(&path), &[]).unwrap();
    assert_eq!(it.cache_dir().unwrap(), dir.path().join("cache"), "relative to the settings file");
    assert_eq!(it.memory_bytes, 1 << 20);
    assert_eq!(it.origin_config(&"/a/b".parse().unwrap()).retry.read_deadline, Duration::from_secs(7));
    let variables = [("STREAMFS_CACHE", "/else/where"), ("STREAMFS_CONFIG", path.to_str().unwrap())];
    let it = load(None, &variables).unwrap();
    assert_eq!((it.cache_dir().unwrap(), it.memory_bytes), (Path::new("/else/where"), 1 << 20));
}

#[test]
fn a_named_file_must_exist_and_be_understood() {
    let error = format!("{:#}", load(Some(Path::new("/nowhere/c.toml")), &[]).unwrap_err());
    assert!(error.contains("/nowhere/c.toml"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "c.toml", "[agnet]", 0o600);
    let error = format!("{:#}", load(Some(&path), &[]).unwrap_err());
    assert!(error.contains("agnet") && error.contains("c.toml"), "{error}");
}

#[test]
fn secrets_that_others_may_read_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let inline = "[[origin]]\nurl = \"https://h\"\ncredentials = { token = \"abc\" }";
    let error = format!("{:#}", load(Some(&file(dir.path(), "open.toml", inline, 0o644)), &[]).unwrap_err());
    assert!(error.contains("chmod 600"), "{error}");
    let it = load(Some(&file(dir.path(), "private.toml", inline, 0o600)), &[]).unwrap();
    assert!(credentials(&it, "https://h/app") == Credentials::Bearer("abc".to_owned()));

    let by_file = "[[origin]]\nurl = \"https://h\"\ncredentials = { user = \"u\", password_file = \"pw\" }";
    let config = file(dir.path(), "by-file.toml", by_file, 0o644);
    file(dir.path(), "pw", "s3cret\n", 0o640);
    let error = format!("{:#}", load(Some(&config), &[]).unwrap_err());
    assert!(error.contains("chmod 600") && !error.contains("s3cret"), "{error}");
    file(dir.path(), "pw", "s3cret\n", 0o600);
    let expected = Credentials::Basic { user: "u".to_owned(), password: "s3cret".to_owned() };
    assert!(credentials(&load(Some(&config), &[]).unwrap(), "https://h/app") == expected);
}

#[test]
fn credentials_of_the_environment_are_complete_or_refused() {
    let it = load(None, &[("STREAMFS_HTTP_USER", "u"), ("STREAMFS_HTTP_PASSWORD", "p")]).unwrap();
    assert!(matches!(credentials(&it, "https://h/app"), Credentials::Basic { .. }));
    assert!(!format!("{it:?}").contains("\"p\""));
    for half in [
        vec![("STREAMFS_HTTP_USER", "u")],
        vec![("STREAMFS_HTTP_PASSWORD", "p")],
        vec![("STREAMFS_TOKEN", "t"), ("STREAMFS_HTTP_USER", "u")],
    ] {
        let error = load(None, &half).unwrap_err().to_string();
        assert!(error.contains("set"), "{error}");
    }
}

/// A service without HOME could not mount, because nothing said where the keys are that only publishers need.
#[test]
fn what_is_not_needed_may_be_unknown() {
    let only = |name: &str, value: &str| {
        let (name, value) = (name.to_owned(), OsString::from(value));
        InForce::load(None, &move |asked| (asked == name).then(|| value.clone())).unwrap()
    };
    let mounts = only("STREAMFS_CACHE", "/c");
    assert_eq!(mounts.cache_dir().unwrap(), Path::new("/c"));
    assert!(mounts.keys_dir().unwrap_err().to_string().contains("STREAMFS_KEYS"));
    assert_eq!(only("STREAMFS_KEYS", "/k").keys_dir().unwrap(), Path::new("/k"));
}

#[test]
fn what_login_kept_is_used_unless_something_else_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("streamfs");
    std::fs::create_dir(&folder).unwrap();
    let kept = "[[login]]\nurl = \"https://h\"\nuser = \"ann\"\nstore = \"file\"\nsecret = \"kept\"";
    file(&folder, "logins.toml", kept, 0o600);
    let config = ("XDG_CONFIG_HOME", dir.path().to_str().unwrap());
    let it = load(None, &[config]).unwrap();
    let expected = Credentials::Basic { user: "ann".to_owned(), password: "kept".to_owned() };
    assert!(credentials(&it, "https://h/c/app") == expected);
    assert!(credentials(&it, "https://else/c/app") == Credentials::None);
    assert!(!format!("{it:?}").contains("kept"));

    let settings =
        file(&folder, "config.toml", "[[origin]]\nurl = \"https://h/c\"\ncredentials = { token = \"said\" }", 0o600);
    let it = load(Some(&settings), &[config]).unwrap();
    assert!(credentials(&it, "https://h/c/app") == Credentials::Bearer("said".to_owned()));
    assert!(credentials(&it, "https://h/d/app") == expected);
    let it = load(Some(&settings), &[config, ("STREAMFS_TOKEN", "now")]).unwrap();
    assert!(credentials(&it, "https://h/c/app") == Credentials::Bearer("now".to_owned()));

    file(&folder, "logins.toml", kept, 0o644);
    let error = format!("{:#}", load(None, &[config]).unwrap_err());
    assert!(error.contains("chmod 600") && !error.contains("kept"), "{error}");
}
