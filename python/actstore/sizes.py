"""Sizes in bytes as people write them: `"1 GiB"` in, `"3.1 GB"` out."""

import re

from actstore.errors import InvalidInputError

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?) ?(?P<prefix>[kKMGT]?)(?P<binary>i?)B")
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}
_LARGEST = 2**63 - 1


def parse_bytes(option: str, value: int | str) -> int:
    """Bytes of `value`: an int is bytes already; a string has a unit (`B`, `kB`, `KiB`, ... `TB`, `TiB`).

    Anything else, zero included, is an `InvalidInputError` of kind `invalid_option` that names `option`.
    """
    size = _bytes_of(value)
    if size is None or not 0 < size <= _LARGEST:
        message = f"`{option}` is `{value!r}`; give a number of bytes or a size such as `1 GiB` or `32 MiB`"
        raise InvalidInputError("invalid_option", message)
    return size


def _bytes_of(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or (match["binary"] and not match["prefix"]):
        return None
    return int(float(match["number"]) * (1024 if match["binary"] else 1000) ** _POWERS[match["prefix"]])


def format_bytes(size: float) -> str:
    """`size` bytes with one decimal in powers of 1000: `512 B`, `3.1 GB`."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        # What would round to 1000.0 belongs to the next unit.
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"
