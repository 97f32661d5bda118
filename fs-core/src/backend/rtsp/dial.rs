//! Connections to RTSP servers, in clear or under TLS, and what is sent on them to be let in.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls_platform_verifier::Verifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use super::super::negotiate;
use crate::config::{Credentials, OriginConfig};
use crate::error::{Error, Result};
use crate::location::{RTSP_PORT, RTSPS_PORT};

/// Both directions of a connection.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// How one server is reached.
pub(super) struct Dialer {
    /// Without the brackets that stand around IPv6 in a URL.
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    credentials: Credentials,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Dialer {
    /// Reads certificates, but connects to nothing yet.
    pub(super) fn new(root: &Url, config: &OriginConfig) -> Result<Self> {
        let bare = root.host_str().unwrap_or_default();
        let host = bare.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(bare).to_owned();
        let encrypted = root.scheme() == "rtsps";
        let port = root.port().unwrap_or(if encrypted { RTSPS_PORT } else { RTSP_PORT });
        let tls = match encrypted {
            false => None,
            true => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|e| Error::InvalidInput(format!("{host:?} cannot be the name of a TLS server: {e}")))?;
                Some((TlsConnector::from(Arc::new(tls_config(config)?)), name))
            }
        };
        Ok(Self { host, port, tls, credentials: config.credentials.clone() })
    }

    /// Connects. The caller bounds how long that may take.
    pub(super) async fn connect(&self) -> Result<Box<dyn Duplex>, String> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await;
        let tcp = tcp.map_err(|e| format!("cannot connect to {}:{}: {e}", self.host, self.port))?;
        // Requests are short; without it each may wait for the acknowledgement of the one before.
        tcp.set_nodelay(true).map_err(|e| format!("cannot set up the connection: {e}"))?;
        match &self.tls {
            None => Ok(Box::new(tcp)),
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), tcp).await;
                Ok(Box::new(tls.map_err(|e| format!("TLS with {} failed: {e}", self.host))?))
            }
        }
    }

    /// Value of the `Authorization` header of all requests on one connection.
    pub(super) async fn authorization(&self) -> Result<Option<String>, String> {
        Ok(match &self.credentials {
            Credentials::None => None,
            Credentials::Basic { user, password } => {
                let text = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
                Some(format!("Basic {text}"))
            }
            Credentials::Bearer(token) => Some(format!("Bearer {token}")),
            Credentials::Kerberos => Some(negotiate::authorization(&self.host).await?),
        })
    }
}

/// Trusts what the system trusts, and the authorities of `config`.
fn tls_config(config: &OriginConfig) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let failed = |e: rustls::Error| Error::Unsupported(format!("cannot set up TLS: {e}"));
    let mut authorities = Vec::new();
    for path in &config.ca_files {
        authorities.extend(certificates(path)?);
    }
    let verifier = if authorities.is_empty() {
        Verifier::new(provider.clone())
    } else {
        Verifier::new_with_extra_roots(authorities, provider.clone())
    };
    let verifier = verifier.map_err(failed)?;
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(failed)?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = std::fs::read(path).map_err(|e| Error::local("read the certificate authorities in", path, e))?;
    let bad =
        |why: String| Error::InvalidInput(format!("{} holds no usable certificates in PEM: {why}", path.display()));
    let blocks = pem::parse_many(&text).map_err(|e| bad(e.to_string()))?;
    let certificates = blocks.into_iter().filter(|block| block.tag() == "CERTIFICATE");
    let certificates: Vec<_> = certificates.map(|block| CertificateDer::from(block.into_contents())).collect();
    if certificates.is_empty() { Err(bad("there is none in it".to_owned())) } else { Ok(certificates) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialer(url: &str, config: &OriginConfig) -> Result<Dialer> {
        Dialer::new(&Url::parse(url).unwrap(), config)
    }

    #[test]
    fn hosts_and_ports_are_found() {
        for (url, host, port) in
            [("rtsp://h/", "h", 554), ("rtsp://[::1]:8554/", "::1", 8554), ("rtsps://127.0.0.1/", "127.0.0.1", 322)]
        {
            let dialer = dialer(url, &OriginConfig::default()).unwrap();
            assert_eq!((dialer.host.as_str(), dialer.port, dialer.tls.is_some()), (host, port, port == 322), "{url}");
        }
    }

    #[test]
    fn unusable_authorities_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "no certificate").unwrap();
        for (path, words) in [(empty, "none in it"), (dir.path().join("nothing.pem"), "cannot read")] {
            let config = OriginConfig { ca_files: vec![path], ..OriginConfig::default() };
            let error = dialer("rtsps://h/", &config).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(".pem"), "{error}");
        }
    }

    #[tokio::test]
    async fn credentials_are_written_as_http_has_them_and_not_shown() {
        let basic = Credentials::Basic { user: "Aladdin".into(), password: "open sesame".into() };
        let config = OriginConfig { credentials: basic, ..OriginConfig::default() };
        let dialer = dialer("rtsp://localhost/", &config).unwrap();
        // The example of RFC 2617.
        let written = dialer.authorization().await.unwrap();
        assert_eq!(written.as_deref(), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
        assert!(!format!("{dialer:?}").contains("QWxh"));
    }
}
