"""What the environment sets. Nothing else in the package reads it."""

import os
from dataclasses import dataclass

from actstore.errors import InvalidInputError
from actstore.sizes import parse_bytes

LOGGER_TYPES = ("lmdb", "json")
TARGET_LAYERS = ("all", "first_half", "second_half")
SEQUENCE_MODES = ("all", "prompt", "response")
"""Of each of them the first is the default."""

_MAP_SIZE = 16 << 30


@dataclass(frozen=True)
class Settings:
    """Choices that belong to where actstore runs rather than to what it is asked to do.

    `progress`: whether progress bars and progress lines are shown; `TQDM_DISABLE=1` turns them off.
    """

    progress: bool = True

    @classmethod
    def from_env(cls) -> "Settings":
        """The settings of this process's environment, read now."""
        return cls(progress=os.environ.get("TQDM_DISABLE", "").lower() in ("", "0", "false"))


@dataclass(frozen=True)
class LoggerDefaults:
    """What the activation loggers of `actstore.legacy` do where their caller does not say it.

    Each is set by the variable of its name in capitals after `ACTIVATION_`; an empty variable sets nothing.
    `logger_type`: `lmdb` or `json`. `storage_path`: where the logger of that type stores; None for its own default.
    `target_layers`: `all`, `first_half` or `second_half`. `sequence_mode`: `all`, `prompt` or `response`.
    `lmdb_map_size`: in bytes.
    """

    storage_path: str | None = None
    logger_type: str = LOGGER_TYPES[0]
    target_layers: str = TARGET_LAYERS[0]
    sequence_mode: str = SEQUENCE_MODES[0]
    lmdb_map_size: int = _MAP_SIZE

    @classmethod
    def from_env(cls) -> "LoggerDefaults":
        """The defaults in this process's environment, read now. Errors: `invalid_option`, which names the variable."""
        return cls(
            storage_path=os.environ.get("ACTIVATION_STORAGE_PATH") or None,
            logger_type=_one_of("ACTIVATION_LOGGER_TYPE", LOGGER_TYPES),
            target_layers=_one_of("ACTIVATION_TARGET_LAYERS", TARGET_LAYERS),
            sequence_mode=_one_of("ACTIVATION_SEQUENCE_MODE", SEQUENCE_MODES),
            lmdb_map_size=_size("ACTIVATION_LMDB_MAP_SIZE", _MAP_SIZE),
        )


def _one_of(variable: str, choices: tuple[str, ...]) -> str:
    value = os.environ.get(variable) or choices[0]
    if value not in choices:
        listed = ", ".join(f"`{choice}`" for choice in choices)
        raise InvalidInputError("invalid_option", f"`{variable}` is `{value}`; one of {listed}, or leave it unset")
    return value


def _size(variable: str, default: int) -> int:
    value = os.environ.get(variable)
    if not value:
        return default
    return parse_bytes(variable, int(value) if value.isascii() and value.isdecimal() else value)
