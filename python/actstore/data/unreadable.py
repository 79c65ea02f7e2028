"""Errors that say what is wrong with one row or entry, after which the others can be read."""

from actstore.errors import CorruptError, InvalidInputError, LimitExceededError, NotFoundError, UntrustedInputError

__all__ = ["UNREADABLE"]

UNREADABLE = (CorruptError, InvalidInputError, LimitExceededError, NotFoundError, UntrustedInputError)
"""Anything else, such as a disk that fails or a log that is written to meanwhile, is not about one entry."""
