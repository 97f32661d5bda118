//! Serves a content root.
