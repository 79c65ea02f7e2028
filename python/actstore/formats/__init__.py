"""Formats for exchange: the trees of files that older systems wrote, to be read once and, for their tools, written.

A format promises reading and writing, no more: no lookups, no appending, no crash safety while it is used. What comes
from one belongs into a store (`import_store`), what another tool needs goes out of one (`export_store`).

A `Format` is one module and one line of the table in `table.py`; its libraries are imported when it is used. It has a
name and three functions: `recognises(path)` looks at the content, never at a name alone; `read(path)` gives a `Source`,
the number of entries and an iterator of `Pending` ones, each loaded by itself in bounded memory; `write(export)` writes
entries of a store. One that leaves the choice says which `dtypes` activations may be converted to. Loading gives an
`Imported`, the arguments of `Writer.put`, or raises the typed error that says which file and which field are damaged,
missing, unsafe or untrusted; the import counts and names it and goes on.

What the numbers mean differs from system to system, so each entry says it in its metadata, under `imported_from`:

    format           where it is from
    layer_counting   `hidden_states`: 0 is the embedding and the last comes after the final norm; `blocks`: i is block
                     i; null where the source does not say where its arrays were seen: these are `logged.<name>`
    token_convention `at`: row j is the state computed at its token
    padding_side     of the batches it was computed in, where that left a trace; else null
    dtypes           of its activations

and what is needed to write the same tree again. The activations have the names they have everywhere: hidden state 0 is
`embed`, hidden state i is `resid_post` of layer i - 1, the last is `final_norm`. So `entry["resid_post.12"]` means the
same whatever the source, and a point that the source did not have is absent.
"""

from typing import TYPE_CHECKING, Any

from actstore.formats.record import Export, Format, Imported, Pending, Source
from actstore.formats.table import find, format_of, names

if TYPE_CHECKING:
    from actstore.formats.exporting import export_store
    from actstore.formats.importing import import_store

__all__ = [
    "Export",
    "Format",
    "Imported",
    "Pending",
    "Source",
    "export_store",
    "find",
    "format_of",
    "import_store",
    "names",
]


def __getattr__(name: str) -> Any:
    # Those two need NumPy, which importing the package must not.
    if name == "export_store":
        from actstore.formats.exporting import export_store

        return export_store
    if name == "import_store":
        from actstore.formats.importing import import_store

        return import_store
    raise AttributeError(f"module `actstore.formats` has no attribute `{name}`")
