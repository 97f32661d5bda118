//! Everything streamfs knows about packages, and nothing about an operating system's file API.
//!
//! One read runs downwards through the modules in this order:
//!
//! ```text
//! mount    one pinned version as a file tree: look up, list, read
//! fetch    what to fetch next; one fetch per block whoever asks
//! cache    verified blocks in memory and on local disk
//! backend  byte ranges of stored objects from a folder, a web server, ...
//! ```
//!
//! beside which stand [`package`] (what is stored, byte by byte, and publishing it) and [`trust`] (signatures,
//! freshness, rollback protection). Lower modules never import higher ones.
//!
//! This crate does not mount anything, prints nothing, and never answers with an errno or an HRESULT: adapters
//! translate [`ErrorKind`].
#![forbid(unsafe_code)]

pub mod config;
pub mod error;
pub mod location;
pub mod package;

pub mod backend;
pub mod trust;

pub mod cache;
pub mod fetch;
pub mod mount;

mod platform;

#[cfg(test)]
mod stage;

pub use error::{Error, ErrorKind, Result};
