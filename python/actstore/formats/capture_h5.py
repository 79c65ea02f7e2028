"""`capture-h5`: document 001's trees with an HDF5 file an entry: attributes of `metadata`, `layers/<layer>/<kind>`."""

from __future__ import annotations

import json
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from actstore.errors import ActstoreError, CorruptError, InvalidInputError, LimitExceededError
from actstore.formats.capture_files import Captured, Kind, checked
from actstore.formats.capture_tree import capture_format
from actstore.formats.npz import most_bytes
from actstore.formats.reading import reading

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

__all__ = ["CAPTURE_H5", "H5"]

_LISTS = ("capture_layers",)
"""Fields that are lists, which the program wrote as text."""


def _h5py() -> Any:
    try:
        return import_module("h5py")
    except ImportError:
        message = "`capture-h5` needs the package `h5py`: pip install 'actstore[hdf5]'"
        raise InvalidInputError("invalid_option", message) from None


def _load(path: Path) -> Captured:
    h5py = _h5py()
    with _damage(path), h5py.File(path, "r", locking=False) as file:
        metadata = _fields(file["metadata"].attrs) if "metadata" in file else {}
        layers = _group(h5py, file, "layers", path)
        data = {name: _arrays(h5py, layers, name, path) for name in layers}
        return checked({"metadata": metadata, "layers": data}, f"`{path}`")


@contextmanager
def _damage(path: Path) -> Generator[None]:
    try:
        with reading(path):
            path.stat()
            try:
                yield
            except OSError as error:
                # What the system says has a number; the rest is what HDF5 says of the content.
                if error.errno is not None:
                    raise
                raise CorruptError("malformed", f"`{path}` is no whole HDF5 file: {_first_line(error)}") from None
    except ActstoreError:
        raise
    except (AttributeError, KeyError, MemoryError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise CorruptError("malformed", f"`{path}` is no whole HDF5 file: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _linked(h5py: Any, group: Any, name: str, path: Path) -> Any:
    """What `group` has under `name` itself; a link to elsewhere, and to other files, is not followed."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise InvalidInputError("unsafe_path", f"`{name[:100]}` of `{path}` is a link to elsewhere; it is not followed")
    return group[name]


def _group(h5py: Any, parent: Any, name: str, path: Path) -> Any:
    if name not in parent:
        raise CorruptError("malformed", f"`{path}` has no group `{name[:100]}`")
    group = _linked(h5py, parent, name, path)
    if not isinstance(group, h5py.Group):
        raise CorruptError("malformed", f"`{name[:100]}` of `{path}` is no group")
    return group


def _arrays(h5py: Any, layers: Any, layer: str, path: Path) -> dict[str, Any]:
    group = _group(h5py, layers, layer, path)
    return {kind: _array(h5py, _linked(h5py, group, kind, path), f"`{layer}/{kind}` of `{path}`") for kind in group}


def _array(h5py: Any, dataset: Any, what: str) -> Any:
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise CorruptError("malformed", f"{what} is no array")
    if dataset.is_virtual or dataset.external:
        raise InvalidInputError("unsafe_path", f"{what} has its values in other files; they are not opened")
    packed = dataset.id.get_storage_size()
    if dataset.nbytes > most_bytes(packed):
        message = f"{what} would grow from {packed:,} to {dataset.nbytes:,} bytes"
        raise LimitExceededError("limit_exceeded", message)
    return dataset[()] if dataset.shape else dataset[()].reshape(1)


def _fields(attributes: Any) -> dict[str, Any]:
    return {name: _value(name, value) for name, value in attributes.items()}


def _value(name: str, value: Any) -> Any:
    plain = value.tolist() if hasattr(value, "tolist") else value
    if name in _LISTS and isinstance(plain, str) and plain.startswith("["):
        try:
            return json.loads(plain)
        except ValueError:
            return plain
    return plain


def _save(path: Path, data: Captured, compression: bool) -> None:
    options: dict[str, Any] = {"compression": "gzip", "compression_opts": 9} if compression else {}
    with _h5py().File(path, "w") as file:
        metadata = file.create_group("metadata")
        for name, value in data["metadata"].items():
            metadata.attrs[name] = value if isinstance(value, str | int | float) else json.dumps(value)
        layers = file.create_group("layers")
        for layer, kinds in data["layers"].items():
            group = layers.create_group(layer)
            for kind, array in kinds.items():
                group.create_dataset(kind, data=array, **options)


H5 = Kind("capture-h5", (".h5", ".h5"), (b"\x89HDF\r\n\x1a\n",), _load, _save)
CAPTURE_H5 = capture_format(H5)
