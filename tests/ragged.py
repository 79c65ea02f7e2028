"""Entries that differ in everything that can: number of rows, dtypes, special values, text, metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from dtypes import DTYPES, noise

if TYPE_CHECKING:
    from actstore.store import Store

TEXTS = (
    "plain",
    "",
    "日本語 🦀",
    'quotes " and \\ and / and </script>',
    "line\nbreak\ttab\x00zero\x7f",
    "e\u0301 é \ufeff",
)
LARGE = {3: "x" * (1 << 20), 4: list(range(150_000)), 5: {f"field {n}": [n, None, {"n": n / 7}] for n in range(20_000)}}
"""Metadata of a megabyte, by the number of its entry."""


def entry(number: int, key: str | None = None) -> dict[str, Any]:
    """The arguments of `Store.put` for entry `number`, under a key of its own or the one given."""
    random = np.random.default_rng(number)
    tokens = int(random.integers(0, 12))
    dtype = list(DTYPES)[number % len(DTYPES)]
    width = int(random.integers(1, 40))
    activations: dict[str, np.ndarray] = {
        "resid_post.0": random.standard_normal((tokens, width)).astype(ml_dtypes.bfloat16),
        "resid_post.1": noise(dtype, (tokens, width), number),
        "model.layers.0.self_attn": random.standard_normal((2, tokens, tokens)).astype(np.float16),
        "logits": np.full((), number, np.float64),
    }
    kept = {name: array for index, (name, array) in enumerate(activations.items()) if (number >> index) & 3 != 1}
    return {
        "key": key or (f"{number:064x}" if number % 3 == 0 else f"data:train:{number} {TEXTS[number % 3]}"),
        "prompt": f"{TEXTS[number % len(TEXTS)]} {number}" if number % 5 else None,
        "response": TEXTS[number % 4] if number % 7 else None,
        "token_ids": random.integers(0, 2**32, tokens).tolist() if number % 4 else None,
        "prompt_length": tokens // 2 if number % 4 else None,
        "metadata": {
            "number": number,
            "text": TEXTS[(number + 1) % len(TEXTS)],
            "score": number / 3 - 100,
            "nested": {"list": [1, 2.5, None, True, -0.0, 2**63], "deep": {"ä": {"b": []}}},
            "large": LARGE.get(number),
        },
        "activations": kept,
    }


def fill(store: Store, count: int) -> None:
    """Puts entries 0 to `count` - 1."""
    with store.writer() as writer:
        for number in range(count):
            writer.put(**entry(number))


def contents(store: Store) -> dict[str, tuple[str, dict[str, Any], list[int] | None]]:
    """Of every key, in order: content id, document and token ids. Equal contents are equal stores."""
    documents = list(store.metadata())
    return {
        key: (store.core.entry(key).content_id, document, store[key].token_ids)
        for key, document in zip(store.keys(), documents, strict=True)
    }
