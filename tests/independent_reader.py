"""Reads any `shards` store from the text of rust/core/FORMAT.md alone; shares no code with actstore.

`python tests/independent_reader.py STORE` prints a line for each entry. Needs `xxhash` and `zstandard`. It reads the
whole of a store that nobody is writing and verifies every checksum, chain, place and sequence; the first that is wrong
is `Damaged`. BLAKE3 is in neither package, so models are taken by the id that commits give them, and content ids are
compared, but not computed again.
"""

from __future__ import annotations

import json
import math
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
STORED, ZSTD, PLANES, ARCHIVE = range(4)
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
MID_BITS = {0: 3, 10: 4, 11: 3}
"""How many bits of the top are not the symbol's, by dtype; 0 of any other."""

MAGIC = b"ACTR"
VERSION = 0
HEADER = struct.Struct("<4sBBHQQ16s8sIIII")
INTEGERS = {2: "H", 4: "I", 8: "Q"}
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
LARGEST_WINDOW = 1 << 27
LARGEST_MODEL = 1 << 20
LARGEST_FRAME = 256 << 20
NAME = re.compile(r"[!-.0-\[\]-~]{1,512}")
DOCUMENT_FIELDS = {"key", "key_recipe", "prompt", "response", "prompt_length", "positions", "metadata", "created"}


class Damaged(ValueError):  # noqa: N818  # the word of the text
    """The bytes are not what a writer wrote."""


class Unsupported(ValueError):  # noqa: N818
    """A later build wrote it."""


@dataclass(frozen=True)
class Entry:
    """One entry: its document as stored, its token ids, and (dtype, shape, bytes) of each activation by name.

    Of each activation by name, `below` has what it is given, if anything, and `met` what was met in decoding it.
    """

    document: dict[str, Any]
    token_ids: list[int] | None
    activations: dict[str, tuple[str, tuple[int, ...], bytes]]
    below: dict[str, str | None]
    met: dict[str, set[str]]


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

    def varint(self) -> int:
        """An integer in groups of seven bits (section 6)."""
        groups = [self.number(1)]
        while groups[-1] & 0x80:
            groups.append(self.number(1))
        value = sum((group & 0x7F) << (7 * place) for place, group in enumerate(groups))
        if value >> 64 or (groups[-1] == 0 and len(groups) > 1):
            raise Damaged(f"{len(groups)} bytes for the varint {value}")
        return value

    def varints(self, count: int) -> list[int]:
        return [self.varint() for _ in range(count)]

    def numbers(self, count: int, length: int) -> list[int]:
        return list(struct.unpack(f"<{count}{INTEGERS[length]}", self.take(count * length)))

    def fields(self, count: int, bits: int) -> list[int]:
        """Numbers of `bits` bits."""
        text = bit_string(self.take(-(-count * bits // 8)))
        return (
            [int("0" + text[at : at + bits][::-1], 2) for at in range(0, count * bits, bits)] if bits else [0] * count
        )

    def with_planes(self, count: int, planes: int) -> list[int]:
        """Numbers of eight low bits each, and bit planes of those above."""
        numbers = list(self.take(count))
        for shift in range(8, 8 + planes):
            numbers = [number + (bit << shift) for number, bit in zip(numbers, self.fields(count, 1), strict=True)]
        return numbers

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.position)

    def text(self, length: int) -> str:
        return decoded(self.take(length))

    def end(self) -> None:
        if self.position != len(self.data):
            raise Damaged(f"{len(self.data) - self.position} bytes behind the last field of a payload")


def bit_string(data: bytes) -> str:
    """The bits of `data` as digits, in the order in which they stand in a sequence."""
    return f"{int.from_bytes(data, 'little'):0{8 * len(data)}b}"[::-1] if data else ""


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
        if len(first) > LARGEST_MODEL:
            raise self.shard.damage(self.models[name][0], f"model {name.hex()} has {len(first)} bytes")
        return decompress(first, LARGEST_MODEL, least=1) if first.startswith(ZSTD_MAGIC) else first


def apply(commit: Commit, source: Source, entries: dict[str, Entry]) -> None:
    for key, put in commit.changes:
        if put is None:
            entries.pop(key, None)
        else:
            entries[key] = read_entry(source, key, put)


def read_entry(source: Source, key: str, put: Put) -> Entry:
    payload = source.payload(put.offset, ENTRY)
    fields = Fields(payload)
    content_id, chunks = fields.take(32), [64 * place for place in fields.varints(fields.varint())]
    document, tokens = json_object(fields.take(fields.varint())), fields.varint()
    token_ids = fields.varints(tokens - 1) if tokens else None
    if max(token_ids or [0]) >> 32:
        raise source.shard.damage(put.offset, "a token id beyond 32 bits")
    activations = fields.varint()
    entry = Entry(document, token_ids, {}, {}, {})
    before: list[Activation] = []
    if document.get("key") != key or document.keys() - DOCUMENT_FIELDS:
        raise source.shard.damage(put.offset, f"not the entry `{key}`")
    for chunk in chunks:
        activation = read_activation(source, fields, before)
        before.append(activation)
        activation.values += read_frames(source, chunk, activation)
        if entry.activations and order(activation.name) <= order([*entry.activations][-1]):
            raise source.shard.damage(put.offset, f"`{activation.name}` out of order")
        values = b"".join(activation.values)
        entry.activations[activation.name] = (DTYPES[activation.dtype][0], activation.shape, values)
        entry.below[activation.name] = activation.below.name if activation.below else None
        entry.met[activation.name] = activation.met
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


@dataclass
class Activation:
    """What the table of an entry says of an activation; and, frame by frame, its values."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    frame_rows: int
    model: bytes | None = None
    below: Activation | None = None
    frames: list[Frame] = field(default_factory=list[Frame])
    values: list[bytes] = field(default_factory=list[bytes])
    met: set[str] = field(default_factory=set[str])

    @property
    def width(self) -> int:
        return DTYPES[self.dtype][1]

    @property
    def row_values(self) -> int:
        return product(self.shape[1:])


def read_activation(source: Source, fields: Fields, before: list[Activation]) -> Activation:
    name, dtype, rank = fields.text(fields.varint()), fields.number(1), fields.varint()
    activation = Activation(name, dtype, tuple(fields.varints(rank)), fields.varint())
    _nonfinite, _saturated = fields.varints(2)
    has_model = fields.number(1)
    if not NAME.fullmatch(name) or dtype not in DTYPES or rank > 16 or has_model > 2 or activation.frame_rows == 0:
        raise Damaged(f"an activation `{name}` that cannot be: {activation.shape} of dtype {dtype}")
    if has_model:
        activation.model = source.model(fields.take(16))
    if has_model == 2:
        activation.below = find_below(activation, fields.varint(), before)
    read_table(fields, activation)
    return activation


def find_below(activation: Activation, number: int, before: list[Activation]) -> Activation:
    below = before[number] if number < len(before) else activation
    kind, kind_below = ((one.dtype, one.shape, one.frame_rows) for one in (activation, below))
    if below is activation or kind != kind_below or any(other.below is below for other in before):
        raise Damaged(f"activation {number} is not below `{activation.name}`")
    return below


def read_table(fields: Fields, activation: Activation) -> None:
    shape, frame_rows = activation.shape, activation.frame_rows
    rows, frames = (shape[0] if shape else 1), fields.varint()
    if frames != (-(-rows // frame_rows) if product(shape) else 0):
        raise Damaged(f"{frames} frames of {frame_rows} rows for `{activation.name}` of shape {shape}")
    for index in range(frames):
        values = min(frame_rows, rows - index * frame_rows) * activation.row_values
        frame = Frame(fields.number(8), fields.varint(), fields.number(1), values)
        size = values * activation.width
        if (frame_rows > 1 and size > LARGEST_FRAME) or frame.length > size:
            raise Damaged(f"a frame of `{activation.name}` above the limit, or larger than its values")
        activation.frames.append(frame)


def product(numbers: tuple[int, ...]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def read_frames(source: Source, chunk: int, activation: Activation) -> Iterator[bytes]:
    """The bytes of each frame. They lie between the commit and the one before it."""
    offset, shard = chunk, source.shard
    for number, frame in enumerate(activation.frames):
        stored = shard.data[offset : offset + frame.length]
        if len(stored) != frame.length or xxhash.xxh3_64_intdigest(stored) != frame.checksum:
            raise shard.damage(offset, "a frame does not match its checksum")
        yield decode_frame(frame, stored, activation, number)
        offset += frame.length
    if chunk < source.commit.start or offset > source.commit.offset:
        raise shard.damage(chunk, f"no chunk of `{activation.name}` can be here")


# Encodings


def decode_frame(frame: Frame, stored: bytes, activation: Activation, number: int) -> bytes:
    size = frame.values * activation.width
    if frame.encoding == STORED:
        activation.met.add("stored")
        values = stored
    elif frame.encoding == ZSTD:
        activation.met.add("zstd")
        values = decompress(stored, size)
    elif frame.encoding == PLANES and activation.dtype in FLOATS:
        values = decode_planes(stored, frame.values, activation)
    elif frame.encoding == ARCHIVE and activation.dtype in LOWEST_BITS and activation.below is not None:
        values = decode_archive(stored, activation.below.values[number], activation)
    else:
        raise Damaged(f"no encoding {frame.encoding} of {frame.values} values of dtype {activation.dtype}")
    if len(values) != size:
        raise Damaged(f"a frame of {len(values)} bytes where {size} are due")
    return values


def decompress(frame: bytes, size: int, least: int | None = None) -> bytes:
    """The content of a zstd frame, which has `size` bytes, or at least `least` and at most `size`."""
    if len(frame) < 5 or frame[:4] != ZSTD_MAGIC or frame[4] & 3:
        raise Damaged("not a zstd frame without dictionary")
    try:
        parameters = zstandard.get_frame_parameters(frame)
        due = range(size if least is None else least, size + 1)
        if parameters.content_size not in due or parameters.window_size > LARGEST_WINDOW:
            raise Damaged(f"a zstd frame of {parameters.content_size} bytes where {size} are due")
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damaged(f"a zstd frame that cannot be decoded: {error}") from None


# Codes, segments and index


LARGEST_SEGMENT = 512
ESCAPES = 2
MOST_PLANES = 4


def code_words(lengths: list[int], longest: int) -> dict[str, int]:
    """The symbol of each sequence of bits of a code."""
    ordered = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
    if max(lengths) > longest or sum(1 << longest - length for length, _ in ordered) != 1 << longest:
        raise Damaged(f"an incomplete code, or one with words above {longest} bits: {lengths}")
    words: dict[str, int] = {}
    number, before = -1, ordered[0][0]
    for length, symbol in ordered:
        number = number + 1 << length - before
        words[f"{number:0{length}b}"] = symbol
        before = length
    return words


def segment_sizes(count: int, row_values: int) -> list[int]:
    """How many values each segment of a frame of `count` values has."""
    if row_values < LARGEST_SEGMENT:
        return pieces(count, LARGEST_SEGMENT // row_values * row_values)
    size = -(-row_values // -(-row_values // LARGEST_SEGMENT))
    return pieces(row_values, -(-size // 8) * 8) * (count // row_values)


def pieces(count: int, size: int) -> list[int]:
    return [min(size, count - start) for start in range(0, count, size)]


class Segment(NamedTuple):
    """What the index says of a segment, and how many values it has."""

    values: int
    length: int
    escapes: int


def read_index(fields: Fields, flags: int, count: int, activation: Activation, encoding: str) -> list[Segment]:
    sizes = segment_sizes(count, activation.row_values)
    head = fields.number(2)
    base, planes, many = head & 0xFFF, head >> 12 & 7, head >> 15
    if planes > MOST_PLANES or (many and not flags & ESCAPES):
        raise Damaged(f"an index that begins with {head:#x}")
    lengths = [base + length for length in fields.with_planes(len(sizes), planes)]
    has_escapes = fields.fields(len(sizes), 1) if flags & ESCAPES else [0] * len(sizes)
    counts = iter(fields.with_planes(sum(has_escapes), many))
    escapes = [1 + next(counts) if has else 0 for has in has_escapes]
    met = {"": True, ": high bits of lengths": planes, ": escapes": flags & ESCAPES, ": many escapes": many}
    activation.met |= {encoding + text for text, is_met in met.items() if is_met}
    return [Segment(*segment) for segment in zip(sizes, lengths, escapes, strict=True)]


# The encoding `planes`

OWN_CODE, PLANE_OF_TOPS = 1, 4
CLASSES, LONGEST_CLASS = 16, 7
SYMBOL_0, ESCAPED = 14, 15


class Classes(NamedTuple):
    """A model for `planes`, or a frame's own code."""

    words: dict[str, int]
    biases: bytes


@lru_cache
def parse_classes(model: bytes, channels: int) -> Classes:
    fields = Fields(model)
    words = code_words(fields.fields(CLASSES, 4), LONGEST_CLASS)
    biases = fields.rest()
    if len(words) != CLASSES or len(biases) not in (1, channels):
        raise Damaged(f"{len(words)} classes and {len(biases)} biases for {channels} channels")
    return Classes(words, biases * (channels // len(biases)))


def decode_planes(stored: bytes, count: int, activation: Activation) -> bytes:
    fields, low_planes = Fields(stored), activation.width - 1
    flags, compressed = fields.number(1), fields.number(1)
    if (flags & ~(OWN_CODE | ESCAPES) and flags != PLANE_OF_TOPS) or compressed >> low_planes:
        raise Damaged(f"unknown flags {flags:#x}, or {compressed:#x} for {low_planes} low planes")
    low = [decode_low(fields, count, compressed >> plane & 1, activation) for plane in range(low_planes)]
    if flags == PLANE_OF_TOPS:
        tops = decode_plane_of_tops(fields.rest(), count, activation)
    else:
        tops = decode_tops(fields, flags, count, activation)
    return merge([*low, tops], count)


def decode_low(fields: Fields, count: int, compressed: int, activation: Activation) -> bytes:
    if not compressed:
        return fields.take(count)
    activation.met.add("planes: compressed low plane")
    return decompress(fields.take(fields.number(4)), count)


def decode_plane_of_tops(stored: bytes, count: int, activation: Activation) -> bytes:
    if len(stored) == count:
        activation.met.add("planes: plane of tops")
        return stored
    activation.met.add("planes: compressed plane of tops")
    return decompress(stored, count)


def decode_tops(fields: Fields, flags: int, count: int, activation: Activation) -> bytes:
    mid_bits = MID_BITS.get(activation.dtype, 0)
    mids = fields.fields(count, mid_bits)
    words, biases = find_classes(fields, flags, activation)
    index = read_index(fields, flags, count, activation, "planes")
    classes = decode_classes(fields, index, words)
    symbols = class_symbols(classes, biases, fields.take(sum(segment.escapes for segment in index)))
    fields.end()
    if max(symbols) >> 8 - mid_bits:
        raise Damaged(f"a symbol of more than {8 - mid_bits} bits")
    return bytes(symbol << mid_bits | mid for symbol, mid in zip(symbols, mids, strict=True))


def find_classes(fields: Fields, flags: int, activation: Activation) -> Classes:
    model = activation.model
    if flags & OWN_CODE:
        activation.met.add("planes: own code")
        return parse_classes(fields.take(9), activation.row_values)
    if model is None or model[:1] != bytes([PLANES]):
        raise Damaged(f"`{activation.name}` has no model for `planes`")
    activation.met.add(f"planes: model of {'one bias' if len(model) == 10 else 'a bias a channel'}")
    return parse_classes(model[1:], activation.row_values)


def decode_classes(fields: Fields, index: list[Segment], words: dict[str, int]) -> list[int]:
    bits = bit_string(fields.take(-(-sum(segment.length for segment in index) // 8)))
    pattern = re.compile("|".join(words))
    classes: list[int] = []
    for segment in index:
        codes = pattern.findall(bits[: segment.length])
        bits = bits[segment.length :]
        found = [words[code] for code in codes]
        if (len(found), sum(map(len, codes)), found.count(ESCAPED)) != segment:
            raise Damaged(f"codes that are not those of {segment}")
        classes += found
    return classes


def class_symbols(classes: list[int], biases: bytes, escapes: bytes) -> list[int]:
    """The symbol of each value. There are as many escapes as classes that want one."""
    rest = iter(escapes)
    symbols: list[int] = []
    for number, found in enumerate(classes):
        if found == ESCAPED:
            symbols.append(next(rest))
        elif found == SYMBOL_0:
            symbols.append(0)
        else:
            symbols.append((found + biases[number % len(biases)]) % 256)
    return symbols


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


# The encoding `archive`

CONTEXTS, SYMBOLS, LONGEST_SYMBOL = 16, 129, 9
ESCAPE = 128
LOWEST_BITS = {0: 8, 1: 5}
ORIGINS = {0: 448, 1: 0}
"""What a value's exponent field is less than that of a float32, in quarters, by dtype."""
EXPONENT_BITS = {0: 0x7C00, 1: 0x7F80}


class Channel(NamedTuple):
    """What a model says of a channel."""

    slope: float
    offset: float
    spread: int


class Layer(NamedTuple):
    """A model for `archive`."""

    channels: list[Channel]
    codes: list[dict[str, int]]


@lru_cache
def parse_layer(model: bytes, channels: int) -> Layer:
    fields = Fields(model)
    encoding, slopes, offsets = fields.number(1), coefficients(fields, channels), coefficients(fields, channels)
    spreads, lengths = fields.take(channels), fields.fields(CONTEXTS * SYMBOLS, 4)
    fields.end()
    codes = [code_words(lengths[at : at + SYMBOLS], LONGEST_SYMBOL) for at in range(0, len(lengths), SYMBOLS)]
    if encoding != ARCHIVE or not all(lengths[ESCAPE::SYMBOLS]):
        raise Damaged("not a model for `archive`, or one without a word for escapes")
    return Layer([Channel(*one) for one in zip(slopes, offsets, spreads, strict=True)], codes)


def coefficients(fields: Fields, channels: int) -> list[float]:
    patterns = [fields.number(2) for _ in range(channels)]
    if not all(pattern == 0 or is_normal(pattern, 1) for pattern in patterns):
        raise Damaged("a coefficient that is neither 0 nor normal")
    return [to_float(pattern, 1) for pattern in patterns]


def is_normal(pattern: int, dtype: int) -> bool:
    return pattern & EXPONENT_BITS[dtype] not in (0, EXPONENT_BITS[dtype])


def to_float(pattern: int, dtype: int) -> float:
    """The value of a `float16` or `bfloat16`."""
    if dtype == 0:
        return struct.unpack("<e", pattern.to_bytes(2, "little"))[0]
    return struct.unpack("<f", (pattern << 16).to_bytes(4, "little"))[0]


def float32(value: float) -> bytes:
    """Rounded to float32."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


class Given(NamedTuple):
    """What is known of a value before its code is read: of which context that is, and where it counts from."""

    context: int
    origin: int


def given(below: int, channel: Channel, step: int, dtype: int) -> Given:
    x = to_float(below, dtype) if is_normal(below, dtype) else 0.0
    (p,) = struct.unpack("<f", float32(channel.slope * x))
    y = int.from_bytes(float32(p + channel.offset), "little")
    a, e = y & 0x7FFFFFFF, y >> 23 & 0xFF
    s = channel.spread + step + 66
    o = s // 2
    if e < o + 2:
        context, b = 6 * (s % 2) + clamp((a >> 22) - 2 * o + 2, 5), 4 * (o - 11)
    else:
        context, b = 12 + clamp(2 * e - s - 3, 3), (a >> 21) - 32
    sign = 1 << 15 if y >> 31 and e >= 32 else 0
    return Given(context, ((b - ORIGINS[dtype]) << LOWEST_BITS[dtype]) + sign)


def clamp(value: int, largest: int) -> int:
    return min(max(value, 0), largest)


def decode_archive(stored: bytes, below: bytes, activation: Activation) -> bytes:
    if activation.model is None:
        raise Damaged(f"`{activation.name}` has no model")
    layer = parse_layer(activation.model, activation.row_values)
    fields, count, lowest_bits = Fields(stored), len(below) // 2, LOWEST_BITS[activation.dtype]
    flags = fields.number(1)
    if flags & ~ESCAPES:
        raise Damaged(f"unknown flags {flags:#x}")
    steps = fields.fields(count // activation.row_values, 4)
    lowest = fields.fields(count, lowest_bits)
    index = read_index(fields, flags, count, activation, "archive")
    known = predict(struct.unpack(f"<{count}H", below), layer.channels, steps, activation.dtype)
    symbols = decode_symbols(fields, index, known, layer.codes)
    escapes = iter(fields.numbers(sum(segment.escapes for segment in index), 2))
    fields.end()
    values = (
        next(escapes) if symbol == ESCAPE else value(symbol, origin, bits, lowest_bits)
        for symbol, (_, origin), bits in zip(symbols, known, lowest, strict=True)
    )
    return struct.pack(f"<{count}H", *values)


def predict(below: tuple[int, ...], channels: list[Channel], steps: list[int], dtype: int) -> list[Given]:
    places = ((channel, step) for step in steps for channel in channels)
    return [given(value, channel, step, dtype) for value, (channel, step) in zip(below, places, strict=True)]


def decode_symbols(fields: Fields, index: list[Segment], known: list[Given], codes: list[dict[str, int]]) -> list[int]:
    symbols: list[int] = []
    for segment in index:
        start = len(symbols)
        contexts = [context for context, _ in known[start : start + segment.values]]
        symbols += decode_segment(fields.take(segment.length), [codes[context] for context in contexts])
        if symbols[start:].count(ESCAPE) != segment.escapes:
            raise Damaged(f"codes that are not those of {segment}")
    return symbols


def decode_segment(stored: bytes, codes: list[dict[str, int]]) -> list[int]:
    """The symbol of each value, by the code of its context."""
    bits, end = bit_string(stored), 0
    symbols: list[int] = []
    for words in codes:
        start, end = end, end + 1
        while bits[start:end] not in words:
            end += 1
            if end > len(bits):
                raise Damaged("a segment that ends within a code")
        symbols.append(words[bits[start:end]])
    if -(-end // 8) != len(stored):
        raise Damaged(f"a segment of {len(stored)} bytes for {end} bits")
    return symbols


def value(symbol: int, origin: int, lowest: int, lowest_bits: int) -> int:
    return (origin + (symbol // 2 << lowest_bits) + (symbol % 2 << 15) + lowest) % (1 << 16)


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
