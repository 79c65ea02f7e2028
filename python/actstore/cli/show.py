"""`show STORE KEY`: one entry, its tokens beside the norms and a few values of their rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from actstore.cli.app import FormatOption, command
from actstore.cli.info import StoreArgument
from actstore.cli.output import print_fields, print_json, print_table
from actstore.cli.tokens import decode_tokens
from actstore.errors import NotFoundError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from actstore.entry import Entry
    from actstore.store import Store

_VALUES = 4


@command
def show(
    context: typer.Context,
    store: StoreArgument,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key of the entry, or the beginning of one.")],
    point: Annotated[str | None, typer.Option(help="Hook point to show; the last `resid_post` by default.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Rows to show at most; 0 shows all.")] = 64,
    report_format: FormatOption = "text",
) -> None:
    """Show one entry and its activations.

    Its text and metadata, and each token beside the norm and a few values of its row.
    """
    import actstore

    del context
    with actstore.open(store) as opened:
        entry = opened[_find(opened, key)]
        shown = _default_point(entry) if point is None else actstore.hook_points.canonical(point)
        rows = [] if shown is None else _rows(entry, shown, limit)
        points = [{"point": name, "dtype": entry.dtype(name), "shape": entry.shape(name)} for name in entry]
        if report_format == "json":
            print_json({**entry.document, "content_id": entry.content_id, "points": points, "at": shown, "rows": rows})
            return
        print_fields(_fields(entry))
        print_table(("hook point", "dtype", "shape"), [[str(value) for value in item.values()] for item in points])
        if shown is not None:
            _print_rows(shown, rows, entry.shape(shown))


def _find(store: Store, prefix: str) -> str:
    if prefix in store:
        return prefix
    found = [key for key in store.keys() if key.startswith(prefix)]  # noqa: SIM118  # a store iterates over entries
    if len(found) == 1:
        return found[0]
    if not found:
        raise NotFoundError("no_such_key", f"no key of `{store.path}` is or begins with `{prefix}`")
    listed = ", ".join(f"`{key}`" for key in found[:3])
    raise NotFoundError("no_such_key", f"{len(found)} keys begin with `{prefix}`, such as {listed}; give more of it")


def _default_point(entry: Entry) -> str | None:
    points = entry.points
    return next((name for name in reversed(points) if name.endswith("resid_post")), points[0] if points else None)


def _rows(entry: Entry, point: str, limit: int) -> list[dict[str, Any]]:
    """The first rows, each with its position and token where rows are tied to tokens. Norms are taken in float64."""
    import numpy as np

    positions, token_ids = entry.positions, entry.token_ids
    tokens = decode_tokens(entry.metadata, token_ids or [])
    rows: list[dict[str, Any]] = []
    for index, row in enumerate(_first_rows(entry, point, limit)):
        position = None if positions is None else positions[index]
        token_id = None if position is None or token_ids is None else token_ids[position]
        token = None if position is None or tokens is None else tokens[position]
        norm, values = float(np.linalg.norm(row)), row[:_VALUES].tolist()
        rows.append(
            {"row": index, "position": position, "token_id": token_id, "token": token, "norm": norm, "values": values}
        )
    return rows


def _first_rows(entry: Entry, point: str, limit: int) -> NDArray[np.float64]:
    import numpy as np

    count = entry.shape(point)[0] if entry.shape(point) else 1
    count = min(limit, count) if limit else count
    wanted = "all" if entry.positions is None else entry.positions[:count]
    dtype, array = entry.dtype(point), entry.numpy(point, wanted)
    if array.dtype.name == dtype:
        values = array.astype(np.float64)
    elif dtype == "bfloat16":
        values = (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    else:
        values = cast("NDArray[np.float64]", entry.torch(point, wanted).double().numpy())
    row_shape = values.shape[1:]
    return values.reshape(-1 if 0 not in row_shape else count, math.prod(row_shape))[:count]


def _fields(entry: Entry) -> list[tuple[str, str]]:
    token_ids = entry.token_ids
    fields = [
        ("key", entry.key),
        ("prompt", repr(entry.prompt)),
        ("response", repr(entry.response)),
        ("tokens", "-" if token_ids is None else str(len(token_ids))),
        ("content id", entry.content_id),
    ]
    return fields + [(name, str(value)) for name, value in entry.metadata.items()]


def _print_rows(point: str, rows: list[dict[str, Any]], shape: tuple[int, ...]) -> None:
    columns = ("position", "id", "token", "norm", f"first {_VALUES} values")
    cells = [
        (
            str(row["row"] if row["position"] is None else row["position"]),
            "" if row["token_id"] is None else str(row["token_id"]),
            "" if row["token"] is None else repr(row["token"]),
            f"{row['norm']:.4g}",
            " ".join(f"{value:.4g}" for value in row["values"]),
        )
        for row in rows
    ]
    print_table(columns, cells, left=3, title=point)
    total = shape[0] if shape else 1
    if len(rows) < total:
        typer.echo(f"{len(rows)} of {total} rows; `--limit 0` shows all")
