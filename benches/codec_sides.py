"""Who codes: actstore, in a child of its own, and the others, in this process."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from codec_data import Data
    from rivals.codec_alone import CodecAlone

__all__ = ["Other", "Ours"]


class Ours:
    """The Rust side: a child that does what a line says and answers with a line."""

    def __init__(self, program: Path, streams: Path) -> None:
        self._child = subprocess.Popen([program, streams], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.kernels: list[str] = self.ask("kernels")

    def ask(self, *words: object) -> Any:
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.write(" ".join(map(str, words)) + "\n")
        self._child.stdin.flush()
        answer = json.loads(self._child.stdout.readline() or '{"error": "the program has ended"}')
        if isinstance(answer, dict) and "error" in answer:
            raise SystemExit(answer["error"])
        return answer

    def load(self, data: Data, keys: int, threads: int = 1) -> None:
        self.ask("load", *data.words, threads, keys)

    def close(self) -> None:
        assert self._child.stdin
        self._child.stdin.close()
        self._child.wait()


class Other:
    """A codec on the same pieces, through its own interface. Its outputs are always fresh."""

    def __init__(self, codec: CodecAlone, pieces: Mapping[str, Sequence[bytes]]) -> None:
        self.name = codec.name
        self._codec = codec
        self._pieces = [piece for some in pieces.values() for piece in some]
        self._stored: list[bytes] = []
        self.stored_by_name: dict[str, int] = {}
        for name, some in pieces.items():
            # Copies, since one may change what it is given.
            stored = [bytes(codec.compress(bytearray(piece))) for piece in some]
            self.stored_by_name[name] = sum(map(len, stored))
            self._stored += stored
        for piece, stored in zip(self._pieces, self._stored, strict=True):
            if codec.decompress(stored) != piece:
                raise AssertionError(f"{self.name} does not keep the bytes")

    @property
    def stored(self) -> int:
        return sum(self.stored_by_name.values())

    def encode(self, _number: int) -> float:
        return self._timed(self._codec.compress, [bytearray(piece) for piece in self._pieces])

    def decode(self, _number: int) -> float:
        return self._timed(self._codec.decompress, self._stored)

    def _timed(self, work: Callable[[Any], object], pieces: Iterable[Any]) -> float:
        start = time.perf_counter()
        for piece in pieces:
            work(piece)
        return time.perf_counter() - start
