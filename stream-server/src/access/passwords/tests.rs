use super::*;

fn groups(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn written(dir: &Path) -> PathBuf {
    let path = dir.join("users");
    let mut file = PasswordFile::open(&path).unwrap();
    file.set("Ann", &"right".into(), Some(&groups(&["staff", "Build Team"]))).unwrap();
    file.set("bob", &"bob's".into(), None).unwrap();
    file.save().unwrap();
    path
}

#[test]
fn users_are_added_changed_and_removed_and_comments_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path());
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "a new file is its owner's alone");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("# people\n\n{text}")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();

    let mut file = PasswordFile::open(&path).unwrap();
    assert_eq!(file.users().map(|(user, _)| user).collect::<Vec<_>>(), ["Ann", "bob"]);
    file.set("ANN", &"new".into(), None).unwrap();
    assert!(file.remove("Bob"));
    assert!(!file.remove("bob"));
    file.save().unwrap();

    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# people\n\nAnn:$argon2id$v=19$m=19456,t=2,p=1$"), "{text}");
    assert!(text.ends_with(":staff,Build Team\n"), "groups stay when only the password changes: {text}");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640, "permissions stay");
}

#[test]
fn what_would_break_the_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = PasswordFile::open(&dir.path().join("users")).unwrap();
    for user in ["", "a:b", "#a", "a\nb", " a"] {
        assert!(file.set(user, &"p".into(), None).is_err(), "{user}");
    }
    for group in ["", "a,b", "a:b", "a\n"] {
        assert!(file.set("ann", &"p".into(), Some(&groups(&[group]))).is_err(), "{group}");
    }
    for password in ["", "a\nb"] {
        assert!(file.set("ann", &password.into(), None).is_err());
    }
    assert_eq!(file.users().count(), 0);
}

#[test]
fn unusable_files_are_told_without_their_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users");
    let good = hash(&"x".into()).unwrap();
    let weak = good.replace("m=19456", "m=9999999");
    let other = good.replace("argon2id", "argon2i");
    for (text, part) in [
        ("ann:hunter2:".to_owned(), "line 1: the hash cannot be read"),
        ("\nann".to_owned(), "line 2: expected"),
        (format!("ann:{weak}:"), "more than"),
        (format!("ann:{other}:"), "not of Argon2id"),
        (format!("ann:{good}:\nANN:{good}:"), "line 2: the user \"ANN\" stands twice"),
        (format!(":{good}:"), "name"),
    ] {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let error = PasswordFile::open(&path).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
    }
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(Passwords::open(&path).err().unwrap().to_string().contains("chmod o="));
    assert!(Passwords::open(&dir.path().join("absent")).err().unwrap().to_string().contains("absent"));
}

#[tokio::test]
async fn logins_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let passwords = Passwords::open(&written(dir.path())).unwrap();
    match passwords.check("ANN", &"right".into(), true).await.unwrap() {
        Checked::Right { user, groups } => {
            assert_eq!((user.as_str(), &*groups), ("ann", &["staff", "Build Team"].map(str::to_owned)[..]))
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(passwords.check("ann", &"wrong".into(), true).await.unwrap(), Checked::Wrong));
    assert!(matches!(passwords.check("eve", &"right".into(), true).await.unwrap(), Checked::Unknown));
}

#[tokio::test]
async fn a_changed_file_counts_at_once_and_a_broken_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path());
    let passwords = Passwords::open(&path).unwrap();
    std::fs::write(&path, "in the middle of editing").unwrap();
    assert!(matches!(passwords.check("ann", &"right".into(), true).await.unwrap(), Checked::Right { .. }));
    assert_eq!(passwords.groups("bob").await.as_deref(), Some(&[][..]));

    std::fs::remove_file(&path).unwrap();
    let mut file = PasswordFile::open(&path).unwrap();
    file.set("ann", &"new".into(), None).unwrap();
    file.save().unwrap();
    assert!(matches!(passwords.check("ann", &"right".into(), true).await.unwrap(), Checked::Wrong));
    assert!(matches!(passwords.check("ann", &"new".into(), true).await.unwrap(), Checked::Right { .. }));
    assert!(passwords.groups("bob").await.is_none());
}

#[test]
fn hashes_are_salted_and_not_shown() {
    let (one, other) = (hash(&"x".into()).unwrap(), hash(&"x".into()).unwrap());
    assert_ne!(one, other);
    assert!(verify(&one, &"x".into()) && verify(&other, &"x".into()) && !verify(&one, &"y".into()));
    let entry = parse_entry(&format!("ann:{one}:staff")).unwrap();
    assert!(!format!("{entry:?}").contains("argon2"), "{entry:?}");
}
