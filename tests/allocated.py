"""How many arrays that actstore allocated are alive at once."""

import weakref

import numpy as np
import pytest

from actstore import arrays


class Allocated:
    """Counts the arrays allocated from now on: `peak` is the most that were alive at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peak = 0
        self._living = set[int]()
        self._real = arrays.allocate
        monkeypatch.setattr(arrays, "allocate", self._allocate)

    def _allocate(self, size: int) -> np.ndarray:
        array = self._real(size)
        self._living.add(id(array))
        weakref.finalize(array, self._living.discard, id(array))
        self.peak = max(self.peak, len(self._living))
        return array
