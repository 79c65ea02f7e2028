"""What a recorder did, in figures."""

from dataclasses import dataclass

from actstore.reports import counted
from actstore.sizes import format_bytes

__all__ = ["CaptureStats"]


@dataclass(frozen=True)
class CaptureStats:
    """Counts since the block was entered; `str` gives one line.

    `duplicates`: entries that were stored already, with the same content. `rejected`: entries that were refused.
    `raw_bytes` and `stored_bytes`: activations before and after encoding. `seconds`: since entering, up to leaving.
    `stall_ms`: how long the model waited for a free slot. `queue_peak_bytes`: most that ever waited for the writer.
    """

    entries: int = 0
    duplicates: int = 0
    rejected: int = 0
    tokens: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0
    stall_ms: float = 0.0
    queue_peak_bytes: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Tokens of stored entries a second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def gigabytes_per_second(self) -> float:
        """Activations a second, in 10^9 bytes before encoding."""
        return self.raw_bytes / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def ratio(self) -> float:
        """Bytes before encoding over bytes after."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else 1.0

    def __str__(self) -> str:
        parts = [
            counted(self.entries, "entry", "entries"),
            counted(self.tokens, "token", "tokens"),
            f"{format_bytes(self.raw_bytes)} in {format_bytes(self.stored_bytes)} ({self.ratio:.2f}x)",
            f"{self.seconds:.1f} s",
            f"{self.tokens_per_second:,.0f} tokens/s",
            f"{self.gigabytes_per_second:.3f} GB/s",
            f"{self.stall_ms:.0f} ms stalled",
            f"queue peak {format_bytes(self.queue_peak_bytes)}",
        ]
        parts += [f"{self.duplicates:,} stored already"] if self.duplicates else []
        parts += [f"{self.rejected:,} rejected"] if self.rejected else []
        return ", ".join(parts)
