//! Private keys of publishers: one file each, in a folder outside every content root.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::signature::Ed25519KeyPair;
use parking_lot::Mutex;
use tough::async_trait;
use tough::key_source::KeySource;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::sign::Sign;

use super::files::{self, Access};
use crate::error::{Error, Result};

/// Identifier of a key, as root metadata names it: SHA-256 of its public half in canonical JSON.
pub(super) type KeyId = Decoded<Hex>;

/// A folder of Ed25519 keys: `KEYID.pem`, PKCS#8, readable by their owner only.
#[derive(Debug, Clone)]
pub struct KeyStore {
    dir: PathBuf,
    /// Keys that were made and nothing published names yet: an interrupted publication leaves none behind.
    fresh: Arc<Mutex<HashMap<KeyId, Loaded>>>,
}

impl KeyStore {
    /// Uses the folder `dir`, which is created with the first key.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), fresh: Arc::default() }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, id: &KeyId) -> PathBuf {
        self.dir.join(format!("{}.pem", hex::encode(id)))
    }

    /// Whether the key is here.
    pub(super) fn holds(&self, id: &KeyId) -> bool {
        self.fresh.lock().contains_key(id) || self.path(id).exists()
    }

    /// Makes a key, which is kept in memory until [`Self::keep`].
    pub(super) fn create(&self) -> Result<(KeyId, Key)> {
        let failed = |what: &str| Error::Unsupported(format!("the cryptography library cannot {what} an Ed25519 key"));
        let pair = Ed25519KeyPair::generate().map_err(|_| failed("make"))?;
        let der = pair.to_pkcs8().map_err(|_| failed("encode"))?;
        let key = pair.tuf_key();
        let id = key.key_id().map_err(|_| failed("name"))?;
        // A folder that cannot be made is told before anything is stored.
        files::create_dir(&self.dir, Access::Private)?;
        self.fresh.lock().insert(id.clone(), Loaded { der: der.as_ref().to_vec() });
        Ok((id, key))
    }

    /// Writes the keys that were made to the folder: before anything names them, for without them it could not be
    /// changed any more.
    pub(super) fn keep(&self) -> Result<()> {
        let mut fresh = self.fresh.lock();
        for (id, key) in fresh.iter() {
            let pem = pem::encode(&pem::Pem::new("PRIVATE KEY", key.der.as_slice()));
            files::write_atomic(&self.path(id), pem.as_bytes(), Access::Private)?;
        }
        fresh.clear();
        Ok(())
    }

    /// A key for signing, checked to be private and to be the one named.
    pub(super) fn source(&self, id: &KeyId, role: &str) -> Result<Box<dyn KeySource>> {
        if let Some(key) = self.fresh.lock().get(id) {
            return Ok(Box::new(Loaded { der: key.der.clone() }));
        }
        let path = self.path(id);
        let text = files::read_optional(&path)?.ok_or_else(|| {
            Error::InvalidInput(format!(
                "the private key that signs this package's {role} metadata is not here: {} does not exist; copy it from where the package was published first, or name that folder of keys",
                path.display()
            ))
        })?;
        check_private(&path)?;
        let unusable =
            |why: &str| Error::InvalidInput(format!("{} is not a usable private key: {why}", path.display()));
        let pem = pem::parse(&text).map_err(|_| unusable("it is not PEM"))?;
        let pair = Ed25519KeyPair::from_pkcs8(pem.contents()).map_err(|_| unusable("it is not Ed25519 in PKCS#8"))?;
        if pair.tuf_key().key_id().ok().as_ref() != Some(id) {
            return Err(unusable("it is another key than its name says"));
        }
        Ok(Box::new(Loaded { der: pem.into_contents() }))
    }
}

#[cfg(unix)]
fn check_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let meta = std::fs::metadata(path).map_err(|e| Error::local("look at", path, e))?;
    if meta.permissions().mode() & 0o077 != 0 {
        let path = path.display();
        return Err(Error::InvalidInput(format!(
            "the private key {path} can be read by others; make it private with `chmod 600 {path}`, or make a new key if somebody may have read it"
        )));
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_private(_path: &Path) -> Result<()> {
    Ok(())
}

/// A key in memory.
struct Loaded {
    der: Vec<u8>,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

#[async_trait]
impl KeySource for Loaded {
    async fn as_sign(&self) -> Result<Box<dyn Sign>, AnyError> {
        Ok(Box::new(Ed25519KeyPair::from_pkcs8(&self.der)?))
    }

    async fn write(&self, _value: &str, _key_id_hex: &str) -> Result<(), AnyError> {
        Err("keys are written by the key store only".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_when_they_are_kept() {
        // Ctrl-C in the first publication of a package left three private keys that nothing named.
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::new(dir.path().join("keys"));
        let files = || std::fs::read_dir(store.dir()).unwrap().count();
        let (id, _) = store.create().unwrap();
        assert!(store.holds(&id) && store.source(&id, "root").is_ok());
        assert_eq!(files(), 0);
        assert!(!format!("{store:?}").contains("der"), "a private key is not printed");
        store.clone().keep().unwrap();
        assert_eq!(files(), 1);
        assert!(KeyStore::new(store.dir()).source(&id, "root").is_ok());
    }
}
