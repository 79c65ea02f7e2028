"""How many arrays that actstore made are alive at once."""

import weakref
from typing import Any

import pytest

from actstore import arrays


class Allocated:
    """Counts the arrays made from now on: `peak` is the most that were alive at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peak = 0
        self._living = set[int]()
        self._real = arrays.as_array
        monkeypatch.setattr(arrays, "as_array", self._as_array)

    def _as_array(self, *read: Any) -> Any:
        array = self._real(*read)
        self._living.add(id(array))
        weakref.finalize(array, self._living.discard, id(array))
        self.peak = max(self.peak, len(self._living))
        return array
