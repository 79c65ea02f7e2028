//! Activations like those of a model: layers that each add something small to the one below.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "test data")]

use actstore::encode::Draft;
use actstore::entry::Document;
use actstore::hook_point::HookPoint;
use actstore::tensor::{Dtype, Layout, Tensor};

use super::chance;

pub(crate) fn gauss(seed: u64, n: u64) -> f32 {
    (0..12).map(|part| (chance(seed, n * 12 + part) % 4096) as f32 / 4096.0).sum::<f32>() - 6.0
}

/// A residual stream: each layer adds something small to the one below. `scale` is how large its values are.
pub(crate) struct Stream {
    pub(crate) dtype: Dtype,
    pub(crate) width: u64,
    pub(crate) scale: f32,
}

impl Stream {
    fn bits(&self, value: f32) -> [u8; 2] {
        match self.dtype {
            Dtype::Float16 => half::f16::from_f32(value).to_le_bytes(),
            _ => half::bf16::from_f32(value).to_le_bytes(),
        }
    }

    /// One layer after the other.
    pub(crate) fn layers(&self, seed: u64, rows: u64, count: u64) -> Vec<Vec<u8>> {
        let channel = |c: u64| self.scale * (gauss(7, c) * 0.8).exp();
        let mut values: Vec<f32> = (0..rows * self.width).map(|n| gauss(seed, n) * channel(n % self.width)).collect();
        let mut layers = Vec::new();
        for layer in 0..count {
            for (n, value) in (0..).zip(&mut values) {
                *value += 0.2 * gauss(seed ^ (layer + 1) << 20, n) * channel(n % self.width);
            }
            layers.push(values.iter().flat_map(|&value| self.bits(value)).collect());
        }
        layers
    }

    pub(crate) fn draft(&self, number: u64, rows: u64, layers: &[u64]) -> Draft {
        let json = format!(r#"{{"key":"k{number}","key_recipe":"user"}}"#);
        let all = self.layers(number, rows, layers.iter().max().unwrap() + 1);
        let activations = layers.iter().map(|&layer| {
            let layout = Layout::new(self.dtype, vec![rows, self.width]).unwrap();
            (point(layer), Tensor::new(layout, all[layer as usize].clone()).unwrap())
        });
        Draft::new(Document::parse(&json).unwrap(), None, activations.collect()).unwrap()
    }
}

pub(crate) fn point(layer: u64) -> HookPoint {
    HookPoint::new(&format!("blocks.{layer}.hook_resid_post")).unwrap()
}
