"""Owns docs/retention.md: the table of what TorchTitan's retention leaves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_HEAD = """# What `keep_latest_k` leaves beside exports

Made by `tests/retention` (`WRITE_DOCS=1 pytest tests/retention`); do not edit. TorchTitan up to 0.3.0 takes every name
with `step-<digits>` in it for a checkpoint: a `step-N-hf` beside the steps counts against `keep_latest_k` and is deleted
in its turn, a step before its export. The figures come from its own `_purge_stale_checkpoints` and `_find_load_step`
(torchtitan 0.3.0), called at each of many saves while the step that is being saved has no `.metadata` yet and every
complete one has been exported.

- *complete*: complete checkpoints left at the worst moment of a save. Without exports it is `keep_latest_k` - 1.
- *exports*: `step-N-hf` left at that moment. Those in `hf/` are never deleted: they are yours to clear.
- *from save*: the first save at which TorchTitan deletes an export. Each later save deletes more. A larger `keep_latest_k`
  puts this off, it does not stop it: a run of 5 saves with `keep_latest_k` 4 ends with 2 exports, not 5.
- *resumes with an index*: whether a restarted trainer finds a checkpoint to load where the exports beside it have a
  `model.safetensors.index.json`. Where it says *no*, it picks a step of which only the export is left.
- `auto` is `output`'s default: where exports of a single file go, and what that leaves. One with an index goes to `hf/`.

Newer TorchTitan (its main branch since 2026-08: #4187, #4197) counts canonical names only: there exports are neither counted
nor deleted. Nothing in a run tells which version wrote it.

What a conversion in progress is called (staging, set-aside, lock) is neither counted nor deleted.

| `keep_latest_k` | `subdirectory`: complete | `alongside`: complete | exports | from save | resumes with an index | `auto` | complete |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """What was seen with one `keep_latest_k`."""

    keep: int
    below: int
    alongside: int
    exports_left: int
    deletes_from_save: int
    index_resumes: bool
    auto_place: str
    auto: int


def document(rows: Iterable[Row]) -> str:
    """docs/retention.md."""
    lines = [
        f"| {row.keep} | {row.below} | {row.alongside} | {row.exports_left} | {row.deletes_from_save} "
        f"| {'yes' if row.index_resumes else '**no**'} "
        f"| `{row.auto_place}` | {row.auto} |\n"
        for row in rows
    ]
    return _HEAD + "".join(lines)
