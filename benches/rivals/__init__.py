"""Everybody that actstore is measured against. A new rival is one file here and one line in the table."""

from __future__ import annotations

from importlib import import_module

from rivals.rival import Rival

__all__ = ["RIVALS", "Rival", "load"]

RIVALS = {
    "lmdb_pickle": "LmdbPickle",
    "lmdb_raw": "LmdbRaw",
    "lmdb_blosc2": "LmdbBlosc2",
    "safetensors_shards": "SafetensorsShards",
    "safetensors_entries": "SafetensorsEntries",
    "hdf5_entries": "Hdf5Plain Hdf5Gzip",
    "hdf5_flat_blosc2": "Hdf5FlatBlosc2",
    "zarr3": "Zarr3",
    "npz": "Npz",
    "torch_save": "TorchSave",
    "hf_datasets": "HfDatasets",
    "json_lists": "JsonLists",
    "raw_file": "RawFile",
}
"""Modules of this folder, and their classes."""


def load() -> tuple[list[Rival], dict[str, str]]:
    """Everybody who is installed here, and of the others the reason why they are left out."""
    present: list[Rival] = []
    absent: dict[str, str] = {}
    for module, classes in RIVALS.items():
        try:
            loaded = import_module(f"rivals.{module}")
        except ImportError as error:
            absent[module] = str(error)
        else:
            present += [getattr(loaded, name)() for name in classes.split()]
    return present, absent
