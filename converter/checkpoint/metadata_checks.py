"""Owns the checks of storage metadata as a whole: every chunk is one item, and every item has its own bytes.

Uses only the standard library. An item does not name its tensor. If two tensors have the same shape, only this check
shows that an entry points at another's bytes. It cannot detect two entries that were exchanged. Nothing in a DCP can.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import prod
from pathlib import Path

from converter.checkpoint.storage_metadata import DISTCP_NAME, RawItem, RawTensor
from converter.common import errors

Places = dict[tuple[str, tuple[int, ...]], RawItem]
"""(FQN, offsets of the chunk) -> its item."""
_AGAIN = "save this step again"
ITEM_BYTES = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
"""Bytes an element of each dtype that TorchTitan stores."""


def check_files(items: Iterable[RawItem], where: Path) -> None:
    """Every item lies in a file of the step. Raises HostileCheckpoint."""
    for item in items:
        if not DISTCP_NAME.fullmatch(item.file):
            raise errors.HostileCheckpoint(
                f"storage metadata names a file outside the step: {item.file!r}",
                path=where,
                hint="find out who wrote this checkpoint",
            )


def check_transforms(items: Iterable[RawItem], where: Path) -> None:
    """No item went through a stream transform (`stream.zstd/1`). Raises UnsupportedFormat."""
    for item in items:
        if item.transforms:
            raise errors.UnsupportedFormat(
                f"item {item.fqn} is stored through {', '.join(item.transforms)}, which is not read",
                path=where,
                hint="save without stream transforms",
            )


def check_disjoint(items: Iterable[RawItem], where: Path) -> None:
    """No two items share bytes, the optimizer's included. Raises StepDamaged."""
    ordered = sorted(items, key=lambda item: (item.file, item.offset))
    for one, other in pairwise(ordered):
        if one.file == other.file and one.offset + one.length > other.offset:
            raise errors.StepDamaged(
                f"the items of {one.fqn} and {other.fqn} share bytes of {one.file}, at {other.offset:,}",
                path=where,
                hint=_AGAIN,
            )


def check_once(items: Iterable[RawItem], where: Path) -> None:
    """No chunk is stored twice. Raises StepDamaged."""
    seen: set[tuple[str, tuple[int, ...] | None]] = set()
    for item in items:
        if (item.fqn, item.offsets) in seen:
            raise errors.StepDamaged(f"item {item.fqn} is stored twice", path=where, hint=_AGAIN)
        seen.add((item.fqn, item.offsets))


def check_chunks(tensors: Sequence[RawTensor], places: Places, where: Path) -> None:
    """Every chunk is stored somewhere, and every item is a chunk's. Raises StepDamaged."""
    left = dict(places)
    for tensor in tensors:
        for offsets, sizes in tensor.chunks:
            if left.pop((tensor.fqn, offsets), None) is None and 0 not in sizes:
                raise errors.StepDamaged(
                    f"{tensor.fqn} has a chunk at {offsets} that is stored nowhere", path=where, hint=_AGAIN
                )
    stray = next((fqn for fqn, _ in left), None)
    if stray is not None:
        raise errors.StepDamaged(f"an item of {stray} belongs to no chunk", path=where, hint=_AGAIN)


def check_dtypes(tensors: Iterable[tuple[str, str]], where: Path) -> None:
    """Every tensor of the model (FQN, dtype) has a dtype that is read. Raises UnsupportedModel."""
    for fqn, dtype in tensors:
        if dtype not in ITEM_BYTES:
            raise errors.UnsupportedModel(
                f"{fqn} is stored as {dtype}, which is not read",
                path=where,
                hint="if it is none of the model's tensors, leave it out with --ignore-tensors; else save it in another dtype",
            )


def check_sizes(tensors: Sequence[RawTensor], places: Places, where: Path) -> None:
    """A tensor is as large as its chunks together, and no chunk larger than its item: what room is reserved for is there.

    Of a dtype that is not read no bytes are counted (see `step_source`). Raises StepDamaged.
    """
    for tensor in tensors:
        if sum(prod(sizes) for _, sizes in tensor.chunks) != prod(tensor.shape):
            raise errors.StepDamaged(f"the chunks of {tensor.fqn} are not as large as it is", path=where, hint=_AGAIN)
        for offsets, sizes in tensor.chunks:
            item = places.get((tensor.fqn, offsets))
            if item is not None and prod(sizes) * ITEM_BYTES.get(tensor.dtype, 0) > item.length:
                raise errors.StepDamaged(
                    f"{tensor.fqn} has a chunk of {list(sizes)} in {item.length:,} bytes", path=where, hint=_AGAIN
                )
