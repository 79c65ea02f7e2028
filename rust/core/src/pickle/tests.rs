//! Rules that need no pickler: the suite of Python tests against real ones.

use proptest::prelude::*;

use super::*;
use crate::tensor::Dtype;

fn corpus() -> Vec<Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/pickle_decode");
    std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

fn refusal(bytes: &[u8]) -> (Kind, String) {
    let error = decode(bytes).unwrap_err();
    (error.kind(), error.to_string())
}

/// A storage of 8-bit integers as torch has it, with a view of it.
fn tensor(values: &[u8], view: &[u8]) -> Vec<u8> {
    let count = u8::try_from(values.len()).unwrap();
    let id =
        [&b"\x80\x02(X\x07\0\0\0storagectorch\nByteStorage\nX\x01\0\0\0kX\x06\0\0\0cuda:0K"[..], &[count], b"NtQ."]
            .concat();
    let stream = [
        &b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."[..],
        b"\x80\x02}X\x0d\0\0\0little_endian\x88s.",
        &id,
        b"\x80\x02]X\x01\0\0\0ka.",
        &u64::from(count).to_le_bytes(),
        values,
    ]
    .concat();
    let length = u32::try_from(stream.len()).unwrap().to_le_bytes();
    [
        &b"\x80\x03ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\nB"[..],
        &length,
        &stream,
        b"\x85R",
        view,
        b"tR.",
    ]
    .concat()
}

#[test]
fn contiguous_views_are_ranges_of_the_pickle() {
    let pickle = tensor(&[10, 11, 12, 13, 14, 15], b"K\x02K\x02K\x02\x86K\x02K\x01\x86\x89}");
    let Value::Array(array) = decode(&pickle).unwrap() else { panic!("no array") };
    assert_eq!(array.layout, crate::tensor::Layout::new(Dtype::UInt8, vec![2, 2]).unwrap());
    let Span::Input(range) = &array.bytes else { panic!("bytes were copied") };
    assert_eq!(pickle[range.clone()], [12, 13, 14, 15]);
    let transposed = tensor(&[10, 11, 12, 13, 14, 15], b"K\x00K\x02K\x03\x86K\x01K\x02\x86\x89}");
    let Value::Array(array) = decode(&transposed).unwrap() else { panic!("no array") };
    assert_eq!(array.bytes, Span::Own(vec![10, 12, 14, 11, 13, 15]));
}

#[test]
fn text_and_bytes_as_protocol_0_has_them() {
    assert_eq!(
        decode(b"V\\u20ac \\\\u0041 \xe9 \\U0001f389 \\\n.").unwrap(),
        Value::Text("€ \\\\u0041 é 🎉 \\".into())
    );
    for bad in [&b"V\\ud800\n."[..], b"V\\u12\n.", b"V\\u12g4\n."] {
        assert_eq!(refusal(bad).0, Kind::Malformed);
    }
    let encoded = b"c_codecs\nencode\n(V\xff\x80a\nVlatin1\ntR.";
    assert_eq!(decode(encoded).unwrap(), Value::Bytes(Span::Own(vec![0xFF, 0x80, b'a'])));
}

#[test]
fn the_last_of_equal_keys_counts() {
    let value = decode(b"}(X\x01\0\0\0aK\x01X\x01\0\0\0aK\x02u.").unwrap();
    assert_eq!(value.get("a"), Some(&Value::Int(2)));
    assert_eq!((value.get("b"), Value::None.get("a")), (None, None));
}

#[test]
fn steps_are_counted() {
    let pops = b"N0".repeat(MAX_STEPS / 2 - 2);
    // Two instructions, and the value itself.
    assert_eq!(decode(&[&pops[..], b"N."].concat()).unwrap(), Value::None);
    let said = format!("it has more than `{MAX_STEPS}` instructions and values");
    for more in [&b"]Na."[..], b"N0N0N."] {
        let (kind, message) = refusal(&[&pops[..], more].concat());
        assert_eq!((kind, message.ends_with(&said)), (Kind::LimitExceeded, true), "{message}");
    }
}

#[test]
fn one_stream_read_again_and_again_is_too_much() {
    // A storage whose pickles are long, called by two bytes a time.
    let padding = "N0".repeat(40_000);
    let stream = format!("\u{80}\u{2}\u{8a}\nl\u{fc}\u{9c}F\u{f9} j\u{a8}P\u{19}.{padding}K\u{1}.");
    let stream: Vec<u8> = stream.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    let bomb =
        [&b"ctorch.storage\n_load_from_bytes\nq\0B"[..], &u32::try_from(stream.len()).unwrap().to_le_bytes(), &stream];
    let bomb = [&bomb.concat()[..], b"\x85q\x010", &b"h\0h\x01R0".repeat(100)[..], b"N."].concat();
    assert_eq!(refusal(&bomb).0, Kind::Malformed);
}

#[test]
fn damaged_pickles_are_refused_or_read() {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut below = |end: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % end
    };
    for sample in corpus() {
        decode(&sample).unwrap();
        for length in 0..sample.len() {
            assert_eq!(refusal(&sample[..length]).0, Kind::Truncated, "{length}");
        }
        for _ in 0..400 {
            let mut damaged = sample.clone();
            for _ in 0..=below(3) {
                let at = below(damaged.len());
                damaged[at] = u8::try_from(below(256)).unwrap();
            }
            let _either = decode(&damaged);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _either = decode(&bytes);
    }

    #[test]
    fn any_instructions_are_refused_or_read(
        codes in prop::collection::vec(prop::sample::select(&b"(.012NK\x88]})laesudtpqgh\x85\x86\x87\x94RbcI\x00\x01"[..]), 0..80),
    ) {
        let _either = decode(&[&codes[..], b"."].concat());
    }
}
