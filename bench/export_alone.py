"""The export alone: reads, checks, casts and writes as a conversion does, with nothing else running; then reads back and
hashes. Prints seconds as JSON.

    python -m bench.export_alone STEP OUT --dtype bfloat16 --threads 2
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from converter.common.dtypes import target_dtype
from converter.export.exporter import Exporter
from converter.export.hf_shards import lay_out
from converter.export.read_back import read_all
from converter.export.writer import Writer
from converter.families.registry import family_of
from converter.families.renamed_tensors import source_names
from converter.move import _provisional
from converter.run import base_assets
from converter.run.options import Options
from converter.run.step_source import look, model_bytes


class TimedWriter(Writer):
    """Notes when all blocks were put, before they are on disk."""

    moved = 0.0

    def finish(self) -> None:
        self.moved = time.perf_counter()
        super().finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    asked = parser.parse_args()
    options = Options(dtype=asked.dtype)
    source = look(asked.step, options)
    base = base_assets.read(asked.step, source.run, options.search).base
    tensors, dtype = source.metadata.tensors, source.dtype
    family = family_of(source.metadata, source.run, asked.step)
    names = source_names(family, source.metadata, asked.step)
    plan = _provisional(family, source, names, tied=bool(base.get("tie_word_embeddings")))
    assert plan is not None
    dtypes = {export.name: target_dtype(tensors[export.source].dtype, dtype) for export in plan.exports}
    files, _ = lay_out(plan.exports, dtypes, options.max_shard_size)
    traffic = options.traffic(model_bytes(source.metadata))
    asked.out.mkdir()
    began, used = time.perf_counter(), os.times()
    writer = TimedWriter(asked.out, files, traffic)
    with writer:
        exporter = Exporter(asked.step, plan, files, tensors, dtype, asked.threads, lambda moved: None, writer, traffic)
        exporter.run()
    durable = time.perf_counter()
    now = os.times()
    read_all(asked.out, writer.written, {}, lambda moved: None, traffic)
    print(
        json.dumps({
            "moved": writer.moved - began, "durable": durable - began, "hashed": time.perf_counter() - began,
            "cpu": now.user + now.system - used.user - used.system, "read": exporter.outcome.bytes_read,
            "written": sum(shard.size for shard in files),
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
