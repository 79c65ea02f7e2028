"""The names of the systems that actstore replaces: change the import, keep the rest of the script."""

from actstore.legacy.storage import ActivationStorage

__all__ = ["ActivationStorage"]
