//! Loads a package's catalog, verified.
//!
//! One request where the origin has a good `head`; otherwise the separate files. While the origin is away, the copy
//! that was accepted last; it is also used, loudly, where the origin's metadata has expired, because an application
//! that was trusted yesterday must start today.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tough::ExpirationEnforcement;

use super::head::{HEAD_BYTES_MAX, Head};
use super::store::{Place, Saved, TrustStore};
use super::tail::{FRONT_BYTES, HeadRead, Tail, read_head};
use super::verify::{
    Failure, Supply, Verified, expired_error, metadata_path, root_number, root_path, untrusted, verify,
};
use super::{Catalog, METADATA_DIR, VersionRecord};
use crate::backend::hurried::Hurried;
use crate::backend::{Backend, LaunchWish, ObjectPath, ReadOptions, SmallRead, Validator, collect};
use crate::error::{Error, ErrorKind, Result};

/// How to load.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// A root that the user brought (`--trust-root`), as the bytes of its file. Without one, the first root that is
    /// seen is trusted.
    pub trust_root: Option<Bytes>,
    /// How long the origin may take for each file before the copy that was accepted last is used, if there is one.
    /// Without it, as long as the backend allows.
    pub fall_back_after: Option<Duration>,
    /// What is about to be started, for origins that can send what it reads with the catalog.
    pub launch: Option<LaunchWish>,
}

/// How new the catalog is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// The origin gave it just now.
    Fresh,
    /// The origin is away (or was not asked); this is what it gave last.
    Offline {
        /// Why, in words.
        reason: String,
    },
    /// The origin's metadata has expired; this is what was accepted before.
    Expired {
        /// The file that expired.
        what: String,
        /// When.
        when: Timestamp,
    },
}

/// A verified catalog, and the way to its descriptors.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Versions and channels.
    pub catalog: Catalog,
    /// How new it is.
    pub freshness: Freshness,
    /// Whether the package's root was trusted for being the first that was seen.
    pub trusted_on_first_use: bool,
    /// To pass to [`poll`]: it then answers whether anything changed since this was loaded.
    pub validator: Option<Validator>,
    backend: Option<Arc<dyn Backend>>,
    head: Option<Arc<Head>>,
    place: Place,
}

/// Loads and verifies the catalog of the package that `backend` reads.
///
/// # Errors
/// `Untrusted` for metadata that is refused, expired (and nothing older is here), or of another root than the one
/// that was trusted first; `NotFound` if there is no package; else what the backend says.
pub async fn load(
    backend: &Arc<dyn Backend>,
    package_key: &str,
    store: &TrustStore,
    options: &LoadOptions,
) -> Result<Loaded> {
    Ok(load_with_tail(backend, package_key, store, options).await?.0)
}

/// As [`load`], and hands on what comes behind the `head` that the catalog is from.
///
/// # Errors
/// As [`load`].
pub async fn load_with_tail(
    backend: &Arc<dyn Backend>,
    package_key: &str,
    store: &TrustStore,
    options: &LoadOptions,
) -> Result<(Loaded, Option<Tail>)> {
    let place = store.place(package_key);
    let saved = place.read().await?;
    let asked: Arc<dyn Backend> = match options.fall_back_after {
        Some(patience) if saved.trusted.is_some() => Arc::new(Hurried::new(backend.clone(), patience)),
        _ => backend.clone(),
    };
    let (given, launch) = (options.trust_root.clone(), options.launch.as_ref());
    let loading = Loading { backend, asked, package_key, place, saved, given, launch };
    loading.load().await
}

/// Loads the catalog that was accepted last, without any request.
///
/// # Errors
/// `NotFound` if there is none.
pub async fn load_offline(package_key: &str, store: &TrustStore) -> Result<Loaded> {
    let place = store.place(package_key);
    let saved = place.read().await?;
    let freshness = Freshness::Offline { reason: "the origin was not asked".to_owned() };
    from_trusted(package_key, place, &saved, None, freshness).await?.ok_or_else(|| Error::NotFound {
        what: format!("a trusted copy of the metadata of {package_key}"),
        origin: "this machine (mount or load the package once while its origin can be reached)".to_owned(),
    })
}

/// Checks the separate metadata files at the origin as a machine reads them that has nothing of the package yet, not
/// even its `head`. Nothing is kept.
///
/// # Errors
/// What [`load`] would say of the first file that is missing, damaged, expired or wrongly signed.
pub async fn check_files(backend: &Arc<dyn Backend>, package_key: &str) -> Result<Catalog> {
    let supply = Supply::origin(backend.clone());
    let first = supply.file(&root_path(1)).await?;
    let verified = verify(package_key, &supply, &first, None, ExpirationEnforcement::Safe).await?;
    Ok(verified.catalog)
}

struct Loading<'a> {
    /// What descriptors are read from later.
    backend: &'a Arc<dyn Backend>,
    /// The same, asked for metadata.
    asked: Arc<dyn Backend>,
    package_key: &'a str,
    place: Place,
    saved: Saved,
    given: Option<Bytes>,
    launch: Option<&'a LaunchWish>,
}

/// Metadata that was accepted, and the root to pin if none is.
struct Accepted {
    verified: Verified,
    pin: Bytes,
}

impl Loading<'_> {
    async fn load(self) -> Result<(Loaded, Option<Tail>)> {
        let (mut absent, mut tail) = (false, None);
        // Who has used the package has most of what a launch reads.
        let front_only = self.saved.trusted.as_ref().filter(|_| self.saved.used);
        let front_only = front_only.map(|trusted| FRONT_BYTES + 2 * trusted.encoded_bytes());
        let (head, validator) = match read_head(&*self.asked, None, front_only, self.launch).await {
            Ok(Some(HeadRead { front, after, validator })) => {
                let validator = tag(HEAD_TAG, &front, validator.as_ref());
                match Head::parse(&front) {
                    Ok(head) => {
                        tail = head.tail().filter(|_| front_only.is_none()).map(|of| Tail::new(of, after));
                        (Some(Arc::new(head)), Some(validator))
                    }
                    Err(error) => {
                        tracing::warn!(package = self.package_key, %error, "using the separate metadata files");
                        (None, Some(validator))
                    }
                }
            }
            Ok(None) => (None, None),
            Err(e) if is_away(&e) => return without_tail(self.offline(e).await),
            Err(e) if is_absent(&e) => {
                absent = true;
                (None, None)
            }
            Err(e) => return Err(e),
        };
        if let Some(head) = &head {
            let supply = Supply::bundle(head.clone(), self.asked.origin().to_owned());
            match self.attempt(&supply).await {
                Ok(accepted) => return Ok((self.finish(accepted, validator, Some(head.clone())).await?, tail)),
                Err(Failure::Local(e)) => return Err(e),
                Err(failure) => {
                    let why = Error::from(failure);
                    tracing::info!(package = self.package_key, %why, "head is not usable; using the separate metadata files");
                }
            }
        }
        drop(tail);
        without_tail(self.load_files(absent, validator, head).await)
    }

    /// From the separate files.
    async fn load_files(self, absent: bool, validator: Option<Validator>, head: Option<Arc<Head>>) -> Result<Loaded> {
        let supply = Supply::origin(self.asked.clone());
        match self.attempt(&supply).await {
            Ok(accepted) => self.finish(accepted, validator, head).await,
            Err(Failure::Unread(e)) if is_away(&e) => self.offline(e).await,
            Err(Failure::Unread(e)) if absent && is_absent(&e) && self.is_all_gone(&supply).await => {
                let gone = self.gone(&e);
                self.offline(gone).await
            }
            Err(Failure::Expired { what, when }) => self.expired(what, when).await,
            Err(Failure::Refused(e)) => Err(self.is_root_changed(&supply).await.unwrap_or(e)),
            Err(Failure::Unread(e) | Failure::Local(e)) => Err(e),
        }
    }

    /// Whether an origin that has neither `head` nor timestamp lacks the first root, too, though the package was there
    /// before: then a share is not mounted, or a server shows another folder (or a login page) for the time being.
    async fn is_all_gone(&self, supply: &Supply) -> bool {
        self.saved.trusted.is_some() && supply.file(&root_path(1)).await.is_err_and(|e| is_absent(&e))
    }

    fn gone(&self, e: &Error) -> Error {
        let origin = self.asked.origin().to_owned();
        let reason = format!(
            "nothing of the package is there any more ({e}); is the share mounted, and is the address still right?"
        );
        Error::Unreachable { object: METADATA_DIR.to_owned(), origin, reason }
    }

    async fn attempt(&self, supply: &Supply) -> Result<Accepted, Failure> {
        let start = match self.saved.root().or_else(|| self.given.clone()) {
            Some(root) => root,
            None => supply.file(&root_path(1)).await.map_err(|e| Failure::Unread(self.name_package(e)))?,
        };
        let previous = self.saved.trusted.as_deref();
        let verified = verify(self.package_key, supply, &start, previous, ExpirationEnforcement::Safe).await?;
        if let Some(given) = self.given.as_ref().filter(|given| **given != start) {
            self.leads_here(given, supply, &verified).await?;
        }
        Ok(Accepted { verified, pin: self.saved.pinned.clone().unwrap_or(start) })
    }

    /// Checks that the user's root leads to the same current root as the one that is pinned.
    async fn leads_here(&self, given: &Bytes, supply: &Supply, verified: &Verified) -> Result<(), Failure> {
        let from_given = verify(self.package_key, supply, given, None, ExpirationEnforcement::Unsafe).await;
        match from_given {
            Ok(other) if other.root.signed == verified.root.signed => Ok(()),
            Err(Failure::Unread(e)) => Err(Failure::Unread(e)),
            Ok(_) | Err(_) => Err(Failure::Refused(untrusted(
                self.package_key,
                format!(
                    "the root given with --trust-root does not lead to the root that the package has now and this machine trusts; either that file is another package's, or this machine trusted the wrong one first (then remove {})",
                    self.place.dir().display()
                ),
                None,
            ))),
        }
    }

    /// Where nothing but the first root is missing, the package itself is.
    fn name_package(&self, e: Error) -> Error {
        match e {
            Error::NotFound { what, origin } => Error::NotFound { what: format!("a package ({what})"), origin },
            other => other,
        }
    }

    /// After a refusal: says so if the origin's root is not the one that was trusted.
    async fn is_root_changed(&self, supply: &Supply) -> Option<Error> {
        let (trusted, pinned) = match (&self.saved.pinned, &self.given) {
            (Some(pinned), _) => (pinned, true),
            (None, Some(given)) => (given, false),
            (None, None) => return None,
        };
        let number = root_number(trusted).ok()?;
        let theirs = supply.file(&root_path(number)).await.ok()?;
        let parse = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok()?.get("signed").cloned();
        if parse(&theirs)? == parse(trusted)? {
            return None;
        }
        let (which, advice) = if pinned {
            (
                "the one this machine trusted first",
                format!(
                    "the package was created anew with other keys, or somebody else put another one in its place. Ask its publisher; if it is right, remove {} and load again, best with --trust-root",
                    self.place.dir().display()
                ),
            )
        } else {
            ("the one given with --trust-root", "this is another package, or that file is another package's".to_owned())
        };
        Some(untrusted(
            self.package_key,
            format!("its root (metadata/{number}.root.json) is not {which}: {advice}"),
            None,
        ))
    }

    async fn finish(self, accepted: Accepted, validator: Option<Validator>, head: Option<Arc<Head>>) -> Result<Loaded> {
        let Accepted { verified, pin } = accepted;
        let first_use = self.saved.pinned.is_none();
        if let Err(error) = self.place.save(pin, verified.files, verified.numbers).await {
            if first_use {
                // Otherwise whatever comes would be trusted as the first, each time.
                return Err(error);
            }
            tracing::warn!(package = self.package_key, %error, "cannot keep the newest metadata for later");
        }
        Ok(Loaded {
            catalog: verified.catalog,
            freshness: Freshness::Fresh,
            trusted_on_first_use: first_use && self.given.is_none(),
            validator,
            backend: Some(self.backend.clone()),
            head,
            place: self.place,
        })
    }

    async fn offline(self, why: Error) -> Result<Loaded> {
        let freshness = Freshness::Offline { reason: why.to_string() };
        let backend = Some(self.backend.clone());
        match from_trusted(self.package_key, self.place, &self.saved, backend, freshness).await? {
            Some(loaded) => {
                tracing::warn!(package = self.package_key, %why, "using the metadata that was accepted last");
                Ok(loaded)
            }
            None => Err(why),
        }
    }

    async fn expired(self, what: String, when: Timestamp) -> Result<Loaded> {
        let freshness = Freshness::Expired { what: what.clone(), when };
        let backend = Some(self.backend.clone());
        match from_trusted(self.package_key, self.place, &self.saved, backend, freshness).await? {
            Some(loaded) => {
                tracing::warn!(
                    package = self.package_key,
                    "{what} expired on {when}: using what was trusted before, learning of no new versions until the publisher runs `streamfs renew`"
                );
                Ok(loaded)
            }
            None => Err(expired_error(self.package_key, &what, when)),
        }
    }
}

fn without_tail(loaded: Result<Loaded>) -> Result<(Loaded, Option<Tail>)> {
    Ok((loaded?, None))
}

/// The catalog that was accepted last, verified once more; its dates no longer matter.
async fn from_trusted(
    package_key: &str,
    place: Place,
    saved: &Saved,
    backend: Option<Arc<dyn Backend>>,
    freshness: Freshness,
) -> Result<Option<Loaded>> {
    let (Some(root), Some(trusted)) = (saved.root(), &saved.trusted) else { return Ok(None) };
    let supply = Supply::bundle(trusted.clone(), place.dir().display().to_string());
    let verified = verify(package_key, &supply, &root, None, ExpirationEnforcement::Unsafe).await?;
    Ok(Some(Loaded {
        catalog: verified.catalog,
        freshness,
        trusted_on_first_use: false,
        validator: None,
        backend,
        head: None,
        place,
    }))
}

impl Loaded {
    /// The descriptor of one of the catalog's versions, verified by length and SHA-256: from the bundle, from this
    /// machine, or from the origin. It is kept, so that the version can be used offline.
    ///
    /// # Errors
    /// `Damaged` if what the origin has does not fit; what the backend says; `NotFound` if it is not here and this
    /// was loaded without an origin.
    pub async fn descriptor(&self, record: &VersionRecord) -> Result<Bytes> {
        let object = record.descriptor_object();
        let fits = |bytes: &Bytes| fits(bytes, record);
        if let Some(bytes) = self.place.descriptor(record).await.filter(fits) {
            return Ok(bytes);
        }
        let bundled = self.head.as_ref().and_then(|head| head.get(&object)).filter(|bytes| fits(bytes));
        let bytes = match (bundled, &self.backend) {
            (Some(bytes), _) => Bytes::copy_from_slice(bytes),
            (None, Some(backend)) => fetch_descriptor(backend, &object, record, fits).await?,
            (None, None) => {
                let origin = "this machine, and the origin was not asked".to_owned();
                return Err(Error::NotFound { what: object.to_string(), origin });
            }
        };
        if let Err(error) = self.place.keep_descriptor(record, bytes.clone()).await {
            tracing::warn!(%object, %error, "cannot keep the descriptor for use without the origin");
        }
        Ok(bytes)
    }
}

/// Reads a version's descriptor where the origin keeps it.
pub(crate) async fn stored_descriptor(backend: &Arc<dyn Backend>, record: &VersionRecord) -> Result<Bytes> {
    fetch_descriptor(backend, &record.descriptor_object(), record, |bytes| fits(bytes, record)).await
}

/// Whether `bytes` are the descriptor that was signed.
fn fits(bytes: &Bytes, record: &VersionRecord) -> bool {
    bytes.len() as u64 == record.descriptor_bytes && Sha256::digest(bytes)[..] == record.descriptor_sha256
}

async fn fetch_descriptor(
    backend: &Arc<dyn Backend>,
    object: &ObjectPath,
    record: &VersionRecord,
    fits: impl Fn(&Bytes) -> bool,
) -> Result<Bytes> {
    if let SmallRead::Object { bytes, .. } = backend.read_small(object, HEAD_BYTES_MAX, None).await?
        && fits(&bytes)
    {
        return Ok(bytes);
    }
    // A cache on the way may hold a broken copy: past it once.
    if record.descriptor_bytes > 0 && record.descriptor_bytes <= HEAD_BYTES_MAX {
        let range = 0..record.descriptor_bytes;
        let stream =
            backend.read_range(object, range, ReadOptions { bypass_caches: true, ..ReadOptions::default() }).await?;
        let bytes = collect(stream, record.descriptor_bytes as usize).await?;
        if fits(&bytes) {
            return Ok(bytes);
        }
    }
    Err(Error::damaged(
        format!("{object} at {}", backend.origin()),
        format!("it is not the descriptor of version {} that was signed (length or SHA-256 differ)", record.version),
    ))
}

/// Answer of [`poll`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Polled {
    /// Nothing changed since the validator that was passed.
    NotModified,
    /// Something changed (or none was passed): load again. Nothing was verified.
    Changed {
        /// For the next poll.
        validator: Validator,
    },
}

const HEAD_TAG: &str = "head";
const TIMESTAMP_TAG: &str = "timestamp";

/// Asks cheaply whether the package changed since `known`, which [`Loaded::validator`] or the last poll gave. Of a
/// changed `head` no more is read than stands before its tail.
pub async fn poll(backend: &Arc<dyn Backend>, package_key: &str, known: Option<Validator>) -> Result<Polled> {
    match poll_object(backend, HEAD_TAG, known.as_ref()).await {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            tracing::debug!(package = package_key, "no head; polling the timestamp");
            poll_object(backend, TIMESTAMP_TAG, known.as_ref()).await
        }
        other => other,
    }
}

async fn poll_object(backend: &Arc<dyn Backend>, tag_name: &str, known: Option<&Validator>) -> Result<Polled> {
    let known = known.and_then(|v| untag(tag_name, v));
    let theirs = known.as_ref().and_then(|(_, v)| v.clone());
    let read = if tag_name == HEAD_TAG {
        read_head(&**backend, theirs.as_ref(), Some(FRONT_BYTES), None).await?.map(|head| (head.front, head.validator))
    } else {
        match backend.read_small(&metadata_path("timestamp.json"), HEAD_BYTES_MAX, theirs.as_ref()).await? {
            SmallRead::NotModified => None,
            SmallRead::Object { bytes, validator } => Some((bytes, validator)),
        }
    };
    match read {
        None => Ok(Polled::NotModified),
        Some((bytes, _)) if known.is_some_and(|(hash, _)| hash == content_hash(&bytes)) => Ok(Polled::NotModified),
        Some((bytes, validator)) => Ok(Polled::Changed { validator: tag(tag_name, &bytes, validator.as_ref()) }),
    }
}

/// A validator of ours: which object, a hash of it for servers that give no validator, and theirs if they do.
fn tag(name: &str, bytes: &Bytes, theirs: Option<&Validator>) -> Validator {
    Validator(format!("{name} {} {}", content_hash(bytes), theirs.map_or("", |v| &v.0)))
}

fn untag(name: &str, validator: &Validator) -> Option<(String, Option<Validator>)> {
    let rest = validator.0.strip_prefix(name)?.strip_prefix(' ')?;
    let (hash, theirs) = rest.split_once(' ')?;
    Some((hash.to_owned(), (!theirs.is_empty()).then(|| Validator(theirs.to_owned()))))
}

fn content_hash(bytes: &Bytes) -> String {
    blake3::hash(bytes).to_hex()[..32].to_owned()
}

fn is_away(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Unreachable | ErrorKind::TimedOut)
}

/// Whether the origin gave something else than the object, or said that there is none.
fn is_absent(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::BadAnswer)
}
