//! Kerberos tickets for servers that ask who somebody is by `Negotiate` (RFC 4559).
//!
//! Each request carries a token of its own, because a server takes each only once. The ticket for the server comes from
//! the user's credential cache (`kinit`), and stays there, so that only the first token takes a question to the
//! network. Only with the cargo feature `kerberos`.

use crate::error::{Error, Result};

/// Whether this build can do it.
///
/// # Errors
/// `Unsupported` if not.
pub(crate) fn check() -> Result<()> {
    if cfg!(feature = "kerberos") {
        return Ok(());
    }
    Err(Error::Unsupported(
        "this program was built without Kerberos; build it with --features kerberos, or log in another way".to_owned(),
    ))
}

/// The value of an `Authorization` header for the server called `host`.
///
/// # Errors
/// Why there is no ticket, in words.
#[cfg(feature = "kerberos")]
pub(crate) async fn authorization(host: &str) -> Result<String, String> {
    let host = host.to_owned();
    match tokio::task::spawn_blocking(move || token(&host)).await {
        Ok(token) => token,
        Err(error) => Err(error.to_string()),
    }
}

/// The value of an `Authorization` header for the server called `host`.
///
/// # Errors
/// Always: this build has no Kerberos.
#[cfg(not(feature = "kerberos"))]
pub(crate) async fn authorization(_: &str) -> Result<String, String> {
    check().map(|()| String::new()).map_err(|e| e.to_string())
}

#[cfg(feature = "kerberos")]
fn token(host: &str) -> Result<String, String> {
    use base64::Engine as _;
    use libgssapi::context::{ClientCtx, CtxFlags};
    use libgssapi::name::Name;
    use libgssapi::oid::{GSS_MECH_SPNEGO, GSS_NT_HOSTBASED_SERVICE};

    let told = |e: libgssapi::error::Error| format!("there is no Kerberos ticket for {host} (run kinit): {e}");
    let service = Name::new(format!("HTTP@{host}").as_bytes(), Some(GSS_NT_HOSTBASED_SERVICE)).map_err(told)?;
    // The server proves itself by TLS; asking for its proof here would cost another leg.
    let mut context = ClientCtx::new(None, service, CtxFlags::empty(), Some(GSS_MECH_SPNEGO));
    let token = context.step(None, None).map_err(told)?;
    let token = token.ok_or_else(|| format!("Kerberos gave no token for {host}"))?;
    Ok(format!("Negotiate {}", base64::engine::general_purpose::STANDARD.encode(&*token)))
}
