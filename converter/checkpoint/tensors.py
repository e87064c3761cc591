"""Owns the description of a checkpoint's model: its tensors, their chunks, and where the bytes of each are.

Uses only the standard library.
"""

import hashlib
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

from converter.checkpoint import metadata_checks
from converter.checkpoint.completeness import METADATA, Listing
from converter.checkpoint.metadata_checks import ITEM_BYTES as ITEM_BYTES
from converter.checkpoint.storage_metadata import parse

NOT_MODEL = frozenset({"optimizer", "lr_scheduler", "dataloader", "train_state"})
"""First parts of FQNs that TorchTitan's checkpointer keeps beside the model (0.2.0 to 0.3.0)."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One item of a tensor: the hyper-rectangle it covers, and where its bytes lie."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    offset: int
    """Bytes from the start of the DCP shard to the item's zip."""
    length: int
    """Bytes of the item's zip."""
    raw: bool = False
    """Of a step in HF form: no zip, the payload itself."""


@dataclass(frozen=True, slots=True)
class TensorItems:
    """A tensor of the checkpoint: global shape, dtype's name without `torch.`, and its chunks."""

    fqn: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    @property
    def elements(self) -> int:
        """Number of elements of the whole tensor."""
        return prod(self.shape)


@dataclass(frozen=True)
class StorageMetadata:
    """What `.metadata` says: the save's identity, the model's tensors, what else is in the checkpoint."""

    save_id: str
    tensors: dict[str, TensorItems]
    others: int = 0
    """Items that are not the model's (optimizer, train state, …)."""
    ranks: int = 0
    """Number of DCP shards that hold something."""
    extent: dict[str, int] = field(default_factory=dict)
    """For every DCP shard named, the bytes it must have at least."""
    form: str = "dcp"
    """ "dcp", or "hf": the tensors are HF's, in safetensors files."""


def is_model(fqn: str) -> bool:
    """Whether an FQN belongs to the model: all that TorchTitan does not keep beside it."""
    return fqn.partition(".")[0] not in NOT_MODEL


def from_pickle(payload: bytes, listing: Listing) -> StorageMetadata:
    """`.metadata`'s bytes as StorageMetadata. Runs nothing of what they say.

    Raises StepDamaged for what is no storage metadata, HostileCheckpoint for what names code or other folders.
    """
    where = listing.path / METADATA
    raw = parse(payload, where)
    items = [item for item in raw.items if item.offsets is not None and is_model(item.fqn)]
    model = [tensor for tensor in raw.tensors if is_model(tensor.fqn)]
    places = {(item.fqn, item.offsets): item for item in items if item.offsets is not None}
    metadata_checks.check_files(raw.items, where)
    metadata_checks.check_transforms(items, where)
    metadata_checks.check_once(items, where)
    metadata_checks.check_disjoint(raw.items, where)
    metadata_checks.check_chunks(model, places, where)
    metadata_checks.check_sizes(model, places, where)
    extent: dict[str, int] = {}
    for item in raw.items:
        extent[item.file] = max(extent.get(item.file, 0), item.offset + item.length)
    tensors = {}
    for tensor in model:
        chunks = [
            Chunk(offsets, sizes, place.file, place.offset, place.length)
            for offsets, sizes in tensor.chunks
            if prod(sizes) and (place := places.get((tensor.fqn, offsets))) is not None
        ]
        tensors[tensor.fqn] = TensorItems(tensor.fqn, tensor.dtype, tensor.shape, tuple(chunks))
    save_id = raw.save_id or hashlib.sha256(payload + listing.fingerprint.encode()).hexdigest()[:32]
    return StorageMetadata(save_id, tensors, len(raw.items) - len(items), len(extent), extent)


def to_json(metadata: StorageMetadata) -> dict[str, Any]:
    """All of it, for another process."""
    return {
        **asdict(metadata),
        "tensors": [
            [t.fqn, t.dtype, t.shape, [[c.offsets, c.sizes, c.file, c.offset, c.length] for c in t.chunks]]
            for t in metadata.tensors.values()
        ],
    }


def from_json(said: dict[str, Any]) -> StorageMetadata:
    """The other way."""
    tensors = {}
    for fqn, dtype, shape, chunks in said.pop("tensors"):
        tensors[fqn] = TensorItems(
            fqn,
            dtype,
            tuple(shape),
            tuple(
                Chunk(tuple(o), tuple(s), file, at, length, said["form"] == "hf") for o, s, file, at, length in chunks
            ),
        )
    return StorageMetadata(tensors=tensors, **{k: said[k] for k in ("save_id", "others", "ranks", "extent", "form")})
