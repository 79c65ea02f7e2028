"""Sizes as people write them."""

import pytest

from actstore.sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1 B", 1),
        ("1kB", 1000),
        ("1 KB", 1000),
        ("1 KiB", 1024),
        ("1.5 MiB", 1536 * 1024),
        ("2 GB", 2 * 10**9),
        (" 1 GiB ", 1 << 30),
        ("1 TiB", 1 << 40),
        (17, 17),
    ],
)
def test_parsing(text: int | str, size: int) -> None:
    assert parse_bytes("memory", text) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (3_100_000_000, "3.1 GB"),
        (10**15, "1000.0 TB"),
    ],
)
def test_formatting(size: int, text: str) -> None:
    assert format_bytes(size) == text
