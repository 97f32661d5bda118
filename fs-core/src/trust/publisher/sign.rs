//! Makes signed roles with `tough`.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tough::editor::signed::SignedRole;
use tough::key_source::KeySource;
use tough::schema::{
    Hashes, KeyHolder, Metafile, Role, RoleKeys, RoleType, Root, Signed, Snapshot, Targets, Timestamp as TimestampRole,
};

use super::super::keys::{KeyId, KeyStore};
use super::super::{Catalog, record};
use crate::error::{Error, Result};

const SPEC_VERSION: &str = "1.0.0";

/// Which key of a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRole {
    /// Signs roots; can be kept offline after the first publication.
    Root,
    /// Signs targets and snapshots: needed to publish.
    Targets,
    /// Signs timestamps: needed to publish and to renew.
    Timestamp,
}

impl KeyRole {
    fn types(self) -> &'static [RoleType] {
        match self {
            KeyRole::Root => &[RoleType::Root],
            KeyRole::Targets => &[RoleType::Targets, RoleType::Snapshot],
            KeyRole::Timestamp => &[RoleType::Timestamp],
        }
    }

    fn name(self) -> &'static str {
        match self {
            KeyRole::Root => "root",
            KeyRole::Targets => "targets",
            KeyRole::Timestamp => "timestamp",
        }
    }
}

/// Now and `valid`, in whole seconds.
pub(super) fn after(valid: Duration) -> Timestamp {
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH);
    SignedDuration::try_from(valid).ok().and_then(|valid| now.checked_add(valid).ok()).unwrap_or(Timestamp::MAX)
}

fn failed(e: tough::error::Error) -> Error {
    Error::Unsupported(format!("cannot sign metadata: {e}"))
}

/// A role as it is written to a file.
pub(super) fn to_file<T: Serialize>(signed: &Signed<T>) -> Result<Bytes> {
    let mut out =
        serde_json::to_vec_pretty(signed).map_err(|e| Error::Unsupported(format!("cannot write metadata: {e}")))?;
    out.push(b'\n');
    Ok(out.into())
}

/// A root with three new keys.
pub(super) async fn first_root(store: &KeyStore, valid: Duration) -> Result<Signed<Root>> {
    let mut root = Root {
        spec_version: SPEC_VERSION.to_owned(),
        consistent_snapshot: true,
        version: NonZeroU64::MIN,
        expires: after(valid),
        keys: HashMap::new(),
        roles: HashMap::new(),
        _extra: HashMap::new(),
    };
    for role in [KeyRole::Root, KeyRole::Targets, KeyRole::Timestamp] {
        new_key(store, &mut root, role)?;
    }
    let holder = KeyHolder::Root(root.clone());
    let keys = sources(store, &root, &[KeyRole::Root])?;
    let signed = SignedRole::new(root, &holder, &keys, &SystemRandom::new()).await.map_err(failed)?;
    Ok(signed.signed().clone())
}

/// The root after `old`, with new keys for `roles`, signed by the old root key and the new one.
pub(super) async fn next_root(
    store: &KeyStore,
    old: &Signed<Root>,
    roles: &[KeyRole],
    valid: Duration,
) -> Result<Signed<Root>> {
    let old_keys = sources(store, &old.signed, &[KeyRole::Root])?;
    let mut root = old.signed.clone();
    root.version = old.signed.version.saturating_add(1);
    root.expires = after(valid);
    for role in roles {
        new_key(store, &mut root, *role)?;
    }
    let used: Vec<KeyId> = root.roles.values().flat_map(|r| r.keyids.clone()).collect();
    root.keys.retain(|id, _| used.contains(id));
    let rng = SystemRandom::new();
    let by_old =
        SignedRole::new(root.clone(), &KeyHolder::Root(old.signed.clone()), &old_keys, &rng).await.map_err(failed)?;
    let keys = sources(store, &root, &[KeyRole::Root])?;
    let by_new = SignedRole::new(root.clone(), &KeyHolder::Root(root), &keys, &rng).await.map_err(failed)?;
    let both = by_new.add_old_signatures(by_old.signed().signatures.clone()).map_err(failed)?;
    Ok(both.signed().clone())
}

fn new_key(store: &KeyStore, root: &mut Root, role: KeyRole) -> Result<()> {
    let (id, key) = store.create()?;
    root.keys.insert(id.clone(), key);
    for kind in role.types() {
        let keys = RoleKeys { keyids: vec![id.clone()], threshold: NonZeroU64::MIN, _extra: HashMap::new() };
        root.roles.insert(*kind, keys);
    }
    Ok(())
}

/// The keys of `roles` in `root`: for each role as many as its threshold wants, those that are here first.
fn sources(store: &KeyStore, root: &Root, roles: &[KeyRole]) -> Result<Vec<Box<dyn KeySource>>> {
    let mut sources = Vec::new();
    for role in roles {
        for kind in role.types() {
            let Some(keys) = root.roles.get(kind) else { continue };
            let mut ids: Vec<&KeyId> = keys.keyids.iter().collect();
            ids.sort_by_key(|id| !store.holds(id));
            let wanted = usize::try_from(keys.threshold.get()).unwrap_or(usize::MAX);
            for id in ids.into_iter().take(wanted) {
                sources.push(store.source(id, role.name())?);
            }
        }
    }
    Ok(sources)
}

/// Signs with the keys of one root, or, while keys change, of two.
pub(super) struct Signer {
    current: (KeyHolder, Vec<Box<dyn KeySource>>),
    next: Option<(KeyHolder, Vec<Box<dyn KeySource>>)>,
}

impl Signer {
    pub(super) fn new(
        store: &KeyStore,
        root: &Signed<Root>,
        next: Option<&Signed<Root>>,
        roles: &[KeyRole],
    ) -> Result<Self> {
        let of = |root: &Signed<Root>| -> Result<_> {
            Ok((KeyHolder::Root(root.signed.clone()), sources(store, &root.signed, roles)?))
        };
        Ok(Self { current: of(root)?, next: next.map(of).transpose()? })
    }

    async fn sign<T: Role + Serialize + Clone>(&self, role: T) -> Result<SignedRole<T>> {
        let rng = SystemRandom::new();
        let (holder, keys) = &self.current;
        let signed = SignedRole::new(role.clone(), holder, keys, &rng).await.map_err(failed)?;
        let Some((holder, keys)) = &self.next else { return Ok(signed) };
        let by_next = SignedRole::new(role, holder, keys, &rng).await.map_err(failed)?;
        by_next.add_old_signatures(signed.signed().signatures.clone()).map_err(failed)
    }

    pub(super) async fn targets(
        &self,
        catalog: &Catalog,
        version: NonZeroU64,
        expires: Timestamp,
    ) -> Result<SignedRole<Targets>> {
        let mut targets = Targets::new(SPEC_VERSION.to_owned(), version, expires);
        targets.delegations = None;
        targets.targets = record::targets(catalog);
        self.sign(targets).await
    }

    pub(super) async fn snapshot(
        &self,
        targets: &SignedRole<Targets>,
        version: NonZeroU64,
        expires: Timestamp,
    ) -> Result<SignedRole<Snapshot>> {
        let mut snapshot = Snapshot::new(SPEC_VERSION.to_owned(), version, expires);
        let meta = metafile(targets.buffer(), targets.signed().signed.version);
        snapshot.meta.insert("targets.json".to_owned(), meta);
        self.sign(snapshot).await
    }

    pub(super) async fn timestamp(
        &self,
        snapshot: &[u8],
        snapshot_version: NonZeroU64,
        version: NonZeroU64,
        expires: Timestamp,
    ) -> Result<Bytes> {
        let mut timestamp = TimestampRole::new(SPEC_VERSION.to_owned(), version, expires);
        timestamp.meta.insert("snapshot.json".to_owned(), metafile(snapshot, snapshot_version));
        Ok(self.sign(timestamp).await?.buffer().clone().into())
    }
}

fn metafile(file: &[u8], version: NonZeroU64) -> Metafile {
    let hashes = Hashes { sha256: Sha256::digest(file).to_vec().into(), _extra: HashMap::new() };
    Metafile { length: Some(file.len() as u64), hashes: Some(hashes), version, _extra: HashMap::new() }
}
