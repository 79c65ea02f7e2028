//! Dtypes, shapes and checked sizes.

use crate::error::{Error, Kind, Result};

/// Largest number of dimensions.
pub const MAX_RANK: usize = 16;
/// Largest activation, in bytes.
pub const MAX_ACTIVATION_BYTES: u64 = 16 << 30;

macro_rules! dtypes {
    ($($variant:ident = $code:literal, $name:literal, $size:literal;)*) => {
        /// Type of an element. Bytes are little-endian; the codes are part of the format.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        #[repr(u8)]
        pub enum Dtype { $($variant = $code,)* }

        impl Dtype {
            /// Every dtype, in the order of its code.
            pub const ALL: &'static [Dtype] = &[$(Dtype::$variant,)*];

            /// The name that NumPy and torch share.
            pub const fn name(self) -> &'static str {
                match self { $(Dtype::$variant => $name,)* }
            }

            /// Bytes of one element.
            pub const fn size(self) -> usize {
                match self { $(Dtype::$variant => $size,)* }
            }

            /// The code in the format.
            pub const fn code(self) -> u8 {
                match self { $(Dtype::$variant => $code,)* }
            }
        }
    };
}

dtypes! {
    Float16 = 0, "float16", 2;
    BFloat16 = 1, "bfloat16", 2;
    Float32 = 2, "float32", 4;
    Float64 = 3, "float64", 8;
    Int8 = 4, "int8", 1;
    Int16 = 5, "int16", 2;
    Int32 = 6, "int32", 4;
    Int64 = 7, "int64", 8;
    UInt8 = 8, "uint8", 1;
    Bool = 9, "bool", 1;
    Float8E4M3 = 10, "float8_e4m3fn", 1;
    Float8E5M2 = 11, "float8_e5m2", 1;
}

impl Dtype {
    /// The dtype called `name`.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|d| d.name() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|d| d.name()).collect();
            Error::new(Kind::InvalidTensor, format!("unknown dtype `{name}`: one of {}", known.join(", ")))
        })
    }

    /// The dtype of a format code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|d| d.code() == code)
    }
}

/// Dtype and shape of an activation: what its bytes mean.
///
/// The first axis counts *rows* (positions, or heads for attention weights); a row is the product of the others.
/// A rank-0 activation is one row of one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    dtype: Dtype,
    shape: Vec<u64>,
}

impl Layout {
    /// Checks rank and size; both stay within [`MAX_RANK`] and [`MAX_ACTIVATION_BYTES`].
    pub fn new(dtype: Dtype, shape: Vec<u64>) -> Result<Self> {
        if shape.len() > MAX_RANK {
            let rank = shape.len();
            return Err(Error::new(Kind::InvalidTensor, format!("rank `{rank}` is above the limit of {MAX_RANK}")));
        }
        // Zero-size shapes are judged by their other extents, so that a row stays bounded as well.
        let bytes = shape.iter().try_fold(dtype.size() as u64, |product, &n| product.checked_mul(n.max(1)));
        match bytes {
            Some(bytes) if bytes <= MAX_ACTIVATION_BYTES => Ok(Self { dtype, shape }),
            _ => Err(Error::new(
                Kind::LimitExceeded,
                format!("an activation of shape `{shape:?}` and dtype {} is above the limit of 16 GiB", dtype.name()),
            )),
        }
    }

    /// Type of an element.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Extents, slowest first.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Values in a row.
    pub fn row_values(&self) -> u64 {
        self.shape.iter().skip(1).product()
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> u64 {
        self.row_values() * self.dtype.size() as u64
    }

    /// Bytes of the whole activation.
    pub fn bytes(&self) -> u64 {
        self.rows() * self.row_bytes()
    }

    /// The same layout with another dtype.
    pub fn with_dtype(&self, dtype: Dtype) -> Result<Self> {
        Self::new(dtype, self.shape.clone())
    }

    /// The same layout with another number of rows; rank 0 becomes rank 1.
    pub fn with_rows(&self, rows: u64) -> Result<Self> {
        let mut shape = self.shape.clone();
        match shape.first_mut() {
            Some(first) => *first = rows,
            None => shape.push(rows),
        }
        Self::new(self.dtype, shape)
    }
}

/// An activation in memory: layout and little-endian C-order bytes that agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    layout: Layout,
    bytes: Vec<u8>,
}

impl Tensor {
    /// Checks that `bytes` are as many as `layout` says.
    pub fn new(layout: Layout, bytes: Vec<u8>) -> Result<Self> {
        if layout.bytes() != bytes.len() as u64 {
            return Err(Error::new(
                Kind::InvalidTensor,
                format!(
                    "shape `{:?}` of {} needs `{}` bytes, not `{}`",
                    layout.shape,
                    layout.dtype.name(),
                    layout.bytes(),
                    bytes.len()
                ),
            ));
        }
        Ok(Self { layout, bytes })
    }

    /// Dtype and shape.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The raw bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Some of the rows, in the order given; those beyond the last one are left out.
    pub fn rows(&self, rows: &[u64]) -> Result<Self> {
        let row_bytes = usize::try_from(self.layout.row_bytes()).unwrap_or(usize::MAX);
        let row = |&row: &u64| {
            let start = usize::try_from(row).ok()?.checked_mul(row_bytes)?;
            self.bytes.get(start..start.checked_add(row_bytes)?)
        };
        let bytes: Vec<_> = rows.iter().filter_map(row).collect();
        Self::new(self.layout.with_rows(bytes.len() as u64)?, bytes.concat())
    }

    /// Both parts.
    pub fn into_parts(self) -> (Layout, Vec<u8>) {
        (self.layout, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dtype_codes_and_names_are_unique_and_parse_back() {
        for (code, dtype) in Dtype::ALL.iter().enumerate() {
            assert_eq!(usize::from(dtype.code()), code);
            assert_eq!(Dtype::parse(dtype.name()).ok(), Some(*dtype));
            assert_eq!(Dtype::from_code(dtype.code()), Some(*dtype));
        }
        let error = Dtype::parse("complex64").unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidTensor);
        assert!(error.to_string().starts_with("unknown dtype `complex64`: one of float16, bfloat16"));
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(Layout::new(Dtype::Float32, vec![]).unwrap().bytes(), 4);
        assert_eq!(Layout::new(Dtype::Float32, vec![0, 7]).unwrap().bytes(), 0);
        assert_eq!(Layout::new(Dtype::Int8, vec![1; 17]).unwrap_err().kind(), Kind::InvalidTensor);
        for shape in [vec![u64::MAX, 2], vec![0, u64::MAX], vec![1 << 34, 1]] {
            assert_eq!(Layout::new(Dtype::Float16, shape).unwrap_err().kind(), Kind::LimitExceeded);
        }
    }

    #[test]
    fn bytes_must_match_the_layout() {
        let layout = Layout::new(Dtype::Float16, vec![2, 3]).unwrap();
        let error = Tensor::new(layout, vec![0; 11]).unwrap_err();
        assert_eq!(error.to_string(), "shape `[2, 3]` of float16 needs `12` bytes, not `11`");
    }
}
