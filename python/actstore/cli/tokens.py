"""The text of single tokens, where the tokenizer of the entry's model is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def decode_tokens(metadata: dict[str, Any], token_ids: list[int]) -> list[str] | None:
    """Text of each of `token_ids`; None where the tokenizer named by the metadata's `model` is not here.

    Reads files alone: nothing is downloaded, and neither torch nor transformers is imported.
    """
    path = _tokenizer_file(metadata.get("model"), metadata.get("revision"))
    if path is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return [tokenizer.decode([token_id], skip_special_tokens=False) for token_id in token_ids]


def _tokenizer_file(model: object, revision: object) -> Path | None:
    if not isinstance(model, str):
        return None
    if model == "demo":
        from actstore.demo import MODEL_PATH

        path = MODEL_PATH / "tokenizer.json"
    elif Path(model).is_dir():
        path = Path(model) / "tokenizer.json"
    else:
        path = _cached_file(model, revision if isinstance(revision, str) else None)
    return path if path is not None and path.is_file() else None


def _cached_file(model: str, revision: str | None) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(model, "tokenizer.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
