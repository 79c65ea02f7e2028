//! All that the crate's codecs are asked for.

use std::ops::Range;

use actstore::codec::{self, Codec, Coded, Encoding, Kernel, Model, Rows};
use actstore::error::Result;
use actstore::tensor::Dtype;

/// Rows of one frame, and the same rows of the layer below for a codec that looks at them.
pub(crate) struct Input<'a> {
    pub(crate) dtype: Dtype,
    pub(crate) row_values: u64,
    pub(crate) bytes: &'a [u8],
    pub(crate) below: Option<&'a [u8]>,
}

impl<'a> Input<'a> {
    fn rows(&self) -> Rows<'a> {
        Rows { dtype: self.dtype, row_values: self.row_values, bytes: self.bytes, below: self.below }
    }
}

pub(crate) fn kernels() -> impl Iterator<Item = Kernel> {
    let fast = Kernel::detect();
    [Kernel::PORTABLE].into_iter().chain(fast.is_avx2().then_some(fast))
}

pub(crate) fn looks_below(codec: Codec) -> bool {
    codec.name() == "archive"
}

pub(crate) fn fit(codec: Codec, sample: &Input<'_>) -> Option<Model> {
    codec.fit(sample.rows()).map(|fitted| fitted.model)
}

pub(crate) fn encode(
    codec: Codec,
    kernel: Kernel,
    input: &Input<'_>,
    model: Option<&Model>,
    out: &mut Vec<u8>,
) -> Encoding {
    codec.encode_with(kernel, input.rows(), model, out)
}

/// Decodes some of a frame's rows, given the same rows of the layer below where the frame was encoded with them.
pub(crate) fn decode(
    kernel: Kernel,
    frame: &Coded<'_>,
    rows: Range<u64>,
    below: Option<&[u8]>,
    out: &mut [u8],
) -> Result<()> {
    codec::decode_with(kernel, &Coded { below, ..*frame }, &[rows], out)
}
