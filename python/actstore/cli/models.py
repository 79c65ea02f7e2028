"""Loading the model of a command, reading text with it, and what a row of it weighs."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from actstore import hook_points

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_EMBEDDED = "demo"


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, and the name and revision it is recorded under."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None

    @property
    def num_layers(self) -> int:
        """Blocks of the model."""
        return self._config.num_hidden_layers

    @property
    def context(self) -> int | None:
        """How many tokens the model has positions for, None where there is no bound. Errors: `unsupported_model`."""
        from actstore.capture.families import dissect

        return dissect(self.model).context

    def points(self, points: str, layers: str) -> list[str]:
        """Stored names of the hook points that comma-separated `points` are at `layers`."""
        return hook_points.expand(points.split(","), layers, self.num_layers)

    def row_bytes(self, points: Sequence[str], dtype: str | None) -> int:
        """Raw bytes of one token at all of `points`, packed to a `dtype` of 2 bytes or in the model's own."""
        config = self._config
        values = sum(config.vocab_size if name == "logits" else config.hidden_size for name in points)
        return values * (2 if dtype else self.model.dtype.itemsize)

    @property
    def _config(self) -> Any:
        return cast("Any", self.model.config).get_text_config()

    def forward(self, batch: dict[str, Tensor]) -> None:
        """One plain forward without gradients; what it returns is of no use here."""
        import torch

        with torch.inference_mode():
            cast("Any", self.model)(**batch, use_cache=False)


@contextmanager
def quiet_transformers() -> Generator[None]:
    """No warnings of transformers inside the block, such as its advice against padding on the right."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_model(name: str, revision: str | None, device: str | None) -> LoadedModel:
    """The embedded model for `demo`, else what transformers finds at a path or on the Hub, in its own dtype.

    `revision` is recorded as the commit that it resolved to. `device`: the first CUDA device by default, else the CPU.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        message = 'capturing a model needs torch and transformers: pip install "actstore[hf]"'
        raise ImportError(message) from error
    if name == _EMBEDDED:
        from actstore import demo

        model, tokenizer = demo.load()
    else:
        # transformers leaves the types of from_pretrained open.
        model_class, tokenizer_class = cast("Any", AutoModelForCausalLM), cast("Any", AutoTokenizer)
        model = model_class.from_pretrained(name, revision=revision, dtype="auto")
        tokenizer = tokenizer_class.from_pretrained(name, revision=revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    resolved = getattr(model.config, "_commit_hash", None) or revision
    return LoadedModel(cast("Any", model).to(chosen).eval(), tokenizer, name, resolved)


def read_batch(
    loaded: LoadedModel, prompts: Sequence[str], responses: Sequence[str]
) -> tuple[dict[str, Tensor], list[int]]:
    """A padded batch of prompts with their responses, and the number of tokens of each prompt.

    Both are tokenized one by one, so that the border between them is exact; a response gets no special tokens.
    """
    import torch

    prompt_ids, response_ids = token_ids(loaded, prompts), token_ids(loaded, responses, add_special_tokens=False)
    ids = [prompt + response for prompt, response in zip(prompt_ids, response_ids, strict=True)]
    batch = cast("Any", loaded.tokenizer).pad({"input_ids": ids}, return_tensors="pt")
    mask: Tensor = batch["attention_mask"]
    # Positions count real tokens, also behind padding on the left.
    positions = torch.clamp(mask.cumsum(-1) - 1, min=0)
    tensors = {"input_ids": batch["input_ids"], "attention_mask": mask, "position_ids": positions}
    device = loaded.model.device
    return {name: tensor.to(device) for name, tensor in tensors.items()}, [len(prompt) for prompt in prompt_ids]


def token_ids(loaded: LoadedModel, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
    """The token ids of each of `texts`, however many they are."""
    tokenizer = cast("Any", loaded.tokenizer)
    return tokenizer(list(texts), add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
