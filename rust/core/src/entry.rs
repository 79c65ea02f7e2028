//! What an entry is made of: its key, its document, its positions, its content id.

mod positions;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

pub use self::positions::Positions;
pub(crate) use self::positions::StoredPositions;
use self::positions::{no_prompt_length, show_ranges};
use crate::error::{Error, Kind, Result};
use crate::hook_point::HookPoint;
use crate::tensor::Layout;

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// Largest document, in bytes of JSON.
pub const MAX_DOCUMENT_BYTES: usize = 16 << 20;

/// What an entry costs in memory besides its content, about.
const ENTRY_BYTES: usize = 1024;

/// Longest sequence, in tokens.
pub const MAX_TOKENS: u64 = 1 << 24;

/// BLAKE3 of what an entry holds, its key and time of capture apart.
pub type ContentId = [u8; 32];

/// Lower-case hex of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let hex = digits.map(|digit| if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
    String::from_utf8(hex.collect()).unwrap_or_default()
}

/// SHA-256 hex of the prompt as fed to the tokenizer.
pub fn key_of_prompt(prompt: &str) -> String {
    hex(&Sha256::digest(prompt.as_bytes()))
}

/// SHA-256 hex of `ids:` plus the ids as little-endian u32.
pub fn key_of_ids(token_ids: &[u32]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(b"ids:");
    token_ids.iter().for_each(|id| hasher.update(id.to_le_bytes()));
    hex(&hasher.finalize())
}

/// Refuses keys that are empty, over 1 KiB, hold control characters, or play tricks with paths.
///
/// No key ever becomes a path by itself; the tricks are refused because formats of exchange make trees of keys.
pub fn check_key(key: &str) -> Result<()> {
    let shown: String = key.chars().take(80).flat_map(char::escape_debug).collect();
    if key.is_empty() || key.len() > MAX_KEY_BYTES || key.chars().any(char::is_control) {
        let message = format!("`{shown}` is no key: 1 to {MAX_KEY_BYTES} bytes of UTF-8 without control characters");
        return Err(Error::new(Kind::InvalidKey, message));
    }
    let tricky = |part: &str| matches!(part, "." | "..");
    if key.starts_with(['/', '~']) || key.split(['/', '\\']).any(tricky) {
        let message = format!(
            "key `{shown}` reads as a path out of the store; use a key without `..`, `.` or a leading `/` or `~`"
        );
        return Err(Error::new(Kind::UnsafePath, message));
    }
    Ok(())
}

/// Where a key came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyRecipe {
    /// [`key_of_prompt`].
    Prompt,
    /// [`key_of_ids`]; of a generation, the ids of the prompt.
    Ids,
    /// The caller's own.
    User,
}

/// Everything about an entry but its token ids and activations: the one JSON document of its metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Names the entry; absent until [`Document::assign_key`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Where the key came from.
    pub key_recipe: KeyRecipe,
    /// Text as fed to the tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Text generated or given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    /// Tokens of the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_length: Option<u64>,
    /// Half-open ranges of the positions whose rows are stored, ascending; absent where rows are not tied to tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions: Option<Vec<[u64; 2]>>,
    /// The user's own fields.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    /// Unix seconds; no part of the content.
    #[serde(default)]
    pub created: f64,
}

impl Document {
    /// Reads a document and checks its size and positions.
    pub fn parse(json: &str) -> Result<Self> {
        check_document_bytes(json.len())?;
        // The JSON library's own mark of a number kept as text: taken from a document, it would change what it says.
        let named = |(at, _)| json.get(..at).is_none_or(|before| !before.ends_with('\\'));
        if json.match_indices("\"$serde_json::private::").any(named) {
            let message = "metadata has a field `$serde_json::private::...`, a name that cannot be stored; rename it";
            return Err(Error::new(Kind::InvalidMetadata, message));
        }
        let document: Self = serde_json::from_str(json).map_err(|e| {
            Error::new(Kind::InvalidMetadata, format!("metadata cannot be read as an entry's document: {e}"))
        })?;
        document.check_positions()?;
        Ok(document)
    }

    fn check_positions(&self) -> Result<()> {
        let mut floor = 0;
        for &[start, stop] in self.positions.iter().flatten() {
            if start < floor || stop <= start || stop > MAX_TOKENS {
                let message =
                    format!("positions `[{start}, {stop})` are not ascending, non-empty ranges below {MAX_TOKENS}");
                return Err(Error::new(Kind::UnknownPosition, message));
            }
            floor = stop;
        }
        Ok(())
    }

    /// Refuses a prompt, or positions, that reach beyond the sequence.
    pub fn check_within(&self, tokens: u64) -> Result<()> {
        if let Some(length) = self.prompt_length.filter(|&length| length > tokens) {
            let message = format!("`prompt_length` is `{length}` of `{tokens}` tokens");
            return Err(Error::new(Kind::InvalidMetadata, message));
        }
        let end = self.positions.iter().flatten().map(|[_, stop]| *stop).max().unwrap_or(0);
        if end > tokens {
            let message = format!("positions up to `{}` of a sequence of `{tokens}` tokens", end - 1);
            return Err(Error::new(Kind::UnknownPosition, message));
        }
        Ok(())
    }

    /// Gives the entry its key by its recipe, where it has none, and checks it.
    pub fn assign_key(&mut self, token_ids: Option<&[u32]>) -> Result<&str> {
        if self.key.is_none() {
            self.key = Some(match (self.key_recipe, &self.prompt, token_ids) {
                (KeyRecipe::Prompt, Some(prompt), _) => key_of_prompt(prompt),
                (KeyRecipe::Ids, _, Some(ids)) => {
                    let length = self.prompt_length.map_or(ids.len(), |n| usize::try_from(n).unwrap_or(ids.len()));
                    key_of_ids(ids.get(..length).unwrap_or(ids))
                }
                _ => {
                    let message = "an entry without `prompt` and `token_ids` needs a `key`";
                    return Err(Error::new(Kind::InvalidKey, message));
                }
            });
        }
        let key = self.key();
        check_key(key)?;
        Ok(key)
    }

    /// The key; empty before [`Document::assign_key`].
    pub fn key(&self) -> &str {
        self.key.as_deref().unwrap_or_default()
    }

    /// SHA-256 hex of the prompt: what older systems join on.
    pub fn prompt_sha256(&self) -> Option<String> {
        self.prompt.as_deref().map(key_of_prompt)
    }

    /// Number of stored positions, or `None` where rows are not tied to tokens.
    pub fn stored_positions(&self) -> Option<u64> {
        self.positions.as_ref().map(|ranges| ranges.iter().map(|[start, stop]| stop - start).sum())
    }

    /// Bytes that the document and its token ids hold in memory, about.
    pub fn held_bytes(&self, token_ids: Option<&[u32]>) -> u64 {
        let texts = [&self.prompt, &self.response].into_iter().flatten().map(String::len).sum::<usize>();
        let metadata = self.metadata.iter().map(|(name, value)| name.len() + held(value)).sum::<usize>();
        (texts + metadata + token_ids.map_or(0, size_of_val) + ENTRY_BYTES) as u64
    }

    /// The document as stored; refused where a reader would refuse it.
    pub fn to_json(&self) -> Result<String> {
        let json = serde_json::to_string(self)
            .map_err(|e| Error::new(Kind::InvalidMetadata, format!("metadata cannot be written: {e}")))?;
        check_document_bytes(json.len())?;
        Ok(json)
    }

    /// The document as shown to people: the stored one with `prompt_sha256` and every field present.
    pub fn to_public_json(&self) -> Result<String> {
        Public::of_stored(&self.to_json()?)?.to_json()
    }

    /// The parts that are content, as canonical JSON: keys sorted, no spaces, no key, no recipe, no time.
    pub fn canonical_content(&self) -> String {
        let content = serde_json::json!({
            "metadata": self.metadata, "positions": self.positions, "prompt": self.prompt,
            "prompt_length": self.prompt_length, "response": self.response,
        });
        sorted(&content).to_string()
    }

    /// Indices of the rows of an activation that `positions` names; `None` means every row.
    pub fn rows(&self, point: &HookPoint, layout: &Layout, positions: &Positions) -> Result<Option<Vec<u64>>> {
        if *positions == Positions::All {
            return Ok(None);
        }
        let stored = StoredPositions::of(self.positions.as_deref());
        if stored.count != layout.rows() {
            let message =
                format!("the rows of `{point}` in entry `{}` are not tied to positions; read them `all`", self.key());
            return Err(Error::new(Kind::UnknownPosition, message));
        }
        let rows = match positions {
            Positions::All => return Ok(None),
            Positions::Last => stored.count.checked_sub(1).into_iter().collect(),
            Positions::Prompt => (0..self.boundary(&stored)?).collect(),
            Positions::Response => (self.boundary(&stored)?..stored.count).collect(),
            Positions::At(indices) => {
                indices.iter().map(|&index| self.row_at(&stored, index)).collect::<Result<_>>()?
            }
        };
        Ok(Some(rows))
    }

    /// The first row behind the prompt.
    fn boundary(&self, stored: &StoredPositions<'_>) -> Result<u64> {
        let prompt_length = self.prompt_length.ok_or_else(|| no_prompt_length(&format!("entry `{}`", self.key())))?;
        Ok(stored.rows_before(prompt_length))
    }

    fn row_at(&self, stored: &StoredPositions<'_>, index: i64) -> Result<u64> {
        let row = match u64::try_from(index) {
            Ok(position) => stored.row_of(position),
            Err(_) => stored.count.checked_sub(index.unsigned_abs()),
        };
        row.ok_or_else(|| {
            let message = format!(
                "position `{index}` is not stored in entry `{}`; stored are {}",
                self.key(),
                show_ranges(stored.ranges)
            );
            Error::new(Kind::UnknownPosition, message)
        })
    }
}

/// A document as shown to people. Its fields are not taken apart: they are shown as they are stored.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Public<'a> {
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    key_recipe: Option<&'a RawValue>,
    prompt: Option<&'a RawValue>,
    response: Option<&'a RawValue>,
    prompt_length: Option<&'a RawValue>,
    positions: Option<&'a RawValue>,
    metadata: Option<&'a RawValue>,
    created: Option<&'a RawValue>,
}

impl<'a> Public<'a> {
    /// Of a document as it is stored.
    pub(crate) fn of_stored(json: &'a str) -> Result<Self> {
        serde_json::from_str(json).map_err(not_shown)
    }

    /// Whether that is the key.
    pub(crate) fn has_key(&self, key: &str) -> bool {
        self.key.is_some_and(|stored| text_of(stored).is_ok_and(|stored| stored == key))
    }

    pub(crate) fn to_json(&self) -> Result<String> {
        let prompt = self.prompt.map(text_of).transpose().map_err(not_shown)?;
        let prompt_sha256 =
            prompt.map_or_else(|| "null".to_owned(), |prompt| format!("\"{}\"", key_of_prompt(&prompt)));
        let stored = |field: Option<&'a RawValue>, missing: &'a str| field.map_or(missing, RawValue::get);
        let fields = [
            ["{\"key\":", stored(self.key, "null")],
            [",\"key_recipe\":", stored(self.key_recipe, "null")],
            [",\"prompt\":", stored(self.prompt, "null")],
            [",\"response\":", stored(self.response, "null")],
            [",\"prompt_sha256\":", &prompt_sha256],
            [",\"prompt_length\":", stored(self.prompt_length, "null")],
            [",\"positions\":", stored(self.positions, "null")],
            [",\"metadata\":", stored(self.metadata, "{}")],
            [",\"created\":", stored(self.created, "0.0")],
            ["}", ""],
        ];
        Ok(fields.as_flattened().concat())
    }
}

fn not_shown(error: serde_json::Error) -> Error {
    Error::new(Kind::InvalidMetadata, format!("metadata cannot be shown: {error}"))
}

/// The text that a JSON string says.
fn text_of(json: &RawValue) -> serde_json::Result<Cow<'_, str>> {
    match json.get().strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(plain) if !plain.contains('\\') => Ok(Cow::Borrowed(plain)),
        _ => serde_json::from_str(json.get()).map(Cow::Owned),
    }
}

fn check_document_bytes(bytes: usize) -> Result<()> {
    if bytes <= MAX_DOCUMENT_BYTES {
        return Ok(());
    }
    Err(Error::new(Kind::LimitExceeded, format!("metadata of `{bytes}` bytes is above the limit of 16 MiB an entry")))
}

fn held(value: &Value) -> usize {
    let inside = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(held).sum(),
        Value::Object(map) => map.iter().map(|(name, value)| name.len() + held(value)).sum(),
    };
    size_of::<Value>() + inside
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            Value::Object(fields.into_iter().map(|(name, value)| (name.clone(), sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// One activation as it enters the content id.
pub struct ContentPoint<'a> {
    /// Where it was seen.
    pub point: &'a HookPoint,
    /// Dtype and shape after packing.
    pub layout: &'a Layout,
    /// BLAKE3 of the raw bytes after packing.
    pub digest: [u8; 32],
}

/// The content id: BLAKE3 over length-prefixed parts, as FORMAT.md lays them out.
pub fn content_id(document: &Document, token_ids: Option<&[u32]>, points: &[ContentPoint<'_>]) -> ContentId {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(b"actstore content 0");
    part(document.canonical_content().as_bytes());
    part(if token_ids.is_some() { b"ids" } else { b"" });
    part(&token_ids.unwrap_or_default().iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>());
    let mut points: Vec<_> = points.iter().collect();
    points.sort_by_key(|p| p.point.as_str());
    for ContentPoint { point, layout, digest } in points {
        part(point.as_str().as_bytes());
        part(layout.dtype().name().as_bytes());
        part(&layout.shape().iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>());
        part(digest);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    fn document(json: &str) -> Document {
        Document::parse(json).unwrap()
    }

    #[test]
    fn keys_follow_their_recipes() {
        let mut prompt = document(r#"{"key_recipe":"prompt","prompt":"abc"}"#);
        assert_eq!(
            prompt.assign_key(None).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let ids = [1u32, 2, 3];
        let mut whole = document(r#"{"key_recipe":"ids"}"#);
        assert_eq!(whole.assign_key(Some(&ids)).unwrap(), key_of_ids(&ids));
        let mut generation = document(r#"{"key_recipe":"ids","prompt_length":2}"#);
        assert_eq!(generation.assign_key(Some(&ids)).unwrap(), key_of_ids(&ids[..2]));
        let nothing = document(r#"{"key_recipe":"user"}"#).assign_key(None).unwrap_err();
        assert_eq!(nothing.kind(), Kind::InvalidKey);
    }

    #[test]
    fn bad_keys_are_refused() {
        for key in ["", "a\0b", "line\n", &"x".repeat(1025)] {
            assert_eq!(check_key(key).unwrap_err().kind(), Kind::InvalidKey, "{key:?}");
        }
        for key in ["../x", "a/../b", "/etc/passwd", "~/x", "a\\..\\b", ".", ".."] {
            assert_eq!(check_key(key).unwrap_err().kind(), Kind::UnsafePath, "{key:?}");
        }
        for key in ["org/data:train:17", "a..b", "ключ", "with space"] {
            assert!(check_key(key).is_ok(), "{key:?}");
        }
    }

    #[test]
    fn content_ignores_key_order_and_time_but_nothing_else() {
        let id = |json: &str, ids: Option<&[u32]>| content_id(&document(json), ids, &[]);
        let base = id(r#"{"key_recipe":"user","key":"a","metadata":{"x":1,"y":{"b":1,"a":2}},"created":1.5}"#, None);
        let same = id(r#"{"key_recipe":"ids","metadata":{"y":{"a":2,"b":1},"x":1},"created":9}"#, None);
        assert_eq!(base, same);
        for other in [r#"{"key_recipe":"ids","metadata":{"y":{"a":2,"b":1},"x":1.0}}"#, r#"{"key_recipe":"ids"}"#] {
            assert_ne!(base, id(other, None));
        }
        assert_ne!(id(r#"{"key_recipe":"ids"}"#, None), id(r#"{"key_recipe":"ids"}"#, Some(&[])));
    }

    #[test]
    fn rows_of_positions() {
        let entry = document(r#"{"key":"k","key_recipe":"user","prompt_length":3,"positions":[[1,4],[6,8]]}"#);
        let point = HookPoint::new("blocks.0.hook_resid_post").unwrap();
        let layout = Layout::new(Dtype::Float32, vec![5, 2]).unwrap();
        let rows = |positions: Positions| entry.rows(&point, &layout, &positions);
        assert_eq!(rows(Positions::All).unwrap(), None);
        assert_eq!(rows(Positions::Prompt).unwrap(), Some(vec![0, 1]));
        assert_eq!(rows(Positions::Response).unwrap(), Some(vec![2, 3, 4]));
        assert_eq!(rows(Positions::Last).unwrap(), Some(vec![4]));
        assert_eq!(rows(Positions::At(vec![7, -5, 1])).unwrap(), Some(vec![4, 0, 0]));
        let error = rows(Positions::At(vec![5])).unwrap_err();
        assert_eq!(error.to_string(), "position `5` is not stored in entry `k`; stored are 1 to 3, 6 to 7");
        let heads = Layout::new(Dtype::Float32, vec![4, 8, 8]).unwrap();
        assert_eq!(entry.rows(&point, &heads, &Positions::Last).unwrap_err().kind(), Kind::UnknownPosition);
    }

    #[test]
    fn selections_of_a_sequence() {
        assert_eq!(Positions::Response.select(5, Some(3)).unwrap(), [3, 4]);
        assert_eq!(Positions::Last.select(5, None).unwrap(), [4]);
        assert_eq!(Positions::At(vec![-1, 0, 4]).select(5, None).unwrap(), [0, 4]);
        assert_eq!(Positions::Response.select(5, None).unwrap_err().kind(), Kind::UnknownPosition);
        assert_eq!(Positions::At(vec![5]).select(5, None).unwrap_err().kind(), Kind::UnknownPosition);
    }

    #[test]
    fn documents_that_would_not_come_back_are_refused() {
        let hidden = r#"{"key_recipe":"user","key":"k","metadata":{"a":{"$serde_json::private::Number":"5"}}}"#;
        assert_eq!(Document::parse(hidden).unwrap_err().kind(), Kind::InvalidMetadata);
        let text = "x".repeat(MAX_DOCUMENT_BYTES - 60);
        let mut large = document(&format!(r#"{{"key_recipe":"prompt","prompt":"{text}"}}"#));
        large.assign_key(None).unwrap();
        assert_eq!(large.to_json().unwrap_err().kind(), Kind::LimitExceeded);
    }

    #[test]
    fn every_field_is_shown_as_it_is_stored() {
        let mut whole = Document {
            key: Some("a \"key\"".to_owned()),
            key_recipe: KeyRecipe::User,
            prompt: Some("a\n\u{1F600}".to_owned()),
            response: Some("b".to_owned()),
            prompt_length: Some(2),
            positions: Some(vec![[0, 3]]),
            metadata: Map::from_iter([("n".to_owned(), 1.into())]),
            created: 1.5,
        };
        let fields = |json: &str| serde_json::from_str::<Map<String, Value>>(json).unwrap();
        let mut shown = fields(&whole.to_public_json().unwrap());
        assert_eq!(shown.remove("prompt_sha256"), whole.prompt_sha256().map(Value::from));
        assert_eq!(shown, fields(&whole.to_json().unwrap()));
        (whole.prompt, whole.response, whole.prompt_length, whole.positions) = (None, None, None, None);
        whole.metadata.clear();
        let shown = fields(&whole.to_public_json().unwrap());
        assert_eq!(shown.values().filter(|value| value.is_null()).count(), 5);
        assert_eq!(shown.get("metadata"), Some(&Map::new().into()));
        let bare = Public::of_stored("{}").unwrap().to_json().unwrap();
        assert_eq!(fields(&bare).len(), 9);
    }

    #[test]
    fn only_its_own_key_is_that_of_a_document() {
        let stored = r#"{"key":"a\u0062","key_recipe":"user"}"#;
        let shown = Public::of_stored(stored).unwrap();
        assert!(shown.has_key("ab"));
        assert!(!shown.has_key(r"a\u0062"));
        assert!(!Public::of_stored("{}").unwrap().has_key(""));
        assert!(Public::of_stored(r#"{"key":"k","later":1}"#).is_err());
    }

    #[test]
    fn times_come_back_to_the_last_bit() {
        for created in [1_763_700_000.123_456_7, 0.1, 1e308, f64::MIN_POSITIVE] {
            let mut one = document(r#"{"key_recipe":"user","key":"k"}"#);
            one.created = created;
            assert_eq!(document(&one.to_json().unwrap()).created.to_bits(), created.to_bits());
        }
    }

    #[test]
    fn positions_must_ascend() {
        for positions in ["[[2,2]]", "[[3,5],[4,6]]", "[[0,5000000000]]"] {
            let json = format!(r#"{{"key_recipe":"user","key":"k","positions":{positions}}}"#);
            assert_eq!(Document::parse(&json).unwrap_err().kind(), Kind::UnknownPosition);
        }
    }
}
