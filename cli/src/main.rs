//! The `streamfs` command.
fn main() {}
