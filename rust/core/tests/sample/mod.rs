//! Entries whose content follows from a number and a version, and how to put and read them.
#![allow(dead_code, reason = "each test crate uses its part")]

pub(crate) mod failing;
pub(crate) mod power;
pub(crate) mod stream;

use std::path::Path;
use std::sync::Arc;

use actstore::encode::Draft;
use actstore::entry::{Document, Positions};
use actstore::error::Result;
use actstore::hook_point::HookPoint;
use actstore::manifest::Settings;
use actstore::reader::{Request, Selected, read, select};
use actstore::store::{BackendSpec, Store};
use actstore::tensor::{Dtype, Layout, Tensor};
use actstore::writer::Writer;

pub(crate) const MEMORY: u64 = 64 << 20;
pub(crate) const POINT: &str = "blocks.0.hook_resid_post";

pub(crate) fn settings(codec: &str, on_conflict: &str, durability: &str) -> Settings {
    let json = format!(
        r#"{{"codec":"{codec}","overflow":"error","on_conflict":"{on_conflict}","durability":"{durability}"}}"#
    );
    Settings::parse(&json, BackendSpec::find("shards").unwrap().codecs).unwrap()
}

/// Settings of `backend` with its own codec.
pub(crate) fn settings_of(backend: &str, on_conflict: &str, durability: &str) -> Settings {
    let json = format!(r#"{{"overflow":"error","on_conflict":"{on_conflict}","durability":"{durability}"}}"#);
    Settings::parse(&json, BackendSpec::find(backend).unwrap().codecs).unwrap()
}

/// A number that looks random and depends on its arguments alone.
pub(crate) fn chance(seed: u64, salt: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(salt).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    x ^= x >> 32;
    x.wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 17
}

/// Entry `k<n>`: a few rows of bfloat16 that `planes` can shrink.
pub(crate) fn draft(n: u64, version: u64) -> Draft {
    let json = format!(r#"{{"key":"k{n}","key_recipe":"user","metadata":{{"version":{version}}}}}"#);
    let layout = Layout::new(Dtype::BFloat16, vec![3 + n % 5, 200]).unwrap();
    let value = |i| 0x3F80u16 ^ u16::try_from(chance(n * 31 + version, i) % 1024).unwrap();
    let bytes = (0..layout.bytes() / 2).flat_map(|i| value(i).to_le_bytes()).collect();
    let point = HookPoint::new(POINT).unwrap();
    Draft::new(Document::parse(&json).unwrap(), None, vec![(point, Tensor::new(layout, bytes).unwrap())]).unwrap()
}

pub(crate) fn put(store: &Arc<Store>, drafts: impl IntoIterator<Item = Draft>) -> Result<()> {
    let writer = Writer::new(store.clone())?;
    drafts.into_iter().try_for_each(|draft| writer.put(draft))?;
    writer.close()
}

pub(crate) fn create(root: &Path, codec: &str) -> Arc<Store> {
    Arc::new(Store::create(Some(root), "shards", settings(codec, "error", "commit"), MEMORY).unwrap())
}

pub(crate) fn rows(store: &Store, key: &str, point: &str, positions: &Positions) -> Result<Vec<u8>> {
    let entry = store.entry(key)?;
    let Selected { activation, rows, layout } = select(entry.as_ref(), point, positions)?;
    let mut out = vec![0xAA; usize::try_from(layout.bytes()).unwrap()];
    read(store, vec![Request { entry, activation, rows, out: &mut out }])?;
    Ok(out)
}

pub(crate) fn keys(store: &Store) -> Vec<String> {
    store.reading().unwrap().keys().unwrap().iter().map(ToString::to_string).collect()
}

/// Names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The version that a store holds of entry `k<n>`.
pub(crate) fn version(store: &Store, n: u64) -> Option<u64> {
    let entry = store.entry(&format!("k{n}")).ok()?;
    Some(entry.header().document.metadata["version"].to_string().parse().unwrap())
}

/// Whether entry `k<n>` is exactly what [`draft`] made of `version`; an error is fine, other bytes are not.
pub(crate) fn holds(store: &Store, n: u64, version: u64) -> Result<()> {
    let key = format!("k{n}");
    let expected = draft(n, version);
    assert_eq!(store.entry(&key)?.header().document.metadata, expected.document.metadata);
    assert_eq!(rows(store, &key, POINT, &Positions::All)?, expected.activations[0].1.bytes());
    Ok(())
}
