"""The names of the systems that actstore replaces, thin over it: change the import, keep the rest of the script.

What is new is written to stores of actstore's own, which everything else in the package reads as well;
`ActivationStorage` alone writes the files of its original. What those systems left behind opens in place and is only
read; `actstore.migrate` brings it into a store.
"""

from actstore.data import ActivationParser
from actstore.legacy.loggers import ActivationsLogger, JsonActivationsLogger
from actstore.legacy.storage import ActivationStorage
from actstore.pipelines import reconstruct_inference

__all__ = [
    "ActivationParser",
    "ActivationStorage",
    "ActivationsLogger",
    "JsonActivationsLogger",
    "reconstruct_inference",
]
