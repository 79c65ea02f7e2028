"""What a store says of itself."""

from typing import TypedDict


class PointInfo(TypedDict):
    """What a store holds at one hook point in one dtype. `encodings`: frames by how they are stored."""

    point: str
    dtype: str
    entries: int
    rows: int
    raw_bytes: int
    stored_bytes: int
    nonfinite: int
    saturated: int
    encodings: dict[str, int]


class StoreInfo(TypedDict):
    """What a store holds. `stored_bytes`: the activations encoded; `file_bytes`: all files, none of a memory store.

    `damaged`: entries that are stored but cannot be read, so that they are counted nowhere else.
    """

    entries: int
    damaged: int
    tokens: int
    raw_bytes: int
    stored_bytes: int
    file_bytes: int
    points: list[PointInfo]


class Damage(TypedDict):
    """One thing that `verify` found damaged; `key` is the entry it belongs to, where one can be named."""

    kind: str
    message: str
    key: str | None


class VerifyReport(TypedDict):
    """What `verify` read, and all the damage in it."""

    entries: int
    frames: int
    bytes: int
    damage: list[Damage]
