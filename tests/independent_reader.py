"""Reads any `shards` store from the text of rust/core/FORMAT.md alone; shares no code with actstore.

`python tests/independent_reader.py STORE` prints a line for each entry. Needs `xxhash` and `zstandard`. It reads the
whole of a store that nobody is writing and verifies every checksum, chain, place and sequence; the first that is wrong
is `Damaged`. BLAKE3 is in neither package, so models are taken by the id that commits give them, and content ids are
compared, but not computed again.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
import zstandard

HEAD, DATA, ENTRY, MODEL, COMMIT, SEAL, MANIFEST, EXTENT = range(1, 9)
STORED, ZSTD, PLANES = range(3)
DTYPES = {
    0: ("float16", 2),
    1: ("bfloat16", 2),
    2: ("float32", 4),
    3: ("float64", 8),
    4: ("int8", 1),
    5: ("int16", 2),
    6: ("int32", 4),
    7: ("int64", 8),
    8: ("uint8", 1),
    9: ("bool", 1),
    10: ("float8_e4m3fn", 1),
    11: ("float8_e5m2", 1),
}
FLOATS = {0, 1, 2, 3, 10, 11}

MAGIC = b"ACTR"
VERSION = 0
HEADER = struct.Struct("<4sBBHQQ16s8sIIII")
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
LARGEST_WINDOW = 1 << 27
LARGEST_FRAME = 256 << 20
NAME = re.compile(r"[!-.0-\[\]-~]{1,512}")
DOCUMENT_FIELDS = {"key", "key_recipe", "prompt", "response", "prompt_length", "positions", "metadata", "created"}


class Damaged(ValueError):  # noqa: N818  # the word of the text
    """The bytes are not what a writer wrote."""


class Unsupported(ValueError):  # noqa: N818
    """A later build wrote it."""


@dataclass(frozen=True)
class Entry:
    """One entry: its document as stored, its token ids, and (dtype, shape, bytes) of each activation by name."""

    document: dict[str, Any]
    token_ids: list[int] | None
    activations: dict[str, tuple[str, tuple[int, ...], bytes]]


def read_store(path: str | Path) -> dict[str, Entry]:
    """Every entry by key, in the order of the store. `Damaged` or `Unsupported` where it cannot be read whole."""
    root = Path(path)
    store_id = read_manifest(root)
    extents = read_log(root, store_id)
    numbers = {shard_number(file.name) for file in root.glob("shards/*")} - {0}
    entries: dict[str, Entry] = {}
    for number in sorted(numbers | extents.keys()):
        shard = Records(root / "shards" / shard_name(number), store_id, number)
        commits = walk(shard, extents.get(number))
        if commits and number not in extents:
            raise shard.damage(0, "the log does not have this shard")
        models = {name: offsets for commit in commits for name, offsets in commit.models}
        for commit in commits:
            apply(commit, Source(shard, commit, models), entries)
    return entries


def shard_name(number: int) -> str:
    return f"0-{number:06}.shard"


def shard_number(name: str) -> int:
    """The number of the shard that is called `name`; 0 if none is."""
    digits = re.fullmatch(r"0-([0-9]{6,10})\.shard", name)
    number = int(digits[1]) if digits else 0
    return number if number < 1 << 32 and shard_name(number) == name else 0


# Records


def crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [entry >> 1 ^ (0x82F63B78 if entry & 1 else 0) for entry in table]
    return table


CRC_TABLE = crc_table()


@lru_cache(1 << 16)
def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def xxh3_128(data: bytes) -> bytes:
    return xxhash.xxh3_128_intdigest(data).to_bytes(16, "little")


class Record(NamedTuple):
    """A record whose header is valid."""

    kind: int
    sequence: int
    offset: int
    end: int
    header: bytes
    checksum: bytes
    payload: bytes

    @property
    def intact(self) -> bool:
        return xxh3_128(self.payload) == self.checksum


class Records:
    """A file of records: a shard, or a log or manifest, whose number is 0. A manifest says itself what its store is."""

    def __init__(self, path: Path, store_id: str | None, number: int) -> None:
        if path.is_symlink() or not path.is_file():
            raise Damaged(f"{path} is missing, or not a regular file")
        self.path = path
        self.data = path.read_bytes()
        self.store_id = store_id
        self.place = (self.data[40:48] if store_id is None else place_of(store_id), 0, number)

    def damage(self, offset: int, reason: str) -> Damaged:
        return Damaged(f"{self.path} at byte {offset}: {reason}")

    def at(self, offset: int) -> Record | None:
        """The record that begins at `offset`, where its header is valid; its payload is not checked."""
        header = self.data[offset : offset + 64]
        if offset % 64 or not has_header(header):
            return None
        _, kind, version, flags, length, sequence, checksum, *place, zeros, _ = HEADER.unpack(header)
        if version > VERSION or not HEAD <= kind <= EXTENT or flags:
            raise Unsupported(f"{self.path} at byte {offset}: version {version}, record type {kind}, flags {flags}")
        start, end = offset + 64, offset + 64 + align(length)
        if tuple(place) != self.place or zeros or end > len(self.data):
            return None
        return Record(kind, sequence, offset, end, header, checksum, self.data[start : start + length])

    def __iter__(self) -> Iterator[Record]:
        """Records from the beginning, up to the first that is wrong by itself."""
        offset = sequence = 0
        while (record := self.at(offset)) is not None and record.sequence == sequence and record.intact:
            if (sequence == 0) != (record.kind == HEAD) or (sequence == 0 and not self.is_own_head(record)):
                return
            yield record
            offset, sequence = record.end, sequence + 1

    def is_own_head(self, record: Record) -> bool:
        due = {"format": "actstore", "version": VERSION, "store_id": self.store_id}
        due |= {"writer": self.place[1], "shard": self.place[2]}
        return due.items() <= json_object(record.payload).items()

    def behind(self, offset: int) -> Iterator[Record]:
        """Records with valid headers anywhere behind `offset`, where something is wrong."""
        at = offset
        while (at := self.data.find(MAGIC, at + 1)) >= 0:
            if (record := self.at(at)) is not None:
                yield record


def has_header(header: bytes) -> bool:
    right_size = len(header) == 64 and header[:4] == MAGIC
    return right_size and crc32c(header[:60]) == int.from_bytes(header[60:], "little")


def align(length: int) -> int:
    return (length + 63) // 64 * 64


class Fields:
    """Fields one after the other, never beyond the end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self.data):
            raise Damaged(f"{length} bytes at {self.position} of a payload of {len(self.data)}")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "little")

    def numbers(self, count: int, length: int) -> list[int]:
        return list(struct.unpack(f"<{count}{'I' if length == 4 else 'Q'}", self.take(count * length)))

    def text(self, length: int) -> str:
        return decoded(self.take(length))

    def end(self) -> None:
        if self.position != len(self.data):
            raise Damaged(f"{len(self.data) - self.position} bytes behind the last field of a payload")


def decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Damaged(f"text that is not UTF-8: {error}") from None


def json_object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(decoded(data), object_pairs_hook=unique, parse_constant=refuse)
    except (json.JSONDecodeError, RecursionError) as error:
        raise Damaged(f"text that is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Damaged("JSON that is not an object")
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise Damaged("a JSON object with a name twice")
    return dict(pairs)


def refuse(constant: str) -> float:
    raise Damaged(f"{constant} is not JSON")


# Manifest and log


def read_manifest(root: Path) -> str:
    """Checks the manifest; the id of the store."""
    file = Records(root / "actstore.manifest", None, 0)
    record = file.at(0)
    if record is None or (record.kind, record.sequence) != (MANIFEST, 0) or not record.intact:
        raise file.damage(0, "not a whole manifest")
    manifest = json_object(record.payload)
    try:
        required, store_id = manifest["features"]["required"], manifest["store_id"]
        if manifest["version"] > VERSION or required or manifest["token_convention"] != "at":
            raise Unsupported(f"{file.path}: {manifest}")
        right = manifest["format"] == "actstore" and re.fullmatch("[0-9a-f]{32}", store_id)
    except (KeyError, TypeError) as error:
        raise file.damage(0, f"a manifest without its fields: {error}") from None
    if not right or place_of(store_id) != file.place[0]:
        raise file.damage(0, f"no manifest of this store: {manifest}")
    return store_id


def place_of(store_id: str) -> bytes:
    return bytes.fromhex(store_id)[:8]


class Extent(NamedTuple):
    """What the log says of a shard; `seal` is 0 if it is not sealed."""

    length: int
    seal: int


def read_log(root: Path, store_id: str) -> dict[int, Extent]:
    log = Records(root / "logs/0.log", store_id, 0)
    extents: dict[int, Extent] = {}
    end = 0
    for record in log:
        end = record.end
        if record.kind == EXTENT:
            fields = Fields(record.payload)
            number = fields.number(4)
            extents[number] = Extent(fields.number(8), fields.number(8))
            fields.take(32)
            fields.end()
    if end == 0 or any(log.behind(end)):
        raise log.damage(end, "a damaged log")
    return extents


# Commits


class Put(NamedTuple):
    """Which entry was put, and the place of its record."""

    content_id: bytes
    offset: int
    length: int


@dataclass
class Commit:
    """The payload of a commit or a seal; its record is at `offset`, and what it names from `start` on."""

    start: int
    offset: int
    chain: bytes
    durable: int
    models: list[tuple[bytes, list[int]]] = field(default_factory=list[tuple[bytes, list[int]]])
    changes: list[tuple[str, Put | None]] = field(default_factory=list[tuple[str, Put | None]])


def parse_commit(record: Record, start: int = 0) -> Commit:
    fields = Fields(record.payload)
    commit = Commit(start, record.offset, fields.take(16), fields.number(8))
    models, changes = fields.number(4), fields.number(4)
    commit.models += [(fields.take(16), fields.numbers(2, 8)) for _ in range(models)]
    commit.changes += [parse_change(fields) for _ in range(changes)]
    fields.end()
    return commit


def parse_change(fields: Fields) -> tuple[str, Put | None]:
    code = fields.number(1)
    key = fields.text(fields.number(2))
    if code not in (1, 2):
        raise Damaged(f"an unknown change {code}")
    if code == 2:
        return key, None
    return key, Put(fields.take(32), fields.number(8), fields.number(8))


def walk(shard: Records, extent: Extent | None) -> list[Commit]:
    """The commits of a shard, in order."""
    commits: list[Commit] = []
    chain, headers, start, end = bytes(16), bytearray(), 0, 0
    for record in shard:
        if record.kind in (COMMIT, SEAL):
            commit = try_commit(record, start)
            chain = xxh3_128(chain + headers)
            if commit is None or commit.chain != chain:
                break
            if record.kind == SEAL:
                check_seal(shard, commit, commits)
                check_end(shard, record, extent)
                return commits
            commits.append(commit)
            headers, start = bytearray(), record.end
        headers += record.header
        end = record.end
    check_tail(shard, end, [commit.durable for commit in commits] + [extent.length if extent else 0])
    return commits


def try_commit(record: Record, start: int = 0) -> Commit | None:
    try:
        return parse_commit(record, start) if record.intact else None
    except Damaged:
        return None


def check_seal(shard: Records, seal: Commit, commits: list[Commit]) -> None:
    models = [model for commit in commits for model in commit.models]
    changes = [change for commit in commits for change in commit.changes]
    if (seal.models, seal.changes) != (models, changes):
        raise shard.damage(seal.offset, "the seal is not the sum of the commits")


def check_end(shard: Records, seal: Record, extent: Extent | None) -> None:
    """Holds what the log says against the seal that ends the shard."""
    if extent is not None and (extent.length > seal.end or (extent.seal and extent != (seal.end, seal.offset))):
        raise shard.damage(seal.offset, f"the log says {extent}")


def check_tail(shard: Records, end: int, durable: list[int]) -> None:
    """What is wrong at `end` is damage if it was durable once, else the torn tail of a shard."""
    if end == 0 and has_header(shard.data[:64]) and HEADER.unpack(shard.data[:64])[7:10] != shard.place:
        raise shard.damage(0, "a file of another store or name")
    for record in shard.behind(end):
        if record.kind == SEAL:
            durable.append(record.offset)
        elif record.kind == COMMIT and (commit := try_commit(record)) is not None:
            durable.append(commit.durable)
    if end < max(durable):
        raise shard.damage(end, "a record that was durable is damaged")


# Entries


class Source(NamedTuple):
    """Where what a commit names is found."""

    shard: Records
    commit: Commit
    models: dict[bytes, list[int]]

    def payload(self, offset: int, kind: int) -> bytes:
        record = self.shard.at(offset)
        if record is None or record.kind != kind or not record.intact or record.end > self.commit.offset:
            raise self.shard.damage(offset, f"no record of type {kind}")
        return record.payload

    def model(self, name: bytes) -> bytes:
        if name not in self.models:
            raise self.shard.damage(self.commit.offset, f"no model {name.hex()}")
        first, second = (self.payload(offset, MODEL) for offset in self.models[name])
        if first != second:
            raise self.shard.damage(self.models[name][0], f"the copies of model {name.hex()} differ")
        return first


def apply(commit: Commit, source: Source, entries: dict[str, Entry]) -> None:
    for key, put in commit.changes:
        if put is None:
            entries.pop(key, None)
        else:
            entries[key] = read_entry(source, key, put)


def read_entry(source: Source, key: str, put: Put) -> Entry:
    payload = source.payload(put.offset, ENTRY)
    fields = Fields(payload)
    content_id, chunks = fields.take(32), fields.numbers(fields.number(4), 8)
    document_bytes, tokens, activations = fields.number(4), fields.number(4), fields.number(4)
    document = json_object(fields.take(document_bytes))
    token_ids = None if tokens == 0xFFFFFFFF else fields.numbers(tokens, 4)
    entry = Entry(document, token_ids, {})
    if document.get("key") != key or document.keys() - DOCUMENT_FIELDS:
        raise source.shard.damage(put.offset, f"not the entry `{key}`")
    for chunk in chunks:
        activation = read_activation(source, fields)
        values = b"".join(read_frames(source, chunk, activation))
        if entry.activations and order(activation.name) <= order([*entry.activations][-1]):
            raise source.shard.damage(put.offset, f"`{activation.name}` out of order")
        entry.activations[activation.name] = (DTYPES[activation.dtype][0], activation.shape, values)
    fields.end()
    if (content_id, put.offset, len(payload)) != put or activations != len(chunks) or put.offset < source.commit.start:
        raise source.shard.damage(put.offset, f"not what its commit put, or without {activations} chunks")
    return entry


def order(name: str) -> tuple[int, int, str]:
    """Where a hook point stands among those of an entry."""
    block = re.fullmatch(r"blocks\.([0-9]+)(\..*)?", name)
    if block and int(block[1]) < 1 << 64:
        return 1, int(block[1]), name
    return 0 if name == "hook_embed" else 2, 0, name


class Frame(NamedTuple):
    """A frame as the table has it, and how many values it has."""

    checksum: int
    length: int
    encoding: int
    values: int


class Activation(NamedTuple):
    """What the table of an entry says of an activation."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    model: bytes | None
    frames: list[Frame]

    @property
    def width(self) -> int:
        return DTYPES[self.dtype][1]

    @property
    def row_values(self) -> int:
        return product(self.shape[1:])


def read_activation(source: Source, fields: Fields) -> Activation:
    name_bytes, dtype, rank = fields.number(2), fields.number(1), fields.number(1)
    name = fields.text(name_bytes)
    shape = tuple(fields.numbers(rank, 8))
    frame_rows, _nonfinite, _saturated = fields.numbers(3, 8)
    has_model = fields.number(1)
    model = source.model(fields.take(16)) if has_model else None
    rows, frames = (shape[0] if shape else 1), fields.number(4)
    if not NAME.fullmatch(name) or dtype not in DTYPES or rank > 16 or has_model > 1 or frame_rows == 0:
        raise Damaged(f"an activation `{name}` that cannot be: {shape} of dtype {dtype}")
    if frames != (-(-rows // frame_rows) if product(shape) else 0):
        raise Damaged(f"{frames} frames of {frame_rows} rows for `{name}` of shape {shape}")
    activation = Activation(name, dtype, shape, model, [])
    for index in range(frames):
        values = min(frame_rows, rows - index * frame_rows) * activation.row_values
        frame = Frame(fields.number(8), fields.number(4), fields.number(1), values)
        if frame_rows > 1 and values * activation.width > LARGEST_FRAME:
            raise Damaged(f"a frame of `{name}` above the limit")
        activation.frames.append(frame)
    return activation


def product(numbers: tuple[int, ...]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def read_frames(source: Source, chunk: int, activation: Activation) -> Iterator[bytes]:
    """The bytes of each frame. They lie between the commit and the one before it."""
    offset, shard = chunk, source.shard
    for frame in activation.frames:
        stored = shard.data[offset : offset + frame.length]
        if len(stored) != frame.length or xxhash.xxh3_64_intdigest(stored) != frame.checksum:
            raise shard.damage(offset, "a frame does not match its checksum")
        yield decode_frame(frame, stored, activation)
        offset += frame.length
    if chunk % 64 or chunk < source.commit.start or offset > source.commit.offset:
        raise shard.damage(chunk, f"no chunk of `{activation.name}` can be here")


# Encodings


def decode_frame(frame: Frame, stored: bytes, activation: Activation) -> bytes:
    size = frame.values * activation.width
    if frame.encoding == STORED:
        values = stored
    elif frame.encoding == ZSTD:
        values = decompress(stored, size)
    elif frame.encoding == PLANES and activation.dtype in FLOATS:
        values = decode_planes(stored, frame.values, activation)
    else:
        raise Damaged(f"no encoding {frame.encoding} of {frame.values} values of dtype {activation.dtype}")
    if len(values) != size:
        raise Damaged(f"a frame of {len(values)} bytes where {size} are due")
    return values


def decompress(frame: bytes, size: int) -> bytes:
    if len(frame) < 5 or frame[:4] != ZSTD_MAGIC or frame[4] & 3:
        raise Damaged("not a zstd frame without dictionary")
    try:
        parameters = zstandard.get_frame_parameters(frame)
        if parameters.content_size != size or parameters.window_size > LARGEST_WINDOW:
            raise Damaged(f"a zstd frame of {parameters.content_size} bytes where {size} are due")
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damaged(f"a zstd frame that cannot be decoded: {error}") from None


def decode_planes(stored: bytes, count: int, activation: Activation) -> bytes:
    fields = Fields(stored)
    planes: list[bytes] = []
    for _ in range(activation.width - 1):
        planes.append(decode_plane(fields.take(fields.number(4)), count))
    planes.append(decode_plane(stored[fields.position :], count))
    residuals, *low = planes
    model = activation.model
    top = residuals if model is None else add_biases(residuals, model, activation.row_values)
    return merge([*low, top], count)


def decode_plane(stored: bytes, count: int) -> bytes:
    if len(stored) > count:
        raise Damaged(f"a plane of {len(stored)} bytes for {count} values")
    return stored if len(stored) == count else decompress(stored, count)


def add_biases(residuals: bytes, biases: bytes, channels: int) -> bytes:
    if len(biases) != channels:
        raise Damaged(f"{len(biases)} biases for {channels} channels")
    top = bytearray(residuals)
    for channel, bias in enumerate(biases):
        top[channel::channels] = residuals[channel::channels].translate(top_bytes(bias))
    return bytes(top)


def top_bytes(bias: int) -> bytes:
    """The top byte of every residual."""
    table = bytearray([*range(bias, 256), *range(bias)])
    table[(256 - bias) % 256] = (128 + bias) % 256
    table[128] = 0
    return bytes(table)


UPPER_BITS = bytes(byte >> 1 for byte in range(256))
LOWEST_BIT = bytes((byte & 1) << 7 for byte in range(256))


def merge(planes: list[bytes], count: int) -> bytes:
    """The values whose bytes are in `planes`, lowest first, each rotated right by one bit."""
    values = bytearray(count * len(planes))
    for index, plane in enumerate(planes):
        above = planes[(index + 1) % len(planes)]
        upper, lowest = (int.from_bytes(part) for part in (plane.translate(UPPER_BITS), above.translate(LOWEST_BIT)))
        values[index :: len(planes)] = (upper | lowest).to_bytes(count)
    return bytes(values)


def describe(key: str, entry: Entry) -> str:
    tokens = "no" if entry.token_ids is None else len(entry.token_ids)
    points = ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape, _) in entry.activations.items())
    return f"{key!r}: {tokens} token ids; {points or 'no activations'}"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python independent_reader.py STORE", file=sys.stderr)
        return 2
    try:
        entries = read_store(arguments[0])
    except (Damaged, Unsupported) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for key, entry in entries.items():
        print(describe(key, entry))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
