//! The two lines of an entry's file that show our reader its way: the first holds all but the activations, the last
//! says where their text is. Each carries a checksum of itself, because not all of it enters the content id.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::codec::Encoding;
use crate::entry::{ContentId, Document, KeyRecipe, MAX_DOCUMENT_BYTES, MAX_TOKENS, hex};
use crate::error::{Error, Kind, Result};
use crate::format::{Activation, Frame, MAX_POINTS, frame_checksum, malformed};
use crate::hook_point::HookPoint;
use crate::tensor::{Dtype, Layout};

/// How the three parts of a file begin, each on a line of its own.
pub(super) const ENTRY: &str = "{\"entry\": ";
pub(super) const ACTIVATIONS: &str = "\"activations\": {";
pub(super) const INDEX: &str = "\"index\": ";

/// Largest `entry`: a document, each character escaped, and the token ids of the longest sequence.
pub(super) const MAX_ENTRY_BYTES: u64 = 6 * MAX_DOCUMENT_BYTES as u64 + (256 << 20);

/// The members of `entry` that are its document.
const DOCUMENT: [&str; 8] =
    ["key", "key_recipe", "prompt", "response", "prompt_length", "positions", "metadata", "created"];

const SEAL: &str = ",\"xxh3\":\"";
const SEALED: usize = SEAL.len() + 16 + "\"}".len();
/// Above it, a JSON reader that knows only doubles would lose the number.
const MAX_NUMBER: u64 = 1 << 53;
/// Largest frame of more than one row, decoded.
const MAX_FRAME_BYTES: u64 = 16 << 20;
const HASH_DIGITS: usize = 16;
/// What a message shows of a value, at most.
const SHOWN_CHARS: usize = 40;
/// What a member must be that counts something.
pub(super) const COUNT: &str = "an integer from 0 on";

/// What `entry` holds.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) document: Document,
    pub(super) token_ids: Option<Vec<u32>>,
    /// Its place in the order of writing; absent where another program wrote the file.
    pub(super) number: Option<u64>,
    pub(super) content_id: Option<ContentId>,
}

impl Head {
    /// Reads the object, however it is formatted; members it does not know are ignored.
    pub(super) fn parse(json: &str) -> Result<Self> {
        let members = Members::parse(json).map_err(|e| e.within("`entry` cannot be read"))?;
        let document = members.document()?;
        let token_ids: Option<Vec<u32>> = members.read("token_ids", "a list of integers from 0 to 4294967295")?;
        let tokens = token_ids.as_ref().map_or(0, Vec::len) as u64;
        if tokens > MAX_TOKENS {
            return Err(malformed(format!("`{tokens}` token ids are above the limit of {MAX_TOKENS}")));
        }
        let content_id: Option<String> = members.read("content_id", "text")?;
        Ok(Self {
            document,
            token_ids,
            number: members.read("number", COUNT)?.filter(|&number: &u64| number < MAX_NUMBER),
            content_id: content_id.map(|digits| unhex("content_id", &digits)).transpose()?,
        })
    }

    /// Reads what [`head_line`] wrote, without the end of the line. `None` where the line is not of that form.
    pub(super) fn parse_line(line: &[u8]) -> Option<Result<Self>> {
        let json = std::str::from_utf8(line).ok()?.strip_prefix(ENTRY)?.strip_suffix(',')?;
        Some(unsealed(json)?.and_then(Self::parse))
    }
}

/// The first line, with its end.
pub(super) fn head_line(
    document: &Document,
    token_ids: Option<&[u32]>,
    number: u64,
    content_id: &ContentId,
) -> Result<String> {
    let mut json = document.to_json()?;
    json.pop();
    if let Some(ids) = token_ids {
        json.push_str(",\"token_ids\":");
        json.push_str(&to_json(&ids)?);
    }
    json.push_str(&format!(",\"number\":{number},\"content_id\":\"{}\"", hex(content_id)));
    Ok(format!("{ENTRY}{},\n", sealed(json)))
}

/// One activation in the last line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) point: String,
    pub(super) dtype: String,
    pub(super) shape: Vec<u64>,
    /// Rows of every frame but the last.
    pub(super) rows: u64,
    /// Where the text of the first row, or the base64, begins.
    pub(super) offset: u64,
    pub(super) nonfinite: u64,
    pub(super) saturated: u64,
    /// Of the raw bytes.
    pub(super) blake3: String,
    /// Of the raw bytes of each frame, one after the other.
    pub(super) xxh3: String,
    /// Bytes of each frame's text; two more stand between frames. Absent from base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<Vec<u64>>,
}

/// The last line.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Table {
    pub(super) points: Vec<Row>,
}

impl Table {
    /// The line, with its end and the file's.
    pub(super) fn line(&self) -> Result<String> {
        let mut json = to_json(self)?;
        json.pop();
        Ok(format!("{INDEX}{}}}\n", sealed(json)))
    }

    /// Reads what [`Table::line`] wrote, without the end of the line. `None` where it is anything else: the table only
    /// repeats what the rest of the file says.
    pub(super) fn parse_line(line: &[u8]) -> Option<Self> {
        let json = std::str::from_utf8(line).ok()?.strip_prefix(INDEX)?.strip_suffix('}')?;
        serde_json::from_str(unsealed(json)?.ok()?).ok()
    }
}

impl Row {
    /// The row of an activation whose text begins at `offset`.
    pub(super) fn new(activation: &Activation, digest: &[u8; 32], offset: u64, text: Option<Vec<u64>>) -> Self {
        let checksums = activation.frames.iter().map(|frame| format!("{:016x}", frame.checksum));
        Self {
            point: activation.point.to_string(),
            dtype: activation.layout.dtype().name().to_owned(),
            shape: activation.layout.shape().to_vec(),
            rows: activation.frame_rows,
            offset,
            nonfinite: activation.nonfinite,
            saturated: activation.saturated,
            blake3: hex(digest),
            xxh3: checksums.collect(),
            text,
        }
    }

    /// The activation, and the digest of its raw bytes.
    pub(super) fn activation(&self) -> Result<(Activation, [u8; 32])> {
        let layout = Layout::new(Dtype::parse(&self.dtype)?, self.shape.clone())?;
        if !self.xxh3.is_ascii() || !self.xxh3.len().is_multiple_of(HASH_DIGITS) {
            return Err(malformed(format!("the checksums of `{}` are cut short", self.point)));
        }
        let lengths = FrameLengths::new(&layout, self.rows)?;
        let digits = self.xxh3.as_bytes().chunks(HASH_DIGITS);
        if digits.len() as u64 != lengths.frames || self.text.as_ref().is_some_and(|t| t.len() != digits.len()) {
            return Err(malformed(format!("the index has the wrong number of frames for `{}`", self.point)));
        }
        let frame = |(n, digits)| {
            let checksum = std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
            let checksum = checksum.ok_or_else(|| malformed(format!("a checksum of `{}` is not hex", self.point)))?;
            Ok(Frame { checksum, length: lengths.of(n), encoding: Encoding::Stored })
        };
        let frames = (0..).zip(digits).map(frame).collect::<Result<_>>()?;
        let (nonfinite, saturated) = (self.nonfinite, self.saturated);
        let point = HookPoint::new(&self.point)?;
        let digest = unhex("blake3", &self.blake3)?;
        Ok((
            Activation { point, layout, frame_rows: self.rows, nonfinite, saturated, model: None, below: None, frames },
            digest,
        ))
    }
}

/// How many raw bytes each frame of an activation has.
pub(super) struct FrameLengths {
    pub(super) frames: u64,
    each: u32,
    last: u32,
}

impl FrameLengths {
    pub(super) fn new(layout: &Layout, rows: u64) -> Result<Self> {
        let frames = Activation::frame_count(layout, rows);
        let bytes = |rows: u64| rows.checked_mul(layout.row_bytes()).filter(|&n| rows < 2 || n <= MAX_FRAME_BYTES);
        let each = bytes(rows.min(layout.rows())).and_then(|bytes| u32::try_from(bytes).ok());
        let each = each.filter(|_| rows > 0);
        let each = each.ok_or_else(|| malformed(format!("frames of `{rows}` rows are above the limit of 16 MiB")))?;
        let before = frames.saturating_sub(1) * u64::from(each);
        let last = u32::try_from(layout.bytes() - before).unwrap_or(each);
        Ok(Self { frames, each, last })
    }

    pub(super) fn of(&self, frame: u64) -> u32 {
        if frame + 1 == self.frames { self.last } else { self.each }
    }
}

/// An object without its closing brace, with a checksum of what it says as the last member.
fn sealed(open: String) -> String {
    let checksum = frame_checksum(open.as_bytes());
    format!("{open}{SEAL}{checksum:016x}\"}}")
}

/// The object that [`sealed`] closed, its seal checked; `None` where there is none.
fn unsealed(json: &str) -> Option<Result<&str>> {
    let (open, seal) = json.split_at_checked(json.len().checked_sub(SEALED)?)?;
    let digits = seal.strip_prefix(SEAL)?.strip_suffix("\"}")?;
    if format!("{:016x}", frame_checksum(open.as_bytes())) == digits {
        return Some(Ok(json));
    }
    let message =
        "the line does not match the `xxh3` at its end; to keep a change made by hand, take it and `content_id` out";
    Some(Err(Error::new(Kind::Checksum, message)))
}

/// The members of a JSON object, as text. A name given twice is refused: readers would not agree on what it says.
pub(super) struct Members<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Members<'a> {
    pub(super) fn parse(json: &'a str) -> Result<Self> {
        serde_json::from_str(json).map_err(|e| malformed(e.to_string()))
    }

    /// The member called `name`, which must be what `expected` says, unless it is missing or null.
    fn read<T: Deserialize<'a>>(&self, name: &str, expected: &str) -> Result<Option<T>> {
        let value = self.0.get(name).filter(|value| !is_null(value));
        value.map(|value| parse(name, expected, value.get())).transpose()
    }

    fn document(&self) -> Result<Document> {
        let given =
            |&name: &&'static str| self.0.get(name).filter(|value| !is_null(value)).map(|value| (name, value.get()));
        let mut fields: Vec<_> = DOCUMENT.iter().filter_map(given).collect();
        if !fields.iter().any(|(name, _)| *name == "key_recipe") {
            fields.push(("key_recipe", "\"user\""));
        }
        let fields: Vec<_> = fields.into_iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        Document::parse(&format!("{{{}}}", fields.join(","))).map_err(|e| {
            let unreadable = || malformed(format!("`entry` cannot be read: {e}"));
            self.check_fields().err().unwrap_or_else(unreadable)
        })
    }

    /// Finds the field of a document that is no such field.
    fn check_fields(&self) -> Result<()> {
        for name in ["key", "prompt", "response"] {
            self.read::<String>(name, "text")?;
        }
        self.read::<KeyRecipe>("key_recipe", "`prompt`, `ids` or `user`")?;
        self.read::<u64>("prompt_length", COUNT)?;
        self.read::<Vec<[u64; 2]>>("positions", "a list of pairs of integers")?;
        self.read::<BTreeMap<String, &RawValue>>("metadata", "an object")?;
        self.read::<f64>("created", "a number of seconds")?;
        Ok(())
    }
}

/// Reads the member called `name`, which must be what `expected` says.
pub(super) fn parse<'a, T: Deserialize<'a>>(name: &str, expected: &str, json: &'a str) -> Result<T> {
    serde_json::from_str(json).map_err(|e| {
        let shown: String = json.chars().take(SHOWN_CHARS).collect();
        let cut = if shown.len() < json.len() { "..." } else { "" };
        malformed(format!("`{name}` is `{shown}{cut}`, not {expected}")).because(e)
    })
}

fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let mut members = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
            match members.entry(name) {
                Entry::Vacant(vacant) => vacant.insert(value),
                Entry::Occupied(taken) => {
                    return Err(serde::de::Error::custom(format_args!("`{}` is given twice", taken.key())));
                }
            };
        }
        Ok(Members(members))
    }
}

/// The bytes of hex digits, which must be just as many as needed.
pub(super) fn unhex<const N: usize>(name: &str, digits: &str) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let pairs = digits.as_bytes().chunks(2);
    let mut read = pairs.map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()));
    let whole =
        digits.len() == 2 * N && bytes.iter_mut().all(|byte| read.next().flatten().map(|b| *byte = b).is_some());
    if whole { Ok(bytes) } else { Err(malformed(format!("`{name}` is not {} hex digits", 2 * N))) }
}

fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| malformed(format!("an entry cannot be written: {e}")))
}

/// Refuses more activations than an entry may have, or one given twice, and puts them in order of their hook points.
pub(super) fn in_order<T>(mut points: Vec<T>, of: impl Fn(&T) -> &HookPoint) -> Result<Vec<T>> {
    if points.len() > MAX_POINTS {
        return Err(malformed(format!("`{}` activations are above the limit of {MAX_POINTS}", points.len())));
    }
    points.sort_by(|left, right| of(left).cmp(of(right)));
    let twice = points.windows(2).find_map(|pair| match pair {
        [left, right] if of(left) == of(right) => Some(of(left)),
        _ => None,
    });
    match twice {
        Some(point) => Err(malformed(format!("`{point}` is given twice"))),
        None => Ok(points),
    }
}
