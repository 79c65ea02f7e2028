//! Stores in an LMDB environment.

#[allow(dead_code, reason = "the backend is what uses it")]
mod walk;
