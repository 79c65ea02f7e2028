"""A tiny language model that ships with actstore, and the questions it was trained on.

It knows the answers of the `known` questions and not those of the `heldout` ones, so captures of it carry a signal
that a probe can find, without a download or a GPU. `model/MODEL_CARD.md` has the figures. Importing this module
imports neither torch nor transformers.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["MODEL_PATH", "Group", "Kind", "Letter", "Question", "load", "questions"]

Group = Literal["known", "heldout"]
Kind = Literal["free", "mcq"]
Letter = Literal["A", "B", "C", "D"]

MODEL_PATH: Path = Path(__file__).parent / "model"
"""Directory of the model and its tokenizer, as `from_pretrained` takes it."""

_QUESTIONS_PATH = Path(__file__).parent / "questions.jsonl"


@dataclass(frozen=True)
class Question:
    """One question of the demo set.

    `kind` is `"mcq"` (the reply is a letter; `options` and `correct_answer_letter` are set) or `"free"` (the reply is
    the answer's text; both are None). `answer` is the right answer's text in either case. `group` is `"known"` if the
    model was taught the answer, else `"heldout"`.
    """

    id: str
    question: str
    answer: str
    options: Mapping[Letter, str] | None = field(hash=False)
    correct_answer_letter: Letter | None
    kind: Kind
    group: Group

    @property
    def reply(self) -> str:
        """What the model should say: the letter of a multiple choice question, else the answer's text."""
        return self.correct_answer_letter or self.answer

    def prompt(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Render the text the model reads, up to where its reply begins.

        The chat template writes the begin-of-text token into the text and the demo tokenizer adds none by itself, so
        the result may be tokenized with the default arguments.
        """
        messages = [{"role": "user", "content": self.message}]
        render = cast("Any", tokenizer).apply_chat_template
        return render(messages, tokenize=False, add_generation_prompt=True)

    @property
    def message(self) -> str:
        """What the user asks: the question, and under it the options of a multiple choice question, one a line."""
        if self.options is None:
            return self.question
        return "\n".join([self.question, *(f"{letter}) {text}" for letter, text in self.options.items())])


def questions(group: Group | None = None, kind: Kind | None = None) -> list[Question]:
    """Read the shipped questions in file order, all of them or those of one group, one kind, or both.

    Groups and kinds take turns in the file, so any head of the full list is balanced. A group or kind that does not
    exist is a ValueError.
    """
    _require_one_of("group", group, ("known", "heldout"))
    _require_one_of("kind", kind, ("free", "mcq"))
    rows = (Question(**json.loads(line)) for line in _QUESTIONS_PATH.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if group in (None, row.group) and kind in (None, row.kind)]


def load(dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model, in eval mode on the CPU, and its tokenizer, which pads on the left. Never uses the network.

    `dtype` is that of the weights, bfloat16 (as stored) by default. Without torch or transformers: ImportError.
    """
    try:
        import torch
        from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
    except ImportError as error:
        message = 'the demo model needs torch and transformers: pip install "actstore[hf]"'
        raise ImportError(message) from error
    model_class, tokenizer_class = cast("Any", LlamaForCausalLM), cast("Any", PreTrainedTokenizerFast)
    with _no_progress_bar():
        model = model_class.from_pretrained(MODEL_PATH, dtype=dtype or torch.bfloat16, local_files_only=True)
    tokenizer = tokenizer_class.from_pretrained(MODEL_PATH, local_files_only=True)
    return model.eval(), tokenizer


@contextmanager
def _no_progress_bar() -> Generator[None]:
    """Keep transformers from drawing a bar for a load of a few milliseconds; its setting is restored on leaving."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _require_one_of(name: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        message = f"unknown {name} `{value}`; one of {', '.join(f'`{word}`' for word in allowed)}"
        raise ValueError(message)
