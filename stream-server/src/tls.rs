//! TLS: the server's certificate and key, exchanged while it serves, and certificates of clients.
//!
//! TLS 1.2 and 1.3, by rustls. What was loaded stays in use until something better was loaded whole: a certificate that
//! is being renewed, or a key that does not fit yet, changes nothing.

mod named;
mod trial;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ProducesTickets, WebPkiClientVerifier};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::ServeError;

pub(crate) use named::presented;

/// How often to look whether the files are others: who renews certificates need not tell the server.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// No certificate chain or key is longer.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// Where the server's certificate is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// PEM files.
    Files {
        /// The chain, the server's own certificate first.
        certificate: PathBuf,
        /// The private key.
        key: PathBuf,
    },
    /// Made here, for trials: a folder that gets `ca.pem`, which clients are told to trust, `server.pem` and
    /// `server.key`; what is there already is used.
    Trial {
        /// The folder.
        dir: PathBuf,
        /// Names and addresses under which the server is reached, beside this machine's own.
        names: Vec<String>,
    },
}

/// How TLS is spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// The server's certificate.
    pub certificate: CertificateSource,
    /// Authorities (PEM) whose certificates clients may show. Without, clients are not asked for one.
    pub client_ca: Option<PathBuf>,
    /// Whether clear text is refused.
    pub only: bool,
}

/// TLS as it is spoken at present.
pub(crate) struct Tls {
    current: RwLock<Current>,
    /// State of the files that it was loaded from.
    loaded: Mutex<Vec<Option<SystemTime>>>,
    /// Survives new certificates, so that clients resume what they began.
    tickets: Arc<dyn ProducesTickets>,
}

struct Current {
    settings: TlsSettings,
    config: Arc<ServerConfig>,
}

impl Tls {
    pub(crate) fn load(settings: &TlsSettings) -> Result<Self, ServeError> {
        let tickets = Ticketer::new().map_err(|e| bad(None, format!("cannot make session tickets: {e}")))?;
        if let CertificateSource::Trial { dir, names } = &settings.certificate {
            trial::make(dir, names)?;
        }
        let loaded = Mutex::new(stamps(settings));
        let config = config(settings, &tickets)?;
        Ok(Self { current: RwLock::new(Current { settings: settings.clone(), config }), loaded, tickets })
    }

    /// What accepts the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().config.clone().into()
    }

    /// Whether clear text is refused.
    pub(crate) fn is_demanded(&self) -> bool {
        self.current.read().settings.only
    }

    /// Uses these settings, and the files as they are now, for connections from now on. On failure nothing changes.
    pub(crate) fn reload(&self, settings: &TlsSettings) -> Result<(), ServeError> {
        let stamps = stamps(settings);
        let config = config(settings, &self.tickets)?;
        *self.current.write() = Current { settings: settings.clone(), config };
        *self.loaded.lock() = stamps;
        tracing::info!("the TLS certificate was loaded anew");
        Ok(())
    }

    /// Loads the files again whenever they are others. Never ends.
    pub(crate) async fn follow_files(&self) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let settings = self.current.read().settings.clone();
            let now = stamps(&settings);
            if now == *self.loaded.lock() {
                continue;
            }
            if let Err(error) = self.reload(&settings) {
                tracing::warn!(%error, "the files of the TLS certificate changed, and are not used");
                // Said once for each change.
                *self.loaded.lock() = now;
            }
        }
    }
}

fn bad(path: Option<&Path>, reason: impl Into<String>) -> ServeError {
    ServeError::Tls { path: path.map(Path::to_owned), reason: reason.into() }
}

/// The chain and the key.
fn files(settings: &TlsSettings) -> (PathBuf, PathBuf) {
    match &settings.certificate {
        CertificateSource::Files { certificate, key } => (certificate.clone(), key.clone()),
        CertificateSource::Trial { dir, .. } => (dir.join(trial::CERTIFICATE), dir.join(trial::KEY)),
    }
}

fn stamps(settings: &TlsSettings) -> Vec<Option<SystemTime>> {
    let (certificate, key) = files(settings);
    let all = [Some(certificate), Some(key), settings.client_ca.clone()];
    all.into_iter().flatten().map(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok()).collect()
}

fn config(settings: &TlsSettings, tickets: &Arc<dyn ProducesTickets>) -> Result<Arc<ServerConfig>, ServeError> {
    let (certificate_path, key_path) = files(settings);
    let chain = certificates(&certificate_path)?;
    let pem = read(&key_path)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| bad(Some(&key_path), format!("it holds no key: {e}")))?;
    warn_of_open_key(&key_path);
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(None, e.to_string()))?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|e| bad(Some(path), format!("it is no authority's: {e}")))?;
            }
            // Optional: who shows none may still log in otherwise.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|e| bad(Some(path), e.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|e| bad(Some(&certificate_path), format!("it does not go with {}: {e}", key_path.display())))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = tickets.clone();
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let pem = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|e| bad(Some(path), format!("it is no PEM file: {e}")))?;
    if all.is_empty() {
        return Err(bad(Some(path), "it holds no certificate in PEM"));
    }
    Ok(all)
}

fn read(path: &Path) -> Result<Vec<u8>, ServeError> {
    let length = fs::metadata(path).map_err(|e| bad(Some(path), e.to_string()))?.len();
    if length > FILE_MAX_BYTES {
        return Err(bad(Some(path), "it is too long for a certificate or key"));
    }
    fs::read(path).map_err(|e| bad(Some(path), e.to_string()))
}

/// A key that everybody on this machine may read is no secret. It is used even so: how files are handed to services
/// differs from system to system.
fn warn_of_open_key(path: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    if fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o007 != 0) {
        let path = path.display();
        tracing::warn!("everybody on this machine may read the private key {path}; run: chmod o= {path}");
    }
}

#[cfg(test)]
mod tests;
