"""What a prompt was put into before it was fed to the tokenizer: the key of an entry is the digest of the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore import _core
from actstore.errors import CorruptError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actstore.data.logs import Log

__all__ = ["KNOWN_TEMPLATES", "best_template", "check_template", "key_under", "without_template"]

_PLACE = "{prompt}"
_ONE_SENTENCE = "Answer in one sentence. Q:{prompt}\n A:"

KNOWN_TEMPLATES = ("{prompt}", "user: {prompt}", f"user: {_ONE_SENTENCE}", _ONE_SENTENCE)
"""Those that document 000's server and the scripts around it used: with and without the role that was put before the
only message of a chat, and the instruction of document 003."""


def check_template(template: str) -> str:
    """`template`, if it has a place for the prompt. Errors: `invalid_option`."""
    if template.count(_PLACE) != 1:
        message = f"the prompt template `{template}` has `{_PLACE}` {template.count(_PLACE)} times; it needs it once"
        raise InvalidInputError("invalid_option", message)
    return template


def key_under(template: str, prompt: str) -> str:
    """The key of the entry whose prompt is `prompt` in `template`. Errors: `malformed` for what is no Unicode."""
    try:
        return _core.key_of_prompt(template.replace(_PLACE, prompt))
    except UnicodeEncodeError:
        raise CorruptError("malformed", "`prompt` is not valid Unicode: it has a lone surrogate") from None


def without_template(template: str, text: str) -> str:
    """The prompt that `template` was put around to give `text`; `text` itself where it was not."""
    before, _, after = template.partition(_PLACE)
    if len(text) >= len(before) + len(after) and text.startswith(before) and text.endswith(after):
        return text[len(before) : len(text) - len(after)]
    return text


def best_template(prompts: Iterable[str], log: Log) -> str | None:
    """The known template under which most of `prompts` are in `log`, the first of them where none is.

    None where there are no prompts.
    """
    matches: dict[str, int] = {}
    for prompt in prompts:
        for template in KNOWN_TEMPLATES:
            matches[template] = matches.get(template, 0) + (key_under(template, prompt) in log)
    return max(matches, key=matches.__getitem__, default=None)
