"""Everybody that actstore is measured against. A new rival is one file here and one line in the table."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rivals.rival import Rival

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rivals.codec_alone import CodecAlone

__all__ = ["CODECS", "RIVALS", "Rival", "load", "load_codecs"]

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

CODECS = {
    "codec_zipnn": "ZipNNAlone",
    "codec_blosc2": "Blosc2Shuffle Blosc2Bitshuffle",
    "codec_zstd": "Zstd1 Zstd3 Zstd1Shuffled Zstd3Shuffled",
}
"""The same of codecs alone."""


def load() -> tuple[list[Rival], dict[str, str]]:
    """Everybody who is installed here, and of the others the reason why they are left out."""
    classes, absent = present(RIVALS)
    return [one() for one in classes], absent


def load_codecs() -> tuple[list[type[CodecAlone]], dict[str, str]]:
    """The same of codecs alone, each to be made for a dtype."""
    return present(CODECS)


def present(table: Mapping[str, str]) -> tuple[list[Any], dict[str, str]]:
    """Classes of the modules that can be loaded, and why the others cannot."""
    found: list[Any] = []
    absent: dict[str, str] = {}
    for module, names in table.items():
        try:
            loaded = import_module(f"rivals.{module}")
        except ImportError as error:
            absent[module] = str(error)
        else:
            found += [getattr(loaded, name) for name in names.split()]
    return found, absent
