"""A log that the older programs wrote, as the loggers have it: it is only read."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from actstore.errors import ReadOnlyError
from actstore.formats.actlog_by_key import open_actlog

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from actstore.formats.actlog_by_key import Actlog
    from actstore.legacy.extraction import States

__all__ = ["OldLog", "open_old"]


def open_old(path: Path) -> OldLog | None:
    """The older program's log at `path`; None where there is none. Errors: as for `open_actlog`."""
    log = open_actlog(path)
    return None if log is None else OldLog(log)


class OldLog:
    """Entries of an old log, as `OwnLog` has those of a store."""

    def __init__(self, log: Actlog) -> None:
        self._log = log

    def keys(self) -> list[str]:
        """Every key."""
        return self._log.keys()

    def record(self, key: str) -> dict[str, Any]:
        """As in `OwnLog`. Of an LMDB log without an environment of metadata, the whole entry is read for it."""
        return self._log.fields(key)

    def entry(self, key: str) -> tuple[dict[str, Any], Any]:
        """As in `OwnLog`; of the two oldest eras, whose arrays had names, a dict of them."""
        return self._log.logged(key)

    def put(self, key: str, record: Mapping[str, Any], states: States) -> None:
        """Refuse it. Errors: `read_only`, with what to do."""
        del record, states
        path = self._log.path
        formats = (self._log.format, self._log.kind)
        places = ("--source", str(path), "--target", f"{path}.actstore", "--on-conflict", "replace")
        command = shlex.join(["actstore-cli", "migrate", *formats, *places])
        message = f"`{key}` is not logged: `{path}` was written by an older program and is only read; run `{command}`"
        raise ReadOnlyError("read_only", f"{message}, then log to `{path}.actstore`")

    def close(self) -> None:
        """Nothing is held open."""
