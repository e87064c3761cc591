"""Owns the limits for reading a `.metadata`.

They are not in `probe`, so that a process that starts the probe does not load its modules.
"""

from dataclasses import dataclass

SIZE_LIMIT = 1 << 30
"""Bytes of a `.metadata`; that of a 235B on 256 ranks has 78 MB."""
PATIENCE = 4.0
"""Times its processor time that the small process may take in all: the machine is busy, the file system slow."""


@dataclass(frozen=True)
class Limits:
    """What reading a `.metadata` may take: these, and 24 bytes and half a microsecond for each byte of the file."""

    memory: int = 512 << 20
    """Bytes of address space."""
    seconds: float = 30.0

    def of(self, size: int) -> tuple[int, float]:
        """(bytes, seconds) for a file of `size` bytes, of which no more are read than SIZE_LIMIT."""
        size = min(size, SIZE_LIMIT)
        return self.memory + 24 * size, self.seconds + size / 2_000_000

    def flags(self) -> list[str]:
        """As the small process takes them."""
        return [f"--memory={self.memory}", f"--seconds={self.seconds}"]
