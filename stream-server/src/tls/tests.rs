use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ProtocolVersion, version};

use super::*;
use crate::access::Presented;
use crate::stage::{Running, Stage, serve};

fn trial(stage: &Stage, name: &str) -> TlsSettings {
    let certificate = CertificateSource::Trial { dir: stage.path(name), names: vec!["apps.example".to_owned()] };
    TlsSettings { certificate, client_ca: None, only: false }
}

/// A client that trusts the authority of the trial in `dir`.
fn client(
    dir: &Path,
    own: Option<(&str, &str)>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for authority in certificates(&dir.join(trial::AUTHORITY)).unwrap() {
        roots.add(authority).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    }
}

const BOTH: &[&rustls::SupportedProtocolVersion] = &[&version::TLS12, &version::TLS13];

async fn connect(
    address: SocketAddr,
    config: ClientConfig,
    name: &'static str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name).unwrap(), stream).await
}

async fn served(stage: &Stage, tls: &TlsSettings) -> Running {
    let mut settings = stage.settings();
    settings.tls = Some(tls.clone());
    serve(&settings).await
}

async fn health(mut stream: TlsStream<TcpStream>) -> String {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn a_trial_certificate_is_good_under_its_names_for_both_versions() {
    let stage = Stage::new();
    let server = served(&stage, &trial(&stage, "tls")).await;
    for (versions, expected) in
        [([&version::TLS12], ProtocolVersion::TLSv1_2), ([&version::TLS13], ProtocolVersion::TLSv1_3)]
    {
        for name in ["localhost", "127.0.0.1", "apps.example"] {
            let stream = connect(server.address, client(&stage.path("tls"), None, &versions), name).await.unwrap();
            assert_eq!(stream.get_ref().1.protocol_version(), Some(expected));
            assert!(health(stream).await.starts_with("HTTP/1.1 200"));
        }
    }
    let wrong = connect(server.address, client(&stage.path("tls"), None, BOTH), "other.example").await;
    assert!(wrong.is_err(), "a name that is not in it");
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(stage.path("tls").join(trial::KEY)).unwrap());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_new_certificate_is_taken_without_a_restart_and_a_broken_one_is_not() {
    let stage = Stage::new();
    let server = served(&stage, &trial(&stage, "tls")).await;
    let own = |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let dir = stage.path("tls");
    let first = connect(server.address, client(&dir, None, BOTH), "localhost").await.unwrap();
    let before = own(&first);

    // Another key than the certificate's: what was loaded stays.
    Tls::load(&trial(&stage, "other")).unwrap();
    fs::copy(stage.path("other").join(trial::KEY), dir.join(trial::KEY)).unwrap();
    let mut settings = stage.settings();
    settings.tls = Some(trial(&stage, "tls"));
    let error = server.reloader.reload(&settings).unwrap_err().to_string();
    assert!(error.contains("does not go with"), "{error}");
    let second = connect(server.address, client(&dir, None, BOTH), "localhost").await.unwrap();
    assert_eq!(own(&second), before);

    for name in [trial::CERTIFICATE, trial::AUTHORITY] {
        fs::copy(stage.path("other").join(name), dir.join(name)).unwrap();
    }
    server.reloader.reload(&settings).unwrap();
    let third = connect(server.address, client(&dir, None, BOTH), "localhost").await.unwrap();
    assert_ne!(own(&third), before);
    assert!(health(first).await.starts_with("HTTP/1.1 200"), "connections that there were go on");
}

#[tokio::test]
async fn clients_may_show_certificates_of_the_authority_that_was_named() {
    let stage = Stage::new();
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    fs::write(stage.path("clients.pem"), authority.self_signed(&authority_key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let show = |issuer: Option<&rcgen::Issuer<'_, rcgen::KeyPair>>| {
        let mut asked = rcgen::CertificateParams::new(vec!["alice.example".to_owned()]).unwrap();
        asked.distinguished_name = rcgen::DistinguishedName::new();
        asked.distinguished_name.push(rcgen::DnType::CommonName, "alice");
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = match issuer {
            Some(issuer) => asked.signed_by(&key, issuer).unwrap(),
            None => asked.self_signed(&key).unwrap(),
        };
        (certificate.pem(), key.serialize_pem())
    };
    let (good, own) = (show(Some(&issuer)), show(None));

    let mut settings = trial(&stage, "tls");
    settings.client_ca = Some(stage.path("clients.pem"));
    let tls = Tls::load(&settings).unwrap();
    let shake = async |shown: Option<&(String, String)>| {
        let config = client(&stage.path("tls"), shown.map(|(a, b)| (a.as_str(), b.as_str())), BOTH);
        let (near, far) = tokio::io::duplex(1 << 16);
        let connecting = TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), near);
        let (accepted, _connected) = tokio::join!(tls.acceptor().accept(far), connecting);
        accepted.map(|stream| presented(stream.get_ref().1).unwrap())
    };
    let Some(Presented::Certificate { subject, names }) = shake(Some(&good)).await.unwrap() else {
        panic!("it was shown")
    };
    assert_eq!((subject.as_str(), names), ("CN=alice", vec!["alice.example".to_owned()]));
    assert!(shake(None).await.unwrap().is_none(), "nobody need show one");
    assert!(shake(Some(&own)).await.is_err(), "one that nobody vouches for is refused");
}

#[tokio::test]
async fn clear_text_can_be_refused() {
    let stage = Stage::new();
    let mut tls = trial(&stage, "tls");
    let both = served(&stage, &tls).await;
    let (head, _) = crate::stage::ask(both.address, "GET", "/healthz", "").await;
    assert!(head.starts_with("http/1.1 200"), "one port is for both: {head}");
    tls.only = true;
    let only = served(&stage, &tls).await;
    let (head, body) = crate::stage::ask(only.address, "GET", "/healthz", "").await;
    assert!(head.starts_with("http/1.1 400"), "{head}");
    assert_eq!(body, b"only TLS is spoken here: use https:\n");
    let stream = connect(only.address, client(&stage.path("tls"), None, BOTH), "localhost").await.unwrap();
    assert!(health(stream).await.starts_with("HTTP/1.1 200"));
}

#[test]
fn what_is_wrong_with_files_is_named() {
    let stage = Stage::new();
    let good = Tls::load(&trial(&stage, "tls")).map(|_| stage.path("tls")).unwrap();
    fs::write(stage.path("empty"), "").unwrap();
    fs::write(stage.path("nonsense"), "-----BEGIN CERTIFICATE-----\n***\n-----END CERTIFICATE-----\n").unwrap();
    let (certificate, key) = (good.join(trial::CERTIFICATE), good.join(trial::KEY));
    for (certificate, key, words) in [
        (stage.path("absent"), key.clone(), "absent"),
        (stage.path("empty"), key.clone(), "no certificate in PEM"),
        (stage.path("nonsense"), key, "nonsense"),
        (certificate.clone(), stage.path("empty"), "no key"),
        (certificate.clone(), certificate, "no key"),
    ] {
        let certificate = CertificateSource::Files { certificate, key };
        let error = Tls::load(&TlsSettings { certificate, client_ca: None, only: false }).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
}
