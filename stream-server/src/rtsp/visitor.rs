//! Who is at the other end of a connection, and what they may read.
//!
//! A client identifies itself with any request, by `Authorization`, or by the connection's certificate, and is then known
//! for the connection's life; but an identity is not believed for ever. What was presented is presented to the gate anew
//! now and then, which asks again whatever it does not remember. A Kerberos token is good only once: who was known by one is
//! asked for another.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::replies::Refused;
use crate::access::{Action, Gate, Identity, Presented, Refusal};
use crate::content::PackagePath;

/// How long an identity is used before the gate is asked again. The gate's own memory decides what that costs.
const FRESH_FOR: Duration = Duration::from_secs(30);

/// The client of one connection.
pub(super) struct Visitor {
    peer: IpAddr,
    encrypted: bool,
    certificate: Option<Presented>,
    /// What was presented last, as it stood in the header.
    header: Option<String>,
    known: Option<(Identity, Instant)>,
}

impl Visitor {
    pub(super) fn new(peer: IpAddr, encrypted: bool, certificate: Option<Presented>) -> Self {
        Self { peer, encrypted, certificate, header: None, known: None }
    }

    /// Lets the client in if it may read `package`. `authorization` is what the request presents.
    pub(super) async fn enter(
        &mut self,
        gate: &Gate,
        authorization: Option<&str>,
        package: &PackagePath,
    ) -> Result<(), Refused> {
        let mut identity = self.identify(gate, authorization).await?;
        let mut may = gate.may(&identity, package, Action::Read).await;
        if may == Err(Refusal::Wrong) {
            // It counts for nothing any more. What was presented may still do.
            self.known = None;
            identity = self.identify(gate, authorization).await?;
            may = gate.may(&identity, package, Action::Read).await;
        }
        let challenges = gate.challenges(self.peer, self.encrypted);
        if may.map_err(|refusal| refused(&refusal, challenges.clone()))? {
            return Ok(());
        }
        // Denied looks like absent, except that who has shown nothing may show something.
        if identity.is_anonymous() && !challenges.is_empty() {
            Err(Refused::challenged(challenges))
        } else {
            Err(Refused::of(404))
        }
    }

    /// Who it is, if somebody said.
    pub(super) fn user(&self) -> Option<&str> {
        self.known.as_ref().and_then(|(identity, _)| identity.name())
    }

    async fn identify(&mut self, gate: &Gate, authorization: Option<&str>) -> Result<Identity, Refused> {
        let same = authorization.is_none() || authorization == self.header.as_deref();
        if let Some((identity, since)) = &self.known
            && same
            && since.elapsed() < FRESH_FOR
        {
            return Ok(identity.clone());
        }
        if let Some(header) = authorization {
            self.header = Some(header.to_owned());
        }
        let presented = match &self.header {
            // Presented once more it would be refused as a replay; whoever repeats it on the connection is who came with it.
            Some(header) if same && is_good_once(header) => {
                return match &self.known {
                    Some((identity, _)) => Ok(identity.clone()),
                    None => Err(Refused::challenged(gate.challenges(self.peer, self.encrypted))),
                };
            }
            Some(header) => Presented::from_header(header),
            None => Ok(self.certificate.clone().unwrap_or(Presented::Nothing)),
        };
        let identified = match presented {
            Ok(presented) => gate.identify(presented, self.peer, self.encrypted).await,
            Err(refusal) => Err(refusal),
        };
        match identified {
            Ok(identity) => {
                self.known = Some((identity.clone(), Instant::now()));
                Ok(identity)
            }
            Err(refusal) => {
                (self.known, self.header) = (None, None);
                Err(refused(&refusal, gate.challenges(self.peer, self.encrypted)))
            }
        }
    }
}

fn is_good_once(header: &str) -> bool {
    header.trim_start().get(..9).is_some_and(|scheme| scheme.eq_ignore_ascii_case("negotiate"))
}

fn refused(refusal: &Refusal, challenges: Vec<String>) -> Refused {
    match refusal {
        Refusal::Wrong => Refused::challenged(challenges),
        Refusal::TooMany { retry_after } => {
            // Rounded up: who comes back too early is refused again.
            Refused::of(503).with("Retry-After", retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0))
        }
        Refusal::Unavailable(reason) => {
            tracing::warn!(reason, "cannot tell who asks");
            Refused::of(503).with("Retry-After", 5)
        }
        Refusal::NotInClear => Refused::of(403),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_log::AccessLog;
    use crate::metrics::Metrics;

    #[test]
    fn refusals_say_what_to_do() {
        let basic = || vec!["Basic realm=\"streamfs\"".to_owned(), "Negotiate".to_owned()];
        let shown = |refusal: &Refusal| refused(refusal, basic());
        assert_eq!(shown(&Refusal::Wrong).status, 401);
        assert_eq!(shown(&Refusal::Wrong).headers.len(), 2);
        let later = shown(&Refusal::TooMany { retry_after: Duration::from_millis(1500) });
        assert_eq!((later.status, later.headers[0].1.as_str()), (503, "2"));
        assert_eq!(shown(&Refusal::Unavailable("ldap".to_owned())).status, 503);
        assert_eq!(shown(&Refusal::NotInClear).status, 403);
    }

    /// An identity may come to count for nothing between two looks at what was presented. That was once answered as
    /// absence, for which clients give up.
    #[tokio::test]
    async fn who_is_no_longer_believed_is_identified_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.toml");
        let rules = "[cache]\nttl = \"10s\"\n[certificates]\nuser_from = \"common_name\"\n[default.read]\nusers = [\"build\"]\n";
        std::fs::write(&path, rules).unwrap();
        let gate = Gate::open(&path, None, Metrics::default(), AccessLog::off()).unwrap();
        let certificate = Presented::Certificate { subject: "CN=build".to_owned(), names: Vec::new() };
        let mut visitor = Visitor::new(IpAddr::from([192, 0, 2, 1]), true, Some(certificate));
        let package = "app".parse().unwrap();
        tokio::time::pause();
        for _ in 0..3 {
            assert_eq!(visitor.enter(&gate, None, &package).await, Ok(()));
            tokio::time::advance(Duration::from_secs(11)).await;
        }
    }

    #[test]
    fn tokens_of_kerberos_are_recognised() {
        assert!(is_good_once("Negotiate abc") && is_good_once(" nEgOtIaTe x"));
        assert!(!is_good_once("Basic abc") && !is_good_once("") && !is_good_once("Bearer ä"));
    }
}
