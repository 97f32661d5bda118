//! The server from outside: its words, its frames, and the client of fs-core.

mod client;
mod dialogue;
mod reading;
mod talk;

use std::sync::Arc;
use tokio::time::Instant;

use super::Uses;
use crate::access::Gate;
use crate::access_log::AccessLog;
use crate::clients::Clients;
use crate::content::Content;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::notices::Notices;
use crate::stage::Stage;
use crate::{ContentRoot, Shared};

/// A name as a pack has.
const PACK: &str = "packs/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A stage with package `team/app` of versions 1 and 2, and `length` bytes beside as an object by which every position can be
/// told.
fn stage(length: usize) -> Stage {
    let stage = Stage::new();
    stage.publish("team/app", "1", b"one");
    stage.publish("team/app", "2", b"two");
    std::fs::write(stage.content().join("team/app").join(PACK), numbers(length)).unwrap();
    stage
}

fn numbers(length: usize) -> Vec<u8> {
    (0..length.div_ceil(4) as u32).flat_map(u32::to_be_bytes).take(length).collect()
}

/// What `serve` needs, without a listener.
fn shared(stage: &Stage) -> Arc<Shared> {
    Arc::new(Shared {
        content: Content::new(ContentRoot::Folder(stage.content())).unwrap(),
        gate: Gate::open_to_all(),
        notices: Notices::new(),
        metrics: Metrics::default(),
        limits: Limits::default(),
        log: AccessLog::off(),
        clients: Clients::default(),
        uses: Uses::default(),
        since: Instant::now(),
    })
}
