//! Kerberos tickets, presented by `Negotiate` (RFC 4559), checked with the key in a keytab.
//!
//! Only with the cargo feature `kerberos`: it takes MIT Kerberos, a C library. A ticket proves the user's principal;
//! the groups come from the directory. One token must do: what takes a second leg is NTLM, or a client that is not in
//! the realm, and neither is offered.

use super::settings::KerberosSettings;
use super::{AccessError, Refusal};

/// Whom a ticket proved, and what to answer so that the client knows whom it talks to.
#[derive(Debug)]
#[cfg_attr(not(feature = "kerberos"), allow(dead_code, reason = "without Kerberos nothing is accepted"))]
pub(super) struct Accepted {
    pub(super) user: String,
    pub(super) reply: Option<Vec<u8>>,
}

/// Whoever checks tickets.
#[cfg(feature = "kerberos")]
pub(super) struct Kerberos {
    realms: Vec<String>,
    turns: std::sync::Arc<tokio::sync::Semaphore>,
}

/// Nobody checks tickets.
#[cfg(not(feature = "kerberos"))]
pub(super) enum Kerberos {}

#[cfg(not(feature = "kerberos"))]
impl Kerberos {
    pub(super) fn new(_: &KerberosSettings) -> Result<Self, AccessError> {
        Err(AccessError::Content(
            "[kerberos] is configured, but this program was built without it; build it with --features kerberos"
                .to_owned(),
        ))
    }

    // What cannot exist needs no answer.
    pub(super) async fn accept(&self, _: Vec<u8>) -> Result<Accepted, Refusal> {
        match *self {}
    }
}

#[cfg(feature = "kerberos")]
mod gssapi {
    use std::ffi::{CString, c_char};
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::sync::Arc;

    use libgssapi::context::{SecurityContext, ServerCtx};
    use libgssapi::credential::{Cred, CredUsage};
    use tokio::sync::Semaphore;

    use super::{Accepted, AccessError, Kerberos, KerberosSettings, Refusal, user_of};

    /// Tickets checked at the same time; each takes a fraction of a millisecond, and a file that remembers it.
    const CHECKS_AT_ONCE_MAX: usize = 8;

    unsafe extern "C" {
        /// Of MIT Kerberos (`gssapi/gssapi_krb5.h`), which `libgssapi` links: the keytab for all that this process
        /// accepts from here on.
        fn krb5_gss_register_acceptor_identity(keytab: *const c_char) -> u32;
    }

    impl Kerberos {
        pub(in super::super) fn new(settings: &KerberosSettings) -> Result<Self, AccessError> {
            use_keytab(&settings.keytab)?;
            // Acquired once here only to tell a mistake at the start.
            Cred::acquire(None, None, CredUsage::Accept, None)
                .map_err(|e| AccessError::about(&settings.keytab, format!("it holds no key that can be used: {e}")))?;
            Ok(Self { realms: settings.realms.clone(), turns: Arc::new(Semaphore::new(CHECKS_AT_ONCE_MAX)) })
        }

        pub(in super::super) async fn accept(&self, token: Vec<u8>) -> Result<Accepted, Refusal> {
            let unavailable = |why: String| Refusal::Unavailable(format!("cannot check Kerberos tickets: {why}"));
            let turn = self.turns.clone().acquire_owned().await.map_err(|e| unavailable(e.to_string()))?;
            let realms = self.realms.clone();
            let check = move || {
                let accepted = check(&token, &realms);
                drop(turn);
                accepted
            };
            tokio::task::spawn_blocking(check).await.map_err(|e| unavailable(e.to_string()))?
        }
    }

    fn use_keytab(path: &Path) -> Result<(), AccessError> {
        let failed = |why: String| AccessError::about(path, why);
        std::fs::File::open(path).map_err(|e| failed(e.to_string()))?;
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| failed(e.to_string()))?;
        // SAFETY: the argument is a NUL-terminated string that lives until the call returns; the library copies it,
        // under a lock of its own.
        let major = unsafe { krb5_gss_register_acceptor_identity(name.as_ptr()) };
        if major == 0 { Ok(()) } else { Err(failed(format!("the Kerberos library refuses it (status {major:#x})"))) }
    }

    fn check(token: &[u8], realms: &[String]) -> Result<Accepted, Refusal> {
        // No name: any key in the keytab, so that one server may have several names. A new credential each time reads
        // a keytab that was renewed.
        let credential = Cred::acquire(None, None, CredUsage::Accept, None)
            .map_err(|e| Refusal::Unavailable(format!("the keytab cannot be used: {e}")))?;
        let mut context = ServerCtx::new(Some(credential));
        let reply = context.step(token, None).map_err(|error| {
            tracing::debug!(%error, "a Kerberos ticket was refused");
            Refusal::Wrong
        })?;
        if !context.is_complete() {
            return Err(Refusal::Wrong);
        }
        let name = context.source_name().and_then(|name| name.display_name()).map_err(|error| {
            tracing::debug!(%error, "a Kerberos principal cannot be read");
            Refusal::Wrong
        })?;
        let principal = std::str::from_utf8(&name).map_err(|_| Refusal::Wrong)?;
        let user = user_of(principal, realms).ok_or(Refusal::Wrong)?;
        Ok(Accepted { user, reply: reply.map(|reply| reply.to_vec()) })
    }
}

/// The user's name for a principal: without the realm, if it is one of `realms`. In lower case, as directories have it.
#[cfg_attr(not(feature = "kerberos"), cfg(test))]
fn user_of(principal: &str, realms: &[String]) -> Option<String> {
    // The last @ that is not escaped begins the realm.
    let (name, realm) = principal.rsplit_once('@')?;
    if name.is_empty() || realm.is_empty() || name.contains('\\') {
        return None;
    }
    let known = realms.iter().any(|known| known == realm);
    let user = if known { name } else { principal }.to_lowercase();
    super::name_is_usable(&user).then_some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_realms_are_left_out_and_others_are_not() {
        let realms = ["CORP.EXAMPLE".to_owned()];
        for (principal, user) in [
            ("Ann@CORP.EXAMPLE", Some("ann")),
            ("host/pc.corp.example@CORP.EXAMPLE", Some("host/pc.corp.example")),
            ("PC$@CORP.EXAMPLE", Some("pc$")),
            ("ann@OTHER.EXAMPLE", Some("ann@other.example")),
            // Realms have case: this one is not the known one.
            ("ann@corp.example", Some("ann@corp.example")),
            ("ann\\@x@CORP.EXAMPLE", None),
            ("@CORP.EXAMPLE", None),
            ("ann@", None),
            ("ann", None),
        ] {
            assert_eq!(user_of(principal, &realms).as_deref(), user, "{principal}");
        }
    }

    #[cfg(not(feature = "kerberos"))]
    #[test]
    fn without_the_feature_it_is_refused_with_a_reason() {
        let settings = toml::from_str("keytab = \"k\"\nrealms = [\"R\"]").unwrap();
        let error = Kerberos::new(&settings).err().unwrap().to_string();
        assert!(error.contains("--features kerberos"), "{error}");
    }
}
