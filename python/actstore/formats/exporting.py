"""From a store to a tree of an older system."""

from __future__ import annotations

import time
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from actstore import arrays
from actstore import store as stores
from actstore.errors import ActstoreError, InvalidInputError
from actstore.formats.conversion import convert
from actstore.formats.place import place_in, refuse_inside
from actstore.formats.record import Export
from actstore.formats.table import find
from actstore.formats.widening import widen
from actstore.reports import MigrationReport
from actstore.store import Store

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    import torch
    from numpy.typing import NDArray

    from actstore.entry import Entry
    from actstore.formats.record import Format, Imported
    from actstore.reports import Difference

    Step = Callable[[int, int, int], object]

__all__ = ["export_store"]

_OVERFLOWS = ("error", "saturate")
_SHARD_ROWS = 512


def export_store(
    source: Store | str | os.PathLike[str],
    target: str | os.PathLike[str],
    target_format: str,
    *,
    keys: Iterable[str] | None = None,
    layers: int | None = None,
    shard_size: int | None = None,
    dtype: str | torch.dtype | None = None,
    overflow: str = "error",
    overwrite: bool = False,
    verify: bool = False,
    dry_run: bool = False,
    progress: Step | None = None,
) -> MigrationReport:
    """Write the entries of a store, all or those of `keys` in their order, as another system would have.

    `target_format`: a name of `formats.names()`. `layers`: how many the model has, for formats that count hidden states
    and stores that do not say. `shard_size`: rows a file, for `pt-shards`, 512 if left out. `dtype`, for `pt-shards`:
    `float16`, `bfloat16` or `float32`; left out, each activation keeps its own. Values are rounded to it, and what
    becomes of finite ones beyond it `overflow` says: `error`, or `saturate` for the largest that it has. How many were
    rounded or saturated is among the `notes` of the report, of the files that this call wrote. So is what else the
    format cannot hold of an entry; one that it cannot hold at all is left out and listed in `left_out`.

    The tree appears in its place, replacing an earlier one with `overwrite`, when it is complete and synced; until then
    it is `<target>.partial`, and repeating an interrupted export goes on there. `verify` reads the tree again and holds
    its values against the store's. `dry_run` reads no values and writes nothing: what is refused by other things than
    values is refused, and the sizes in the report are those of the values that would be written, as stored or in
    `dtype`, without what the format adds. `progress(done, total, raw_bytes)` counts entries, for `verify` from zero
    again, and may raise to stop.

    Errors: `AlreadyExistsError`, `InvalidInputError` (`invalid_option`, also for a `dtype` or a `shard_size` where the
    format leaves no choice, `unsafe_path`, `unknown_layer`, `float16_overflow` for values beyond `dtype`, and
    `invalid_tensor` for activations that the format has no place for), `NotFoundError`, `CorruptError`.
    """
    format, place = find(target_format), Path(target)
    for name, number in (("layers", layers), ("shard_size", shard_size)):
        if number is not None and (isinstance(number, bool) or not isinstance(cast("Any", number), int) or number < 1):
            raise InvalidInputError("invalid_option", f"`{name}` is `{number!r}`; give a number from 1")
    if shard_size is not None and not format.has_shards:
        message = f"`shard_size` is for the format `pt-shards`, not for `{format.name}`; leave it out"
        raise InvalidInputError("invalid_option", message)
    wanted = _conversion(format, None if dtype is None else arrays.dtype_name(dtype), overflow)
    with ExitStack() as stack:
        store = source if isinstance(source, Store) else stack.enter_context(stores.open(source))
        refuse_inside(store.path, place)
        if overwrite and place_in(place, store.path) is not None:
            message = f"the source `{store.path}` lies in the target `{place}`, which would be replaced; choose another"
            raise InvalidInputError("invalid_option", message)
        chosen = store.keys() if keys is None else list(dict.fromkeys([keys] if isinstance(keys, str) else keys))
        rows = shard_size or _SHARD_ROWS
        export = Export(store, chosen, format.name, place, layers, rows, wanted, overflow, overwrite, dry_run, progress)
        report = _written(export, format)
        if verify and not dry_run:
            report = _verified(report, export, format)
    report.raise_differences()
    return report


def _conversion(format: Format, dtype: str | None, overflow: str) -> str | None:
    """The dtype to convert to, if `format` has the choice. Errors: `invalid_option`."""
    if dtype is None and overflow == "error":
        return None
    if not format.dtypes:
        message = (
            f"`{'overflow' if dtype is None else 'dtype'}` cannot be given for `{format.name}`, which has activations "
            "in the dtype that they have; migrate to a store of another `dtype` first, and export that"
        )
        raise InvalidInputError("invalid_option", message)
    if dtype not in format.dtypes:
        known = ", ".join(f"`{name}`" for name in format.dtypes)
        given = "not given, but `overflow` is about it" if dtype is None else f"`{dtype}`"
        raise InvalidInputError("invalid_option", f"`dtype` is {given}; for `{format.name}` one of {known}")
    if overflow not in _OVERFLOWS:
        message = f"`overflow` is `{overflow}`; for `{format.name}`, whose files have one dtype, `error` or `saturate`"
        raise InvalidInputError("invalid_option", message)
    return dtype


def _written(export: Export, format: Format) -> MigrationReport:
    started = time.monotonic()
    format.write(export)
    size = export.raw_bytes if export.dry_run else _size(export)
    return MigrationReport(
        source=export.store.path,
        target=export.target,
        backend=format.name,
        entries=len(export.keys),
        migrated=len(export.written),
        skipped=0,
        conflicts=0,
        copied=0,
        encoded=len(export.written),
        raw_bytes=export.raw_bytes,
        stored_bytes=size,
        file_bytes=size,
        seconds=time.monotonic() - started,
        dry_run=export.dry_run,
        left_out=tuple(export.left_out),
        notes=tuple(f"{sentence} ({count:,} x)" for sentence, count in export.notes.items()),
    )


def _size(export: Export) -> int:
    return sum(file.stat().st_size for place in export.places for file in place.rglob("*") if file.is_file())


def _verified(report: MigrationReport, export: Export, format: Format) -> MigrationReport:
    """Read what was written and compare it, value by value, with the store."""
    # What lies beside a log is no tree of its own.
    sources = [format.read(place) for place in export.places if format.recognises(place)]
    total = len(export.written)
    entries = chain.from_iterable(source.entries for source in sources)
    found_total = sum(source.total for source in sources)
    differences: list[Difference] = []
    for done, (key, pending) in enumerate(zip(export.written, entries, strict=False), 1):
        found = _difference(export, export.store[key], pending.load)
        if found is not None:
            differences.append({"key": key, "message": found})
        if export.progress is not None:
            export.progress(done, total, 0)
    if found_total != total:
        message = f"`{export.target}` has {found_total:,} entries, not {total:,}"
        differences.append({"key": "", "message": message})
    return report.with_differences(total, differences)


def _difference(export: Export, entry: Entry, load: Callable[[], Imported]) -> str | None:
    try:
        read = load()
    except ActstoreError as error:
        return error.message
    for name in ("prompt", "response"):
        if getattr(read, name) not in (None, getattr(entry, name)):
            return f"`{name}` of entry `{entry.key}` is another"
    missing = [point for point in export.written[entry.key] if point not in read.activations]
    if missing:
        return f"`{missing[0]}` of entry `{entry.key}` is missing in what was written"
    for point, values in read.activations.items():
        if point not in entry or not _same(export, entry, point, values):
            return f"`{point}` of entry `{entry.key}` has other values"
    return None


def _same(export: Export, entry: Entry, point: str, values: Any) -> bool:
    """Whether every value is what the stored one should be, in a dtype that holds both; any NaN is a NaN."""
    dtype, shape, data = arrays.encode(point, values)
    positions = "all" if tuple(shape[:1]) == entry.shape(point)[:1] else "last"
    stored_dtype, stored = _as_exported(export, entry, point, positions)
    if dtype == stored_dtype and bytes(data) == stored.tobytes():
        return True
    wide, read = widen(stored, stored_dtype), widen(np.frombuffer(data, arrays.numpy_dtype(dtype)), dtype)
    if wide.size != read.size:
        return False
    wide, read = wide.reshape(-1).astype(np.float64), read.astype(np.float64)
    both = np.isnan(wide) & np.isnan(read)
    return bool(np.array_equal(wide[~both].view(np.uint64), read[~both].view(np.uint64)))


def _as_exported(export: Export, entry: Entry, point: str, positions: str) -> tuple[str, NDArray[Any]]:
    """dtype and values of an activation as they go out."""
    if export.dtype is None:
        return entry.dtype(point), entry.numpy(point, positions)
    dtype, shape, data = arrays.encode(point, convert(entry.torch(point, positions), export.dtype).values)
    return dtype, np.frombuffer(data, arrays.numpy_dtype(dtype)).reshape(shape)
