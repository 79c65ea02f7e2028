//! What a store says of itself, written once when it is created. The only place that knows the manifest's fields.

use serde::{Deserialize, Serialize};

use crate::codec::pack::{Overflow, Pack};
use crate::codec::{Codec, find};
use crate::entry::hex;
use crate::error::{Error, Kind, Result};
use crate::format::{FORMAT_VERSION, malformed, unsupported_version};
use crate::tensor::Dtype;

/// What happens when a key is put again with other content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnConflict {
    /// The entry is refused.
    Error,
    /// The stored entry stays.
    Skip,
    /// The new entry takes its place.
    Replace,
    /// The new entry is stored as `key#1`, `key#2`, ...
    Number,
}

impl OnConflict {
    const ALL: &[Self] = &[Self::Error, Self::Skip, Self::Replace, Self::Number];

    /// The name that users and manifests give it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Skip => "skip",
            Self::Replace => "replace",
            Self::Number => "number",
        }
    }

    /// The rule called `name`.
    pub fn parse(name: &str) -> Result<Self> {
        find(Self::ALL, "on_conflict", name, Self::name)
    }
}

/// What a commit promises when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It survives a power cut.
    Commit,
    /// It survives the process; a power cut may cost the last two seconds, never anything older, never a part.
    Interval,
}

impl Durability {
    const ALL: &[Self] = &[Self::Commit, Self::Interval];

    /// The name that users and manifests give it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Interval => "interval",
        }
    }
}

/// Layers from one that is encoded alone to the next, with codec `archive`, unless another is chosen.
const KEY_DISTANCE: u32 = 8;
/// The most that can be chosen.
const MAX_KEY_DISTANCE: u32 = 1024;

/// How entries are encoded and committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes to bytes.
    pub codec: Codec,
    /// With codec `archive`, how many layers are encoded one given the other at most, the first of them alone.
    pub key_distance: Option<u32>,
    /// Array to bytes.
    pub pack: Pack,
    /// Second content for a key.
    pub on_conflict: OnConflict,
    /// Level of durability.
    pub durability: Durability,
}

/// [`Settings`] as JSON has them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsFields {
    #[serde(default)]
    codec: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoding: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_distance: Option<i64>,
    #[serde(default)]
    dtype: Option<String>,
    overflow: String,
    on_conflict: String,
    durability: String,
}

impl Settings {
    /// Reads settings; an unknown name or value is refused with the choices. `codecs` are those of the backend, its
    /// default first.
    pub fn parse(json: &str, codecs: &[Codec]) -> Result<Self> {
        let fields: SettingsFields =
            serde_json::from_str(json).map_err(|e| Error::new(Kind::InvalidOption, format!("settings: {e}")))?;
        Self::from_fields(&fields, codecs)
    }

    /// How many layers are encoded one given the other, at most.
    pub fn key_distance(&self) -> u32 {
        self.key_distance.unwrap_or(KEY_DISTANCE)
    }

    fn from_fields(fields: &SettingsFields, codecs: &[Codec]) -> Result<Self> {
        let codec = chosen_codec(fields, codecs)?;
        Ok(Self {
            codec,
            key_distance: chosen_key_distance(fields, codec)?,
            pack: Pack::new(
                fields.dtype.as_deref().map(packed_dtype).transpose()?,
                Overflow::parse(&fields.overflow)?,
            )?,
            on_conflict: OnConflict::parse(&fields.on_conflict)?,
            durability: find(Durability::ALL, "durability", &fields.durability, Durability::name)?,
        })
    }

    fn fields(&self) -> SettingsFields {
        let name = self.codec.name().to_owned();
        let (codec, encoding) = if self.codec.is_text() { (None, Some(name)) } else { (Some(name), None) };
        SettingsFields {
            codec,
            encoding,
            key_distance: (self.codec == Codec::Archive).then(|| self.key_distance().into()),
            dtype: self.pack.dtype.map(|dtype| dtype.name().to_owned()),
            overflow: self.pack.overflow.name().to_owned(),
            on_conflict: self.on_conflict.name().to_owned(),
            durability: self.durability.name().to_owned(),
        }
    }
}

/// What users call the codec is `encoding` where a store is made of text.
fn chosen_codec(fields: &SettingsFields, codecs: &[Codec]) -> Result<Codec> {
    let text = codecs.iter().any(|codec| codec.is_text());
    let (option, other) = if text { ("encoding", "codec") } else { ("codec", "encoding") };
    let (given, refused) = if text { (&fields.encoding, &fields.codec) } else { (&fields.codec, &fields.encoding) };
    let names: Vec<_> = codecs.iter().map(|codec| format!("`{}`", codec.name())).collect();
    if let Some(refused) = refused {
        let holds = if text { "numbers as text" } else { "encoded frames" };
        let message = format!(
            "`{other}` is `{refused}`, but the store holds {holds}: leave it out; `{option}` chooses between {}",
            names.join(", ")
        );
        return Err(Error::new(Kind::InvalidOption, message));
    }
    match (given, codecs) {
        (Some(name), _) => find(codecs, option, name, |codec| codec.name()),
        (None, [default, ..]) => Ok(*default),
        (None, []) => Err(Error::new(Kind::InvalidOption, "the backend has no codec")),
    }
}

fn chosen_key_distance(fields: &SettingsFields, codec: Codec) -> Result<Option<u32>> {
    let Some(distance) = fields.key_distance else { return Ok(None) };
    let within = u32::try_from(distance).ok().filter(|distance| (1..=MAX_KEY_DISTANCE).contains(distance));
    let message = match (codec, within) {
        (Codec::Archive, Some(distance)) => return Ok(Some(distance)),
        (Codec::Archive, None) => {
            format!("`key_distance` is `{distance}`: a number of layers from 1 to {MAX_KEY_DISTANCE}")
        }
        (other, _) => format!(
            "`key_distance` is `{distance}`, but codec `{}` encodes every layer alone: leave it out, or choose `archive`",
            other.name()
        ),
    };
    Err(Error::new(Kind::InvalidOption, message))
}

fn packed_dtype(name: &str) -> Result<Dtype> {
    let unknown = |_| Error::new(Kind::InvalidOption, format!("unknown dtype `{name}`: none, `float16` or `bfloat16`"));
    Dtype::parse(name).map_err(unknown)
}

/// Identity, version, conventions and settings of a store.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Random, given at creation.
    pub store_id: [u8; 16],
    /// How entries are encoded and committed.
    pub settings: Settings,
}

#[derive(Serialize, Deserialize)]
struct ManifestFields {
    format: String,
    version: u8,
    store_id: String,
    token_convention: String,
    features: Features,
    settings: SettingsFields,
}

#[derive(Serialize, Deserialize)]
struct Features {
    required: Vec<String>,
}

const FORMAT_NAME: &str = "actstore";
/// Row j of an activation is the state computed at token j.
const TOKEN_CONVENTION: &str = "at";

impl Manifest {
    /// A manifest with a new store id.
    pub fn new(settings: Settings) -> Result<Self> {
        let mut store_id = [0; 16];
        let random = rustix::rand::getrandom(&mut store_id[..], rustix::rand::GetRandomFlags::empty());
        random.map_err(|e| Error::new(Kind::StorageIo, format!("no random numbers for a store id: {e}")))?;
        Ok(Self { store_id, settings })
    }

    /// The store tag that every record carries.
    pub fn store_tag(&self) -> u64 {
        self.store_id.iter().take(8).rev().fold(0, |tag, &byte| (tag << 8) | u64::from(byte))
    }

    /// The manifest as JSON.
    pub fn to_json(&self) -> Result<String> {
        let fields = ManifestFields {
            format: FORMAT_NAME.to_owned(),
            version: FORMAT_VERSION,
            store_id: hex(&self.store_id),
            token_convention: TOKEN_CONVENTION.to_owned(),
            features: Features { required: Vec::new() },
            settings: self.settings.fields(),
        };
        serde_json::to_string(&fields).map_err(|e| malformed(format!("the manifest cannot be written: {e}")))
    }

    /// Settings, identity and conventions in one flat JSON object, for people.
    pub fn to_public_json(&self) -> Result<String> {
        let fields = self.settings.fields();
        let public = serde_json::json!({
            "codec": fields.codec, "encoding": fields.encoding, "key_distance": fields.key_distance, "dtype": fields.dtype, "overflow": fields.overflow, "on_conflict": fields.on_conflict,
            "durability": fields.durability, "store_id": hex(&self.store_id), "format_version": FORMAT_VERSION,
            "token_convention": TOKEN_CONVENTION,
        });
        Ok(public.to_string())
    }

    /// Reads a manifest; refuses later versions and features this build does not know. `codecs` are those of the backend.
    pub fn parse(json: &str, codecs: &[Codec]) -> Result<Self> {
        let fields: ManifestFields =
            serde_json::from_str(json).map_err(|e| malformed(format!("the manifest cannot be read: {e}")))?;
        if fields.version > FORMAT_VERSION {
            return Err(unsupported_version(fields.version));
        }
        if let Some(feature) = fields.features.required.first() {
            let message =
                format!("the store needs feature `{feature}`, which this build does not know: upgrade actstore");
            return Err(Error::new(Kind::UnsupportedVersion, message));
        }
        if fields.token_convention != TOKEN_CONVENTION {
            let message = format!("unknown token convention `{}`: upgrade actstore", fields.token_convention);
            return Err(Error::new(Kind::UnsupportedVersion, message));
        }
        if fields.format != FORMAT_NAME {
            return Err(malformed(format!("`{}` is not the format of a store", fields.format)));
        }
        let id = u128::from_str_radix(&fields.store_id, 16).ok().filter(|_| fields.store_id.len() == 32);
        let id = id.ok_or_else(|| malformed("the store id is not 32 hex digits"))?;
        Ok(Self { store_id: id.to_be_bytes(), settings: Settings::from_fields(&fields.settings, codecs)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODECS: &[Codec] = &[Codec::Planes, Codec::Raw];

    const SETTINGS: &str =
        r#"{"codec":"planes","dtype":"float16","overflow":"saturate","on_conflict":"number","durability":"interval"}"#;

    #[test]
    fn manifests_come_back() {
        let manifest = Manifest::new(Settings::parse(SETTINGS, CODECS).unwrap()).unwrap();
        assert_eq!(Manifest::parse(&manifest.to_json().unwrap(), CODECS).unwrap(), manifest);
    }

    #[test]
    fn what_a_later_build_wrote_is_refused() {
        let json = Manifest::new(Settings::parse(SETTINGS, CODECS).unwrap()).unwrap().to_json().unwrap();
        for (old, new) in [
            (r#""version":0"#, r#""version":9"#),
            (r#""required":[]"#, r#""required":["rows-of-gold"]"#),
            (r#""token_convention":"at""#, r#""token_convention":"predicts""#),
        ] {
            let error = Manifest::parse(&json.replace(old, new), CODECS).unwrap_err();
            assert_eq!(error.kind(), Kind::UnsupportedVersion, "{new}");
            assert!(error.to_string().ends_with("upgrade actstore"));
        }
    }

    #[test]
    fn a_key_distance_is_for_archive() {
        let parse = |codec: &str, distance: i64| {
            let settings = SETTINGS.replace("planes", codec).replace("{", &format!(r#"{{"key_distance":{distance},"#));
            Settings::parse(&settings, &[Codec::Planes, Codec::Archive])
        };
        assert_eq!(parse("archive", 3).unwrap().key_distance(), 3);
        let default = Settings::parse(&SETTINGS.replace("planes", "archive"), &[Codec::Archive]).unwrap();
        assert_eq!(default.key_distance(), KEY_DISTANCE);
        let json = Manifest::new(default).unwrap().to_json().unwrap();
        assert!(json.contains(r#""key_distance":8"#), "a later default must not change what a store does: {json}");
        for (codec, distance, message) in [
            ("archive", -1, "`key_distance` is `-1`: a number of layers from 1 to 1024"),
            ("archive", 0, "`key_distance` is `0`: a number of layers from 1 to 1024"),
            ("archive", 1025, "`key_distance` is `1025`: a number of layers from 1 to 1024"),
            (
                "planes",
                8,
                "`key_distance` is `8`, but codec `planes` encodes every layer alone: leave it out, or choose `archive`",
            ),
        ] {
            let error = parse(codec, distance).unwrap_err();
            assert_eq!((error.kind(), error.to_string().as_str()), (Kind::InvalidOption, message));
        }
    }

    #[test]
    fn unknown_settings_are_refused() {
        for (old, new) in
            [("planes", "gzip"), ("float16", "float32"), ("saturate", "wrap"), ("number", "ask"), ("dtype", "type")]
        {
            assert!(Settings::parse(&SETTINGS.replace(old, new), CODECS).is_err(), "{new}");
        }
    }
    #[test]
    fn a_backend_has_its_own_codecs() {
        let parse = |json: &str, codecs| Settings::parse(json, codecs).map(|settings| settings.codec);
        let of =
            |choice: &str| format!(r#"{{{choice}"overflow":"error","on_conflict":"error","durability":"commit"}}"#);
        const TEXT: &[Codec] = &[Codec::Text, Codec::Base64];
        assert_eq!(parse(&of(""), CODECS).unwrap(), Codec::Planes);
        assert_eq!(parse(&of(""), TEXT).unwrap(), Codec::Text);
        assert_eq!(parse(&of(r#""encoding":"base64","#), TEXT).unwrap(), Codec::Base64);
        for (choice, codecs, message) in [
            (
                r#""codec":"planes","#,
                TEXT,
                "`codec` is `planes`, but the store holds numbers as text: leave it out; `encoding` chooses between `text`, `base64`",
            ),
            (
                r#""encoding":"text","#,
                CODECS,
                "`encoding` is `text`, but the store holds encoded frames: leave it out; `codec` chooses between `planes`, `raw`",
            ),
            (r#""codec":"zstd","#, CODECS, "unknown codec `zstd`: one of planes, raw"),
            (r#""encoding":"hex","#, TEXT, "unknown encoding `hex`: one of text, base64"),
        ] {
            let error = parse(&of(choice), codecs).unwrap_err();
            assert_eq!((error.kind(), error.to_string().as_str()), (Kind::InvalidOption, message));
        }
    }
}
