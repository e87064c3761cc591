"""Owns the history of a soak: records of what was done and seen, in a file of JSON lines that outlives a crash of ours."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

Record = dict[str, Any]
"""`t` (seconds since the epoch), `kind`, and the fields of that kind (see `model`)."""


class History:
    """Records, in the order in which they came; several threads may write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: list[Record] = []
        self._lock = threading.Lock()
        self._file = path.open("w")

    def record(self, kind: str, **fields: Any) -> None:
        """Adds what has just been done or seen."""
        with self._lock:
            said = {"t": round(time.time(), 4), "kind": kind, **fields}
            self._records.append(said)
            self._file.write(json.dumps(said) + "\n")
            self._file.flush()

    def records(self) -> list[Record]:
        """What was recorded so far."""
        with self._lock:
            return list(self._records)

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()


def read(path: Path) -> list[Record]:
    """The history in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
