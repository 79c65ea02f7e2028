"""What a repeated `capture` skips, and why it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actstore import _core
from actstore.errors import KeyConflictError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actstore.cli.inputs import Row
    from actstore.entry import Entry
    from actstore.store import Store


@dataclass(frozen=True)
class Run:
    """What decides the content of an entry, besides its text; stored with each entry as `run`."""

    settings: dict[str, Any]
    dataset: str | None
    split: str | None

    def key(self, row: Row) -> str:
        """`<dataset>:<split>:<row>`, or the SHA-256 of the prompt where no data set is named."""
        if self.dataset is None:
            return _core.key_of_prompt(row.prompt)
        return f"{self.dataset}:{self.split}:{row.number}"

    def metadata(self, row: Row) -> dict[str, Any]:
        """The metadata of the entry of `row`."""
        return {
            **row.metadata,
            "model": self.settings["model"],
            "revision": self.settings["revision"],
            "dataset": self.dataset,
            "split": self.split,
            "row": row.number,
            "input_sha256": row.sha256,
            "run": self.settings,
        }


def remaining(store: Store | None, rows: Iterable[Row], run: Run) -> list[Row]:
    """The rows that are not stored yet, each key once; all of them where there is no store.

    `KeyConflictError` where a key is stored from another text or with other settings, or where two rows share a key
    but not their text.
    """
    planned: dict[str, Row] = {}
    for row in rows:
        key = run.key(row)
        if store is not None and key in store:
            _require_same(store[key], row, run)
        elif planned.setdefault(key, row).sha256 != row.sha256:
            message = (
                f"lines {planned[key].number + 1} and {row.number + 1} have the same prompt and other responses; "
                "name the rows with `--dataset` and `--split`"
            )
            raise KeyConflictError("key_conflict", message)
    return list(planned.values())


def _require_same(entry: Entry, row: Row, run: Run) -> None:
    stored = entry.metadata
    if "run" not in stored:
        raise _refusal(entry, "was not stored by `capture`")
    if stored["run"] != run.settings:
        raise _refusal(entry, f"was captured with other settings: {_differences(stored['run'], run.settings)}")
    if stored.get("input_sha256") != row.sha256:
        raise _refusal(entry, f"was captured from another text than line {row.number + 1} has now")


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = sorted(name for name in before | now if before.get(name) != now.get(name))
    return ", ".join(f"`{name}` was `{before.get(name)}`, now `{now.get(name)}`" for name in names)


def _refusal(entry: Entry, reason: str) -> KeyConflictError:
    return KeyConflictError("key_conflict", f"entry `{entry.key}` {reason}; repeat that run or choose another store")
