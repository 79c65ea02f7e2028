"""Writing a tree of files that is complete or not there.

It grows in `<name>.partial` beside its place and is renamed when every file is written and synced. So a crash leaves
nothing that looks complete, and files of an earlier export never lie between those of a later one. The file `.export`
says what grows there, and is removed last: one in a tree that has its name is what a crash left of a complete export.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from actstore.errors import AlreadyExistsError, InvalidInputError, StorageFullError, StorageIoError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType
    from typing import Self

__all__ = ["DryTree", "Tree", "file_name", "is_begun", "is_partial", "writing"]

_IDENTITY = ".export"
_WRITING = ".writing"
_PARTIAL = ".partial"
_LONGEST_NAME = 255


def file_name(key: str, suffix: str = "") -> str:
    """`key` with `suffix` as the name of one file; `unsafe_path` where it would be a path or none."""
    name = key + suffix
    if key in ("", ".", "..") or any(letter in "/\\\0" for letter in key) or len(name.encode()) > _LONGEST_NAME:
        message = f"`{key}` cannot be the name of a file, which the format makes of it"
        raise InvalidInputError("unsafe_path", message)
    return name


class Tree:
    """The files of an export. A context manager: leaving the block puts the tree in its place, an exception does not.

    `identity` says what is exported and how. Files that an interrupted export of the same has finished are kept; those
    of another are removed. `replaces` says whether what is in the place may be removed; None where nothing may.

    Errors: `store_exists` where something is in the place that may not be removed.
    """

    def __init__(self, target: Path, identity: str, replaces: Callable[[Path], bool] | None) -> None:
        self._target = target
        self._replaces = replaces
        self._partial = _partial(target)
        self._identity = identity
        self._wanted: set[Path] = set()
        self._writing = 0
        # It was stopped between its last two steps.
        self._is_named = not target.is_symlink() and _is_of(target, identity) and not self._partial.exists()
        if (target.is_symlink() or target.exists()) and not self._is_named and not _is_empty(target):
            if replaces is None:
                message = f"`{target}` exists already; choose another place, or replace an earlier export: `overwrite`"
                raise AlreadyExistsError("store_exists", message)
            if target.is_symlink() or not replaces(target):
                message = f"`{target}` is no earlier export in this format, so it is not replaced; choose another place"
                raise AlreadyExistsError("store_exists", message)
        if self._partial.is_symlink() or (self._partial.exists() and not is_partial(self._partial)):
            message = f"`{self._partial}`, where the export would grow, is something else; move it away"
            raise AlreadyExistsError("store_exists", message)

    def put(self, name: str, content: Callable[[], bytes]) -> None:
        """Write the file `name`, unless it is there; whole and synced before it has that name."""
        with self.file(name) as path:
            if path is not None:
                path.write_bytes(content())

    @contextmanager
    def file(self, name: str, *, always: bool = False) -> Generator[Path | None]:
        """Where to write the file `name`, which it gets when the block ends; None where it is there already.

        The place has the same last part. `always`: write it in any case.
        """
        path = self._partial / name
        self._wanted.add(path)
        if path.exists() and not always:
            yield None
            return
        self._writing += 1
        part = self._partial / _WRITING / str(self._writing) / path.name
        part.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _sync(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        part.replace(path)
        part.parent.rmdir()

    def growing(self, name: str) -> Path | None:
        """Where the file `name` grows: who writes it makes it durable, and goes on with what is there.

        None where nothing is written.
        """
        path = self._partial / name
        self._wanted.add(path)
        return path

    @property
    def is_resumed(self) -> bool:
        """Whether an interrupted export of the same has begun the tree."""
        return is_begun(self._target, self._identity)

    def __enter__(self) -> Self:
        self.begin()
        return self

    def begin(self) -> None:
        """Make the place where the tree grows, before anything is written to it; entering the block does so too."""
        with writing(self._target):
            if self._is_named:
                self._target.rename(self._partial)
                self._is_named = False
            if self._partial.exists() and not _is_of(self._partial, self._identity):
                shutil.rmtree(self._partial)
            self._partial.mkdir(parents=True, exist_ok=True)
            (self._partial / _IDENTITY).write_bytes(self._identity.encode())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing(self._target):
            if error is None:
                self._commit()
            elif isinstance(error, OSError):
                raise error

    def _commit(self) -> None:
        for folder, _, names in os.walk(self._partial, topdown=False):
            place = Path(folder)
            for name in names:
                if place / name not in self._wanted and place / name != self._partial / _IDENTITY:
                    (place / name).unlink()
            if place != self._partial and not any(place.iterdir()):
                place.rmdir()
            else:
                _sync(place)
        if self._target.is_dir() and self._replaces is None:
            # Where nothing may be replaced, only what is still empty is.
            self._target.rmdir()
        elif self._target.is_dir():
            # Moved away first, so that nobody ever finds a part of it.
            (self._partial / _WRITING).mkdir(exist_ok=True)
            self._target.rename(self._partial / _WRITING / "replaced")
        self._partial.rename(self._target)
        # From here on the tree is complete. What is left to do, repeating the export does too.
        if (self._target / _WRITING).exists():
            shutil.rmtree(self._target / _WRITING)
        (self._target / _IDENTITY).unlink()
        _sync(self._target.parent)


class DryTree(Tree):
    """A tree of which nothing is written, as if all its files were there; what is in its place is refused as ever."""

    @contextmanager
    def file(self, name: str, *, always: bool = False) -> Generator[Path | None]:
        """None, as in `Tree` for a file that is there; with `always`, where what is written is lost."""
        del name
        yield Path(os.devnull) if always else None

    def growing(self, name: str) -> None:
        """None."""
        del name

    def begin(self) -> None:
        """Nothing is made."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing comes to its place."""


def is_begun(target: Path, identity: str) -> bool:
    """Whether an interrupted export to `target` is of that identity, stopped before its last step or after."""
    return _is_of(_partial(target), identity) or _is_of(target, identity)


def is_partial(path: Path) -> bool:
    """Whether `path` is an export that did not come to its end."""
    return path.absolute().name.endswith(_PARTIAL) and (path / _IDENTITY).is_file()


def _is_of(path: Path, identity: str) -> bool:
    return (path / _IDENTITY).is_file() and (path / _IDENTITY).read_bytes() == identity.encode()


def _partial(target: Path) -> Path:
    return target.with_name(target.name + _PARTIAL)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def writing(target: Path) -> Generator[None]:
    """Turn what goes wrong while `target` is written into an error of the package. Errors: `storage_*`."""
    try:
        yield
    except (StorageFullError, StorageIoError):
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            message = f"no space left while writing `{target}`; make some and do the same again"
            raise StorageFullError("storage_full", message) from error
        message = f"cannot write `{target}`: {error.strerror or error}"
        raise StorageIoError("storage_io", message) from error
