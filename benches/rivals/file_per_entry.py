"""What the formats with a file an entry share: names, and one sync for all that was written."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from rivals.rival import Reader, Rival, Syncs, sync_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from entries import Entry
    from rivals.rival import Array


class FilePerEntry(Rival):
    suffix: str

    @abstractmethod
    def save(self, path: Path, entry: Entry) -> None: ...

    @abstractmethod
    def load(self, path: Path) -> dict[str, Array]:
        """Every activation by hook point."""

    def load_one(self, path: Path, point: str) -> Array:
        return self.load(path)[point]

    @abstractmethod
    def load_document(self, path: Path) -> dict[str, Any]: ...

    def write(self, folder: Path, entries: Sequence[Entry], sync_every: int | None) -> int:
        syncs = Syncs(sync_every, lambda: sync_folder(folder))
        for entry in entries:
            self.save(folder / f"{entry.key}{self.suffix}", entry)
            syncs.wrote(entry)
        return syncs.finish()

    def open(self, folder: Path, keys: Sequence[str]) -> Reader:
        return FilesReader(self, folder, keys)


class FilesReader(Reader):
    def __init__(self, format: FilePerEntry, folder: Path, keys: Sequence[str]) -> None:
        super().__init__(keys)
        self._format = format
        self._paths = [folder / f"{key}{format.suffix}" for key in keys]

    def activation(self, number: int, point: str) -> Array:
        return self._format.load_one(self._paths[number], point)

    def entry(self, number: int) -> list[Array]:
        return list(self._format.load(self._paths[number]).values())

    def metadata(self, count: int) -> list[dict[str, Any]]:
        return [self._format.load_document(path) for path in self._paths[:count]]

    def close(self) -> None:
        pass
