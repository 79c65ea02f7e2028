//! Where things are in a JSON file of any size, found without holding it: one block of the file is in memory at a time.
//!
//! Strings, brackets, and the members or elements that are asked for are understood; what lies in a value is only
//! skipped. So a range holds one value if the file is JSON at all, and whoever parses the range finds out.

use std::collections::HashSet;
use std::ops::Range;

use crate::error::{Error, Kind, Result};
use crate::files::ReadFile;
use crate::format::malformed;

/// Bytes read at a time.
const BLOCK_BYTES: u64 = 256 << 10;
/// Deepest nesting of a value.
const MAX_DEPTH: u32 = 128;
/// Longest name of a member, as written.
const MAX_NAME_BYTES: u64 = 4 << 10;
/// Most members of an object: their names are held, so that none can come twice.
const MAX_MEMBERS: usize = 1 << 16;
/// Bytes tested at a time, all of them and without a branch, which is what makes skipping fast.
const STRIDE: usize = 32;

/// Name and value of each member of the object that fills `range`. A name that comes twice is an error.
pub(super) fn members(file: &ReadFile, range: Range<u64>) -> Result<Vec<(String, Range<u64>)>> {
    let mut members = Vec::new();
    let (start, mut skimmer) = (range.start, Skimmer::new(file, range));
    let end = skimmer.members(start, |name, value| {
        members.push((name, value));
        Ok(())
    })?;
    skimmer.finish(end)?;
    Ok(members)
}

/// Gives the range of each element of the array that fills `range`.
pub(super) fn elements(file: &ReadFile, range: Range<u64>, each: impl FnMut(Range<u64>) -> Result<()>) -> Result<()> {
    let (start, mut skimmer) = (range.start, Skimmer::new(file, range));
    let end = skimmer.elements(start, each)?;
    skimmer.finish(end)
}

/// Finds values. Every position is a byte of the file; white space from there on is passed first.
struct Skimmer<'a> {
    file: &'a ReadFile,
    /// Nothing from this byte on is looked at.
    end: u64,
    block_bytes: u64,
    block: Vec<u8>,
    block_at: u64,
}

impl<'a> Skimmer<'a> {
    fn new(file: &'a ReadFile, range: Range<u64>) -> Self {
        Self { file, end: range.end, block_bytes: BLOCK_BYTES, block: Vec::new(), block_at: 0 }
    }

    /// Gives the members of the object at `at`, and says where it ends.
    fn members(&mut self, at: u64, mut each: impl FnMut(String, Range<u64>) -> Result<()>) -> Result<u64> {
        let mut names = HashSet::new();
        let (mut at, mut more) = self.open(at, b'{', b'}')?;
        while more {
            let (name, after) = self.name(at)?;
            let value = self.expect(after, b':').and_then(|at| self.value(at))?;
            if names.len() == MAX_MEMBERS {
                return Err(self.malformed(at, "one member too many"));
            }
            if !names.insert(name.clone()) {
                return Err(self.malformed(at, &format!("`{}` is given twice", name.escape_debug())));
            }
            (at, more) = self.separator(value.end, b'}')?;
            each(name, value)?;
        }
        Ok(at)
    }

    /// Gives the elements of the array at `at`, and says where it ends.
    fn elements(&mut self, at: u64, mut each: impl FnMut(Range<u64>) -> Result<()>) -> Result<u64> {
        let (mut at, mut more) = self.open(at, b'[', b']')?;
        while more {
            let value = self.value(at)?;
            (at, more) = self.separator(value.end, b']')?;
            each(value)?;
        }
        Ok(at)
    }

    /// The range of the value at `at`, without the white space around it.
    fn value(&mut self, at: u64) -> Result<Range<u64>> {
        let start = self.space(at)?;
        let end = match self.byte(start)? {
            b'"' => self.string(start + 1)?,
            b'{' | b'[' => self.container(start)?,
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => {
                self.skip(start, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.'))?
            }
            _ => return Err(self.malformed(start, "no value")),
        };
        Ok(start..end)
    }

    /// Checks that nothing but white space is left.
    fn finish(&mut self, at: u64) -> Result<()> {
        let end = self.space(at)?;
        if end < self.end { Err(self.malformed(end, "something after the end")) } else { Ok(()) }
    }

    /// The name at `at`, unescaped, and where its string ends.
    fn name(&mut self, at: u64) -> Result<(String, u64)> {
        let after = self.expect(at, b'"')?;
        let (start, end) = (after - 1, self.string(after)?);
        let mut json = match usize::try_from(end - start) {
            Ok(length) if end - start <= MAX_NAME_BYTES => vec![0; length],
            _ => return Err(self.malformed(start, "a name of more than 4 KiB")),
        };
        self.file.read_at(start, &mut json)?;
        let name = serde_json::from_slice(&json).map_err(|e| self.malformed(start, "no name").because(e))?;
        Ok((name, end))
    }

    /// Enters the container at `at`: where its first item is, and whether there is one; if not, where it ends.
    fn open(&mut self, at: u64, open: u8, close: u8) -> Result<(u64, bool)> {
        let at = self.expect(at, open)?;
        let at = self.space(at)?;
        Ok(if self.byte(at)? == close { (at + 1, false) } else { (at, true) })
    }

    /// Passes what follows an item, and says whether it is another one or the end of the container.
    fn separator(&mut self, at: u64, close: u8) -> Result<(u64, bool)> {
        let at = self.space(at)?;
        match self.byte(at)? {
            b',' => Ok((at + 1, true)),
            byte if byte == close => Ok((at + 1, false)),
            _ => Err(self.malformed(at, "neither a comma nor the end")),
        }
    }

    fn expect(&mut self, at: u64, mark: u8) -> Result<u64> {
        let at = self.space(at)?;
        if self.byte(at)? == mark { Ok(at + 1) } else { Err(self.malformed(at, &format!("no `{}`", char::from(mark)))) }
    }

    /// Where the string ends whose opening quote is just before `at`.
    fn string(&mut self, mut at: u64) -> Result<u64> {
        loop {
            let (byte, found) = self.find(at, |byte| byte == b'"' || byte == b'\\')?;
            if byte == b'"' {
                return Ok(found + 1);
            }
            // Whatever is escaped neither ends the string nor escapes what follows it.
            at = found + 2;
        }
    }

    /// Where the container that begins at `at` ends.
    fn container(&mut self, mut at: u64) -> Result<u64> {
        // One bit for each container that is open, the innermost lowest, set where it is an object.
        let (mut objects, mut depth) = (0_u128, 0);
        loop {
            // Setting this bit makes one of both sorts of brackets.
            let (byte, found) = self.find(at, |byte| byte == b'"' || matches!(byte | 0x20, b'{' | b'}'))?;
            at = found + 1;
            match byte {
                b'"' => at = self.string(at)?,
                b'{' | b'[' if depth == MAX_DEPTH => {
                    return Err(self.malformed(found, "more than 128 values within each other"));
                }
                b'{' | b'[' => (objects, depth) = (objects << 1 | u128::from(byte == b'{'), depth + 1),
                _ if (objects & 1 == 1) != (byte == b'}') => return Err(self.malformed(found, "the wrong bracket")),
                _ if depth == 1 => return Ok(at),
                _ => (objects, depth) = (objects >> 1, depth - 1),
            }
        }
    }

    /// The first such byte from `at` on, and where it is.
    fn find(&mut self, mut at: u64, wanted: impl Fn(u8) -> bool) -> Result<(u8, u64)> {
        loop {
            let bytes = self.bytes(at)?;
            let without = |chunk: &&[u8; STRIDE]| !chunk.iter().fold(false, |any, &byte| any | wanted(byte));
            let clear = bytes.as_chunks().0.iter().take_while(without).count() * STRIDE;
            let rest = bytes.get(clear..).unwrap_or_default();
            if let Some((index, &byte)) = rest.iter().enumerate().find(|(_, byte)| wanted(**byte)) {
                return Ok((byte, at + (clear + index) as u64));
            }
            at += bytes.len() as u64;
            self.byte(at)?;
        }
    }

    fn space(&mut self, at: u64) -> Result<u64> {
        self.skip(at, |byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t'))
    }

    /// Where bytes of this sort end; that may be the end of all.
    fn skip(&mut self, mut at: u64, sort: impl Fn(u8) -> bool) -> Result<u64> {
        loop {
            let bytes = self.bytes(at)?;
            let skipped = bytes.iter().position(|&byte| !sort(byte));
            at += skipped.unwrap_or(bytes.len()) as u64;
            if skipped.is_some() || at >= self.end {
                return Ok(at);
            }
        }
    }

    fn byte(&mut self, at: u64) -> Result<u8> {
        let first = self.bytes(at)?.first().copied();
        first.ok_or_else(|| {
            Error::new(Kind::Truncated, format!("it ends at byte `{}`, in the middle of a value", self.end))
        })
    }

    /// What is in memory from `at` on: nothing at the end, elsewhere at least one byte.
    fn bytes(&mut self, at: u64) -> Result<&[u8]> {
        let known = self.block_at..self.block_at + self.block.len() as u64;
        if !known.contains(&at) {
            let length = self.end.saturating_sub(at).min(self.block_bytes);
            // Taken: after a failure nothing may pass for what the file holds.
            let mut block = std::mem::take(&mut self.block);
            block.resize(usize::try_from(length).unwrap_or(0), 0);
            self.file.read_at(at, &mut block)?;
            (self.block, self.block_at) = (block, at);
        }
        let from = usize::try_from(at - self.block_at).unwrap_or(usize::MAX);
        Ok(self.block.get(from..).unwrap_or_default())
    }

    fn malformed(&self, at: u64, what: &str) -> Error {
        malformed(format!("{what} at byte `{at}`"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};
    use tempfile::TempDir;

    use super::*;

    struct Sample {
        directory: TempDir,
        file: ReadFile,
    }

    impl Sample {
        fn new(text: &[u8]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("sample.json");
            std::fs::write(&path, text).unwrap();
            Self { file: ReadFile::open(&path).unwrap(), directory }
        }

        fn skim(&self, block_bytes: u64) -> Skimmer<'_> {
            assert!(self.directory.path().exists());
            Skimmer { block_bytes, ..Skimmer::new(&self.file, 0..self.file.length().unwrap()) }
        }
    }

    /// Takes `text` apart down to its scalars, and puts what the ranges hold together again.
    fn rebuilt(skimmer: &mut Skimmer<'_>, text: &[u8], at: u64) -> Result<Value> {
        let range = skimmer.value(at)?;
        let json = &text[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
        let mut ranges = Vec::new();
        match json[0] {
            b'{' => {
                let mut map = Map::new();
                let end = skimmer.members(at, |name, range| {
                    ranges.push((name, range));
                    Ok(())
                })?;
                assert_eq!(end, range.end);
                for (name, range) in ranges {
                    map.insert(name, rebuilt(skimmer, text, range.start)?);
                }
                Ok(Value::Object(map))
            }
            b'[' => {
                let mut list = Vec::new();
                let end = skimmer.elements(at, |range| {
                    list.push(range.start);
                    Ok(())
                })?;
                assert_eq!(end, range.end);
                list.into_iter().map(|at| rebuilt(skimmer, text, at)).collect()
            }
            _ => serde_json::from_slice(json).map_err(|e| skimmer.malformed(at, "a scalar").because(e)),
        }
    }

    fn whole(text: &[u8], block_bytes: u64) -> Result<Value> {
        let sample = Sample::new(text);
        let mut skimmer = sample.skim(block_bytes);
        let value = rebuilt(&mut skimmer, text, 0)?;
        let end = skimmer.value(0)?.end;
        skimmer.finish(end)?;
        Ok(value)
    }

    fn documents() -> impl Strategy<Value = Value> {
        let text = prop_oneof!["[a-c]{0,3}", "[\\\\\"{}\\[\\],: \n]{0,8}", any::<String>()];
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f32>().prop_map(|n| if n.is_finite() { json!(n) } else { Value::Null }),
            text.clone().prop_map(Value::from),
        ];
        scalar.prop_recursive(5, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(text.clone(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_range_holds_its_value(document in documents(), block_bytes in 1_u64..80, pretty: bool) {
            let text = if pretty { serde_json::to_vec_pretty(&document) } else { serde_json::to_vec(&document) }.unwrap();
            prop_assert_eq!(&whole(&text, block_bytes).unwrap(), &document);
            prop_assert_eq!(&whole(&text, BLOCK_BYTES).unwrap(), &document);
            let spaced = [b" \n".as_slice(), &text, b"\t \r\n"].concat();
            prop_assert_eq!(&whole(&spaced, block_bytes).unwrap(), &document);
            let trailed = [text.as_slice(), b" ]"].concat();
            prop_assert_eq!(whole(&trailed, block_bytes).unwrap_err().kind(), Kind::Malformed);
        }

        #[test]
        fn a_changed_byte_is_an_error_or_a_value(
            document in documents(), block_bytes in 1_u64..80, at in any::<prop::sample::Index>(), to: u8,
        ) {
            let mut text = serde_json::to_vec(&document).unwrap();
            let at = at.index(text.len());
            text[at] = to;
            match whole(&text, block_bytes) {
                Ok(value) => prop_assert_eq!(value, serde_json::from_slice::<Value>(&text).unwrap()),
                Err(error) => prop_assert!(matches!(error.kind(), Kind::Malformed | Kind::Truncated)),
            }
        }
    }

    #[test]
    fn a_file_that_ends_early_is_truncated() {
        let text = br#" {"a\"}": [1.5e3, {"b": "\\"}, "]"], "c" : {"d": [true, null, -1]} }"#;
        assert!(whole(text, 5).is_ok());
        for length in 0..text.len() {
            for block_bytes in [1, 2, 3, 7, BLOCK_BYTES] {
                let error = whole(&text[..length], block_bytes).unwrap_err();
                assert_eq!(error.kind(), Kind::Truncated, "{length}: {error}");
            }
        }
        let sample = Sample::new(text);
        assert_eq!(members(&sample.file, 0..99).unwrap_err().kind(), Kind::Truncated);
        let far = text.len() as u64 + 9;
        for at in [far, u64::MAX - 1] {
            assert_eq!(sample.skim(4).value(at).unwrap_err().kind(), Kind::Truncated);
        }
        let mut skimmer = sample.skim(4);
        std::fs::write(sample.file.path(), "{").unwrap();
        assert_eq!(skimmer.value(0).unwrap_err().kind(), Kind::Truncated);
        assert_eq!(skimmer.value(0).unwrap_err().kind(), Kind::Truncated);
    }

    #[test]
    fn what_is_not_json_is_malformed() {
        for text in [
            "}",
            "]",
            ",",
            ":",
            "\u{feff}{}",
            "x",
            "'a'",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,}",
            "{a:1}",
            "{1:1}",
            "{\"a\" 1}",
            "{\"a\":1 \"b\":2}",
            "{\"a\":1;}",
            "{\"a\":1]",
            "[1}",
            "[,]",
            "[1,]",
            "[1 2]",
            "[1,,2]",
            "[1:2]",
            "[[1}]",
            "[{]}",
            "{\"a\":[}]",
            "{} {}",
            "[]x",
            "1 2",
            "\"a\"\"b\"",
            "[\u{a0}1]",
            "{\"\\x\":1}",
            "{\"\\ud800\":1}",
            "{\"a\nb\":1}",
        ] {
            for block_bytes in [1, 2, BLOCK_BYTES] {
                let error = whole(text.as_bytes(), block_bytes).expect_err(text);
                assert_eq!(error.kind(), Kind::Malformed, "{text}: {error}");
            }
        }
        for text in ["[[1}]", "{\"a\":[1}", "[{]}", "[{\"a\":[]]}"] {
            assert_eq!(Sample::new(text.as_bytes()).skim(4).value(0).unwrap_err().kind(), Kind::Malformed, "{text}");
        }
        assert_eq!(whole(b"{\"\xff\":1}", 4).unwrap_err().kind(), Kind::Malformed);
        let error = whole(b"[1, ?]", 4).unwrap_err().to_string();
        assert!(error.ends_with("no value at byte `4`"), "{error}");
    }

    #[test]
    fn a_name_comes_once() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":1,"b":{},"\u0061":2}"#, r#"{"":1,"":2}"#] {
            assert_eq!(whole(text.as_bytes(), 3).unwrap_err().kind(), Kind::Malformed, "{text}");
        }
        assert_eq!(whole(br#"{"a":{"a":1},"A":{"a":2}}"#, 3).unwrap()["A"]["a"], 2);
    }

    #[test]
    fn limits_hold() {
        let nested = |depth| ["[".repeat(depth), "]".repeat(depth)].concat();
        let skim = |text: &str| Sample::new(text.as_bytes()).skim(7).value(0).map(|range| range.end);
        assert_eq!(skim(&nested(128)).unwrap(), 256);
        assert_eq!(skim(&nested(129)).unwrap_err().kind(), Kind::Malformed);
        let objects = |depth| ["{\"a\":".repeat(depth), "1".to_owned(), "}".repeat(depth)].concat();
        assert!(skim(&objects(128)).is_ok());
        assert_eq!(skim(&objects(129)).unwrap_err().kind(), Kind::Malformed);
        assert_eq!(skim(&"[".repeat(1 << 20)).unwrap_err().kind(), Kind::Malformed);

        let names = |text: &str| Sample::new(text.as_bytes()).skim(BLOCK_BYTES).members(0, |_, _| Ok(()));
        let named = |length| format!("{{\"{}\":1}}", "n".repeat(length));
        assert!(names(&named((4 << 10) - 2)).is_ok());
        assert_eq!(names(&named((4 << 10) - 1)).unwrap_err().kind(), Kind::Malformed);
        let many = |count| {
            let members: Vec<_> = (0..count).map(|n| format!("\"{n}\":{n}")).collect();
            format!("{{{}}}", members.join(","))
        };
        assert!(names(&many(1 << 16)).is_ok());
        assert_eq!(names(&many((1 << 16) + 1)).unwrap_err().kind(), Kind::Malformed);
    }

    #[test]
    fn what_a_callback_refuses_is_refused() {
        let sample = Sample::new(br#"{"a":[1]}"#);
        let refusal = || Err(Error::new(Kind::LimitExceeded, "enough"));
        assert_eq!(sample.skim(2).members(0, |_, _| refusal()).unwrap_err().kind(), Kind::LimitExceeded);
        assert_eq!(sample.skim(2).elements(5, |_| refusal()).unwrap_err().kind(), Kind::LimitExceeded);
    }

    #[test]
    fn a_range_is_filled_by_its_value_alone() {
        let sample = Sample::new(br#" {"a": [1, [2]], "b": {"c": 3} } ,"#);
        let found = members(&sample.file, 0..33).unwrap();
        assert_eq!(found, [("a".to_owned(), 7..15), ("b".to_owned(), 22..30)]);
        assert_eq!(members(&sample.file, 22..30).unwrap(), [("c".to_owned(), 28..29)]);
        let mut rows = Vec::new();
        let each = |range| {
            rows.push(range);
            Ok(())
        };
        elements(&sample.file, 7..15, each).unwrap();
        assert_eq!(rows, [8..9, 11..14]);
        for (range, kind) in
            [(0..34, Kind::Malformed), (22..29, Kind::Truncated), (7..15, Kind::Malformed), (22..22, Kind::Truncated)]
        {
            assert_eq!(members(&sample.file, range.clone()).unwrap_err().kind(), kind, "{range:?}");
        }
        for (range, kind) in [(7..16, Kind::Malformed), (7..14, Kind::Truncated), (22..30, Kind::Malformed)] {
            assert_eq!(elements(&sample.file, range.clone(), |_| Ok(())).unwrap_err().kind(), kind, "{range:?}");
        }
    }
}
