"""Arrays of every dtype."""

from typing import Any

import ml_dtypes
import numpy as np

from actstore import _core

DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(getattr(ml_dtypes, name, name)) for name, _ in _core.dtypes()}
"""NumPy's dtype of each name."""


def noise(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any bits, so that NaNs with payloads, infinities, subnormals and negative zeros are among them."""
    size = int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(size), DTYPES[dtype]).reshape(shape)
