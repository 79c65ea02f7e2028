"""`ActivationsLogger` and `JsonActivationsLogger`: one interface, over stores of actstore and over the older logs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore.config import LoggerDefaults
from actstore.errors import InvalidInputError, ReadOnlyError
from actstore.legacy.extraction import Extraction, whole
from actstore.legacy.old import open_old
from actstore.legacy.own import open_own
from actstore.sizes import format_bytes, parse_bytes

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from actstore.legacy.extraction import States
    from actstore.legacy.old import OldLog
    from actstore.legacy.own import OwnLog

    PathLike = str | os.PathLike[str]

__all__ = ["ActivationsLogger", "JsonActivationsLogger", "Logger"]

_OUTPUTS = "model_outputs"
_STATES = "all_layers_activations"
_CONFIG = "logging_config"
_FULL = 0.9

_messages = logging.getLogger("actstore.legacy")


class Logger:
    """A log of prompts, responses and hidden states by key. What both loggers are; a context manager that closes it.

    An entry is a dict with the fields it was logged with, and `logging_config`, `has_activations`, `timestamp` (Unix
    seconds) and `all_layers_activations`: a tensor [1, tokens, d] for each hidden state, or None for one that is not
    kept. They count as transformers does: 0 is the embedding, the last comes after the final norm. A row is the state
    at its token. In the store they are `embed`, `resid_post` of each layer but the last, and `final_norm`, and
    `actstore.open` reads them one by one.

    A log of the older program is opened in place and read, whichever logger opens it, its entries with the fields of
    its files; their `logging_config` is None where the files do not say it.
    """

    def __init__(
        self,
        path: PathLike,
        backend: str,
        extraction: Extraction,
        *,
        codec: str | None = None,
        map_size: int | None = None,
        read_only: bool,
        verbose: bool,
    ) -> None:
        self.path = Path(path)
        self._extraction = extraction
        self._map_size = map_size
        self._verbose = verbose
        old = open_old(self.path)
        self._open: OwnLog | OldLog | None = (
            old if old is not None else open_own(self.path, backend, codec, read_only=read_only)
        )

    def log_entry(self, key: str, entry: Mapping[str, Any]) -> None:
        """Log `entry` under `key`, in place of an earlier one; durable on return, and `entry` is left as it is.

        `entry` has `model_outputs`, what `generate` returned for one prompt with `output_hidden_states` and
        `return_dict_in_generate`, with the prompt's number of tokens as `input_length` and, where the response was cut,
        its as `trim_position`; or it has `all_layers_activations`, which may be None for none. Other fields, such as
        `prompt`, `response`, `model` and `messages`, are kept. Of states that are ready, `target_layers` are kept, and
        their rows are taken to be those of `sequence_mode`, unless `entry` has a `logging_config` of its own: an entry
        of another log is logged as it is. A store that was created elsewhere, with another `on_conflict`, keeps to it.

        Errors: `InvalidInputError` for what cannot be logged exactly, `ReadOnlyError`, also for a log of the older
        program, with the command that migrates it.
        """
        record = {name: value for name, value in entry.items() if name not in (_OUTPUTS, _STATES)}
        for name in ("input_length", "trim_position"):
            if record.get(name) is not None:
                record[name] = _count(name, record[name])
        if _OUTPUTS in entry:
            record[_CONFIG] = self._extraction.config
        states = self._states(entry, record)
        record.setdefault("trim_position", None)
        record.setdefault(_CONFIG, self._extraction.config)
        record.setdefault("timestamp", time.time())
        self._log.put(key, record, states)
        if self._verbose:
            kept = sum(state is not None for state in states)
            _messages.info("logged `%s` to `%s`: %d hidden states", key, self.path, kept)

    def get_entry(self, key: str, metadata_only: bool = False) -> dict[str, Any]:
        """The entry of `key`; with `metadata_only` without `all_layers_activations`, of which nothing is read.

        Errors: `NotFoundError` of kind `no_such_key`, which is a KeyError; `CorruptError` for what is damaged.
        """
        if metadata_only:
            return self._log.record(key)
        record, states = self._log.entry(key)
        return {**record, _STATES: states}

    def get_entry_by_key(self, key: str, metadata_only: bool = False) -> dict[str, Any]:
        """The same as `get_entry`."""
        return self.get_entry(key, metadata_only)

    def list_entries(self) -> list[str]:
        """Every key."""
        return self._log.keys()

    def search_metadata(self, predicate: Callable[[dict[str, Any]], object]) -> list[tuple[str, dict[str, Any]]]:
        """(key, entry without activations) of every entry whose fields `predicate` accepts; reads no activation."""
        records = ((key, self._log.record(key)) for key in self.list_entries())
        return [(key, record) for key, record in records if predicate(record)]

    def check_lmdb_size(self) -> int:
        """Bytes of the log's files. Above 90 % of `map_size` a warning is logged; a store grows beyond it."""
        size = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        if self._map_size is not None and size >= _FULL * self._map_size:
            said = f"{format_bytes(size)}, and `map_size` is {format_bytes(self._map_size)}; it grows as it needs to"
            _messages.warning("`%s` has %s", self.path, said)
        return size

    def close(self) -> None:
        """Close the log; every call but this one then raises `ReadOnlyError` of kind `closed`."""
        if self._open is not None:
            self._open.close()
        self._open = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _log(self) -> OwnLog | OldLog:
        if self._open is None:
            raise ReadOnlyError("closed", f"the log `{self.path}` is closed; open it again")
        return self._open

    def _states(self, entry: Mapping[str, Any], record: Mapping[str, Any]) -> States:
        length = record.get("input_length")
        if _OUTPUTS in entry:
            if length is None:
                message = "`model_outputs` without `input_length`; give the number of the prompt's tokens"
                raise InvalidInputError("invalid_metadata", message)
            return self._extraction.of_outputs(entry[_OUTPUTS], length, record.get("trim_position"))
        if _STATES not in entry:
            message = f"an entry needs `{_OUTPUTS}` and `input_length`, or `{_STATES}`; it has {list(entry)}"
            raise InvalidInputError("invalid_metadata", message)
        states = _checked(entry[_STATES])
        return states if _CONFIG in record else self._extraction.of_states(states, length)


class ActivationsLogger(Logger):
    """A log in a store of the backend `lmdb`.

    `lmdb_path`: its directory. `map_size`: what `check_lmdb_size` warns about, in bytes; the store grows by itself.
    `compression`: None for the default of `create`, or the name of a codec such as `zstd`; all are lossless.
    `read_only`: nothing is created, and a store of any backend is read. `target_layers`: `all`, `first_half`,
    `second_half` or a list of numbers of hidden states. `sequence_mode`: `all`, `prompt` or `response`. `verbose`:
    whether the logger `actstore.legacy` gets a line for each entry.

    What is left out or None is what the environment says (see `actstore.config`), else
    `lmdb_data/activations.lmdb`, 16 GiB, `all` and `all`.

    Errors: `InvalidInputError`, and with `read_only` `NotFoundError` where nothing is.
    """

    def __init__(
        self,
        lmdb_path: PathLike | None = None,
        map_size: int | None = None,
        compression: str | None = None,
        read_only: bool = False,
        target_layers: str | Sequence[int] | None = None,
        sequence_mode: str | None = None,
        verbose: bool = True,
    ) -> None:
        defaults = LoggerDefaults.from_env()
        super().__init__(
            _path(lmdb_path, "lmdb", defaults, "lmdb_data/activations.lmdb"),
            "lmdb",
            _extraction(target_layers, sequence_mode, defaults),
            codec=compression,
            map_size=defaults.lmdb_map_size if map_size is None else parse_bytes("map_size", map_size),
            read_only=read_only,
            verbose=verbose,
        )


class JsonActivationsLogger(Logger):
    """A log in a store of the backend `json`, which people can read.

    `output_dir`: its directory. The others are as for `ActivationsLogger`; what is left out is what the environment
    says, else `json_data/`, `all` and `all`.
    """

    def __init__(
        self,
        output_dir: PathLike | None = None,
        target_layers: str | Sequence[int] | None = None,
        sequence_mode: str | None = None,
        read_only: bool = False,
        verbose: bool = True,
    ) -> None:
        defaults = LoggerDefaults.from_env()
        super().__init__(
            _path(output_dir, "json", defaults, "json_data/"),
            "json",
            _extraction(target_layers, sequence_mode, defaults),
            read_only=read_only,
            verbose=verbose,
        )


def _path(given: PathLike | None, logger_type: str, defaults: LoggerDefaults, own: str) -> PathLike:
    if given is not None:
        return given
    return defaults.storage_path or own if defaults.logger_type == logger_type else own


def _extraction(
    target_layers: str | Sequence[int] | None, sequence_mode: str | None, defaults: LoggerDefaults
) -> Extraction:
    return Extraction(
        defaults.target_layers if target_layers is None else target_layers,
        defaults.sequence_mode if sequence_mode is None else sequence_mode,
    )


def _count(name: str, value: Any) -> int:
    count = whole(name, value)
    if count < 0:
        raise InvalidInputError("invalid_option", f"`{name}` is `{count}`; give a number of tokens")
    return count


def _checked(given: Any) -> States:
    """Hidden states that are ready. Errors: `invalid_tensor`."""
    if isinstance(given, Mapping):
        message = f"`{_STATES}` is a dict, of arrays that the oldest logs do not place in the model; migrate those logs"
        raise InvalidInputError("invalid_tensor", message)
    states: States = [] if given is None else list(given)
    for index, state in enumerate(states):
        shape = None if state is None else getattr(state, "shape", ())
        if shape is not None and not (len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)):
            what = f"has the shape `{list(shape)}`" if shape else f"is a `{type(state).__name__}`"
            message = f"hidden state `{index}` {what}; give arrays or tensors `[1, tokens, d]`, or None"
            raise InvalidInputError("invalid_tensor", message)
    if len({state.ndim for state in states if state is not None}) > 1:
        message = f"some of `{_STATES}` have an axis for the batch and some have none; give one or the other"
        raise InvalidInputError("invalid_tensor", message)
    return states
