"""Capture language-model activations while a model runs; keep them exactly, small and safe; read them back fast.

    with actstore.capture(model, tokenizer=tokenizer, store="acts") as recorder:
        model.generate(**batch)
    store = actstore.open("acts")
    store[store.keys()[0]]["resid_post.12"]        # tensor [positions, d]

`capture` turns forwards of a model into entries; `create` and `open` give a `Store` of them; `migrate` brings them from
one store to another, and `formats` from and to the files of older systems; `demo` is a model small enough for every
machine; `errors` has what can go wrong.
Importing this imports neither torch nor NumPy.
"""

from actstore import demo, errors, formats, hook_points
from actstore._core import __version__
from actstore.capture import Recorder, capture
from actstore.entry import Entry, key_of_ids, key_of_prompt
from actstore.errors import ActstoreError
from actstore.metadata import MetadataTable
from actstore.migration import migrate
from actstore.reports import MigrationReport
from actstore.store import Store, create, open
from actstore.tokens import TokenBatch
from actstore.writer import Writer

__all__ = [
    "ActstoreError",
    "Entry",
    "MetadataTable",
    "MigrationReport",
    "Recorder",
    "Store",
    "TokenBatch",
    "Writer",
    "__version__",
    "capture",
    "create",
    "demo",
    "errors",
    "formats",
    "hook_points",
    "key_of_ids",
    "key_of_prompt",
    "migrate",
    "open",
]
