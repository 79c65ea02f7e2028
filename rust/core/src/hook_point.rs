//! Names of places in a forward pass, as they stand on disk: the TransformerLens spelling.

use std::cmp::Ordering;
use std::fmt;

use crate::error::{Error, Kind, Result};

/// Longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 512;

/// A hook point's canonical name, such as `blocks.12.hook_resid_post`, or a raw module path.
///
/// Ordered as the forward pass meets them: the embedding, the blocks by number, then the rest by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HookPoint(String);

impl HookPoint {
    /// Checks a name: 1 to 512 printable ASCII characters without spaces, slashes and backslashes.
    pub fn new(name: &str) -> Result<Self> {
        let legal = |c: u8| c.is_ascii_graphic() && !matches!(c, b'/' | b'\\');
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(legal) {
            return Err(Error::new(
                Kind::UnknownPoint,
                format!(
                    "`{}` is no hook point: 1 to 512 printable ASCII characters without `/` and `\\`",
                    name.escape_debug()
                ),
            ));
        }
        Ok(Self(name.to_owned()))
    }

    /// The canonical name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The block it belongs to, if any.
    pub fn layer(&self) -> Option<u64> {
        let number = self.0.strip_prefix("blocks.")?.split('.').next()?;
        number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())?
    }

    /// What it is in its layer, by the same name in every layer; the embedding begins the residual stream.
    pub fn stream(&self) -> Option<&str> {
        if self.0 == "hook_embed" {
            return Some("hook_resid_post");
        }
        self.layer()?;
        self.0.strip_prefix("blocks.")?.split_once('.').map(|(_, stream)| stream)
    }

    fn rank(&self) -> (u8, u64, &str) {
        match self.layer() {
            Some(layer) => (1, layer, &self.0),
            None if self.0 == "hook_embed" => (0, 0, &self.0),
            None => (2, 0, &self.0),
        }
    }
}

impl Ord for HookPoint {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for HookPoint {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordered_as_the_forward_pass_meets_them() {
        let mut points: Vec<_> =
            ["logits", "blocks.10.hook_resid_post", "blocks.2.mlp.hook_out", "hook_embed", "ln_final.hook_out"]
                .iter()
                .map(|name| HookPoint::new(name).unwrap())
                .collect();
        points.sort();
        let names: Vec<_> = points.iter().map(HookPoint::as_str).collect();
        assert_eq!(
            names,
            ["hook_embed", "blocks.2.mlp.hook_out", "blocks.10.hook_resid_post", "ln_final.hook_out", "logits"]
        );
        assert_eq!(points[2].layer(), Some(10));
    }

    #[test]
    fn a_stream_runs_through_the_layers_and_begins_with_the_embedding() {
        let stream = |name: &str| HookPoint::new(name).unwrap().stream().map(str::to_owned);
        assert_eq!(stream("blocks.12.mlp.hook_out").as_deref(), Some("mlp.hook_out"));
        assert_eq!(stream("hook_embed"), stream("blocks.0.hook_resid_post"));
        for name in ["logits", "ln_final.hook_out", "blocks.x.hook_resid_post", "blocks.3", "model.layers.3"] {
            assert_eq!(stream(name), None, "{name}");
        }
    }

    #[test]
    fn impossible_names_are_refused() {
        for name in ["", "a b", "a/b", "a\\b", "a\n", "ä", &"x".repeat(513)] {
            assert_eq!(HookPoint::new(name).unwrap_err().kind(), Kind::UnknownPoint, "{name:?}");
        }
    }
}
