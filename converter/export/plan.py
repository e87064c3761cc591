"""Owns the plan of an export: which HF tensor comes from which elements of which source.

Standard library only: the process that moves bytes has no torch.
"""

from dataclasses import dataclass, field
from math import prod
from typing import Any


@dataclass(frozen=True, slots=True)
class Export:
    """One HF tensor: `elements` of the row-major source from `start` on, reshaped."""

    name: str
    source: str
    """FQN as the checkpoint has it."""
    start: int
    shape: tuple[int, ...]
    unit: str = field(default="", compare=False)
    """The same for HF tensors that transformers has in one block of memory (experts): saved in one HF shard."""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Plan:
    """All of an export, before a byte is read."""

    exports: tuple[Export, ...]
    """In the order in which transformers saves them: HF shards are filled in it."""
    tied: tuple[str, str] | None = None
    """FQNs of embedding and head where the model ties them and both are stored: they must be equal."""
    zero: tuple[str, ...] = ()
    """FQNs that HF's model has no place for; they must be zero (balancing biases)."""

    def to_json(self) -> dict[str, Any]:
        """As it crosses the process boundary."""
        return {
            "exports": [[e.name, e.source, e.start, e.shape, e.unit] for e in self.exports],
            "tied": self.tied,
            "zero": self.zero,
        }

    @staticmethod
    def from_json(said: dict[str, Any]) -> "Plan":
        """The other way."""
        exports = tuple(
            Export(name, source, at, tuple(shape), unit) for name, source, at, shape, unit in said["exports"]
        )
        return Plan(exports, tuple(said["tied"]) if said["tied"] else None, tuple(said["zero"]))
