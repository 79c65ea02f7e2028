"""Every error actstore raises, grouped by what the caller does next.

Each is an `ActstoreError` and the fitting builtin, and carries a stable `kind`, finer than its class:

    ActstoreError
      NotFoundError (KeyError)          not_a_store, no_such_key, point_not_stored
      AlreadyExistsError                store_exists
      KeyConflictError                  key_conflict
      InvalidInputError (ValueError)    invalid_key, unsafe_path, unknown_layer, unknown_point, unknown_position,
                                        invalid_tensor, invalid_metadata, invalid_option, float16_overflow
      ReadOnlyError                     read_only, closed
      CorruptError                      checksum, truncated, missing_file, malformed
      UnsupportedVersionError           unsupported_version
      StorageFullError (OSError)        storage_full
      StorageIoError (OSError)          storage_io
      LockedError                       locked, already_open, forked_handle
      WriterFailedError                 writer_failed
      CaptureError                      rows_not_tokens, missing_attention_mask, prompt_too_long, unsupported_model,
                                        unsupported_generation
      LimitExceededError                limit_exceeded
      UntrustedInputError               untrusted_input
"""

from typing import ClassVar


class ActstoreError(Exception):
    """Base of every error of the package."""

    kinds: ClassVar[tuple[str, ...]] = ()
    kind: str

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type["ActstoreError"], tuple[str, str]]:
        return type(self), (self.kind, self.message)


class NotFoundError(ActstoreError, KeyError):
    """No such store, entry or activation."""

    kinds = ("not_a_store", "no_such_key", "point_not_stored")


class AlreadyExistsError(ActstoreError):
    """Something stands where a store would be created."""

    kinds = ("store_exists",)


class KeyConflictError(ActstoreError):
    """The key is stored with other content; `on_conflict` says what else to do."""

    kinds = ("key_conflict",)


class InvalidInputError(ActstoreError, ValueError):
    """A key, tensor, selection or option that cannot be."""

    kinds = (
        "invalid_key",
        "unsafe_path",
        "unknown_layer",
        "unknown_point",
        "unknown_position",
        "invalid_tensor",
        "invalid_metadata",
        "invalid_option",
        "float16_overflow",
    )


class ReadOnlyError(ActstoreError):
    """A write to what can only be read, or a call on a closed handle."""

    kinds = ("read_only", "closed")


class CorruptError(ActstoreError):
    """Stored bytes are damaged, cut short or gone; what is named is lost, everything else reads."""

    kinds = ("checksum", "truncated", "missing_file", "malformed")


class UnsupportedVersionError(ActstoreError):
    """Written by a format this build does not know."""

    kinds = ("unsupported_version",)


class StorageFullError(ActstoreError, OSError):
    """No space left; what was committed is intact."""

    kinds = ("storage_full",)


class StorageIoError(ActstoreError, OSError):
    """The operating system refused to read or write."""

    kinds = ("storage_io",)


class LockedError(ActstoreError):
    """Somebody else holds the store, or the handle crossed a fork."""

    kinds = ("locked", "already_open", "forked_handle")


class WriterFailedError(ActstoreError):
    """An earlier background failure ended the writer; it is the `__cause__`."""

    kinds = ("writer_failed",)


class CaptureError(ActstoreError):
    """The model, or the way it was called, cannot be captured exactly."""

    kinds = (
        "rows_not_tokens",
        "missing_attention_mask",
        "prompt_too_long",
        "unsupported_model",
        "unsupported_generation",
    )


class LimitExceededError(ActstoreError):
    """Larger than a limit allows."""

    kinds = ("limit_exceeded",)


class UntrustedInputError(ActstoreError):
    """Data that could only be had by running code that came with it: nothing was run."""

    kinds = ("untrusted_input",)


_CLASSES: dict[str, type[ActstoreError]] = {
    kind: cls
    for cls in (
        NotFoundError,
        AlreadyExistsError,
        KeyConflictError,
        InvalidInputError,
        ReadOnlyError,
        CorruptError,
        UnsupportedVersionError,
        StorageFullError,
        StorageIoError,
        LockedError,
        WriterFailedError,
        CaptureError,
        LimitExceededError,
        UntrustedInputError,
    )
    for kind in cls.kinds
}


def error(kind: str, message: str) -> ActstoreError:
    """The exception of `kind`, ready to raise. Every kind has exactly one class."""
    return _CLASSES[kind](kind, message)
