//! Runs `tough` over a bundle or an origin, and says in words why it refuses.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use jiff::Timestamp;
use parking_lot::Mutex;
use tough::error::Error as Refusal;
use tough::schema::{RoleType, Root, Signed};
use tough::{
    ExpirationEnforcement, RepositoryLoader, Transport, TransportError, TransportErrorKind, TransportStream,
    async_trait,
};
use url::Url;

use super::head::{HEAD_BYTES_MAX, Head};
use super::{Catalog, METADATA_DIR, record};
use crate::backend::{Backend, ObjectPath, SmallRead};
use crate::error::{Error, ErrorKind, Result};

/// Base of the URLs that `tough` asks for; what follows is a path within the package.
const BASE: &str = "streamfs:///";

/// Where metadata comes from. Clones share what was fetched, so that no file is fetched twice.
#[derive(Debug, Clone)]
pub(super) struct Supply {
    source: Source,
    fetched: Arc<Mutex<BTreeMap<ObjectPath, Bytes>>>,
    failure: Arc<Mutex<Option<Error>>>,
}

#[derive(Debug, Clone)]
enum Source {
    Bundle(Arc<Head>, String),
    Origin(Arc<dyn Backend>),
}

impl Supply {
    /// From a bundle alone.
    pub(super) fn bundle(head: Arc<Head>, origin: String) -> Self {
        Self::new(Source::Bundle(head, origin))
    }

    /// From an origin's separate files.
    pub(super) fn origin(backend: Arc<dyn Backend>) -> Self {
        Self::new(Source::Origin(backend))
    }

    fn new(source: Source) -> Self {
        Self { source, fetched: Arc::default(), failure: Arc::default() }
    }

    /// One file, fetched at most once.
    pub(super) async fn file(&self, path: &ObjectPath) -> Result<Bytes> {
        if let Some(bytes) = self.fetched.lock().get(path) {
            return Ok(bytes.clone());
        }
        let bytes = match &self.source {
            Source::Bundle(head, origin) => head
                .get(path)
                .cloned()
                .ok_or_else(|| Error::NotFound { what: path.to_string(), origin: origin.clone() })?,
            Source::Origin(backend) => match backend.read_small(path, HEAD_BYTES_MAX, None).await? {
                SmallRead::Object { bytes, .. } => bytes,
                SmallRead::NotModified => {
                    let (object, origin) = (path.to_string(), backend.origin().to_owned());
                    let reason = "it says \"not modified\" though it was not asked that".to_owned();
                    return Err(Error::BadAnswer { object, origin, reason });
                }
            },
        };
        self.fetched.lock().insert(path.clone(), bytes.clone());
        Ok(bytes)
    }
}

#[async_trait]
impl Transport for Supply {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        let path = url.as_str().strip_prefix(BASE).and_then(|path| ObjectPath::new(path).ok());
        let Some(path) = path else { return Err(TransportError::new(TransportErrorKind::UnsupportedUrlScheme, url)) };
        // `tough` takes any failure to fetch the next root for "there is none", unless it comes from the stream.
        let item = match self.file(&path).await {
            Ok(bytes) => Ok(bytes),
            Err(error) => {
                let absent = error.kind() == ErrorKind::NotFound;
                let is_root = path.as_str().ends_with(".root.json");
                if absent && is_root {
                    return Err(TransportError::new(TransportErrorKind::FileNotFound, url));
                }
                let text = error.to_string();
                self.failure.lock().get_or_insert(error);
                Err(TransportError::new_with_cause(TransportErrorKind::Other, url, text))
            }
        };
        Ok(Box::pin(stream::iter([item])))
    }
}

/// Path of a root by its number.
pub(super) fn root_path(number: u64) -> ObjectPath {
    metadata_path(&format!("{number}.root.json"))
}

pub(super) fn metadata_path(name: &str) -> ObjectPath {
    ObjectPath::new(format!("{METADATA_DIR}/{name}")).expect("metadata files have plain names")
}

/// Numbers of the verified files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) root: u64,
    pub(super) timestamp: u64,
    pub(super) snapshot: u64,
    pub(super) targets: u64,
}

/// Metadata that `tough` accepted.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) catalog: Catalog,
    pub(super) numbers: Numbers,
    pub(super) root: Signed<Root>,
    /// The files it was read from: all roots from the first trusted one on, and the newest of the others.
    pub(super) files: Head,
}

/// Why metadata was not accepted.
#[derive(Debug)]
pub(super) enum Failure {
    /// It could not be read.
    Unread(Error),
    /// It is good but too old.
    Expired { what: String, when: Timestamp },
    /// It is not what the trusted root's keys signed, or older than what was seen before.
    Refused(Error),
    /// The system failed us.
    Local(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::Unread(e) | Failure::Refused(e) | Failure::Local(e) => e,
            Failure::Expired { what, when } => expired_error("the package", &what, when),
        }
    }
}

pub(super) fn expired_error(package: &str, what: &str, when: Timestamp) -> Error {
    untrusted(
        package,
        format!(
            "{what} expired on {when}; whoever publishes it runs `streamfs renew`, or this machine's clock is wrong"
        ),
        None,
    )
}

pub(super) fn untrusted(package: &str, reason: String, source: Option<Refusal>) -> Error {
    Error::Untrusted { package: package.to_owned(), reason, source: source.map(|s| Box::new(s) as _) }
}

/// Verifies what `supply` gives, starting at the trusted `root`. `previous` is what was accepted last: nothing older
/// is accepted.
pub(super) async fn verify(
    package: &str,
    supply: &Supply,
    root: &Bytes,
    previous: Option<&Head>,
    expiration: ExpirationEnforcement,
) -> Result<Verified, Failure> {
    // `tough` writes its datastore in place. It gets a scratch one, filled from what was accepted last, and whoever
    // calls this keeps the result in one atomically replaced file: a kill at any moment tears nothing. The scratch
    // has no `latest_known_time.json`: a clock that was set back by a second must not keep applications from starting.
    let scratch = tempfile::tempdir()
        .map_err(|e| Failure::Local(Error::local("create a scratch folder in", std::env::temp_dir(), e)))?;
    if let Some(previous) = previous {
        fill(scratch.path(), previous).map_err(Failure::Local)?;
    }
    match run(supply, root, scratch.path(), expiration).await {
        Ok(repo) => accept(package, supply, root, previous, &repo).await,
        Err(Refusal::ExpiredMetadata { .. }) if expiration == ExpirationEnforcement::Safe => {
            // Once more without that check, to learn the date; the files are here already, the result is not used.
            let again = run(supply, root, scratch.path(), ExpirationEnforcement::Unsafe).await;
            let repo = again.map_err(|e| explain(package, supply, e))?;
            let (what, when) = first_expiry(&repo);
            Err(Failure::Expired { what, when })
        }
        Err(refusal) => Err(explain(package, supply, refusal)),
    }
}

async fn run(
    supply: &Supply,
    root: &Bytes,
    datastore: &Path,
    expiration: ExpirationEnforcement,
) -> Result<tough::Repository, Refusal> {
    let url = |path: &str| Url::parse(&format!("{BASE}{path}/")).expect("a constant URL");
    RepositoryLoader::new(root, url(METADATA_DIR), url(super::DESCRIPTOR_DIR))
        .transport(supply.clone())
        .datastore(datastore)
        .expiration_enforcement(expiration)
        .load()
        .await
}

fn fill(datastore: &Path, previous: &Head) -> Result<()> {
    let write = |name: &str, bytes: &Bytes| {
        let path = datastore.join(name);
        std::fs::write(&path, bytes).map_err(|e| Error::local("write", path, e))
    };
    if let Some(timestamp) = previous.get(&metadata_path("timestamp.json")) {
        write("timestamp.json", timestamp)?;
    }
    for role in ["snapshot", "targets"] {
        if let Some((_, bytes)) = previous.numbered(role).pop_last() {
            write(&format!("{role}.json"), bytes)?;
        }
    }
    Ok(())
}

fn first_expiry(repo: &tough::Repository) -> (String, Timestamp) {
    let (root, timestamp) = (&repo.root().signed, &repo.timestamp().signed);
    let (snapshot, targets) = (&repo.snapshot().signed, &repo.targets().signed);
    let all = [
        (metadata_path("timestamp.json"), timestamp.expires),
        (metadata_path(&format!("{}.snapshot.json", snapshot.version)), snapshot.expires),
        (metadata_path(&format!("{}.targets.json", targets.version)), targets.expires),
        (root_path(root.version.get()), root.expires),
    ];
    let (path, when) = all.into_iter().min_by_key(|(_, when)| *when).expect("there are four");
    (path.to_string(), when)
}

/// Gathers what was accepted.
async fn accept(
    package: &str,
    supply: &Supply,
    start: &Bytes,
    previous: Option<&Head>,
    repo: &tough::Repository,
) -> Result<Verified, Failure> {
    let numbers = Numbers {
        root: repo.root().signed.version.get(),
        timestamp: repo.timestamp().signed.version.get(),
        snapshot: repo.snapshot().signed.version.get(),
        targets: repo.targets().signed.version.get(),
    };
    let catalog = record::catalog(&repo.targets().signed.targets).map_err(|why| {
        let file = format!("metadata/{}.targets.json", numbers.targets);
        Failure::Refused(untrusted(package, format!("{file} is signed but makes no sense: {why}"), None))
    })?;
    let mut files = Head::default();
    for (number, bytes) in previous.map(|p| p.numbered("root")).unwrap_or_default() {
        files.insert(root_path(number), bytes.clone());
    }
    let start_number = root_number(start).map_err(|e| Failure::Refused(untrusted(package, e, None)))?;
    files.insert(root_path(start_number), start.clone());
    let mut paths: Vec<_> = (start_number + 1..=numbers.root).map(root_path).collect();
    paths.push(metadata_path("timestamp.json"));
    paths.push(metadata_path(&format!("{}.snapshot.json", numbers.snapshot)));
    paths.push(metadata_path(&format!("{}.targets.json", numbers.targets)));
    for path in paths {
        // All of them are in the supply's memory: `tough` has just read them.
        let bytes = supply.file(&path).await.map_err(Failure::Unread)?;
        files.insert(path, bytes);
    }
    Ok(Verified { catalog, numbers, root: repo.root().clone(), files })
}

/// The version number that a root gives itself (unverified).
pub(super) fn root_number(root: &[u8]) -> Result<u64, String> {
    let parsed: Signed<Root> =
        serde_json::from_slice(root).map_err(|e| format!("it is not TUF root metadata ({e})"))?;
    Ok(parsed.signed.version.get())
}

fn file_of(role: RoleType) -> &'static str {
    match role {
        RoleType::Root => "metadata/N.root.json (root)",
        RoleType::Timestamp => "metadata/timestamp.json (timestamp)",
        RoleType::Snapshot => "metadata/N.snapshot.json (snapshot)",
        RoleType::Targets | RoleType::DelegatedTargets => "metadata/N.targets.json (targets)",
    }
}

const OLD_COPY: &str =
    "an old copy of the package is served: a cache, a restored backup, or somebody who wants old versions to be used";

/// Puts a refusal of `tough` into a sentence.
fn explain(package: &str, supply: &Supply, refusal: Refusal) -> Failure {
    // A failed read is what it was, not a question of trust.
    if let Some(error) = supply.failure.lock().take() {
        return Failure::Unread(error);
    }
    let reason = match &refusal {
        Refusal::ParseTrustedMetadata { source, .. } => {
            format!("the trusted root (N.root.json) cannot be read ({source})")
        }
        Refusal::VerifyTrustedMetadata { source, .. } => {
            format!("the trusted root (N.root.json) is not signed by its own keys ({source})")
        }
        Refusal::ParseMetadata { role, source, .. } => format!("{} is damaged ({source})", file_of(*role)),
        Refusal::VerifyMetadata { role: RoleType::Root, source, .. } => format!(
            "{} is not signed by the keys of the root before it ({source}); it was damaged, or replaced by somebody without the keys",
            file_of(RoleType::Root)
        ),
        Refusal::VerifyMetadata { role, source, .. } => format!(
            "{} is not signed by the keys that the package's root names for it ({source}); it was damaged, or is another package's, or somebody without the keys made it",
            file_of(*role)
        ),
        Refusal::OlderMetadata { role, current_version, new_version, .. } => format!(
            "{} is number {new_version}, but number {current_version} has been seen before: {OLD_COPY}",
            file_of(*role)
        ),
        Refusal::OlderSnapshotInTimestamp { snapshot_new, snapshot_old, .. } => format!(
            "metadata/timestamp.json names snapshot {snapshot_new}, but {snapshot_old} has been seen before: {OLD_COPY}"
        ),
        Refusal::SnapshotRoleRollback { role, old_role_version, new_role_version, .. } => format!(
            "the snapshot names number {new_role_version} of {role}, but {old_role_version} has been seen before: {OLD_COPY}"
        ),
        Refusal::SnapshotRoleMissing { role, .. } => {
            format!("the snapshot no longer names {role}, which it did before")
        }
        Refusal::VersionMismatch { role, fetched, expected, .. } => format!(
            "{} says that it is number {fetched} where {expected} belongs: files of different states are mixed up",
            file_of(*role)
        ),
        Refusal::Transport { url, source, .. } => {
            let file = url.as_str().strip_prefix(BASE).unwrap_or(url.as_str());
            match source.source().and_then(|s| s.downcast_ref::<Refusal>()) {
                Some(Refusal::HashMismatch { .. }) => format!(
                    "{file} is not the file that the signed metadata names (its SHA-256 differs); it was damaged, or is another package's or another state's"
                ),
                Some(Refusal::MaxSizeExceeded { max_size, .. }) => {
                    format!("{file} is longer than the {max_size} bytes that the signed metadata or the format allows")
                }
                _ => format!("{file}: {source}"),
            }
        }
        other => other.to_string(),
    };
    Failure::Refused(untrusted(package, reason, Some(refusal)))
}
