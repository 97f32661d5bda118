//! A pinned version of a package as a directory on Linux.
//!
//! ```text
//! adapter     FUSE requests -> fs_core::mount::Mount, and its answers -> replies
//! mounting    how a FUSE connection comes to stand at a directory, and how it leaves
//! supervisor  the small process that mounts, and cleans up when the worker dies
//! mounter     what the worker calls: mount, remount, clone, unmount
//! ```
//!
//! A pinned version never changes, so the kernel is told to keep whatever it has been told: entries, attributes,
//! absent names, link targets, listings and pages. No callback waits on the network: what is not on this machine
//! becomes a task on the runtime, and the FUSE thread goes on to the next request.
//!
//! While a version with a launch set is being launched, what the launch will read goes into the page cache unasked
//! ([`MountOptions::push_max_bytes`]), and read-ahead that would hold it up is refused ([`Declining`]).
//!
//! This crate fetches nothing, trusts nothing and caches nothing; it keeps no state that the content of an answer
//! depends on, apart from which files the kernel reads without asking ([`OpenPolicy::Passthrough`]).

#![cfg(target_os = "linux")]

mod adapter;
pub mod errno;
mod mounter;
pub mod mounting;
pub mod supervisor;
mod tree;

pub use adapter::{BoundaryStatistics, Declining, OpenPolicy};
pub use mounter::{MountOptions, Mounted, Mounter};
pub use mounting::{MountError, Result};
