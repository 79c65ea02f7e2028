"""What the environment sets. Nothing else in the package reads it."""

import os
from dataclasses import dataclass


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
