//! Against a directory of a few lines, which understands as much of LDAP as these questions need. Real Active Directory
//! is for the end-to-end tests.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::AtomicBool;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const BIND: u8 = 0x60;
const UNBIND: u8 = 0x42;
const SEARCH: u8 = 0x63;
const EXTENDED: u8 = 0x77;

/// One element of BER.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        short @ 0..=127 => out.push(u8::try_from(short).unwrap()),
        long => {
            out.push(0x82);
            out.extend_from_slice(&u16::try_from(long).unwrap().to_be_bytes());
        }
    }
    out.extend_from_slice(content);
    out
}

/// Tag, content and what follows.
fn take(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 128 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        (digits.iter().fold(0, |n, digit| (n << 8) | usize::from(*digit)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn result(tag: u8, code: u8, more: &[u8]) -> Vec<u8> {
    element(tag, &[&element(0x0a, &[code])[..], &element(4, b""), &element(4, b""), more].concat())
}

type Entry = (&'static str, &'static str, Vec<Vec<u8>>);

/// What the directory answers.
#[derive(Default)]
struct Content {
    /// Names that may bind, and their passwords.
    binds: Vec<(&'static str, &'static str)>,
    /// Empty: that question is unknown.
    who: &'static str,
    /// A search whose request holds all of these texts finds those entries; the first that fits.
    finds: Vec<(Vec<Vec<u8>>, Vec<Entry>)>,
}

struct Fake {
    url: String,
    /// Closes connections at their next question.
    rude: Arc<AtomicBool>,
    binds: Arc<AtomicUsize>,
}

impl Fake {
    async fn start(content: Content) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ldap://{}", listener.local_addr().unwrap());
        let content = Arc::new(content);
        let (rude, binds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (rudely, counted) = (rude.clone(), binds.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, content.clone(), rudely.clone(), counted.clone()));
            }
        });
        Self { url, rude, binds }
    }
}

async fn converse(mut stream: TcpStream, content: Arc<Content>, rude: Arc<AtomicBool>, binds: Arc<AtomicUsize>) {
    let mut buffer = Vec::new();
    loop {
        let Some((_, message, rest)) = take(&buffer) else {
            let mut piece = [0; 4096];
            match stream.read(&mut piece).await {
                Ok(count) if count > 0 => buffer.extend_from_slice(&piece[..count]),
                _ => return,
            }
            continue;
        };
        let (message, rest) = (message.to_vec(), rest.to_vec());
        buffer = rest;
        if rude.swap(false, Ordering::Relaxed) {
            return;
        }
        let (_, id, operation) = take(&message).unwrap();
        let id = element(2, id);
        let (tag, body, _) = take(operation).unwrap();
        let answers = match tag {
            BIND => {
                binds.fetch_add(1, Ordering::Relaxed);
                let (_, _, rest) = take(body).unwrap();
                let (_, name, rest) = take(rest).unwrap();
                let (_, password, _) = take(rest).unwrap();
                let right = content.binds.iter().any(|(n, p)| n.as_bytes() == name && p.as_bytes() == password);
                vec![result(0x61, if right { 0 } else { 49 }, b"")]
            }
            SEARCH => {
                let holds = |part: &Vec<u8>| body.windows(part.len()).any(|window| window == part);
                let found = content.finds.iter().find(|(parts, _)| parts.iter().all(holds));
                let entries = found.map(|(_, entries)| entries.clone()).unwrap_or_default();
                let mut answers: Vec<Vec<u8>> = entries.iter().map(entry).collect();
                answers.push(result(0x65, 0, b""));
                answers
            }
            EXTENDED if content.who.is_empty() => vec![result(0x78, 2, b"")],
            EXTENDED => vec![result(0x78, 0, &element(0x8b, content.who.as_bytes()))],
            UNBIND => return,
            other => panic!("operation {other:x}"),
        };
        for answer in answers {
            let message = element(0x30, &[id.clone(), answer].concat());
            if stream.write_all(&message).await.is_err() {
                return;
            }
        }
    }
}

fn entry((dn, attribute, values): &Entry) -> Vec<u8> {
    let values: Vec<u8> = values.iter().flat_map(|value| element(4, value)).collect();
    let attribute = element(0x30, &[element(4, attribute.as_bytes()), element(0x31, &values)].concat());
    element(0x64, &[element(4, dn.as_bytes()), element(0x30, &attribute)].concat())
}

fn parts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn text(dn: &'static str, attribute: &'static str, value: &str) -> Entry {
    (dn, attribute, vec![value.as_bytes().to_vec()])
}

/// A domain's, and one of the machine's own, whose bytes happen to be text.
const DOMAIN_SID: [u8; 16] = [1, 2, 0, 0, 0, 0, 0, 5, 0xff, 0xfe, 0, 0, 0x99, 4, 0, 0];
const BUILTIN_SID: [u8; 16] = [1, 2, 0, 0, 0, 0, 0, 5, 32, 0, 0, 0, 33, 2, 0, 0];

fn active_directory() -> Content {
    let ann = "CN=Ann,DC=corp";
    Content {
        binds: vec![("ann@corp.example", "right"), ("CN=Ann,DC=corp", "right"), ("service", "its")],
        who: "u:CORP\\Ann",
        finds: vec![
            (parts(&["tokenGroups", ann]), vec![(ann, "tokenGroups", vec![DOMAIN_SID.into(), BUILTIN_SID.into()])]),
            (
                vec![b"objectSid".to_vec(), DOMAIN_SID.into(), BUILTIN_SID.into()],
                vec![text("CN=Staff", "sAMAccountName", "Staff"), text("CN=Users", "sAMAccountName", "Users")],
            ),
            (parts(&["sAMAccountName", "ann", "userAccountControl"]), vec![text(ann, "sAMAccountName", "Ann")]),
            (parts(&["sAMAccountName", "Ann", "userAccountControl"]), vec![text(ann, "sAMAccountName", "Ann")]),
        ],
    }
}

fn directory(folder: &Path, kind: &str, urls: &[&str], more: &str) -> Directory {
    patient(folder, "5s", kind, urls, more)
}

fn patient(folder: &Path, deadline: &str, kind: &str, urls: &[&str], more: &str) -> Directory {
    let file = folder.join("password");
    std::fs::write(&file, "its").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let urls: Vec<String> = urls.iter().map(|url| format!("{url:?}")).collect();
    let text = format!(
        "[directory]\nkind = \"{kind}\"\nbase = \"DC=corp\"\ndeadline = \"{deadline}\"\nurls = [{}]\n{more}\n",
        urls.join(",")
    );
    let settings = crate::access::settings::AccessSettings::parse(&text, folder).unwrap();
    Directory::new(&settings.directory.unwrap()).unwrap_or_else(|e| panic!("{e}"))
}

const AS_USER: &str = "bind_as = \"{user}@corp.example\"";
const AS_ACCOUNT: &str = "account = \"service\"\npassword_file = \"password\"";

fn ann() -> Member {
    Member { user: "ann".to_owned(), groups: ["staff".to_owned(), "users".to_owned()].into() }
}

#[tokio::test]
async fn who_logs_in_is_what_the_directory_says() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(active_directory()).await;
    for how in [AS_USER, AS_ACCOUNT] {
        let it = directory(dir.path(), "active-directory", &[&fake.url], how);
        assert_eq!(it.log_in("ann", &"right".into()).await, Ok(ann()), "{how}");
        assert_eq!(it.log_in("ann", &"wrong".into()).await, Err(Refusal::Wrong), "{how}");
        assert_eq!(it.log_in("eve", &"right".into()).await, Err(Refusal::Wrong), "{how}");
    }
}

/// Samba does not know the question who is bound, and a name that was typed may be another user's.
#[tokio::test]
async fn who_logged_in_is_told_by_identifiers_where_it_cannot_be_asked() {
    let dir = tempfile::tempdir().unwrap();
    let dn = "CN=Ann,DC=corp";
    let content = || Content { who: "", ..active_directory() };
    let of_connection = || (parts(&["tokenGroups"]), vec![("", "tokenGroups", vec![DOMAIN_SID.into()])]);
    let users = |names: &[&'static str]| {
        let found = names.iter().map(|dn| text(dn, "sAMAccountName", "Ann")).collect();
        (parts(&["objectSid", "userAccountControl"]), found)
    };
    for (found, member) in
        [(users(&[dn]), Ok(ann())), (users(&[]), Err(Refusal::Wrong)), (users(&[dn, "CN=Bob"]), Err(Refusal::Wrong))]
    {
        let mut content = content();
        content.finds.extend([of_connection(), found]);
        let fake = Fake::start(content).await;
        let it = directory(dir.path(), "active-directory", &[&fake.url], AS_USER);
        assert_eq!(it.log_in("ann", &"right".into()).await, member);
    }
}

/// A simple bind without a password succeeds, as nobody.
#[tokio::test]
async fn an_empty_password_is_never_sent() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(Content { binds: vec![("ann@corp.example", "")], ..active_directory() }).await;
    let it = directory(dir.path(), "active-directory", &[&fake.url], AS_USER);
    assert_eq!(it.log_in("ann", &"".into()).await, Err(Refusal::Wrong));
    assert_eq!(fake.binds.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn users_are_looked_up_on_one_connection_which_may_break() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(active_directory()).await;
    let it = directory(dir.path(), "active-directory", &[&fake.url], AS_ACCOUNT);
    assert!(it.can_look_up());
    for _ in 0..3 {
        assert_eq!(it.look_up("ann").await, Ok(Some(ann())));
    }
    assert_eq!(it.look_up("eve").await, Ok(None));
    assert_eq!(fake.binds.load(Ordering::Relaxed), 1);
    fake.rude.store(true, Ordering::Relaxed);
    assert_eq!(it.look_up("ann").await, Ok(Some(ann())));
    assert_eq!(fake.binds.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_wrong_account_is_the_servers_fault_and_not_the_users() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(Content { binds: vec![("CN=Ann,DC=corp", "right")], ..active_directory() }).await;
    let it = directory(dir.path(), "active-directory", &[&fake.url], AS_ACCOUNT);
    match it.log_in("ann", &"right".into()).await {
        Err(Refusal::Unavailable(why)) => assert!(why.contains("account"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(active_directory()).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let away = format!("ldap://{}", gone.local_addr().unwrap());
    drop(gone);
    let it = directory(dir.path(), "active-directory", &[&away, &fake.url], AS_USER);
    assert_eq!(it.log_in("ann", &"right".into()).await, Ok(ann()));
    let none = directory(dir.path(), "active-directory", &[&away], AS_USER);
    assert!(matches!(none.log_in("ann", &"right".into()).await, Err(Refusal::Unavailable(_))));
}

#[tokio::test]
async fn groups_of_groups_are_followed_and_loops_end() {
    let dir = tempfile::tempdir().unwrap();
    let ann = "uid=ann,DC=corp";
    let group = |name: &'static str, dn: &'static str| text(dn, "cn", name);
    let content = || Content {
        binds: vec![(ann, "right")],
        who: "dn:uid=ann,DC=corp",
        finds: vec![
            (parts(&["member", "memberUid", ann]), vec![group("Inner", "cn=inner"), group("Posix", "cn=posix")]),
            (parts(&["member", "cn=inner"]), vec![group("Outer", "cn=outer")]),
            (parts(&["member", "cn=outer"]), vec![group("Inner", "CN=Inner"), group("Outermost", "cn=outermost")]),
            (parts(&["uid", ann]), vec![text(ann, "uid", "Ann")]),
        ],
    };
    let how = "bind_as = \"uid={user},DC=corp\"";
    let fake = Fake::start(content()).await;
    let it = directory(dir.path(), "ldap", &[&fake.url], how);
    let member = it.log_in("ann", &"right".into()).await.unwrap();
    assert_eq!(member.user, "ann");
    assert_eq!(*member.groups, ["inner", "outer", "outermost", "posix"].map(str::to_owned));
    let it = directory(dir.path(), "ldap", &[&fake.url], &format!("{how}\nnested = false"));
    let member = it.log_in("ann", &"right".into()).await.unwrap();
    assert_eq!(*member.groups, ["inner", "posix"].map(str::to_owned));
}

#[tokio::test]
async fn a_directory_that_says_nothing_is_not_waited_for_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ldap://{}", silent.local_addr().unwrap());
    let it = patient(dir.path(), "500ms", "active-directory", &[&url], AS_USER);
    match it.log_in("ann", &"right".into()).await {
        Err(Refusal::Unavailable(why)) => assert!(why.contains("did not answer"), "{why}"),
        other => panic!("{other:?}"),
    }
}
