//! Any entry, in any dtype, shape and codec, comes back bit for bit, whole and by rows.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that panics has failed")]

mod sample;

use std::sync::Arc;

use actstore::encode::Draft;
use actstore::entry::{Document, Positions};
use actstore::hook_point::HookPoint;
use actstore::store::{BackendSpec, Store};
use actstore::tensor::{Dtype, Layout, Tensor};
use proptest::prelude::*;
use sample::{MEMORY, put, rows, settings};

fn shape() -> impl Strategy<Value = Vec<u64>> {
    prop_oneof![
        8 => (0..70u64, 1..500u64).prop_map(|(rows, width)| vec![rows, width]),
        1 => Just(vec![]),
        2 => prop::collection::vec(0..5u64, 1..6),
        1 => (1..4u64).prop_map(|rows| vec![rows, 12_289]),
    ]
}

/// Values near one another, as activations are, with a few of any kind among them.
fn tensor() -> impl Strategy<Value = Tensor> {
    let dtype = prop::sample::select(Dtype::ALL);
    (dtype, shape(), any::<u64>(), 0..3u8).prop_map(|(dtype, shape, seed, kind)| {
        let layout = Layout::new(dtype, shape).unwrap();
        let byte = |n: u64| match kind {
            0 => u8::try_from(sample::chance(seed, n) % 256).unwrap(),
            1 => u8::try_from(n % layout.dtype().size() as u64 * 21).unwrap(),
            _ => [0x00, 0x80, 0x7F, 0xFF][usize::try_from(sample::chance(seed, n) % 4).unwrap()],
        };
        let bytes = (0..layout.bytes()).map(byte).collect();
        Tensor::new(layout, bytes).unwrap()
    })
}

fn metadata() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("{}".to_owned()),
        Just(r#"{"text":"日本語 \u0000 \"quoted\" 🦀","nested":{"list":[1,2.5,null,true],"n":123456789012345678901234567890}}"#.to_owned()),
        "[a-z]{0,8}".prop_map(|text| format!(r#"{{"note":"{text}","score":-0.0}}"#)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn entries_come_back(
        tensors in prop::collection::vec(tensor(), 0..4),
        codec in prop::sample::select(BackendSpec::find("shards").unwrap().codecs),
        metadata in metadata(),
        token_ids in prop::option::of(prop::collection::vec(any::<u32>(), 0..20)),
        pick in any::<u64>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let document = Document::parse(&format!(r#"{{"key":"k","key_recipe":"user","metadata":{metadata}}}"#)).unwrap();
        let activations: Vec<_> = tensors.into_iter().enumerate()
            .map(|(layer, tensor)| (HookPoint::new(&format!("blocks.{layer}.hook_resid_post")).unwrap(), tensor))
            .collect();
        let store = Arc::new(Store::create(Some(&root), "shards", settings(codec.name(), "error", "commit"), MEMORY).unwrap());
        put(&store, [Draft::new(document.clone(), token_ids.clone(), activations.clone()).unwrap()]).unwrap();
        store.close().unwrap();
        let store = Store::open(&root, false, MEMORY).unwrap();
        let entry = store.entry("k").unwrap();
        prop_assert_eq!(&entry.header().document.metadata, &document.metadata);
        prop_assert_eq!(&entry.header().token_ids, &token_ids);
        for ((point, tensor), stored) in activations.iter().zip(&entry.header().activations) {
            prop_assert_eq!(tensor.layout(), &stored.layout);
            let all = rows(&store, "k", point.as_str(), &Positions::All).unwrap();
            prop_assert_eq!(&all, tensor.bytes());
            one_row(&store, point, tensor, pick);
        }
    }
}

fn one_row(store: &Store, point: &HookPoint, tensor: &Tensor, pick: u64) {
    let entry = store.entry("k").unwrap();
    let activation = entry.header().find(point.as_str()).unwrap();
    let count = tensor.layout().rows();
    if count == 0 {
        return;
    }
    let wanted = [pick % count, count - 1, pick % count];
    let row_bytes = usize::try_from(tensor.layout().row_bytes()).unwrap();
    let row = |n: u64| &tensor.bytes()[usize::try_from(n).unwrap() * row_bytes..][..row_bytes];
    let mut out = vec![0xAA; 3 * row_bytes];
    let request = actstore::reader::Request { entry, activation, rows: Some(wanted.to_vec()), out: &mut out };
    actstore::reader::read(store, vec![request]).unwrap();
    assert_eq!(out, wanted.map(row).concat());
}
