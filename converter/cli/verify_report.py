"""Owns the result of verifying a published directory, and its text.

Uses only the standard library.
"""

from dataclasses import dataclass, field
from pathlib import Path

from converter.common.errors import printable
from converter.common.names_on_disk import SIGNATURE


@dataclass
class VerifyResult:
    """What was found: differences (each a file and what of it), what could not be verified, how much was compared."""

    against: str = "the checkpoint"
    differences: list[str] = field(default_factory=list)
    not_verified: list[str] = field(default_factory=list)
    tensors: int = 0
    bytes_compared: int = 0
    signed: bool = False
    """There is a signature over the directory: whoever has its key or identity verifies it (see docs/hooks.md)."""

    @property
    def equal(self) -> bool:
        """Whether nothing differs and nothing was left out."""
        return not self.differences and not self.not_verified

    def differs(self, file: str, what: str) -> None:
        """Adds a difference."""
        self.differences.append(f"{file}: {what}")


def show_verify_result(verdict: VerifyResult, published: Path, sample: tuple[int, int]) -> None:
    """What a person reads."""
    part = f", part {sample[0]} of {sample[1]} of the weights" if sample[1] > 1 else ""
    if verdict.equal:
        print(
            f"equal: {printable(str(published))} is what {verdict.against} gives{part} ({verdict.tensors} tensors, {verdict.bytes_compared:,} bytes compared)"
        )
    if verdict.signed:
        print(f"signed: {SIGNATURE} is verified with the tool that made it, not here")
    for difference in verdict.differences:
        print(printable(f"differs: {difference}"))
    for reason in verdict.not_verified:
        print(printable(f"not verified: {reason}"))
