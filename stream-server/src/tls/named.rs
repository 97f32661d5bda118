//! Who a client's certificate says it is.

use std::io;

use tokio_rustls::rustls::ServerConnection;
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::oid_registry::Oid;

use crate::access::{Presented, subject_text};

/// Names of one certificate that are looked at: no real one has so many.
const NAMES_MAX: usize = 32;
/// Microsoft's user principal name (1.3.6.1.4.1.311.20.2.3), which Active Directory's certificates carry.
const PRINCIPAL_NAME: &str = "1.3.6.1.4.1.311.20.2.3";

/// The certificate that the client showed, which rustls has verified; `None` if it showed none.
///
/// # Errors
/// If it cannot be read, though it was verified.
pub(crate) fn presented(connection: &ServerConnection) -> io::Result<Option<Presented>> {
    let Some(own) = connection.peer_certificates().and_then(|chain| chain.first()) else { return Ok(None) };
    let (subject, names) = read(own).ok_or_else(|| io::Error::other("the client's certificate cannot be read"))?;
    Ok(Some(Presented::Certificate { subject, names }))
}

/// Subject, and alternative names: host names, addresses of mail, URIs and user principal names.
fn read(der: &[u8]) -> Option<(String, Vec<String>)> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    // RFC 4514 writes what is most special first, which stands last in the certificate.
    let attributes = certificate.subject().iter_rdn().collect::<Vec<_>>().into_iter().rev().flat_map(|rdn| rdn.iter());
    let parts: Option<Vec<(String, &str)>> = attributes
        .map(|attribute| Some((attribute_type(attribute.attr_type()), attribute.as_str().ok()?)))
        .collect();
    let parts = parts?;
    let subject = subject_text(parts.iter().map(|(kind, value)| (kind.as_str(), *value)));
    let alternative = certificate.subject_alternative_name().ok()?;
    let names = alternative.iter().flat_map(|extension| &extension.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        GeneralName::OtherName(kind, value) if kind.to_id_string() == PRINCIPAL_NAME => utf8_string(value),
        _ => None,
    });
    Some((subject, names.take(NAMES_MAX).collect()))
}

/// `CN` and the like, or the number of a type that has no short name.
fn attribute_type(number: &Oid<'_>) -> String {
    oid2abbrev(number, oid_registry()).map_or_else(|_| number.to_id_string(), str::to_owned)
}

/// The text of a DER UTF8String, perhaps within an explicit tag.
fn utf8_string(der: &[u8]) -> Option<String> {
    /// Tag 0, explicit.
    const WITHIN: u8 = 0xa0;
    const UTF8_STRING: u8 = 0x0c;
    let (&tag, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    // Names are short: a length of 128 or more has another form.
    let value = rest.get(..usize::from(length)).filter(|_| length < 128)?;
    match tag {
        WITHIN => utf8_string(value),
        UTF8_STRING => String::from_utf8(value.to_vec()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        let mut asked = rcgen::CertificateParams::new(vec!["client.example".to_owned()]).unwrap();
        asked.distinguished_name = rcgen::DistinguishedName::new();
        asked.distinguished_name.push(rcgen::DnType::OrganizationName, "Example, Inc.");
        asked.distinguished_name.push(rcgen::DnType::CommonName, "alice");
        asked.subject_alt_names.push(rcgen::SanType::Rfc822Name("alice@example.org".try_into().unwrap()));
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = asked.self_signed(&key).unwrap();
        let (subject, names) = read(certificate.der()).unwrap();
        assert_eq!(subject, "CN=alice,O=Example\\, Inc.");
        assert_eq!(names, ["client.example", "alice@example.org"]);
        assert!(read(b"nonsense").is_none());
    }

    #[test]
    fn principal_names_are_unpacked() {
        let plain = b"\x0c\x03a@b";
        assert_eq!(utf8_string(plain).as_deref(), Some("a@b"));
        let within = [b"\xa0\x05".as_slice(), plain].concat();
        assert_eq!(utf8_string(&within).as_deref(), Some("a@b"));
        for broken in [b"".as_slice(), b"\x0c", b"\x0c\x04abc", b"\x0c\x81\x03abc", b"\x13\x01a", b"\x0c\x01\xff"] {
            assert_eq!(utf8_string(broken), None, "{broken:?}");
        }
    }
}
