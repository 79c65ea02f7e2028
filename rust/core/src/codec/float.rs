//! What the bits of each float dtype mean.

use crate::tensor::Dtype;

pub(super) const FLOAT16: Float = Float { exponent_bits: 5, mantissa_bits: 10, has_infinity: true };
pub(super) const BFLOAT16: Float = Float { exponent_bits: 8, mantissa_bits: 7, has_infinity: true };
pub(super) const FLOAT32: Float = Float { exponent_bits: 8, mantissa_bits: 23, has_infinity: true };
pub(super) const FLOAT64: Float = Float { exponent_bits: 11, mantissa_bits: 52, has_infinity: true };
pub(super) const FLOAT8_E4M3: Float = Float { exponent_bits: 4, mantissa_bits: 3, has_infinity: false };
pub(super) const FLOAT8_E5M2: Float = Float { exponent_bits: 5, mantissa_bits: 2, has_infinity: true };

/// The parts of a float. Without an infinity only the largest magnitude is not finite.
#[derive(Clone, Copy)]
pub(super) struct Float {
    pub(super) exponent_bits: u32,
    pub(super) mantissa_bits: u32,
    pub(super) has_infinity: bool,
}

impl Float {
    /// That of a dtype, if it is one of floats.
    pub(super) const fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::Float16 => Some(FLOAT16),
            Dtype::BFloat16 => Some(BFLOAT16),
            Dtype::Float32 => Some(FLOAT32),
            Dtype::Float64 => Some(FLOAT64),
            Dtype::Float8E4M3 => Some(FLOAT8_E4M3),
            Dtype::Float8E5M2 => Some(FLOAT8_E5M2),
            _ => None,
        }
    }

    /// The bit of the sign; those below it are the magnitude.
    pub(super) const fn sign(self) -> u64 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    /// The first magnitude that is infinite or NaN.
    pub(super) const fn nonfinite(self) -> u64 {
        if self.has_infinity { self.sign() - (1 << self.mantissa_bits) } else { self.sign() - 1 }
    }

    pub(super) const fn is_finite(self, bits: u64) -> bool {
        bits & !self.sign() < self.nonfinite()
    }
}
