//! The one error type: a stable [`Kind`], a plain sentence, and the cause.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! kinds {
    ($($variant:ident = $name:literal, $doc:literal;)*) => {
        /// What went wrong, as a name that never changes. Python maps each kind to an exception class.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $(#[doc = $doc] $variant,)* }

        impl Kind {
            /// Every kind, in the order of declaration.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant,)*];

            /// The stable name, as Python sees it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Kind::$variant => $name,)* }
            }
        }
    };
}

kinds! {
    NotAStore = "not_a_store", "Nothing at the path, or nothing of ours.";
    NoSuchKey = "no_such_key", "The store has no entry of that key.";
    PointNotStored = "point_not_stored", "The entry has no activation at that hook point.";
    StoreExists = "store_exists", "A store would be created where something is already.";
    KeyConflict = "key_conflict", "The key is stored with other content.";
    InvalidKey = "invalid_key", "Empty, too long, or with control characters.";
    UnsafePath = "unsafe_path", "A key with path tricks, or a link where a file of the store should be.";
    UnknownLayer = "unknown_layer", "A layer that the model or the store does not have.";
    UnknownPoint = "unknown_point", "A hook point that cannot be, or that the model does not have.";
    UnknownPosition = "unknown_position", "A selection of positions that the entry cannot answer.";
    InvalidTensor = "invalid_tensor", "Shape, dtype and bytes do not agree.";
    InvalidMetadata = "invalid_metadata", "Metadata that JSON cannot hold.";
    InvalidOption = "invalid_option", "An option with a value it cannot take.";
    Float16Overflow = "float16_overflow", "Finite values beyond the range of the packed dtype.";
    RowsNotTokens = "rows_not_tokens", "The rows of an activation are not the tokens selected.";
    ReadOnly = "read_only", "A write to a store opened for reading, or a directory that cannot be written.";
    Closed = "closed", "A call on a closed handle.";
    Checksum = "checksum", "Stored bytes do not match their checksum.";
    Truncated = "truncated", "A file is shorter than what was committed to it.";
    MissingFile = "missing_file", "A file that the store names is not there.";
    Malformed = "malformed", "Checksummed bytes that say something impossible.";
    UnsupportedVersion = "unsupported_version", "Written by a format this build does not know.";
    StorageFull = "storage_full", "No space, no quota or no inodes left.";
    StorageIo = "storage_io", "The operating system refused to read or write.";
    Locked = "locked", "Another process writes to the store.";
    AlreadyOpen = "already_open", "This process already has the store open for writing.";
    ForkedHandle = "forked_handle", "A handle used in a forked child that is of use to its parent only: a writing one, or one in use at the fork.";
    WriterFailed = "writer_failed", "An earlier background failure ended the writer.";
    LimitExceeded = "limit_exceeded", "Larger than a limit allows.";
    UntrustedInput = "untrusted_input", "Data that could only be had by running code that came with it.";
}

impl Kind {
    /// Whether it says that stored bytes are not what was written.
    pub const fn is_damage(self) -> bool {
        use Kind::{Checksum, LimitExceeded, Malformed, MissingFile, Truncated, UnsupportedVersion};
        matches!(self, Checksum | LimitExceeded | Malformed | MissingFile | Truncated | UnsupportedVersion)
    }
}

/// An error with a stable kind and a message that names the thing, the value and what to do.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` that says `message`: lower case, no full stop, things in backticks.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The same error, keeping what caused it.
    #[must_use]
    pub fn because(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// An operating-system error met while doing `what` (`write`, `sync`, ...) to `path`.
    pub fn io(what: &str, path: &std::path::Path, error: io::Error) -> Self {
        use io::ErrorKind as E;
        let path = path.display();
        let (kind, advice) = match error.kind() {
            E::StorageFull | E::QuotaExceeded | E::FileTooLarge => {
                (Kind::StorageFull, "; free some space and try again: what was committed is intact")
            }
            E::PermissionDenied | E::ReadOnlyFilesystem => (Kind::ReadOnly, "; check the permissions of the directory"),
            E::NotFound => (Kind::MissingFile, ""),
            _ => (Kind::StorageIo, ""),
        };
        Self::new(kind, format!("cannot {what} `{path}`: {error}{advice}")).because(error)
    }

    /// The stable kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The same error with `context` before its message.
    #[must_use]
    pub fn within(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as &(dyn StdError + 'static))
    }
}
