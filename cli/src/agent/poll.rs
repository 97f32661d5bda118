//! Asking for newer versions, now and then, and when an origin says that there is news.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fs_core::mount::host::Host;
use tokio::sync::watch;

use super::table::{Entry, News};
use crate::trust_report::FreshnessReport;

/// However often asking failed, it is tried again after this long (or the interval, if that is longer).
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Asks for newer versions of what `entry` follows, until it is unmounted.
pub(crate) fn start(host: &Arc<Host>, entry: &Arc<Entry>) {
    let (host, entry) = (host.clone(), entry.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = entry.gone() => {}
            () = ask_for_ever(&host, &entry) => {}
        }
    });
}

async fn ask_for_ever(host: &Arc<Host>, entry: &Entry) {
    let mut failures = 0;
    let mut changes = None;
    loop {
        // Anew where there is none, since the origin may have been opened anew.
        changes = changes.or_else(|| host.changes(&entry.watched().0));
        tokio::select! {
            () = tokio::time::sleep(jittered(pause(entry.poll_interval(), failures), clock_noise())) => {}
            () = told(&mut changes) => {}
        }
        let before = entry.watched();
        let (location, shown, follows) = &before;
        let known = entry.news();
        let news = match host.newest(location).await {
            Ok(newest) => {
                failures = 0;
                let version = newest.record.version.to_string();
                let newer = (*follows && version != *shown).then_some(version);
                // A version that is no longer listed is no better than one that was withdrawn.
                let record = newest.catalog.versions.iter().find(|record| record.version.as_str() == shown);
                let revoked = record.is_none_or(|record| record.revoked);
                News { newer, freshness: (&newest.freshness).into(), revoked }
            }
            Err(error) => {
                failures += 1;
                if failures == 1 {
                    tracing::warn!(location = %location, %error, "cannot ask for newer versions");
                }
                News { freshness: FreshnessReport::offline(error.to_string()), ..known.clone() }
            }
        };
        if news.revoked && !known.revoked {
            tracing::warn!(location = %location, version = %shown, "the version that is mounted was revoked");
        }
        // A remount may have happened while we asked.
        if entry.watched() == before {
            entry.learn(news);
        }
    }
}

/// Waits until the origin tells that the package changed; for ever if it does not tell such things.
async fn told(changes: &mut Option<watch::Receiver<u64>>) {
    if let Some(receiver) = changes {
        if receiver.changed().await.is_ok() {
            return;
        }
        *changes = None;
    }
    std::future::pending().await
}

/// The pause after so many failures in a row: it doubles up to [`LONGEST_PAUSE`].
fn pause(interval: Duration, failures: u32) -> Duration {
    interval.saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX)).min(LONGEST_PAUSE.max(interval))
}

/// `pause` changed by up to a tenth, so that many machines do not ask in step. `noise` is any number.
fn jittered(pause: Duration, noise: u32) -> Duration {
    pause.mul_f64(0.9 + 0.2 * f64::from(noise % 1001) / 1000.0)
}

/// The clock's fraction of a second: unlike enough between machines.
fn clock_noise() -> u32 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn news_ends_the_wait_and_the_end_of_news_does_not() {
        let (sender, receiver) = watch::channel(0);
        let mut changes = Some(receiver);
        sender.send_replace(1);
        told(&mut changes).await;
        drop(sender);
        assert!(futures::poll!(std::pin::pin!(told(&mut changes))).is_pending());
        assert!(changes.is_none());
    }

    #[test]
    fn failures_lengthen_the_pause_to_a_limit() {
        let s = Duration::from_secs;
        assert_eq!(pause(s(60), 0), s(60));
        assert_eq!(pause(s(60), 2), s(240));
        assert_eq!(pause(s(60), 40), s(600));
        assert_eq!(pause(s(3600), 5), s(3600));
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        for noise in [0, 1, 500, 1000, 999_999, u32::MAX] {
            let it = jittered(Duration::from_secs(100), noise).as_secs_f64();
            assert!((90.0..=110.0).contains(&it), "{noise}: {it}");
        }
        assert!(jittered(Duration::from_secs(100), 0) < jittered(Duration::from_secs(100), 1000));
    }
}
