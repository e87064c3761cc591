"""The floor: reads exactly the bytes an export needs and writes as many as it makes, with its threads and blocks, and no
work on them; on disk at the end, as an export is. Prints its seconds as JSON.

    python -m bench.floor STEP OUT --bytes 1192135096 --threads 2
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from converter.checkpoint import probe
from converter.export.exporter import BLOCK
from converter.run.step_source import model_bytes

Part = tuple[str, int, int]
"""(DCP shard, position, length)"""


def parts(step: Path) -> tuple[list[Part], int]:
    """The model's items in the order of files, split in blocks; and their bytes."""
    _, metadata = probe.read(step)
    items = sorted(
        (chunk.file, chunk.offset, chunk.length) for tensor in metadata.tensors.values() for chunk in tensor.chunks
    )
    blocks = [
        (file, at, min(BLOCK, offset + length - at))
        for file, offset, length in items
        for at in range(offset, offset + length, BLOCK)
    ]
    return blocks, model_bytes(metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bytes", type=int, required=True, help="that the export has")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    blocks, total = parts(options.step)
    began = time.perf_counter()
    fds = {name: os.open(options.step / name, os.O_RDONLY) for name in {file for file, _, _ in blocks}}
    out = os.open(options.out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    ratio = options.bytes / total
    places: list[tuple[int, int]] = []
    at = 0
    for number, (_, _, length) in enumerate(blocks):
        size = min(round(length * ratio), options.bytes - at) if number < len(blocks) - 1 else options.bytes - at
        places.append((at, size))
        at += size

    def carry(share: int) -> None:
        buffer = memoryview(bytearray(2 * BLOCK))
        for (file, position, length), (target, size) in list(zip(blocks, places, strict=True))[
            share :: options.threads
        ]:
            os.preadv(fds[file], [buffer[:length]], position)
            os.pwrite(out, buffer[:size], target)

    with ThreadPoolExecutor(options.threads) as pool:
        list(pool.map(carry, range(options.threads)))
    moved = time.perf_counter() - began
    os.fsync(out)
    print(json.dumps({"moved": moved, "durable": time.perf_counter() - began, "read": total, "written": options.bytes}))


if __name__ == "__main__":
    main()
