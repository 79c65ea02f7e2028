"""The inference file that a run did not keep, from the questions and what was logged; and that of a store alone."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore.data.join import check_share, require_matches
from actstore.data.logs import open_log
from actstore.data.rows import KEY_FIELD, JsonLines
from actstore.data.templates import KNOWN_TEMPLATES, best_template, check_template, without_template
from actstore.data.unreadable import UNREADABLE
from actstore.errors import CorruptError, InvalidInputError
from actstore.formats.place import refuse_inside
from actstore.formats.tree import writing
from actstore.reports import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import IO

    from actstore.data.logs import Log
    from actstore.store import Store

    Place = Store | str | os.PathLike[str]
    Say = Callable[[str], object]
    Step = Callable[[int, int], object]

__all__ = ["Reconstruction", "inference_of_store", "reconstruct_inference"]

_IF_THERE = ("messages", "trim_position")


@dataclass(frozen=True)
class Reconstruction:
    """How many `rows` there were; those `matched` were written, and skipped were those `missing`, which have no entry,
    and those `corrupted`, which could not be read, or whose entry could not or has no response. `template`: what the
    prompts were put into, None where every row names its entry itself.
    """

    rows: int
    matched: int
    missing: int
    corrupted: int
    template: str | None
    output: Path

    def __str__(self) -> str:
        under = "" if self.template is None else f" with the prompt template `{self.template!r}`"
        return (
            f"{self.matched:,} of {counted(self.rows, 'row', 'rows')} written to `{self.output}`{under}; "
            f"skipped: {self.missing:,} without an entry, {self.corrupted:,} corrupted"
        )


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def reconstruct_inference(
    qa_output_path: str | os.PathLike[str],
    lmdb_path: Place,
    output_path: str | os.PathLike[str],
    verbose: bool = True,
    *,
    prompt_template: str | None = None,
    min_match: float = 0.0,
    say: Say = _to_stderr,
    progress: Step | None = None,
) -> Reconstruction:
    """Write to `output_path`, for each row of the questions that was answered, its fields and what was logged of it.

    `qa_output_path`: JSON lines with `prompt`, the bare question. `lmdb_path`: a store of any backend, or an old log.
    The rows keep their order and all their fields, and get `generation`, `model`, `input_length` (tokens of the
    prompt), `timestamp` (Unix seconds), `messages` and `trim_position` where there are any, and `activation_key`, the
    key of the entry, by which `ActivationParser` joins them. `prompt_template` and `min_match`, the share of rows that
    must match, are as there, and at least one row must. What is missing or corrupted is skipped and counted.

    Streams: one row is in memory. The file appears when it is complete. With `verbose`, `say` gets lines: how many rows
    and entries there are, each row's key and what became of it, the result. `progress(done, total)` counts rows.

    Errors: `no_such_key` below `min_match`, `not_a_store`, `storage_io`, `invalid_option`.
    """
    least, lines = check_share("min_match", min_match), JsonLines(qa_output_path)
    template = None if prompt_template is None else check_template(prompt_template)
    target = _target(output_path, lines.path)
    log = open_log(lmdb_path)
    try:
        refuse_inside(log.path, target)
        tell = say if verbose else _nothing
        total = sum(1 for _ in lines.lines())
        tell(f"{counted(total, 'row', 'rows')} in `{lines.path}`")
        tell(f"{counted(len(log), 'entry', 'entries')} in `{log.path}`")
        used = template or best_template(_prompts(lines), log)
        tried = () if used is None else KNOWN_TEMPLATES if template is None else (template,)
        work = _Work(lines, log, used, tell)
        with _written(target) as write:
            for done, (number, line) in enumerate(lines.lines(), 1):
                work.step(number, line, write)
                if progress is not None:
                    progress(done, total)
            require_matches(work.matched, total, least, tried, log.path)
        report = Reconstruction(total, work.matched, work.missing, work.corrupted, used, target)
        tell(str(report))
        return report
    finally:
        log.close()


def inference_of_store(
    lmdb_path: Place,
    output_path: str | os.PathLike[str],
    verbose: bool = True,
    *,
    prompt_template: str | None = None,
    say: Say = _to_stderr,
    progress: Step | None = None,
) -> Reconstruction:
    """Write an inference file of a store or an old log alone: a row an entry, in the order of the store.

    A row has `prompt`, taken out of `prompt_template` where that is given, and what `reconstruct_inference` adds.
    Entries that are corrupted or have no response are skipped and counted. The others are as there, and so are errors.
    """
    template = None if prompt_template is None else check_template(prompt_template)
    tell, target = say if verbose else _nothing, Path(output_path)
    log = open_log(lmdb_path)
    try:
        refuse_inside(log.path, target)
        total, skipped = len(log), 0
        tell(f"{counted(total, 'entry', 'entries')} in `{log.path}`")
        with _written(target) as write:
            for done, key in enumerate(log.keys(), 1):
                try:
                    write(_row(key, log.fields(key), template))
                except UNREADABLE as error:
                    skipped += 1
                    tell(f"entry `{key}` is skipped: {error.message}")
                if progress is not None:
                    progress(done, total)
        report = Reconstruction(total, total - skipped, 0, skipped, template, target)
        tell(str(report))
        return report
    finally:
        log.close()


def _row(key: str, fields: dict[str, Any], template: str | None) -> dict[str, Any]:
    prompt = fields.get("prompt")
    bare = without_template(template, prompt) if template is not None and isinstance(prompt, str) else prompt
    return {"prompt": bare, **_answer(key, fields)}


def _nothing(_: str) -> None:
    pass


class _Work:
    """A reconstruction under way: what became of the rows so far."""

    def __init__(self, lines: JsonLines, log: Log, template: str | None, tell: Say) -> None:
        self.matched = self.missing = self.corrupted = 0
        self._lines = lines
        self._log = log
        self._template = template or KNOWN_TEMPLATES[0]
        self._tell = tell

    def step(self, number: int, line: bytes, write: Callable[[dict[str, Any]], None]) -> None:
        """Write the row in a line, or count why not."""
        try:
            row = self._lines.parse(number, line)
            key = row.key(self._template)
        except CorruptError as error:
            self.corrupted += 1
            self._tell(f"{error.message}; skipped")
            return
        try:
            if key in self._log:
                write({**row.fields, **_answer(key, self._log.fields(key))})
                self.matched += 1
                self._tell(f"{row.name}: `{key}` matched")
            else:
                self.missing += 1
                self._tell(f"{row.name}: `{key}` has no entry")
        except UNREADABLE as error:
            self.corrupted += 1
            self._tell(f"{row.name} is skipped: {error.message}")


def _answer(key: str, fields: dict[str, Any]) -> dict[str, Any]:
    """What is added to a row. Errors: `malformed` for an entry without a response."""
    if not isinstance(fields.get("response"), str):
        raise CorruptError("malformed", f"entry `{key}` has no `response`")
    more = {name: fields[name] for name in _IF_THERE if fields.get(name) is not None}
    return {
        "generation": fields["response"],
        "model": fields.get("model"),
        "input_length": fields.get("input_length"),
        "timestamp": fields.get("timestamp"),
        **more,
        KEY_FIELD: key,
    }


def _prompts(lines: JsonLines) -> Iterator[str]:
    """The prompts by which rows are to find their entries; rows that are none are passed over."""
    for number, line in lines.lines():
        try:
            row = lines.parse(number, line)
            row.key(KNOWN_TEMPLATES[0])
            if row.prompt is not None:
                yield row.prompt
        except CorruptError:
            continue


def _target(output_path: str | os.PathLike[str], source: Path) -> Path:
    target = Path(output_path)
    if target.resolve() == source.resolve():
        raise InvalidInputError("invalid_option", f"`{target}` is the file of the questions; write to another one")
    return target


@contextmanager
def _written(target: Path) -> Generator[Callable[[dict[str, Any]], None]]:
    """Writes rows beside `target`, and puts them there when all are written."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            file = partial.open("w", encoding="utf-8")
        with file:
            yield lambda row: _write_row(file, row, target)
            with writing(target):
                file.flush()
                os.fsync(file.fileno())
        with writing(target):
            partial.replace(target)
    finally:
        if partial.is_file():
            partial.unlink()


def _write_row(file: IO[str], row: dict[str, Any], target: Path) -> None:
    try:
        text = json.dumps(row)
    except (TypeError, ValueError, RecursionError) as error:
        raise CorruptError("malformed", f"entry `{row[KEY_FIELD]}` has a field that is no JSON: {error}") from None
    with writing(target):
        file.write(f"{text}\n")
