"""`ActivationParser`: a data set's rows, an evaluation's labels and the activations, as datasets for training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.data.hidden import DEFAULT_LAYERS, hidden_state_points
from actstore.data.join import Labels, check_share, join, parallel_labels, require_matches, split_by_key
from actstore.data.logs import AUTO, open_log
from actstore.data.rows import FrameRows, JsonLines, read_object
from actstore.data.templates import KNOWN_TEMPLATES, check_template
from actstore.errors import CorruptError, InvalidInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from torch import Tensor

    from actstore.data.dataset import ActivationDataset
    from actstore.data.logs import Recorded
    from actstore.data.rows import Row, Rows
    from actstore.hook_points import PointLike
    from actstore.store import Store

    Path = str | os.PathLike[str]

__all__ = ["ActivationParser"]

EVERY_SPLIT = "all"
_POSITIONS = ("all", "prompt", "response", "last")


class ActivationParser:
    """Rows of an inference file joined with their labels and with their entries in a store or an old log.

    `inference_json`: JSON lines with `prompt`, or with `activation_key` where the entry has a key of its own; or None,
    with `df` in its place, a data frame or a list of dicts. `eval_json`: one object with the lists `abstantion` and
    `halu_test_res`, a truth value for each row; or None where rows have `halu`, and `abstain` if any did.
    `activations_path`: a store, or a log of document 000; `logger_type`: what it has to be, `shards`, `lmdb` or `json`.

    `prompt_template`: what prompts were put into before they were fed, such as `"user: {prompt}"`; left out, the known
    ones are tried, and `report.template` is the one that matched. `min_match`: the share of rows that must have an
    entry. `positions`: which rows of the activations an item has. `seed` decides which rows are for testing and which
    layers an item shows.

    In memory are a key, a label and a number for each row. A context manager that closes what it opened.
    Errors: `no_such_key` below `min_match`; `malformed` for a row or label that is none, or as many labels as there are
    no rows; `unknown_position`, also where no entry is left; `not_a_store`; `invalid_option`; `storage_io`.
    """

    def __init__(
        self,
        inference_json: Path | None,
        eval_json: Path | None,
        activations_path: Store | Path,
        df: Any = None,
        logger_type: str = AUTO,
        *,
        prompt_template: str | None = None,
        min_match: float = 0.5,
        positions: str = "response",
        seed: int = 42,
    ) -> None:
        least = check_share("min_match", min_match)
        if prompt_template is not None:
            check_template(prompt_template)
        if positions not in _POSITIONS:
            message = f"`positions` is `{positions}`; one of {', '.join(f'`{name}`' for name in _POSITIONS)}"
            raise InvalidInputError("invalid_option", message)
        self._rows = _rows(inference_json, df)
        labels = _labels(eval_json, self._rows)
        self.log = open_log(activations_path, logger_type)
        self._positions = positions
        self._seed = seed
        self._joined, self.report = join(self._rows, labels, self.log, prompt_template, positions)
        report = self.report
        tried = KNOWN_TEMPLATES if prompt_template is None else (prompt_template,)
        require_matches(report.matched, report.rows, least, tried if report.template else (), self.log.path)
        if report.empty and not self._joined:
            message = f"no entry of `{self.log.path}` has rows at the positions `{positions}`; choose other `positions`"
            raise InvalidInputError("unknown_position", message)
        self._splits = split_by_key(self._joined, seed)

    @property
    def splits(self) -> dict[str, int]:
        """How many rows each split has."""
        return {name: self._splits.count(name) for name in sorted(set(self._splits))}

    def __len__(self) -> int:
        return len(self._joined)

    def row(self, number: int) -> dict[str, Any]:
        """The fields of a joined row as they were given, read again; with its `split`, `halu` and `activation_key`."""
        item = self._joined[number]
        said = {"activation_key": item.key, "halu": item.halu, "split": self._splits[number]}
        return {**self._rows[item.number].fields, **said}

    def get_dataset(
        self,
        split: str,
        relevant_layers: Iterable[PointLike] | None = None,
        *,
        pad_length: int = 63,
        pad_value: float = 0.0,
    ) -> ActivationDataset:
        """A torch dataset of the rows of `split`: `train`, `test`, a name that rows have as `split`, or `all`.

        `relevant_layers`: hidden states, counted as transformers does (0 is the embedding), 16 to 29 if left out; or
        hook points by name. The dataset reads while the parser is open. Errors: `invalid_option`.
        """
        from actstore.data.dataset import ActivationDataset, Window

        chosen = [item for item, of in zip(self._joined, self._splits, strict=True) if split in (of, EVERY_SPLIT)]
        known = sorted({*self._splits, "train", "test"})
        if split not in (*known, EVERY_SPLIT):
            names = ", ".join(f"`{name}`" for name in (*known, EVERY_SPLIT))
            raise InvalidInputError("invalid_option", f"`split` is `{split}`; one of {names}")
        layers = DEFAULT_LAYERS if relevant_layers is None else tuple(relevant_layers)
        window = Window(self._positions, pad_length, pad_value, self._seed, layers)
        return ActivationDataset(self.log, [item.key for item in chosen], [item.halu for item in chosen], window)

    def get_activations(self, number: int) -> tuple[dict[str, Any], Recorded, list[Tensor | None], int | None]:
        """A joined row, its entry, its hidden states, each [1, rows, d] at the parser's positions, and the length of
        its prompt in tokens; None for a hidden state that was not kept.
        """
        entry = self.log.entry(self._joined[number].key)
        points = hidden_state_points(entry)
        states = [None if point is None else entry.torch(point, self._positions)[None] for point in points]
        return self.row(number), entry, states, entry.prompt_length

    def close(self) -> None:
        """Close what was opened; datasets cannot be read any more. Closing twice is fine."""
        self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _rows(inference_json: Path | None, df: Any) -> Rows:
    if df is not None:
        return FrameRows(df)
    if inference_json is None:
        raise InvalidInputError("invalid_option", "`inference_json` is None; give a file of JSON lines, or a `df`")
    return JsonLines(inference_json)


def _labels(eval_json: Path | None, rows: Rows) -> Callable[[int, Row], Labels]:
    if eval_json is None:
        return _own_labels
    abstained, halu = parallel_labels(read_object(eval_json), eval_json)
    count = sum(1 for _ in rows)
    if count != len(halu):
        message = f"`{eval_json}` has labels for {len(halu):,} rows, but there are {count:,}; they belong by place"
        raise CorruptError("malformed", message)
    return lambda number, _: Labels(abstained[number], halu[number])


def _own_labels(number: int, row: Row) -> Labels:
    del number
    halu, abstain = row.fields.get("halu"), row.fields.get("abstain", False)
    if halu not in (True, False) or abstain not in (True, False):
        message = f"{row.name} has no truth values `halu` and `abstain`, and no `eval_json` is given"
        raise CorruptError("malformed", message)
    return Labels(bool(abstain), bool(halu))
