//! Mounted versions: what they read, what that fetches, and what damage does to them.

mod accounting;
mod damage;
mod faults;
mod launch;
