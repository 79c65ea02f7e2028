//! Layers that are encoded given the layer below, and models that follow the data.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that panics has failed")]
#![allow(clippy::cast_possible_truncation, reason = "test data")]

mod sample;

use std::collections::BTreeSet;
use std::sync::Arc;

use actstore::codec::{Encoding, ModelId};
use actstore::encode::Draft;
use actstore::entry::{Document, Positions};
use actstore::error::Kind;
use actstore::hook_point::HookPoint;
use actstore::manifest::{OnConflict, Settings};
use actstore::migrate::{Plan, compare, migrate};
use actstore::reader::{Request, chains, read, stored_frames};
use actstore::store::{BackendSpec, Store};
use actstore::tensor::{Dtype, Layout, Tensor};
use actstore::{inspect, writer::Writer};
use sample::stream::{Stream, point};
use sample::{MEMORY, put, rows};

fn settings(codec: &str, key_distance: Option<u32>) -> Settings {
    let distance = key_distance.map_or(String::new(), |layers| format!(r#""key_distance":{layers},"#));
    let json =
        format!(r#"{{"codec":"{codec}",{distance}"overflow":"error","on_conflict":"error","durability":"commit"}}"#);
    Settings::parse(&json, BackendSpec::find("shards").unwrap().codecs).unwrap()
}

fn memory_store(codec: &str, key_distance: Option<u32>) -> Arc<Store> {
    Arc::new(Store::create(None, "memory", settings(codec, key_distance), MEMORY).unwrap())
}

const STREAM: Stream = Stream { dtype: Dtype::BFloat16, width: 96, scale: 1.0 };

fn below(store: &Store, key: &str) -> Vec<Option<usize>> {
    store.entry(key).unwrap().header().activations.iter().map(|activation| activation.below).collect()
}

fn models(store: &Store, layer: u64) -> BTreeSet<ModelId> {
    let models = sample::keys(store).into_iter().filter_map(|key| {
        let entry = store.entry(&key).unwrap();
        let activations = &entry.header().activations;
        activations.iter().find(|activation| activation.point == point(layer)).and_then(|activation| activation.model)
    });
    models.collect()
}

#[test]
fn every_layer_and_row_of_a_chain_comes_back_alone_and_together() {
    let layers: Vec<u64> = (0..10).collect();
    for (dtype, width) in [(Dtype::BFloat16, 96), (Dtype::Float16, 600), (Dtype::BFloat16, 512)] {
        let stream = Stream { dtype, width, scale: 1.0 };
        let store = memory_store("archive", Some(4));
        let drafts = |_| (0..3).map(|n| stream.draft(n, 70 + 61 * n, &layers));
        put(&store, drafts(())).unwrap();
        let chain = [None, Some(0), Some(1), Some(2), None, Some(4), Some(5), Some(6), None, Some(8)];
        assert_eq!(below(&store, "k1"), chain);
        assert_eq!(chains(store.entry("k1").unwrap().header()), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
        for draft in drafts(()) {
            let key = draft.document.key();
            for (point, tensor) in &draft.activations {
                assert_eq!(rows(&store, key, point.as_str(), &Positions::All).unwrap(), tensor.bytes(), "{point}");
            }
            read_together(&store, &draft);
        }
        assert!(inspect::verify(&store, |_, _| Ok(())).unwrap().damage.is_empty());
    }
}

/// Some rows of some layers in one call: in any order, some twice.
fn read_together(store: &Store, draft: &Draft) {
    let wanted = [(7, vec![69, 3, 3, 4]), (2, vec![0, 1, 65, 64]), (3, vec![5]), (9, vec![]), (1, vec![68, 66, 69])];
    let row_bytes = draft.activations[0].1.layout().row_bytes() as usize;
    let mut buffers: Vec<_> = wanted.iter().map(|(_, rows)| vec![0xAA; rows.len() * row_bytes]).collect();
    let entry = store.entry(draft.document.key()).unwrap();
    let requests = wanted.iter().zip(&mut buffers).map(|((layer, rows), out)| Request {
        entry: entry.clone(),
        activation: *layer,
        rows: Some(rows.clone()),
        out,
    });
    read(store, requests.collect()).unwrap();
    for ((layer, rows), buffer) in wanted.iter().zip(buffers) {
        assert_eq!(buffer, draft.activations[*layer].1.rows(rows).unwrap().bytes(), "{layer}");
    }
}

#[test]
fn layers_given_the_layer_below_are_smaller() {
    let sizes = ["planes", "archive"].map(|codec| {
        let store = memory_store(codec, None);
        put(&store, (0..6).map(|n| STREAM.draft(n, 200, &[0, 1, 2, 3]))).unwrap();
        let info = inspect::info(&store).unwrap();
        let last = &info.points.iter().last().unwrap().1;
        assert_eq!(last.encodings.contains_key(Encoding::Archive.name()), codec == "archive", "{:?}", last.encodings);
        info.points.values().map(|point| point.stored_bytes).sum::<u64>()
    });
    assert!(sizes[1] * 100 < sizes[0] * 92, "{sizes:?}");
}

#[test]
fn a_chain_goes_over_missing_layers_and_ends_where_rows_differ() {
    let store = memory_store("archive", None);
    let mut draft = STREAM.draft(0, 80, &[1, 4, 5, 9]);
    let layout = Layout::new(Dtype::BFloat16, vec![40, 192]).unwrap();
    draft.activations[2].1 = Tensor::new(layout, draft.activations[2].1.bytes().to_vec()).unwrap();
    let others = ["hook_embed", "blocks.2.attn.hook_out", "blocks.3.attn.hook_out", "logits"];
    let tensor = draft.activations[0].1.clone();
    draft.activations.extend(others.map(|name| (HookPoint::new(name).unwrap(), tensor.clone())));
    let draft = Draft::new(draft.document, None, draft.activations).unwrap();
    let expected = draft.activations.clone();
    put(&store, [draft]).unwrap();
    let entry = store.entry("k0").unwrap();
    let below = |name: &str| {
        let activations = &entry.header().activations;
        let activation = activations.iter().find(|activation| activation.point.as_str() == name).unwrap();
        activation.below.map(|below| activations[below].point.as_str().to_owned())
    };
    assert_eq!(below("blocks.1.hook_resid_post").as_deref(), Some("hook_embed"));
    assert_eq!(below("blocks.4.hook_resid_post").as_deref(), Some("blocks.1.hook_resid_post"));
    assert_eq!(below("blocks.5.hook_resid_post"), None);
    assert_eq!(below("blocks.9.hook_resid_post"), None);
    assert_eq!(below("blocks.3.attn.hook_out").as_deref(), Some("blocks.2.attn.hook_out"));
    assert_eq!(below("logits"), None);
    for (point, tensor) in expected {
        assert_eq!(rows(&store, "k0", point.as_str(), &Positions::All).unwrap(), tensor.bytes(), "{point}");
    }
}

#[test]
fn with_a_key_distance_of_one_every_layer_is_alone() {
    let store = memory_store("archive", Some(1));
    put(&store, [STREAM.draft(0, 80, &[0, 1, 2])]).unwrap();
    assert_eq!(below(&store, "k0"), [None; 3]);
}

#[test]
fn the_same_entries_in_the_same_order_give_the_same_frames() {
    let stored = |_| {
        let store = memory_store("archive", None);
        put(&store, (0..40).map(|n| STREAM.draft(n, 10 + 7 * (n % 5), &[0, 1, 2]))).unwrap();
        let chunks = sample::keys(&store).into_iter().flat_map(|key| {
            let entry = store.entry(&key).unwrap();
            (0..3).map(|index| stored_frames(entry.as_ref(), index).unwrap()).collect::<Vec<_>>()
        });
        chunks.collect::<Vec<_>>()
    };
    assert!(stored(()) == stored(()));
}

#[test]
fn short_entries_are_learned_from_together() {
    let store = memory_store("planes", None);
    put(&store, (0..60).map(|n| STREAM.draft(n, 1, &[0]))).unwrap();
    let models = models(&store, 0);
    assert_eq!(models.len(), 1, "one after 32 rows, and no other");
    assert!(below(&store, "k0") == [None] && store.entry("k0").unwrap().header().activations[0].model.is_none());
}

#[test]
fn a_model_stays_while_it_is_good_and_goes_when_the_data_drifts() {
    let store = memory_store("planes", None);
    let writer = Writer::new(store.clone()).unwrap();
    let mut number = 0;
    let mut put_some = |stream: &Stream, entries: u64| {
        for _ in 0..entries {
            writer.put(stream.draft(number, 64, &[0])).unwrap();
            number += 1;
        }
        writer.flush().unwrap();
    };
    put_some(&STREAM, 40);
    assert_eq!(models(&store, 0).len(), 1, "2,560 rows alike");
    let drifted = Stream { scale: 700.0, ..STREAM };
    put_some(&drifted, 160);
    let all = models(&store, 0);
    assert_eq!(all.len(), 2, "another was fitted");
    let size = |key: &str| store.entry(key).unwrap().header().activations[0].stored_bytes();
    let fresh = memory_store("planes", None);
    put(&fresh, (160..200).map(|n| drifted.draft(n, 64, &[0]))).unwrap();
    let alone = fresh.entry("k199").unwrap().header().activations[0].stored_bytes();
    assert!(size("k199") * 100 <= alone * 101, "{} beside {alone}", size("k199"));
}

#[test]
fn an_archive_is_copied_converted_and_verified() {
    let source = memory_store("planes", None);
    put(&source, (0..5).map(|n| STREAM.draft(n, 90, &[0, 1, 2, 3]))).unwrap();
    let all = Plan { keys: None, points: None, on_conflict: OnConflict::Error };
    let archive = memory_store("archive", Some(3));
    migrate(&source, &archive, &all, |_| Ok(())).unwrap();
    assert_eq!(compare(&source, &archive, &all, |_| Ok(())).unwrap(), []);
    assert_eq!(below(&archive, "k4"), [None, Some(0), Some(1), None]);
    let copy = memory_store("archive", None);
    assert_eq!(migrate(&archive, &copy, &all, |_| Ok(())).unwrap().copied, 5);
    assert_eq!(compare(&archive, &copy, &all, |_| Ok(())).unwrap(), []);
    let some = Plan { points: Some(vec![point(2), point(3)]), ..all };
    let part = memory_store("planes", None);
    migrate(&copy, &part, &some, |_| Ok(())).unwrap();
    assert_eq!(compare(&copy, &part, &some, |_| Ok(())).unwrap(), []);
    let expected = STREAM.draft(4, 90, &[2, 3]);
    for (point, tensor) in &expected.activations {
        assert_eq!(rows(&part, "k4", point.as_str(), &Positions::All).unwrap(), tensor.bytes(), "{point}");
    }
}

#[test]
fn data_that_stays_the_same_keeps_its_models() {
    let wide = Stream { dtype: Dtype::Float16, width: 1024, scale: 1.0 };
    let store = memory_store("archive", None);
    put(&store, (0..40).map(|n| wide.draft(n, 64, &[0, 1]))).unwrap();
    assert_eq!([models(&store, 0).len(), models(&store, 1).len()], [1, 1], "of 2,560 rows");
    assert_eq!(below(&store, "k39"), [None, Some(0)]);
}

#[test]
fn layers_that_say_nothing_of_each_other_are_encoded_alone() {
    let store = memory_store("archive", None);
    let stream = |n| STREAM.draft(n, 200, &[0]).activations.remove(0).1;
    let drafts = (0..4).map(|n| {
        let layers = (0..3).map(|layer| (point(layer), stream(n * 10 + layer)));
        let json = format!(r#"{{"key":"k{n}","key_recipe":"user"}}"#);
        Draft::new(Document::parse(&json).unwrap(), None, layers.collect()).unwrap()
    });
    put(&store, drafts).unwrap();
    assert_eq!(below(&store, "k3"), [None; 3]);
}

#[test]
fn activations_of_ever_new_lengths_are_not_kept() {
    let store = memory_store("archive", None);
    let writer = Writer::new(store.clone()).unwrap();
    for n in 0..60 {
        let layout = Layout::new(Dtype::BFloat16, vec![4, 40 + n, 40 + n]).unwrap();
        let values = STREAM.layers(n, layout.bytes() / 2 / 96 + 1, 1).remove(0);
        let tensor = Tensor::new(layout.clone(), values[..layout.bytes() as usize].to_vec()).unwrap();
        let json = format!(r#"{{"key":"k{n}","key_recipe":"user"}}"#);
        let point = HookPoint::new("blocks.3.attn.hook_pattern").unwrap();
        writer.put(Draft::new(Document::parse(&json).unwrap(), None, vec![(point, tensor)]).unwrap()).unwrap();
    }
    writer.close().unwrap();
    let ids = (0..60).map(|n| store.entry(&format!("k{n}")).unwrap().header().activations[0].model);
    assert_eq!(ids.collect::<BTreeSet<_>>().into_iter().flatten().count(), 1, "one model serves all lengths");
}

#[test]
fn damage_below_costs_the_layers_above_it_and_no_other_rows() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = Store::create(Some(&root), "shards", settings("archive", None), MEMORY).unwrap();
    let store = Arc::new(store);
    // More rows than a frame has.
    let draft = STREAM.draft(0, 700, &[0, 1, 2]);
    put(&store, [draft]).unwrap();
    let expected = STREAM.draft(0, 700, &[0, 1, 2]);
    let entry = store.entry("k0").unwrap();
    let (frame_rows, first) = {
        let activation = &entry.header().activations[1];
        assert!(activation.frames.len() > 1);
        (activation.frame_rows, activation.frames[0].length as usize)
    };
    let chunk = stored_frames(entry.as_ref(), 1).unwrap();
    store.close().unwrap();
    let shard = root.join("shards/0-000001.shard");
    let mut bytes = std::fs::read(&shard).unwrap();
    let at = bytes.windows(64).position(|window| window == &chunk[..64]).unwrap();
    bytes[at + first / 2] ^= 4;
    std::fs::write(&shard, bytes).unwrap();
    let store = Store::open(&root, false, MEMORY).unwrap();
    let read_rows = |layers: &[usize], wanted: &[u64]| {
        let entry = store.entry("k0").unwrap();
        let mut buffers = vec![vec![0; wanted.len() * 192]; layers.len()];
        let requests = layers.iter().zip(&mut buffers).map(|(&activation, out)| Request {
            entry: entry.clone(),
            activation,
            rows: Some(wanted.to_vec()),
            out,
        });
        read(&store, requests.collect()).map(|()| buffers)
    };
    for layers in [[1].as_slice(), &[2], &[0, 2]] {
        let error = read_rows(layers, &[3]).unwrap_err();
        let expected = "frame `0` of `blocks.1.hook_resid_post` of entry `k0`: it does not match its checksum";
        assert_eq!((error.kind(), error.to_string().as_str()), (Kind::Checksum, expected));
    }
    let rows = |layer: usize, wanted: &[u64]| expected.activations[layer].1.rows(wanted).unwrap().bytes().to_vec();
    assert_eq!(read_rows(&[0], &[3]).unwrap(), [rows(0, &[3])]);
    let later = [frame_rows, frame_rows + 1];
    assert_eq!(read_rows(&[2, 1], &later).unwrap(), [rows(2, &later), rows(1, &later)]);
    let mut below_it = vec![0; 192];
    let mut nothing = Vec::new();
    let entry = store.entry("k0").unwrap();
    let requests = vec![
        Request { entry: entry.clone(), activation: 0, rows: Some(vec![3]), out: &mut below_it },
        Request { entry, activation: 2, rows: Some(Vec::new()), out: &mut nothing },
    ];
    read(&store, requests).unwrap();
    assert_eq!(below_it, rows(0, &[3]), "no rows of a layer are no reason to read it");
}
