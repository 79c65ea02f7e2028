//! Storage of language-model activations: exact, small, fast and safe.
//!
//! A [`store::Store`] holds *entries*: a prompt with its response, token ids, metadata and *activations*, the tensors
//! seen at hook points. A [`writer::Writer`] encodes entries in parallel and commits them in order; the
//! [`reader`] decodes the rows that are wanted, and reads no others. FORMAT.md has every byte.
//!
//! This crate knows bytes and files. It knows no Python, no torch and no model.

pub mod actlog;
pub mod batch;
pub mod buffers;
pub mod codec;
pub mod columns;
mod committer;
pub mod encode;
pub mod entry;
pub mod error;
pub mod files;
pub mod fitting;
pub mod format;
pub mod hook_point;
pub mod inspect;
mod lock;
pub mod manifest;
pub mod migrate;
pub mod pickle;
pub mod pool;
pub mod reader;
mod shuffle;
pub mod staging;
pub mod store;
pub mod tensor;
pub mod writer;
