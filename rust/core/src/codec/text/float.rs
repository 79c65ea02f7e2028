//! The values of each float dtype as decimals and names.

use std::sync::LazyLock;

pub(super) use crate::codec::float::{BFLOAT16, FLOAT8_E4M3, FLOAT8_E5M2, FLOAT16, FLOAT32, FLOAT64, Float};

pub(super) static FLOAT16_TEXTS: LazyLock<Vec<Slot>> = LazyLock::new(|| texts(FLOAT16));
pub(super) static BFLOAT16_TEXTS: LazyLock<Vec<Slot>> = LazyLock::new(|| texts(BFLOAT16));
pub(super) static FLOAT8_E4M3_TEXTS: LazyLock<Vec<Slot>> = LazyLock::new(|| texts(FLOAT8_E4M3));
pub(super) static FLOAT8_E5M2_TEXTS: LazyLock<Vec<Slot>> = LazyLock::new(|| texts(FLOAT8_E5M2));

/// The JSON of one value of a narrow float.
pub(super) struct Slot {
    len: u8,
    text: [u8; 23],
}

impl Slot {
    fn new(json: &[u8]) -> Self {
        let mut slot = Self { len: 0, text: [0; 23] };
        for (to, from) in slot.text.iter_mut().zip(json) {
            *to = *from;
            slot.len += 1;
        }
        slot
    }

    pub(super) fn append_to(&self, out: &mut Vec<u8>) {
        // To copy all of a fixed size and cut it is faster than to copy no more than needed.
        let end = out.len() + usize::from(self.len);
        out.extend_from_slice(&self.text);
        out.truncate(end);
    }
}

/// The JSON of every value of a float of at most 16 bits.
fn texts(float: Float) -> Vec<Slot> {
    let finite: Vec<_> = (0..float.nonfinite()).map(|magnitude| float.shortest(magnitude)).collect();
    let magnitudes = 0..float.sign();
    let text = |sign: &str, bits: u64| {
        let known = usize::try_from(bits & !float.sign()).ok().and_then(|index| finite.get(index));
        Slot::new(known.map_or_else(|| format!("\"{}\"", float.name(bits)), |text| format!("{sign}{text}")).as_bytes())
    };
    let positive = magnitudes.clone().map(|magnitude| text("", magnitude));
    positive.chain(magnitudes.map(|magnitude| text("-", magnitude | float.sign()))).collect()
}

impl Float {
    const fn quiet_nan(self) -> u64 {
        if self.has_infinity { self.nonfinite() | 1 << (self.mantissa_bits - 1) } else { self.nonfinite() }
    }

    const fn is_infinite(self, bits: u64) -> bool {
        self.has_infinity && bits & !self.sign() == self.nonfinite()
    }

    /// With the sign, the bits of every float are whole digits.
    const fn hex_digits(self) -> usize {
        (1 + self.exponent_bits + self.mantissa_bits) as usize / 4
    }

    /// Exponent of the smallest normal value.
    const fn lowest(self) -> i64 {
        2 - (1 << (self.exponent_bits - 1))
    }

    /// The string that stands for a value that is not finite.
    pub(super) fn name(self, bits: u64) -> String {
        match bits {
            _ if bits == self.quiet_nan() => "NaN".to_owned(),
            _ if bits == self.nonfinite() => "Infinity".to_owned(),
            _ if self.is_infinite(bits) => "-Infinity".to_owned(),
            _ => format!("0x{bits:0width$x}", width = self.hex_digits()),
        }
    }

    /// The value that `name` stands for.
    pub(super) fn named(self, name: &str) -> Option<u64> {
        match name {
            "NaN" => Some(self.quiet_nan()),
            "Infinity" => Some(self.nonfinite()).filter(|_| self.has_infinity),
            "-Infinity" => Some(self.nonfinite() | self.sign()).filter(|_| self.has_infinity),
            _ => hex(name, self.hex_digits()).filter(|&bits| !self.is_finite(bits) && !self.is_infinite(bits)),
        }
    }

    /// The value of a finite magnitude.
    fn value(self, magnitude: u64) -> f64 {
        let (exponent, mantissa) = (magnitude >> self.mantissa_bits, magnitude & ((1 << self.mantissa_bits) - 1));
        let significand = if exponent == 0 { mantissa } else { mantissa | 1 << self.mantissa_bits };
        let power = exponent.max(1).cast_signed() - 1 + self.lowest() - i64::from(self.mantissa_bits);
        significand as f64 * f64::from_bits((1023 + power).cast_unsigned() << 52)
    }

    /// The bits of the nearest value, ties to even, for floats narrower than `float64`; beyond the range, bits that are
    /// not finite.
    pub(super) fn nearest(self, value: f64) -> u64 {
        let bits = value.to_bits();
        let exponent = (bits >> 52 & 0x7FF).cast_signed() - 1023;
        // A subnormal `float64` has no such leading bit, but is far below half of any value here.
        let significand = bits & ((1 << 52) - 1) | 1 << 52;
        let shift = i64::from(52 - self.mantissa_bits) + (self.lowest() - exponent).max(0);
        let rounded = match shift {
            ..54 => (significand + (1 << (shift - 1)) - 1 + (significand >> shift & 1)) >> shift,
            _ => 0,
        };
        // The leading bit of a normal value, and what rounding carries, count the exponent up.
        let above = (exponent - self.lowest()).max(0).cast_unsigned() << self.mantissa_bits;
        let magnitude = (above + rounded).min(self.nonfinite());
        if value.is_sign_negative() { magnitude | self.sign() } else { magnitude }
    }

    /// The fewest digits that mean `magnitude` to every reader, as JSON.
    fn shortest(self, magnitude: u64) -> String {
        let value = self.value(magnitude);
        // Rounding to `float32` first could mean another value. It never does: a test tries every one.
        let means_it = |decimal: &f64| self.nearest(*decimal) == magnitude;
        let decimal = (0..17).find_map(|digits| decimals(value, digits).find(means_it)).unwrap_or(value);
        serde_json::to_string(&decimal).unwrap_or_default()
    }
}

/// The decimal nearest to `value` with so many digits after the first, and the next greater one. Below a power of two
/// values are denser than above, so that the greater one may mean `value` where the nearest does not.
fn decimals(value: f64, digits: i32) -> impl Iterator<Item = f64> {
    let nearest = format!("{value:.*e}", digits.unsigned_abs() as usize);
    let (significand, exponent) = nearest.split_once('e').unwrap_or_default();
    let significand = significand.replace('.', "").parse().unwrap_or(0_u64);
    let exponent = exponent.parse().unwrap_or(0_i32) - digits;
    [significand, significand + 1].into_iter().filter_map(move |n| format!("{n}e{exponent}").parse().ok())
}

/// `0x` and exactly `digits` digits.
pub(super) fn hex(name: &str, digits: usize) -> Option<u64> {
    let number = name.strip_prefix("0x").filter(|number| number.len() == digits)?;
    // The parser would take a sign.
    number.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u64::from_str_radix(number, 16).ok())?
}
