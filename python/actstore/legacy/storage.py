"""`ActivationStorage` of document 001: a file of activations, a record and a response for each question."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import numpy as np

from actstore import arrays
from actstore.errors import ActstoreError, CorruptError, InvalidInputError, NotFoundError
from actstore.formats.capture_files import checked, layer_number
from actstore.formats.capture_h5 import H5
from actstore.formats.capture_npz import NPZ
from actstore.formats.capture_pickle import PICKLE
from actstore.formats.capture_tree import SUFFIXES
from actstore.formats.capture_writing import TIMESTAMP, new_record, safe_name
from actstore.formats.reading import read_json
from actstore.formats.widening import widen

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

    from actstore.formats.capture_files import Captured

__all__ = ["ActivationStorage"]

_KINDS = {"npz": NPZ, "h5": H5, "pickle": PICKLE}
_PLACE = "./activation_data"
_FOLDERS = ("activations", "metadata", "responses")
_PREVIEW = 100


class ActivationStorage:
    """The storage of document 001 in `storage_path`, with its directories and names of files.

    Its files are those of the formats `capture-npz`, `capture-h5` and `capture-pickle`: `actstore.formats` brings them
    into a store. Nothing is created before the first save, and no file is ever replaced.
    """

    def __init__(
        self,
        storage_path: str | os.PathLike[str] | None = None,
        *,
        save_format: str = "npz",
        compression: bool = True,
    ) -> None:
        """`save_format` of what is saved: `npz`, `h5` (with the extra `hdf5`) or `pickle`. Errors: `invalid_option`."""
        if save_format not in _KINDS:
            message = f"`save_format` is `{save_format}`; one of {', '.join(f'`{name}`' for name in _KINDS)}"
            raise InvalidInputError("invalid_option", message)
        self.storage_path = Path(storage_path or _PLACE)
        self.save_format = save_format
        self.compression = compression

    def save_activation_data(
        self, question_id: str, question_data: Mapping[str, Any], response: str, activations: Mapping[str, Any]
    ) -> str:
        """Write the three files of one question; where its activations are.

        `activations`: `{"metadata": {...}, "layers": {"layer_5": {"hidden_states": array, ...}}}`, of NumPy arrays or
        torch tensors; bfloat16 is kept as float32, which has all its values. The files are whole and synced before they
        have their names, the record last; a second save of the same id in the same second gets a number.

        Errors: `invalid_tensor`, `invalid_metadata`, before anything is written; `storage_io`.
        """
        data = _plain(activations)
        now = datetime.now().strftime(TIMESTAMP)
        head = {"question_id": question_id, "question_data": question_data, "response": response, "timestamp": now}
        layers = [cast("int", layer_number(layer)) for layer in data["layers"]]
        kinds = {kind for arrays_of in data["layers"].values() for kind in arrays_of}
        record = new_record(head, "", layers, kinds, data["metadata"].get("model"))
        _json(record)
        kind = _KINDS[self.save_format]
        suffix = kind.suffix(compression=self.compression)
        for folder in _FOLDERS:
            (self.storage_path / folder).mkdir(parents=True, exist_ok=True)
        with _new_file(self.storage_path / "activations") as part:
            kind.save(part, data, self.compression)
            name = self._claim(part, f"{safe_name(question_id)}_{now}", suffix)
        with _new_file(self.storage_path / "responses") as part:
            _finish(part, self.storage_path / "responses" / f"{name}_response.txt", response.encode())
        record["activation_file"] = f"activations/{name}{suffix}"
        with _new_file(self.storage_path / "metadata") as part:
            _finish(part, self.storage_path / "metadata" / f"{name}_metadata.json", _json(record))
        return str(self.storage_path / "activations" / (name + suffix))

    def _claim(self, part: Path, base: str, suffix: str) -> str:
        """Give the finished file a name that nothing else has; the name without suffix."""
        _sync(part)
        name, number = base, 0
        while True:
            try:
                if any(self._taken(name)):
                    raise FileExistsError
                os.link(part, self.storage_path / "activations" / (name + suffix))
            except FileExistsError:
                number += 1
                name = f"{base}_{number}"
            else:
                part.unlink()
                return name

    def _taken(self, name: str) -> Generator[bool]:
        yield (self.storage_path / "metadata" / f"{name}_metadata.json").exists()
        yield from ((self.storage_path / "activations" / (name + suffix)).exists() for suffix in SUFFIXES)

    def load_activation_data(self, activation_file: str | os.PathLike[str]) -> Captured:
        """What was given as `activations`, of a file of any of the formats, ours or the original program's.

        A path that is not there is looked for in `storage_path`. Pickles are read as data; nothing of them is run.
        Errors: `NotFoundError` (`no_such_key`), `invalid_option` for another kind of file, and what is damaged.
        """
        path = Path(activation_file)
        if not path.exists() and not path.is_absolute():
            path = self.storage_path / path
        if not path.exists():
            raise NotFoundError("no_such_key", f"`{activation_file}` is not there, and not in `{self.storage_path}`")
        for kind in _KINDS.values():
            if path.name.endswith(kind.suffixes):
                return kind.load(path)
        message = f"`{path}` is no file of activations; they end in {', '.join(f'`{suffix}`' for suffix in SUFFIXES)}"
        raise InvalidInputError("invalid_option", message)

    def list_stored_activations(self) -> list[dict[str, Any]]:
        """What is stored, newest first: metadata_file, activation_file, question_id, timestamp, model_name, question.

        `question` is its first 100 characters. A record that cannot be read has `error` instead of its fields.
        """
        folder = self.storage_path / "metadata"
        paths = folder.glob("*_metadata.json") if folder.is_dir() else ()
        return sorted(map(self._listed, sorted(paths)), key=lambda item: str(item.get("timestamp")), reverse=True)

    def _listed(self, path: Path) -> dict[str, Any]:
        try:
            record: Any = read_json(path)
            if not isinstance(record, dict):
                raise CorruptError("malformed", f"`{path}` is no object")
        except ActstoreError as error:
            return {"metadata_file": str(path), "timestamp": "", "error": error.message}
        fields = cast("dict[str, Any]", record)
        # The program wrote paths from where it was started.
        file = Path(str(fields.get("activation_file", ""))).name
        question = _field(fields, "question_data").get("question")
        return {
            "metadata_file": str(path),
            "activation_file": str(self.storage_path / "activations" / file),
            "question_id": fields.get("question_id", ""),
            "timestamp": fields.get("timestamp", ""),
            "model_name": _field(fields, "config").get("model_name", ""),
            "question": question[:_PREVIEW] if isinstance(question, str) else "",
        }

    def get_storage_stats(self) -> dict[str, Any]:
        """Numbers of files, MiB of activations, and how this storage saves."""
        files = {folder: list(_files(self.storage_path / folder)) for folder in _FOLDERS}
        return {
            "total_activation_files": len(files["activations"]),
            "total_metadata_files": len(files["metadata"]),
            "total_response_files": len(files["responses"]),
            "total_storage_size_mb": sum(path.stat().st_size for path in files["activations"]) / (1 << 20),
            "storage_path": str(self.storage_path),
            "save_format": self.save_format,
            "compression_enabled": self.compression,
        }


def _field(record: dict[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _files(folder: Path) -> Generator[Path]:
    """What has a name and content: not what is being written, nor the empty twins of compressed pickles."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_file() and not path.name.startswith(".") and (path.stat().st_size or path.suffix != ".pkl"):
                yield path


def _plain(activations: Mapping[str, Any]) -> Captured:
    """`activations` with NumPy arrays in dtypes that NumPy has, and metadata that JSON can hold."""
    layers = {
        layer: {kind: _array(f"{layer}/{kind}", array) for kind, array in kinds.items()}
        for layer, kinds in _layers(activations).items()
    }
    metadata = json.loads(_json(dict(activations.get("metadata", {}))))
    try:
        return checked({"metadata": metadata, "layers": layers}, "`activations`")
    except CorruptError as error:
        raise InvalidInputError("invalid_tensor", error.message) from None


def _layers(activations: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The arrays by layer and kind. Errors: `invalid_tensor`."""
    layers: Any = activations.get("layers")
    if isinstance(layers, Mapping) and all(isinstance(kinds, Mapping) for kinds in cast("Any", layers).values()):
        return cast("Mapping[str, Mapping[str, Any]]", layers)
    shape = '`{"metadata": {...}, "layers": {"layer_5": {"hidden_states": array}}}`'
    message = f"`activations` has no `layers` with arrays by kind, it has {list(activations)}; give {shape}"
    raise InvalidInputError("invalid_tensor", message)


def _array(name: str, array: object) -> NDArray[Any]:
    dtype, shape, data = arrays.encode(name, array)
    return widen(arrays.as_numpy(data, dtype, shape), dtype)


def _json(document: object) -> bytes:
    try:
        return json.dumps(document, indent=2, default=_as_json).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError("invalid_metadata", f"what is to be saved is no JSON: {error}") from None


def _as_json(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return cast("Any", value).tolist()
    raise TypeError(f"`{type(value).__name__}` has no place in it")


@contextmanager
def _new_file(folder: Path) -> Generator[Path]:
    """A place in `folder` to write a file before it has its name; what is still there afterwards is removed."""
    part = folder / f".{uuid4().hex}.part"
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _finish(part: Path, path: Path, content: bytes) -> None:
    part.write_bytes(content)
    _sync(part)
    part.replace(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
