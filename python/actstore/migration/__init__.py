"""From store to store: to another backend, codec or dtype, whole or in part, without loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.arrays import dtype_name
from actstore.errors import InvalidInputError
from actstore.migration.exchange import exchange, is_exchange
from actstore.migration.run import Migration, Request, opened

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    import torch

    from actstore.hook_points import LayersLike, PointLike
    from actstore.reports import MigrationReport
    from actstore.store import Store

__all__ = ["Migration", "Request", "exchange", "is_exchange", "migrate", "opened"]


def migrate(
    source: Store | str | os.PathLike[str],
    target: Store | str | os.PathLike[str],
    *,
    source_format: str | None = None,
    target_format: str | None = None,
    codec: str | None = None,
    key_distance: int | None = None,
    encoding: str | None = None,
    dtype: str | torch.dtype | None = None,
    overflow: str | None = None,
    keys: str | Iterable[str] | None = None,
    layers: LayersLike | None = None,
    points: PointLike | Iterable[PointLike] | None = None,
    shard_size: int | None = None,
    on_conflict: str = "error",
    verify: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int, int], object] | None = None,
) -> MigrationReport:
    """Bring the entries of one store to another, in their order: text, token ids, metadata, activations, bit for bit.

    `source` and `target` are paths or open stores; only so can a store in memory take part. Repeating an interrupted
    migration continues it: what the target has is skipped. Frames are copied as they are stored where both stores have
    the same codec and nothing is converted or left out, else decoded and encoded; about 1 GiB is held, or the `memory`
    of an open target, and one entry more.

    The formats are `shards`, `lmdb` and `json`, or `auto` for what is found, and those of older systems,
    `formats.names()`: see `formats.import_store` and `formats.export_store` for what they can. A target that does not
    exist needs one, and is created with `codec`, `key_distance`, `encoding`, `dtype` and `overflow` as for `create`;
    left out, they are those of the source where the backend has them. One that exists must have what is given.

    `keys`: these entries, in this order. `points`: these hook points of each entry, in any spelling; one without a
    layer, such as `resid_post`, at each of `layers`, and left out every point at `layers`. `shard_size`: as for
    `export_store`. `on_conflict`: what becomes of a key that the target has with other content, as for `create`.
    `verify` reads the target again and holds its content ids, computed from what it decodes to, against those of the
    source. `dry_run` writes nothing and estimates from a sample of 16 entries. `progress(done, total, raw_bytes)`
    counts entries, for `verify` from zero again, and may raise to stop; what was done before then stays.

    Errors: `InvalidInputError` (`invalid_option`, `unknown_layer`, `unknown_point`), `NotFoundError` (`not_a_store`,
    `no_such_key`), `KeyConflictError`, and `CorruptError` for a damaged entry, which ends the migration, and for what
    `verify` finds.
    """
    if not (progress is None or callable(progress)):
        message = f"`progress` is `{progress!r}`; give a function of `done`, `total` and `raw_bytes`"
        raise InvalidInputError("invalid_option", message)
    options = {
        "codec": codec,
        "key_distance": key_distance,
        "encoding": encoding,
        "dtype": None if dtype is None else dtype_name(dtype),
        "overflow": overflow,
    }
    request = Request(source_format, target_format, options, keys, layers, points, on_conflict, shard_size)
    if is_exchange(source, source_format, target_format):
        return exchange(source, target, request, verify=verify, dry_run=dry_run, progress=progress)
    with opened(source, target, request, dry_run=dry_run) as migration:
        if dry_run:
            return migration.estimate()
        report = migration.copy(progress)
        if verify:
            report = migration.verify(report, progress)
    report.raise_differences()
    return report
