//! One suite for every backend: what `Backend` promises, each backend keeps. A new backend is a new case.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fs_core::ErrorKind;
use fs_core::backend::{Backend, Beginning, Enough, ObjectPath, ReadOptions, SmallRead, collect, open};
use fs_core::config::{Credentials, OriginConfig, RetryPolicy};
use tests::{Nginx, NginxOptions, Scheme, Served, Streamfs};

/// A backend that reads the content root at a folder, and what must live as long as it does.
struct Case {
    name: &'static str,
    backend: Arc<dyn Backend>,
    _server: Server,
}

/// Whose backend it is; ends when dropped.
enum Server {
    None,
    Web { _nginx: Nginx },
    Streaming { _served: Arc<Served>, _user: Arc<Streamfs> },
}

const OBJECT: &str = "packs/one";
const SMALL: &str = "metadata/small";
const EMPTY: &str = "metadata/empty";
const LENGTH: usize = 300_000;

fn bytes() -> Vec<u8> {
    (0..LENGTH as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn content() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary folder");
    let package = root.path().join("app");
    fs::create_dir_all(package.join("packs")).expect("a fresh folder");
    fs::create_dir_all(package.join("metadata")).expect("a fresh folder");
    fs::write(package.join(OBJECT), bytes()).expect("a fresh folder");
    fs::write(package.join(SMALL), "small object").expect("a fresh folder");
    fs::write(package.join(EMPTY), "").expect("a fresh folder");
    // A streaming server serves packages only; what tells one is that it has a head.
    fs::write(package.join("head"), "no real one").expect("a fresh folder");
    // Beside the package: must not be reachable through it.
    fs::write(root.path().join("secret"), "of others").expect("a fresh folder");
    root
}

fn config() -> OriginConfig {
    let retry = RetryPolicy { read_deadline: Duration::from_secs(5), ..RetryPolicy::default() };
    OriginConfig { retry, ..OriginConfig::default() }
}

fn backend(content: &str, config: &OriginConfig) -> Arc<dyn Backend> {
    let location = format!("{content}/app").parse().expect("a location");
    open(&location, config).expect("opens")
}

/// Every backend that this build has.
fn cases(root: &Path) -> Vec<Case> {
    let folder = backend(root.to_str().expect("plain"), &config());
    let http = Nginx::http(root);
    let http_backend = backend(&http.url(), &config());
    let basic_auth = Some(("reader".to_owned(), "password".to_owned()));
    let https = Nginx::start(root, &NginxOptions { scheme: Scheme::Https, basic_auth, ..NginxOptions::default() });
    let credentials = Credentials::Basic { user: "reader".to_owned(), password: "password".to_owned() };
    let https_config = OriginConfig { ca_files: vec![https.ca_file()], credentials, ..config() };
    let https_backend = backend(&https.url(), &https_config);
    let user = Arc::new(Streamfs::new());
    let trial = user.folder("tls");
    let served = Arc::new(Served::start(&user, root, &["--tls-trial", trial.to_str().expect("plain")]));
    let rtsp = backend(&served.url("rtsp"), &config());
    let rtsps = backend(&served.url("rtsps"), &OriginConfig { ca_files: vec![trial.join("ca.pem")], ..config() });
    let streaming = || Server::Streaming { _served: Arc::clone(&served), _user: Arc::clone(&user) };
    vec![
        Case { name: "folder", backend: folder, _server: Server::None },
        Case { name: "http", backend: http_backend, _server: Server::Web { _nginx: http } },
        Case { name: "https", backend: https_backend, _server: Server::Web { _nginx: https } },
        Case { name: "rtsp", backend: rtsp, _server: streaming() },
        Case { name: "rtsps", backend: rtsps, _server: streaming() },
    ]
}

fn object(path: &str) -> ObjectPath {
    ObjectPath::new(path).expect("a path")
}

/// Runs `test` for every backend, saying which.
fn for_each<F: Future<Output = ()>>(test: impl Fn(Arc<dyn Backend>, std::path::PathBuf) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let root = content();
    for case in cases(root.path()) {
        println!("backend: {}", case.name);
        runtime.block_on(test(Arc::clone(&case.backend), root.path().join("app")));
    }
}

#[test]
fn ranges_are_exact() {
    for_each(|backend, _| async move {
        let all = bytes();
        let end = LENGTH as u64;
        for range in [0..1, 0..end, 1..2, 4_095..4_097, 100_000..250_000, end - 1..end] {
            let stream = backend.read_range(&object(OBJECT), range.clone(), ReadOptions::default()).await;
            let length = (range.end - range.start) as usize;
            let found = collect(stream.expect("reads"), length).await.expect("reads");
            assert!(found == all[range.start as usize..range.end as usize], "{range:?}");
        }
    });
}

#[test]
fn caches_on_the_way_can_be_passed_by() {
    for_each(|backend, _| async move {
        let options = ReadOptions { bypass_caches: true, ..ReadOptions::default() };
        let stream = backend.read_range(&object(OBJECT), 10..20, options).await.expect("reads");
        assert!(collect(stream, 10).await.expect("reads") == bytes()[10..20]);
    });
}

/// A range that the object does not have is an error, not fewer bytes.
#[test]
fn ranges_past_the_end_fail() {
    for_each(|backend, _| async move {
        let end = LENGTH as u64;
        for range in [end - 1..end + 1, end..end + 1, end * 3..end * 3 + 10] {
            let outcome = match backend.read_range(&object(OBJECT), range.clone(), ReadOptions::default()).await {
                Ok(stream) => collect(stream, (range.end - range.start) as usize).await,
                Err(e) => Err(e),
            };
            let error = outcome.expect_err("more than there is");
            let kind = error.kind();
            assert!(matches!(kind, ErrorKind::BadAnswer | ErrorKind::Damaged), "{range:?}: {kind:?}: {error}");
            assert!(error.to_string().contains(OBJECT), "{error}");
        }
    });
}

#[test]
fn what_is_not_there_is_not_found() {
    for_each(|backend, _| async move {
        for path in ["none", "packs/none", "none/none", "small/none"] {
            let range = backend.read_range(&object(path), 0..10, ReadOptions::default()).await;
            let kind = range.map(|_| ()).expect_err("not there").kind();
            assert_eq!(kind, ErrorKind::NotFound, "{path}");
            let error = backend.read_small(&object(path), 100, None).await.expect_err("not there");
            assert_eq!(error.kind(), ErrorKind::NotFound, "{path}");
            assert!(error.to_string().contains(path), "{error}");
        }
    });
}

#[test]
fn small_objects_come_whole_and_only_when_changed() {
    for_each(|backend, package| async move {
        let name = object(SMALL);
        let read = async |known: Option<&_>| backend.read_small(&name, 100, known).await.expect("reads");
        let SmallRead::Object { bytes, validator } = read(None).await else { panic!("nothing was known") };
        assert_eq!(&bytes[..], b"small object");
        let validator = validator.expect("all of these give one");
        assert!(matches!(read(Some(&validator)).await, SmallRead::NotModified));
        fs::write(package.join(SMALL), "a changed one").expect("own folder");
        let SmallRead::Object { bytes, .. } = read(Some(&validator)).await else { panic!("it changed") };
        assert_eq!(&bytes[..], b"a changed one");
        fs::write(package.join(SMALL), "small object").expect("own folder");
        let empty = backend.read_small(&object(EMPTY), 100, None).await.expect("reads");
        assert!(matches!(empty, SmallRead::Object { bytes, .. } if bytes.is_empty()));
    });
}

#[test]
fn a_small_object_that_is_large_is_refused() {
    for_each(|backend, _| async move {
        let error = backend.read_small(&object(OBJECT), LENGTH as u64 - 1, None).await.expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::BadAnswer, "{error}");
        let whole = backend.read_small(&object(OBJECT), LENGTH as u64, None).await.expect("just right");
        assert!(matches!(whole, SmallRead::Object { bytes, .. } if bytes.len() == LENGTH));
    });
}

#[test]
fn a_beginning_comes_first_and_the_rest_follows() {
    for_each(|backend, _| async move {
        let (name, wanted) = (object(OBJECT), 1_000);
        for length in [0, wanted, LENGTH] {
            let enough = |came: &[u8]| came.len() >= length;
            let read = backend.read_beginning(&name, LENGTH as u64, None, Enough::when(&enough)).await.expect("reads");
            let Beginning::Object { front, rest, validator } = read else { panic!("nothing was known") };
            assert!(front.len() >= length && front[..] == bytes()[..front.len()], "{length}");
            let rest = collect(rest, LENGTH - front.len()).await.expect("reads");
            assert!(rest == bytes()[front.len()..], "{length}");
            let known = validator.expect("all of these give one");
            let again =
                backend.read_beginning(&name, LENGTH as u64, Some(&known), Enough::when(&enough)).await.expect("reads");
            assert!(matches!(again, Beginning::NotModified));
        }
        // Less may come where no more is wanted, and never anything else.
        for first in [1, 1_000, LENGTH as u64, LENGTH as u64 + 10] {
            let enough = Enough::when(&|_| false).of_first(first);
            let read = backend.read_beginning(&name, LENGTH as u64, None, enough).await.expect("reads");
            let Beginning::Object { front, .. } = read else { panic!("nothing was known") };
            assert!(front.len() as u64 >= first.min(LENGTH as u64) && front[..] == bytes()[..front.len()], "{first}");
            let short = backend.read_beginning(&name, LENGTH as u64 - 1, None, enough).await;
            assert!(
                short.is_err_and(|error| error.kind() == ErrorKind::BadAnswer),
                "too long, however little is wanted"
            );
        }
        // Whoever has enough leaves the rest, and reads on undisturbed.
        let dropped =
            backend.read_beginning(&name, LENGTH as u64, None, Enough::when(&|came| came.len() >= wanted)).await;
        drop(dropped.expect("reads"));
        let patience = Duration::from_secs(5);
        let small = backend.read_beginning_within(patience, &object(SMALL), 100, None, Enough::when(&|_| false)).await;
        assert!(matches!(small, Ok(Beginning::Object { front, .. }) if front[..] == *b"small object"));
        let Err(error) = backend.read_beginning(&name, LENGTH as u64 - 1, None, Enough::when(&|_| true)).await else {
            panic!("too long, however little is wanted");
        };
        assert_eq!(error.kind(), ErrorKind::BadAnswer, "{error}");
    });
}

#[test]
fn many_reads_at_once_do_not_mix() {
    for_each(|backend, _| async move {
        let reads = (0..64_u64).map(|i| {
            let backend = Arc::clone(&backend);
            tokio::spawn(async move {
                let range = i * 4_000..i * 4_000 + 3_999;
                let stream = backend.read_range(&object(OBJECT), range, ReadOptions::default()).await.expect("reads");
                (i, collect(stream, 3_999).await.expect("reads"))
            })
        });
        for read in reads.collect::<Vec<_>>() {
            let (i, found) = read.await.expect("no panic");
            let start = i as usize * 4_000;
            assert!(found == bytes()[start..start + 3_999], "read {i}");
        }
    });
}

#[test]
fn wrong_credentials_are_denied_and_not_shown() {
    let root = content();
    let basic_auth = Some(("reader".to_owned(), "right".to_owned()));
    let server = Nginx::start(root.path(), &NginxOptions { basic_auth, ..NginxOptions::default() });
    let credentials = Credentials::Basic { user: "reader".to_owned(), password: "wr0ng-secret".to_owned() };
    let backend = backend(&server.url(), &OriginConfig { credentials, ..config() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let error = runtime.block_on(backend.read_small(&object(SMALL), 100, None)).expect_err("denied");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(!format!("{error} {error:?} {backend:?}").contains("wr0ng-secret"), "{error:?} {backend:?}");
}
