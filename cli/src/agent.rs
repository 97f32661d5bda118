//! The agent: the process that owns one cache directory and hosts its mounts.
//!
//! ```text
//! client    a command: connects, or starts an agent and waits until it is ready
//!   |  one JSON object a line over a Unix socket (protocol), found through the runtime folder (registry)
//! worker    takes the cache's lock, listens, ends when nobody needs it
//!   session   one connection: its requests run side by side and end with it
//!   table     what is mounted where, what followed it, what still drains
//!   watching  recordings and traces of mounts that were made for it
//!   mounts    the only file that knows how Linux mounts are made
//! ```
//!
//! There is one agent for a cache directory and a user. Who may talk to it is decided by the kernel: the socket lies
//! in a private folder and the peer's user is compared. Credentials of origins come with each request, from the
//! environment and settings of whoever asks, and are neither stored nor logged here.

pub(crate) mod client;
pub(crate) mod protocol;
pub(crate) mod registry;
pub(crate) mod worker;

mod cache_lock;
mod log_file;
mod mounts;
mod poll;
pub(crate) mod report_progress;
mod requests;
mod session;
mod start;
mod table;
mod watching;

pub(crate) use mounts::{clean_stale, stale_mounts};

/// Whether an agent has the cache in `cache_dir`.
pub(crate) fn is_running(cache_dir: &std::path::Path) -> bool {
    cache_lock::CacheLock::take(cache_dir).is_err()
}
