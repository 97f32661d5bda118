//! The `streamfs` command as a library.
