"""Owns docs/retention.md: the table of what TorchTitan's retention leaves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_HEAD = """# Exports and `keep_latest_k`

This page shows how TorchTitan's retention (`keep_latest_k`) treats exports beside the steps.
`tests/integration/retention` makes it (`WRITE_DOCS=1 pytest tests/integration/retention`); do not edit it.

TorchTitan up to 0.3.0 takes every name with `step-<digits>` in it for a checkpoint. A `step-N-hf` beside the steps
counts against `keep_latest_k` and is deleted in its turn, each step before its export. The figures come from
TorchTitan's own `_purge_stale_checkpoints` and `_find_load_step` (torchtitan 0.3.0). The test calls them at each of
many saves. At that moment the step that is being saved has no `.metadata` yet, and every complete step has been
exported.

- *complete* is the number of complete checkpoints left at the worst moment of a save. Without exports it is
  `keep_latest_k` - 1.
- *exports* is the number of `step-N-hf` left at that moment. Exports in `hf/` are never deleted. You must delete old
  ones yourself.
- *from save* is the first save at which TorchTitan deletes an export. Each later save deletes more. A larger
  `keep_latest_k` delays this and does not prevent it. A run of 5 saves with `keep_latest_k` 4 ends with 2 exports, not
  5.
- *resumes with an index* says whether a restarted trainer finds a checkpoint to load if the exports beside it have a
  `model.safetensors.index.json`. With *no*, it selects a step of which only the export is left.
- `auto` is the default of `output`. The column says where it puts exports of a single file, and the next one how many
  complete checkpoints that leaves. An export with an index goes to `hf/`.

Newer TorchTitan (its main branch since 2026-08: #4187, #4197) counts canonical names only. It neither counts nor
deletes exports. A run does not record which version wrote it.

TorchTitan neither counts nor deletes the files and directories of a conversion in progress (staging, set-aside, lock).

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
