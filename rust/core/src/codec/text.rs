//! Values as JSON, so that a person and any JSON reader can read them and every bit comes back.
//!
//! A finite value is the shortest decimal that means it to every reader: one that rounds the number straight to the
//! dtype, one that rounds it to `float64` first, and, for narrower dtypes, one that goes on to `float32`, as torch does.
//! JSON has no numbers for the rest: they are the strings `"NaN"` (the quiet NaN with a clear sign and no payload),
//! `"Infinity"`, `"-Infinity"`, and for any other NaN `"0x"` with its bits, most significant digit first. A bool byte that
//! is neither 0 nor 1 is such a string, too. Reading takes what writing gives, and any other JSON number, which it rounds
//! to the nearest value.

mod float;

use std::str::FromStr;

use serde::Serialize;

use self::float::{
    BFLOAT16, BFLOAT16_TEXTS, FLOAT8_E4M3, FLOAT8_E4M3_TEXTS, FLOAT8_E5M2, FLOAT8_E5M2_TEXTS, FLOAT16, FLOAT16_TEXTS,
    FLOAT32, FLOAT64, Float, Slot, hex,
};
use crate::error::{Error, Kind, Result};
use crate::tensor::{Dtype, MAX_RANK};

/// The one magnitude of `float32` whose shortest decimal, 7.038531e-26, is nearer to the midpoint of two neighbours
/// than `float64` can tell, so that rounding twice gives the other one. It gets one digit more.
const UNCLEAR: u32 = 0x15AE_43FD;
const UNCLEAR_TEXT: &[u8] = b"7.0385307e-26";

/// Appends `rows` rows, each a nested list of shape `row_shape` or, where that is `[]`, a bare value, with a comma and a
/// new line between rows and no brackets around them all. `bytes` are the values, little-endian and in C order.
///
/// Rows without values cost text all the same: a shape of `[1000, 0]` is a thousand empty lists.
pub fn write_rows(dtype: Dtype, rows: u64, row_shape: &[u64], bytes: &[u8], out: &mut Vec<u8>) {
    let lists = (rows, row_shape);
    match dtype {
        Dtype::Float16 => write(lists, bytes, out, |v, out| put_text(&FLOAT16_TEXTS, u16::from_le_bytes(v), out)),
        Dtype::BFloat16 => write(lists, bytes, out, |v, out| put_text(&BFLOAT16_TEXTS, u16::from_le_bytes(v), out)),
        Dtype::Float8E4M3 => write(lists, bytes, out, |[v], out| put_text(&FLOAT8_E4M3_TEXTS, v.into(), out)),
        Dtype::Float8E5M2 => write(lists, bytes, out, |[v], out| put_text(&FLOAT8_E5M2_TEXTS, v.into(), out)),
        Dtype::Float32 => write(lists, bytes, out, |v, out| put_f32(f32::from_le_bytes(v), out)),
        Dtype::Float64 => write(lists, bytes, out, |v, out| put_f64(f64::from_le_bytes(v), out)),
        Dtype::Int8 => write(lists, bytes, out, |v, out| put(i8::from_le_bytes(v), out)),
        Dtype::Int16 => write(lists, bytes, out, |v, out| put(i16::from_le_bytes(v), out)),
        Dtype::Int32 => write(lists, bytes, out, |v, out| put(i32::from_le_bytes(v), out)),
        Dtype::Int64 => write(lists, bytes, out, |v, out| put(i64::from_le_bytes(v), out)),
        Dtype::UInt8 => write(lists, bytes, out, |v, out| put(u8::from_le_bytes(v), out)),
        Dtype::Bool => write(lists, bytes, out, |[byte], out| match byte {
            0 | 1 => put(byte == 1, out),
            _ => put(format!("0x{byte:02x}"), out),
        }),
    }
}

/// Reads what [`write_rows`] wrote, or any JSON that says the same, into the whole of `out`.
///
/// Another nesting, another number of rows, a value of another type or beyond the dtype's range is an error; `out` then
/// holds anything. Work and memory follow the length of `text` and `out`, never the shape.
pub fn read_rows(dtype: Dtype, rows: u64, row_shape: &[u64], text: &[u8], out: &mut [u8]) -> Result<()> {
    let size = dtype.size() as u64;
    let values = row_shape.iter().try_fold(rows, |values, &n| values.checked_mul(n));
    if values.and_then(|values| values.checked_mul(size)) != Some(out.len() as u64) || row_shape.len() > MAX_RANK {
        let (name, have) = (dtype.name(), out.len());
        let message = format!("`{rows}` rows of shape `{row_shape:?}` of {name} are not `{have}` bytes");
        return Err(Error::new(Kind::Malformed, message));
    }
    let (text, lists) = (Text { text, at: 0, dtype }, (rows, row_shape));
    match dtype {
        Dtype::Float16 => text.read(lists, out, |token| narrow::<2>(FLOAT16, token)),
        Dtype::BFloat16 => text.read(lists, out, |token| narrow::<2>(BFLOAT16, token)),
        Dtype::Float8E4M3 => text.read(lists, out, |token| narrow::<1>(FLOAT8_E4M3, token)),
        Dtype::Float8E5M2 => text.read(lists, out, |token| narrow::<1>(FLOAT8_E5M2, token)),
        Dtype::Float32 => text.read(lists, out, |token| number::<4, _>(FLOAT32, token, |v: f32| v.to_bits().into())),
        Dtype::Float64 => text.read(lists, out, |token| number::<8, _>(FLOAT64, token, f64::to_bits)),
        Dtype::Int8 => text.read(lists, out, |token| integer(token).map(i8::to_le_bytes)),
        Dtype::Int16 => text.read(lists, out, |token| integer(token).map(i16::to_le_bytes)),
        Dtype::Int32 => text.read(lists, out, |token| integer(token).map(i32::to_le_bytes)),
        Dtype::Int64 => text.read(lists, out, |token| integer(token).map(i64::to_le_bytes)),
        Dtype::UInt8 => text.read(lists, out, |token| integer(token).map(u8::to_le_bytes)),
        Dtype::Bool => text.read(lists, out, |token| boolean(token).map(|byte| [byte])),
    }
}

/// How many lists stand side by side, and the shape of each.
type Lists<'a> = (u64, &'a [u64]);

fn write<const N: usize>(lists: Lists<'_>, bytes: &[u8], out: &mut Vec<u8>, put: impl Fn([u8; N], &mut Vec<u8>)) {
    write_lists(lists, b",\n", bytes, out, &put);
}

fn write_lists<const N: usize>(
    (count, shape): Lists<'_>,
    separator: &[u8],
    bytes: &[u8],
    out: &mut Vec<u8>,
    put: &impl Fn([u8; N], &mut Vec<u8>),
) {
    let Some((&first, inner)) = shape.split_first() else {
        for (index, &value) in bytes.as_chunks().0.iter().enumerate() {
            out.extend_from_slice(if index == 0 { b"" } else { separator });
            put(value, out);
        }
        return;
    };
    let each = share(bytes.len(), count);
    let mut lists = bytes;
    for index in 0..count {
        let (list, rest) = lists.split_at(each);
        lists = rest;
        out.extend_from_slice(if index == 0 { b"" } else { separator });
        out.push(b'[');
        write_lists((first, inner), b",", list, out, put);
        out.push(b']');
    }
}

/// Bytes of one of `count` equal parts of `bytes`.
fn share(bytes: usize, count: u64) -> usize {
    usize::try_from(count).map_or(0, |count| bytes / count.max(1))
}

/// Appends `value` as serde_json writes it: floats as their shortest decimal.
fn put(value: impl Serialize, out: &mut Vec<u8>) {
    let _a_vector_takes_everything = serde_json::to_writer(out, &value);
}

fn put_f32(value: f32, out: &mut Vec<u8>) {
    if value.abs().to_bits() == UNCLEAR {
        out.extend_from_slice(if value.is_sign_negative() { b"-" } else { b"" });
        out.extend_from_slice(UNCLEAR_TEXT);
    } else if value.is_finite() {
        put(value, out);
    } else {
        put(FLOAT32.name(value.to_bits().into()), out);
    }
}

fn put_f64(value: f64, out: &mut Vec<u8>) {
    if value.is_finite() {
        put(value, out);
    } else {
        put(FLOAT64.name(value.to_bits()), out);
    }
}

fn put_text(texts: &[Slot], bits: u16, out: &mut Vec<u8>) {
    if let Some(slot) = texts.get(usize::from(bits)) {
        slot.append_to(out);
    }
}

fn narrow<const N: usize>(float: Float, token: Token<'_>) -> Option<[u8; N]> {
    number(float, token, |value: f64| float.nearest(value))
}

/// The bytes of a number that is parsed as a `T`, whose bits are `bits_of`, or of a name.
fn number<const N: usize, T: FromStr>(float: Float, token: Token<'_>, bits_of: impl Fn(T) -> u64) -> Option<[u8; N]> {
    let bits = match token {
        Token::Number(text) => text.parse().ok().map(bits_of).filter(|bits| float.is_finite(*bits)),
        Token::Text(name) => float.named(name),
        Token::Bool(_) => None,
    };
    bits?.to_le_bytes().first_chunk().copied()
}

fn integer<T: FromStr>(token: Token<'_>) -> Option<T> {
    match token {
        Token::Number(text) => text.parse().ok(),
        _ => None,
    }
}

fn boolean(token: Token<'_>) -> Option<u8> {
    match token {
        Token::Bool(value) => Some(value.into()),
        Token::Text(name) => hex(name, 2).and_then(|byte| u8::try_from(byte).ok()).filter(|byte| *byte > 1),
        Token::Number(_) => None,
    }
}

/// What a list holds at its innermost.
enum Token<'a> {
    Number(&'a str),
    /// Without its quotes. Escapes are kept, so that no name has any.
    Text(&'a str),
    Bool(bool),
}

/// Text on its way to values. JSON's grammar, and nothing beyond it.
struct Text<'a> {
    text: &'a [u8],
    at: usize,
    dtype: Dtype,
}

impl<'a> Text<'a> {
    fn read<const N: usize>(
        mut self,
        lists: Lists<'_>,
        out: &mut [u8],
        take: impl Fn(Token<'a>) -> Option<[u8; N]>,
    ) -> Result<()> {
        self.lists(lists, out, &take)?;
        self.skip_space();
        if self.at == self.text.len() { Ok(()) } else { Err(self.expected("the end")) }
    }

    fn lists<const N: usize>(
        &mut self,
        (count, shape): Lists<'_>,
        out: &mut [u8],
        take: &impl Fn(Token<'a>) -> Option<[u8; N]>,
    ) -> Result<()> {
        let Some((&first, inner)) = shape.split_first() else {
            for (index, value) in out.as_chunks_mut().0.iter_mut().enumerate() {
                if index > 0 {
                    self.expect(b',')?;
                }
                self.skip_space();
                let at = self.at;
                *value = self.token().and_then(take).ok_or_else(|| self.not_a_value(at))?;
            }
            return Ok(());
        };
        let each = share(out.len(), count);
        let mut lists = out;
        for index in 0..count {
            let (list, rest) = lists.split_at_mut(each);
            lists = rest;
            if index > 0 {
                self.expect(b',')?;
            }
            self.expect(b'[')?;
            self.lists((first, inner), list, take)?;
            self.expect(b']')?;
        }
        Ok(())
    }

    /// The token that begins here, if one does.
    fn token(&mut self) -> Option<Token<'a>> {
        let start = self.at;
        match self.text.get(start)? {
            b'"' => {
                let name = self.text.get(start + 1..)?;
                let name = name.get(..name.iter().position(|&byte| byte == b'"')?)?;
                self.at += name.len() + 2;
                Some(Token::Text(std::str::from_utf8(name).ok()?))
            }
            b't' => self.word(b"true", true),
            b'f' => self.word(b"false", false),
            _ => {
                self.skip_number()?;
                Some(Token::Number(std::str::from_utf8(self.text.get(start..self.at)?).ok()?))
            }
        }
    }

    fn skip_number(&mut self) -> Option<()> {
        self.skip(b'-');
        if !self.skip(b'0') {
            self.skip_digits()?;
        }
        if self.skip(b'.') {
            self.skip_digits()?;
        }
        if self.skip(b'e') || self.skip(b'E') {
            let _an_exponent_may_have_a_sign = self.skip(b'+') || self.skip(b'-');
            self.skip_digits()?;
        }
        Some(())
    }

    fn skip_digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    fn skip(&mut self, mark: u8) -> bool {
        let found = self.text.get(self.at) == Some(&mark);
        self.at += usize::from(found);
        found
    }

    fn word(&mut self, word: &[u8], value: bool) -> Option<Token<'a>> {
        self.text.get(self.at..)?.starts_with(word).then(|| {
            self.at += word.len();
            Token::Bool(value)
        })
    }

    fn expect(&mut self, mark: u8) -> Result<()> {
        self.skip_space();
        if self.skip(mark) { Ok(()) } else { Err(self.expected(&format!("`{}`", char::from(mark)))) }
    }

    fn not_a_value(&self, at: usize) -> Error {
        let name = self.dtype.name();
        let else_text = if name.contains("float") { "; what is no number is text, such as `\"NaN\"`" } else { "" };
        Error::new(Kind::Malformed, format!("no value of {name} at byte `{at}` of them{else_text}"))
    }

    fn expected(&self, what: &str) -> Error {
        Error::new(Kind::Malformed, format!("expected {what} at byte `{}` of them", self.at))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "test data")]

    use half::{bf16, f16};
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::tensor::Layout;

    fn written(dtype: Dtype, rows: u64, row_shape: &[u64], bytes: &[u8]) -> String {
        let mut out = Vec::new();
        write_rows(dtype, rows, row_shape, bytes, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn read(dtype: Dtype, rows: u64, row_shape: &[u64], text: &str) -> Result<Vec<u8>> {
        let mut out = vec![0xA5; (rows * row_shape.iter().product::<u64>()) as usize * dtype.size()];
        read_rows(dtype, rows, row_shape, text.as_bytes(), &mut out)?;
        Ok(out)
    }

    /// Every pattern of a dtype of at most 16 bits, with its text.
    fn every(dtype: Dtype) -> Vec<(u16, String)> {
        let values = 0..=if dtype.size() == 1 { 0xFF } else { 0xFFFF };
        let bytes: Vec<u8> =
            values.clone().flat_map(|value: u16| value.to_le_bytes()[..dtype.size()].to_vec()).collect();
        let rows = bytes.len() as u64 / dtype.size() as u64;
        let text = written(dtype, rows, &[], &bytes);
        assert!(read(dtype, rows, &[], &text).unwrap() == bytes, "{}", dtype.name());
        let texts: Vec<_> = text.split(",\n").map(str::to_owned).collect();
        assert_eq!(texts.len(), values.clone().count());
        values.zip(texts).collect()
    }

    fn value_of(dtype: Dtype, bits: u16) -> f64 {
        let (exponent_bits, mantissa_bits) = match dtype {
            Dtype::Float16 => return f16::from_bits(bits).to_f64(),
            Dtype::BFloat16 => return bf16::from_bits(bits).to_f64(),
            Dtype::Float8E4M3 if bits & 0x7F == 0x7F => return f64::NAN,
            Dtype::Float8E5M2 => return f16::from_bits(bits << 8).to_f64(),
            _ => (4, 3),
        };
        let exponent = i32::from(bits >> mantissa_bits & 0xF);
        let fraction = f64::from(bits & 7) / 8.0 + if exponent == 0 { 0.0 } else { 1.0 };
        let magnitude = fraction * 2_f64.powi(exponent.max(1) + 1 - (1 << (exponent_bits - 1)));
        if bits & 0x80 == 0 { magnitude } else { -magnitude }
    }

    /// Whether no other value is nearer, and where one is as near, this one is even. Not half's conversions: they round
    /// `float64` twice on some machines.
    fn is_nearest(dtype: Dtype, bits: u16, decimal: f64) -> bool {
        let (value, below) = (value_of(dtype, bits), value_of(dtype, bits.wrapping_sub(1)));
        let above =
            Some(value_of(dtype, bits + 1)).filter(|above| above.is_finite()).unwrap_or(value + (value - below));
        let distance = (value - decimal).abs();
        [below, above].into_iter().all(|other| {
            let beside = (other - decimal).abs();
            beside.is_nan() || distance < beside || distance == beside && bits & 1 == 0
        })
    }

    fn digits(text: &str) -> usize {
        let significand = text.trim_start_matches('-').split(['e', 'E']).next().unwrap().replace('.', "");
        significand.trim_start_matches('0').trim_end_matches('0').len()
    }

    #[test]
    fn every_narrow_float_survives_both_roundings_in_the_fewest_digits() {
        for dtype in [Dtype::Float16, Dtype::BFloat16, Dtype::Float8E4M3, Dtype::Float8E5M2] {
            for (bits, text) in every(dtype) {
                let value = value_of(dtype, bits);
                let json: Value = serde_json::from_str(&text).unwrap();
                if !value.is_finite() {
                    assert!(json.is_string(), "{text}");
                    continue;
                }
                assert!(json.is_f64() && text.contains(['.', 'e']), "{text} is no float");
                assert_eq!(text.starts_with('-'), value.is_sign_negative());
                let means_it = |decimal: f64| {
                    is_nearest(dtype, bits, decimal) && is_nearest(dtype, bits, f64::from(decimal as f32))
                };
                let decimal: f64 = text.parse().unwrap();
                assert!(means_it(decimal), "{} {bits:#x} {text}", dtype.name());
                // Of the decimals with one digit less, none but the two around the value could mean it.
                let fewer = digits(&text).saturating_sub(2);
                let (nearest, exponent) = format!("{value:.fewer$e}")
                    .split_once('e')
                    .map(|(n, e)| (n.replace('.', ""), e.parse::<i32>().unwrap() - fewer as i32))
                    .unwrap();
                let nearest: i64 = nearest.parse().unwrap();
                let shorter = [-1, 0, 1].map(|by| format!("{}e{exponent}", nearest + by).parse::<f64>().unwrap());
                assert!(digits(&text) < 2 || !shorter.into_iter().any(means_it), "{} {bits:#x} {text}", dtype.name());
            }
        }
    }

    #[test]
    fn texts_are_the_ones_people_expect() {
        let text = |dtype, bits: u64| written(dtype, 1, &[], &bits.to_le_bytes()[..Dtype::size(dtype)]);
        for (dtype, bits, expected) in [
            (Dtype::Float16, 0x0000, "0.0"),
            (Dtype::Float16, 0x8000, "-0.0"),
            (Dtype::Float16, 0x3C00, "1.0"),
            (Dtype::Float16, 0x6600, "1536.0"),
            (Dtype::Float16, 0x2E66, "0.1"),
            (Dtype::Float16, 0x7BFF, "65500.0"),
            (Dtype::Float16, 0x0001, "6e-8"),
            (Dtype::Float16, 0x7E00, "\"NaN\""),
            (Dtype::Float16, 0xFE00, "\"0xfe00\""),
            (Dtype::Float16, 0x7C01, "\"0x7c01\""),
            (Dtype::BFloat16, 0xBF80, "-1.0"),
            (Dtype::BFloat16, 0x7F80, "\"Infinity\""),
            (Dtype::BFloat16, 0xFF80, "\"-Infinity\""),
            (Dtype::BFloat16, 0x7FC0, "\"NaN\""),
            (Dtype::BFloat16, 0xFFFF, "\"0xffff\""),
            (Dtype::Float8E4M3, 0x7E, "450.0"),
            (Dtype::Float8E4M3, 0x7F, "\"NaN\""),
            (Dtype::Float8E4M3, 0xFF, "\"0xff\""),
            (Dtype::Float8E5M2, 0xFC, "\"-Infinity\""),
            (Dtype::Float8E5M2, 0x7E, "\"NaN\""),
            (Dtype::Float8E5M2, 0x7D, "\"0x7d\""),
            (Dtype::Float32, 0x3DCC_CCCD, "0.1"),
            (Dtype::Float32, 0x7FC0_0000, "\"NaN\""),
            (Dtype::Float32, 0x7F80_0001, "\"0x7f800001\""),
            (Dtype::Float32, 0xFF80_0000, "\"-Infinity\""),
            (Dtype::Float64, 0x3FB9_9999_9999_999A, "0.1"),
            (Dtype::Float64, 0x7FF8_0000_0000_0000, "\"NaN\""),
            (Dtype::Float64, 0x7FF0_0000_0000_0000, "\"Infinity\""),
            (Dtype::Float64, 0xFFF8_0000_0000_0000, "\"0xfff8000000000000\""),
            (Dtype::Int8, 0x80, "-128"),
            (Dtype::UInt8, 0xFF, "255"),
            (Dtype::Int64, 1 << 63, "-9223372036854775808"),
            (Dtype::Bool, 0, "false"),
            (Dtype::Bool, 1, "true"),
            (Dtype::Bool, 0xC2, "\"0xc2\""),
        ] {
            assert_eq!(text(dtype, bits), expected, "{} {bits:#x}", dtype.name());
        }
    }

    #[test]
    fn every_pattern_of_the_other_8_bit_dtypes_survives() {
        for dtype in [Dtype::Int8, Dtype::UInt8, Dtype::Bool] {
            for (bits, text) in every(dtype) {
                let json: Value = serde_json::from_str(&text).unwrap();
                match dtype {
                    Dtype::Int8 => assert_eq!(json.as_i64(), Some(i64::from(bits as u8 as i8))),
                    Dtype::UInt8 => assert_eq!(json.as_u64(), Some(u64::from(bits))),
                    _ => assert!(json.is_boolean() == (bits < 2) && json.is_string() == (bits > 1)),
                }
            }
        }
    }

    #[test]
    fn the_unclear_float32_survives_a_reader_that_rounds_twice() {
        for bits in [UNCLEAR, UNCLEAR | 1 << 31] {
            let value = f32::from_bits(bits);
            let text = written(Dtype::Float32, 1, &[], &bits.to_le_bytes());
            assert_eq!((text.parse::<f64>().unwrap() as f32).to_bits(), bits);
            assert_eq!(text.parse::<f32>().unwrap().to_bits(), bits);
            assert_ne!((value.to_string().parse::<f64>().unwrap() as f32).to_bits(), bits, "clear by now");
            assert_eq!(digits(&text), digits(&format!("{value:e}")) + 1);
        }
    }

    #[test]
    fn rows_are_nested_as_their_shape_says() {
        let text = |rows, row_shape: &[u64], bytes: &[u8]| {
            let text = written(Dtype::UInt8, rows, row_shape, bytes);
            assert_eq!(read(Dtype::UInt8, rows, row_shape, &text).unwrap(), bytes);
            text
        };
        assert_eq!(text(1, &[], &[7]), "7");
        assert_eq!(text(3, &[], &[7, 8, 9]), "7,\n8,\n9");
        assert_eq!(text(2, &[2], &[1, 2, 3, 4]), "[1,2],\n[3,4]");
        assert_eq!(text(1, &[2, 2], &[1, 2, 3, 4]), "[[1,2],[3,4]]");
        assert_eq!(text(2, &[1, 1, 1], &[1, 2]), "[[[1]]],\n[[[2]]]");
        assert_eq!(text(0, &[3], &[]), "");
        assert_eq!(text(0, &[], &[]), "");
        assert_eq!(text(2, &[0], &[]), "[],\n[]");
        assert_eq!(text(1, &[2, 0], &[]), "[[],[]]");
        assert_eq!(text(2, &[0, 2], &[]), "[],\n[]");
    }

    #[test]
    fn all_json_white_space_and_every_form_of_a_number_is_read() {
        let spaced = " [ 1 ,\r\n\t2\n] , [3,4 ] \n";
        assert_eq!(read(Dtype::Int8, 2, &[2], spaced).unwrap(), [1, 2, 3, 4]);
        let floats = "[1, 1.0, 10e-1, 0.1E+1, 100E-2, 1e0, 1.00000000000000000000000000000000001, 1e-0]";
        assert_eq!(read(Dtype::Float16, 1, &[8], floats).unwrap(), [0x00, 0x3C].repeat(8));
        let nearest = "[0.33333, 1e-999, -1e-999, -0, 65519.999, 2049, 2051]";
        let halves: Vec<u8> =
            [0x3555_u16, 0, 0x8000, 0x8000, 0x7BFF, 0x6800, 0x6802].into_iter().flat_map(u16::to_le_bytes).collect();
        assert_eq!(read(Dtype::Float16, 1, &[7], nearest).unwrap(), halves);
        assert_eq!(read(Dtype::Float8E4M3, 3, &[], "448,464,\"0xFF\"").unwrap(), [0x7E, 0x7E, 0xFF]);
        assert_eq!(read(Dtype::Float32, 1, &[], "7.038531e-26").unwrap(), UNCLEAR.to_le_bytes());
        assert_eq!(read(Dtype::Bool, 4, &[], "true,false,\"0xaB\",\"0xff\"").unwrap(), [1, 0, 0xAB, 0xFF]);
    }

    #[test]
    fn whatever_is_not_such_rows_is_malformed() {
        let deep = "[".repeat(1 << 20);
        let floats = [
            "",
            " ",
            "1",
            "[1.0]",
            "[1.0,2.0,3.0]",
            "[1.0,2.0],[3.0,4.0]",
            "[[1.0,2.0]]",
            "[[1.0],[2.0]]",
            "[1.0 2.0]",
            "[1.0,2.0",
            "[1.0,2.0,]",
            "[,1.0]",
            "[1.0,,2.0]",
            "[1.0,2.0]]",
            "[1.0,2.0],",
            ",[1.0,2.0]",
            "[1.0,2.0] x",
            "[1.0;2.0]",
            "[1.0,NaN]",
            "[1.0,Infinity]",
            "[1.0,-Infinity]",
            "[1.0,nan]",
            "[1.0,inf]",
            "[1.0,null]",
            "[1.0,true]",
            "[1.0,{}]",
            "[1.0,[]]",
            "[1.0,01]",
            "[1.0,+1]",
            "[1.0,1.]",
            "[1.0,.5]",
            "[1.0,-]",
            "[1.0,1e]",
            "[1.0,1e+]",
            "[1.0,0x7e00]",
            "[1.0,1_0]",
            "[1.0,1e999]",
            "[1.0,-1e999]",
            "[1.0,- 1]",
            "[1.0,00]",
            "[1.0,1.0.0]",
            "[1.0,\"1.0\"]",
            "[1.0,\"nan\"]",
            "[1.0,\"\"]",
            "[1.0,\"NaN]",
            "[1.0,\"+Infinity\"]",
            "[1.0,\"\\u004eaN\"]",
            "[1.0,\"0x\"]",
            "[1.0,\"0x+fff\"]",
            "[1.0,\"0x00\"]",
            "[1.0,\"0x0000000000000000000\"]",
            "[1.0,\"NaN\u{0}\"]",
            "[1.0,\u{a0}2.0]",
            "\u{feff}[1.0,2.0]",
            "[1.0,2.0]\0",
            "[1.0,'NaN']",
            "[1.0,/**/2.0]",
            deep.as_str(),
        ];
        for dtype in
            [Dtype::Float16, Dtype::BFloat16, Dtype::Float32, Dtype::Float64, Dtype::Float8E4M3, Dtype::Float8E5M2]
        {
            for text in floats {
                let error = read(dtype, 1, &[2], text).expect_err(text);
                assert_eq!(error.kind(), Kind::Malformed, "{text}");
                assert!(error.to_string().len() < 100, "{error}");
            }
            assert_eq!(read(dtype, 1, &[2], "[1.0,2.0]").map(|bytes| bytes.len()).ok(), Some(2 * dtype.size()));
        }
        for (dtype, text) in [
            (Dtype::Float16, "65520"),
            (Dtype::Float16, "\"0x7c00\""),
            (Dtype::Float16, "\"0x3c00\""),
            (Dtype::Float16, "\"0x7e0\""),
            (Dtype::Float16, "\"0x07e01\""),
            (Dtype::BFloat16, "3.4e38,"),
            (Dtype::BFloat16, "3.4e38"),
            (Dtype::Float32, "3.4028236e38"),
            (Dtype::Float64, "1.8e308"),
            (Dtype::Float8E4M3, "464.1"),
            (Dtype::Float8E4M3, "\"Infinity\""),
            (Dtype::Float8E4M3, "\"0x7e\""),
            (Dtype::Float8E5M2, "61440"),
            (Dtype::Float8E5M2, "\"0xfc\""),
            (Dtype::Int8, "128"),
            (Dtype::Int8, "-129"),
            (Dtype::Int8, "1.0"),
            (Dtype::Int8, "1e0"),
            (Dtype::Int8, "01"),
            (Dtype::Int8, "+1"),
            (Dtype::Int8, "true"),
            (Dtype::Int8, "\"1\""),
            (Dtype::Int8, "\"0x01\""),
            (Dtype::Int8, "-"),
            (Dtype::UInt8, "-1"),
            (Dtype::UInt8, "256"),
            (Dtype::Int16, "32768"),
            (Dtype::Int32, "2147483648"),
            (Dtype::Int64, "9223372036854775808"),
            (Dtype::Bool, "0"),
            (Dtype::Bool, "1"),
            (Dtype::Bool, "True"),
            (Dtype::Bool, "\"true\""),
            (Dtype::Bool, "\"0x01\""),
            (Dtype::Bool, "\"0x002\""),
            (Dtype::Bool, "\"0x+2\""),
            (Dtype::Bool, "tru"),
            (Dtype::Bool, "truefalse"),
            (Dtype::Bool, "null"),
        ] {
            let error = read(dtype, 1, &[], text).expect_err(text);
            assert_eq!(error.kind(), Kind::Malformed, "{} {text}", dtype.name());
        }
    }

    #[test]
    fn sizes_that_do_not_agree_are_malformed_and_cost_nothing() {
        let refused = |rows, row_shape: &[u64], out: &mut [u8]| {
            read_rows(Dtype::Int16, rows, row_shape, b"[]", out).unwrap_err().kind() == Kind::Malformed
        };
        assert!(refused(1, &[2], &mut [0; 3]));
        assert!(refused(1, &[2], &mut [0; 6]));
        assert!(refused(u64::MAX, &[2], &mut []));
        assert!(refused(1, &[0; MAX_RANK + 1], &mut []));
        assert!(refused(u64::MAX, &[0], &mut []));
        assert!(refused(1, &[u64::MAX, 0], &mut []));
        assert!(read_rows(Dtype::Int16, 1, &[0], b"[]", &mut []).is_ok());
    }

    /// The value that a JSON reader sees at each place, in order.
    fn leaves(json: &Value, shape: &[u64], out: &mut Vec<String>) {
        match shape.split_first() {
            None => out.push(json.to_string()),
            Some((&n, inner)) => {
                let list = json.as_array().unwrap();
                assert_eq!(list.len() as u64, n);
                list.iter().for_each(|json| leaves(json, inner, out));
            }
        }
    }

    fn tensors() -> impl Strategy<Value = (Layout, Vec<u8>)> {
        let shape = prop::collection::vec(0_u64..5, 1..5);
        (0..Dtype::ALL.len(), shape).prop_flat_map(|(dtype, shape)| {
            let layout = Layout::new(Dtype::ALL[dtype], shape).unwrap();
            let bytes = layout.bytes() as usize;
            // Runs of zeros and ones between random bytes: integral floats, subnormals, NaN and infinities.
            let byte = prop_oneof![4 => any::<u8>(), 1 => Just(0), 1 => Just(0xFF), 1 => Just(0x7F), 1 => Just(0x80)];
            (Just(layout), prop::collection::vec(byte, bytes))
        })
    }

    proptest! {
        #[test]
        fn every_tensor_survives((layout, bytes) in tensors()) {
            let (dtype, rows, row_shape) = (layout.dtype(), layout.rows(), &layout.shape()[1..]);
            let text = written(dtype, rows, row_shape, &bytes);
            prop_assert_eq!(&read(dtype, rows, row_shape, &text).unwrap(), &bytes);
            let json: Value = serde_json::from_str(&format!("[{text}]")).unwrap();
            let mut seen = Vec::new();
            leaves(&json, layout.shape(), &mut seen);
            let size = dtype.size();
            for (text, value) in seen.iter().zip(bytes.chunks(size)) {
                let plainly = match dtype {
                    Dtype::Float32 if !text.starts_with('"') => {
                        (text.parse::<f64>().unwrap() as f32).to_le_bytes().to_vec()
                    }
                    Dtype::Float64 if !text.starts_with('"') => text.parse::<f64>().unwrap().to_le_bytes().to_vec(),
                    Dtype::Int16 | Dtype::Int32 | Dtype::Int64 => {
                        text.parse::<i64>().unwrap().to_le_bytes()[..size].to_vec()
                    }
                    _ => continue,
                };
                prop_assert_eq!(plainly, value);
            }
        }

        #[test]
        fn damaged_text_is_an_error_or_values((layout, bytes) in tensors(), at in any::<prop::sample::Index>(), to: u8) {
            let (dtype, rows, row_shape) = (layout.dtype(), layout.rows(), &layout.shape()[1..]);
            let mut text = written(dtype, rows, row_shape, &bytes).into_bytes();
            let mut out = vec![0; bytes.len()];
            if !text.is_empty() {
                let cut = text.len() - 1;
                prop_assert!(read_rows(dtype, rows, row_shape, &text[..cut], &mut out).is_err() || row_shape.is_empty());
                let at = at.index(text.len());
                text[at] = to;
                let _ = read_rows(dtype, rows, row_shape, &text, &mut out);
            }
        }
    }
}
