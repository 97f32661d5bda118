//! A certificate for trials: an authority that lives for one signature, and the server's own below it. Clients trust the
//! authority (`ca_file` of an origin, SSL_CERT_FILE, `--cacert`); self-signed servers' certificates are refused by many.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use jiff::{Span, Zoned};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::bad;
use crate::ServeError;

pub(super) const AUTHORITY: &str = "ca.pem";
pub(super) const CERTIFICATE: &str = "server.pem";
pub(super) const KEY: &str = "server.key";
/// A trial that lasts longer is none.
const DAYS: i64 = 90;

/// Makes the files in `dir`, unless they are there.
pub(super) fn make(dir: &Path, names: &[String]) -> Result<(), ServeError> {
    if [AUTHORITY, CERTIFICATE, KEY].iter().all(|name| dir.join(name).exists()) {
        return Ok(());
    }
    let failed = |e: rcgen::Error| bad(Some(dir), format!("cannot make a certificate for trials: {e}"));
    let mut authority = CertificateParams::new(Vec::<String>::new()).map_err(failed)?;
    authority.distinguished_name.push(DnType::CommonName, "streamfs trial authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    limit(&mut authority);
    let authority_key = KeyPair::generate().map_err(failed)?;
    let authority_certificate = authority.self_signed(&authority_key).map_err(failed)?;

    let mut server = CertificateParams::new(all_names(names)).map_err(failed)?;
    server.distinguished_name.push(DnType::CommonName, "streamfs trial server");
    server.is_ca = IsCa::ExplicitNoCa;
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    limit(&mut server);
    let server_key = KeyPair::generate().map_err(failed)?;
    let issuer = Issuer::new(authority, authority_key);
    let server_certificate = server.signed_by(&server_key, &issuer).map_err(failed)?;

    fs::create_dir_all(dir).map_err(|e| bad(Some(dir), e.to_string()))?;
    write(&dir.join(KEY), &server_key.serialize_pem(), 0o600)?;
    write(&dir.join(CERTIFICATE), &server_certificate.pem(), 0o644)?;
    write(&dir.join(AUTHORITY), &authority_certificate.pem(), 0o644)?;
    tracing::info!(authority = %dir.join(AUTHORITY).display(), days = DAYS, "made a certificate for trials");
    Ok(())
}

/// From yesterday, for clocks that are late, for as long as a trial may last.
fn limit(certificate: &mut CertificateParams) {
    let today = Zoned::now().date();
    let on = |days: i64| {
        let date = today.checked_add(Span::new().days(days)).unwrap_or(today);
        rcgen::date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    certificate.not_before = on(-1);
    certificate.not_after = on(DAYS);
}

/// `names`, and those of this machine.
fn all_names(names: &[String]) -> Vec<String> {
    let mut all = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    all.extend(std::iter::once(host).chain(names.iter().cloned()).filter(|name| !name.is_empty()));
    all.sort();
    all.dedup();
    all
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), ServeError> {
    let failed = |e: std::io::Error| bad(Some(path), e.to_string());
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}
