//! Writes real frames and simple rows into the corpus, as what fuzzing begins with: `cargo run --example seeds`.
//! Those of `pickle_decode` come from picklers: `python tests/pickles.py rust/fuzz/corpus/pickle_decode`.

use std::fs;
use std::path::Path;

use actstore::codec::{Codec, Encoding, Fitted, Rows};
use actstore::tensor::Dtype;
use actstore_fuzz::inputs::TARGETS;

/// Deterministic bits (xorshift).
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn gauss(&mut self) -> f64 {
        (0..12).map(|_| (self.bits() >> 11) as f64 / (1_u64 << 53) as f64).sum::<f64>() - 6.0
    }
}

/// Rows of a dtype, and those below.
fn rows(dtype: Dtype, row_values: u16, rows: u16, noise: &mut Noise) -> [Vec<u8>; 2] {
    let scales: Vec<f64> = (0..row_values).map(|_| noise.gauss().exp()).collect();
    let mut both = [Vec::new(), Vec::new()];
    for scale in (0..rows).flat_map(|_| &scales) {
        let below = if noise.bits().is_multiple_of(50) { 0.0 } else { noise.gauss() * scale };
        let far = if noise.bits().is_multiple_of(1000) { 30.0 } else { 0.02 };
        for (bytes, value) in both.iter_mut().zip([below + far * noise.gauss() * scale, below]) {
            bytes.extend(bytes_of(dtype, value));
        }
    }
    both
}

#[allow(clippy::cast_possible_truncation, reason = "a value as its dtype has it")]
fn bytes_of(dtype: Dtype, value: f64) -> Vec<u8> {
    let [.., low, high] = (value as f32).to_le_bytes();
    match dtype {
        Dtype::Float64 => value.to_le_bytes().to_vec(),
        Dtype::Float32 => (value as f32).to_le_bytes().to_vec(),
        Dtype::BFloat16 => vec![low, high],
        _ => {
            // Five bits of exponent, as a float16 has them.
            let bits = u16::from_le_bytes([low, high]);
            let exponent = (bits >> 7 & 0xFF).saturating_sub(112).min(30);
            let [low, high] = (bits & 0x8000 | exponent << 10 | (bits & 0x7F) << 3).to_le_bytes();
            if dtype.size() == 1 { vec![high] } else { vec![low, high] }
        }
    }
}

fn short(number: usize) -> [u8; 2] {
    u16::try_from(number).unwrap_or(u16::MAX).to_le_bytes()
}

fn part(bytes: &[u8]) -> Vec<u8> {
    [&short(bytes.len()), bytes].concat()
}

/// A frame for a target that decodes.
fn frame(encoding: Encoding, rows: Rows<'_>, count: u16, fitted: Option<&Fitted>) -> Option<Vec<u8>> {
    let codec = if encoding == Encoding::Archive { Codec::Archive } else { Codec::Planes };
    let mut stored = Vec::new();
    let model = fitted.map(|fitted| &fitted.model);
    if codec.encode(rows, model, &mut stored) != encoding {
        return None;
    }
    let mut input = vec![0, rows.dtype.code()];
    for number in [usize::try_from(rows.row_values).ok()?, usize::from(count)] {
        input.extend([&short(number)[..], &[0]].concat());
    }
    input.extend([0, 0, 4, 0, 1, 0, 9, 0]);
    input.push(u8::from(model.is_some()));
    input.extend(part(model.map_or(&[], |model| model.bytes())));
    input.extend(part(rows.below.unwrap_or_default()));
    input.extend(stored);
    Some(input)
}

/// Rows for a target that encodes as well.
fn values(rows: Rows<'_>, count: u16, [how, kind, noise]: [u8; 3], pattern: usize) -> Option<Vec<u8>> {
    let mut input = vec![how, rows.dtype.code()];
    input.extend(short(usize::try_from(rows.row_values).ok()?));
    input.extend(short(if noise == 0x7F { usize::from(u16::MAX) } else { usize::from(count) }));
    input.extend([0, 0, 4, 0, 1, 0, 9, 0, noise, noise >> 5, kind]);
    input.extend(part(rows.bytes.get(..200).unwrap_or(rows.bytes)));
    input.extend(part(rows.below?.get(..pattern)?));
    input.extend(rows.bytes.get(..pattern)?);
    Some(input)
}

fn main() -> std::io::Result<()> {
    let mut noise = Noise(0x9E37_79B9);
    let mut seeds: Vec<(&str, Vec<u8>)> = Vec::new();
    let dtypes = Dtype::ALL.iter().filter(|dtype| !matches!(dtype.code(), 4..=9));
    for (&dtype, (row_values, count)) in dtypes
        .flat_map(|dtype| [(1, 700), (5, 64), (31, 40), (200, 5), (600, 2), (1100, 1)].map(|shape| (dtype, shape)))
    {
        let [bytes, below] = rows(dtype, row_values, count.max(64).max(60_000 / row_values), &mut noise);
        let row_values = u64::from(row_values);
        let alone = Rows { dtype, row_values, bytes: &bytes, below: None };
        let given = Rows { below: Some(&below), ..alone };
        let len = usize::from(count) * usize::try_from(row_values).unwrap_or(0) * dtype.size();
        let given_some = Rows { bytes: bytes.get(..len).unwrap_or(&bytes), below: below.get(..len), ..alone };
        let alone_some = Rows { below: None, ..given_some };
        for fitted in [None, Codec::Planes.fit(alone)] {
            seeds.extend(
                frame(Encoding::Planes, alone_some, count, fitted.as_ref()).map(|seed| ("planes_decode", seed)),
            );
        }
        if let Some(fitted) = Codec::Archive.fit(given) {
            seeds.extend(
                frame(Encoding::Archive, given_some, count, Some(&fitted)).map(|seed| ("archive_decode", seed)),
            );
        }
        for [how, kind, noise] in [[0, 0, 0], [0, 0xFF, 0x7F], [1, 0xA0, 0x1F], [0, 3, 0xFF], [0x11, 4, 0x0F]] {
            for target in ["planes_round_trip", "archive_round_trip"] {
                seeds.extend(values(given, count, [how, kind, noise], 96).map(|seed| (target, seed)));
            }
        }
    }
    for (target, of_target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        fs::create_dir_all(&folder)?;
        for (number, (_, seed)) in seeds.iter().filter(|seed| seed.0 == target).enumerate() {
            assert!(target.ends_with("round_trip") || of_target(seed), "{target}: a seed is no frame");
            fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
