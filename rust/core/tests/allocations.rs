//! How often the paths that run for every frame and row allocate, once their buffers are there.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that panics has failed")]
#![allow(clippy::single_range_in_vec_init, reason = "ranges of rows, of which there is one")]

mod sample;

use actstore::codec::{Codec, Coded, Encoding, Model, Rows, decode};
use actstore::tensor::Dtype;
use allocation_counter::measure;
use sample::stream::Stream;

const ROWS: u64 = 84;
const WIDTH: u64 = 384;
const DTYPES: [Dtype; 2] = [Dtype::BFloat16, Dtype::Float16];

/// A frame of each of two layers, and the model of the upper one.
struct Frames {
    dtype: Dtype,
    lower: Vec<u8>,
    upper: Vec<u8>,
    model: Model,
}

impl Frames {
    fn new(codec: Codec, dtype: Dtype) -> Self {
        let stream = Stream { dtype, width: WIDTH, scale: 1.0 };
        let [lower, upper] = stream.layers(1, ROWS, 2).try_into().unwrap();
        let sample = Rows { dtype, row_values: WIDTH, bytes: &upper, below: Some(&lower) };
        let model = codec.fit(sample).unwrap().model;
        Self { dtype, lower, upper, model }
    }

    fn rows(&self) -> Rows<'_> {
        Rows { dtype: self.dtype, row_values: WIDTH, bytes: &self.upper, below: Some(&self.lower) }
    }

    fn coded<'a>(&'a self, encoding: Encoding, stored: &'a [u8]) -> Coded<'a> {
        Coded {
            encoding,
            stored,
            dtype: self.dtype,
            row_values: WIDTH,
            rows: ROWS,
            model: Some(&self.model),
            below: Some(&self.lower),
        }
    }
}

#[test]
fn encoding_and_decoding_need_few_allocations() {
    // The index in the making, and where the low planes are looked at.
    for (codec, to_encode) in [(Codec::Planes, 8), (Codec::Archive, 16)] {
        for dtype in DTYPES {
            let frames = Frames::new(codec, dtype);
            let mut stored = Vec::with_capacity(frames.upper.len());
            let mut encode = || {
                stored.clear();
                codec.encode(frames.rows(), Some(&frames.model), &mut stored)
            };
            let encoding = encode();
            let encoded = measure(|| _ = encode());
            assert!(encoded.count_total <= to_encode, "{codec:?} {dtype:?} {encoded:?}");
            let coded = frames.coded(encoding, &stored);
            let mut out = vec![0; frames.upper.len()];
            decode(&coded, &[0..ROWS], &mut out).unwrap();
            assert_eq!(out, frames.upper);
            let decoded = measure(|| decode(&coded, &[0..ROWS], &mut out).unwrap());
            assert_eq!(decoded.count_total, 0, "{codec:?} {dtype:?}");
            // What is made when it is first used may be in the making when the process is forked.
            let read = Model::read(frames.model.stored(), &frames.model.id()).unwrap();
            let coded = Coded { model: Some(&read), ..coded };
            let first = measure(|| decode(&coded, &[0..ROWS], &mut out).unwrap());
            assert_eq!(first.count_total, 0, "{codec:?} {dtype:?}");
        }
    }
}

#[test]
fn a_row_needs_no_allocation() {
    for dtype in DTYPES {
        let frames = Frames::new(Codec::Planes, dtype);
        let mut stored = Vec::new();
        let encoding = Codec::Planes.encode(frames.rows(), Some(&frames.model), &mut stored);
        let coded = frames.coded(encoding, &stored);
        let mut out = vec![0; frames.upper.len() / usize::try_from(ROWS).unwrap()];
        decode(&coded, &[0..1], &mut out).unwrap();
        let all = measure(|| (0..ROWS).for_each(|row| decode(&coded, &[row..row + 1], &mut out).unwrap()));
        assert_eq!(all.count_total, 0, "{dtype:?}");
        assert!(frames.upper.ends_with(&out));
    }
}
