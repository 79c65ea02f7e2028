"""Joining what a model answered with what it computed: the rows of a data set, their labels, and their activations.

    parser = ActivationParser("inference.jsonl", "eval.json", "acts")
    print(parser.report)                                     # what joined, what did not, and by which prompt template
    loader = DataLoader(parser.get_dataset("train"), batch_size=32, num_workers=4, collate_fn=collate)

The activations lie in a store of any backend, or in a log of document 000, in LMDB or JSON, read where it is. Rows find
their entries by key, never by place; an item of a dataset reads the layers that were asked for and nothing else.
"""

from typing import TYPE_CHECKING, Any

from actstore.data.join import JoinReport
from actstore.data.logs import Log, open_log
from actstore.data.parser import ActivationParser
from actstore.data.templates import KNOWN_TEMPLATES

if TYPE_CHECKING:
    from actstore.data.dataset import ActivationDataset, collate

__all__ = ["KNOWN_TEMPLATES", "ActivationDataset", "ActivationParser", "JoinReport", "Log", "collate", "open_log"]


def __getattr__(name: str) -> Any:
    # Those two need torch, which joining does not.
    if name in ("ActivationDataset", "collate"):
        from actstore.data import dataset

        return getattr(dataset, name)
    raise AttributeError(f"module `actstore.data` has no attribute `{name}`")
