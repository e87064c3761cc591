"""Real tiny DCP checkpoints, and the facts and rows that tests of pure rooms are made of."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon.config.settings import Settings
from daemon.ledger.records import Row
from daemon.scanner.messages import Answer, Published, Run, RunConfigFacts, Step

_SAVE = """
import json, pathlib, sys, torch, torch.distributed.checkpoint as dcp
run = pathlib.Path(sys.argv[1])
dcp.save({"tok_embeddings.weight": torch.randn(64, 16), "optimizer.x": torch.zeros(3)}, checkpoint_id=run / "step-10")
dcp.save({"dataloader.state": torch.zeros(3)}, checkpoint_id=run / "no-model")
config = {"model": {"name": "qwen3", "flavor": "debugmodel"}, "training": {"dtype": "bfloat16", "seq_len": 128},
          "checkpoint": {"keep_latest_k": 4}}
(run / "config.json").write_text(json.dumps(config))
"""


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `step-10` and `no-model`, saved by DCP itself, and a run config."""
    folder = tmp_path_factory.mktemp("saved")
    subprocess.run([sys.executable, "-c", _SAVE, str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture
def make_run(saved: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a run with complete steps: `make_run("a", 10, 20)`; `config=False` leaves the run config out."""

    def make(name: str, *steps: int, config: bool = True) -> Path:
        run = tmp_path / "root" / name
        run.mkdir(parents=True, exist_ok=True)
        if config:
            shutil.copy2(saved / "config.json", run / "config.json")
        for step in steps:
            add_step(saved, run, step)
        return run

    return make


def add_step(saved: Path, run: Path, step: int) -> Path:
    """A complete step, there at once, as a rename makes it (mtimes as the save left them)."""
    incoming = run.parent / f".incoming-{step}"
    shutil.copytree(saved / "step-10", incoming)
    os.rename(incoming, run / f"step-{step}")
    return run / f"step-{step}"


def facts(step: int = 10, *, state: str = "complete", published: tuple[Published, ...] = (), **answer: Any) -> Step:
    """What a scanner reports of a step of the run /r/a."""
    said: dict[str, Any] = {
        "save_id": "save-1",
        "fingerprint": "f",
        "model_elements": 1000,
        "model_bytes": 4000,
        **answer,
    }
    return Step(
        run="/r/a", step=step, path=f"/r/a/step-{step}", answer=Answer(state=state, **said), published=published
    )


def run_facts(*, keep_latest_k: int | None = 4, dtype: str = "bfloat16") -> Run:
    """What a scanner reports of the run /r/a."""
    return Run(
        run="/r/a",
        name="a",
        config=RunConfigFacts(path="/r/a/config.json", digest="0" * 64, dtype=dtype, keep_latest_k=keep_latest_k),
    )


def row(step: int = 10, **fields: Any) -> Row:
    """A ledger row of a step of the run /r/a."""
    return Row(
        **{"path": f"/r/a/step-{step}", "root": "/r", "run": "/r/a", "run_name": "a", "step": step, "save_id": "save-1"}
        | fields
    )


def with_(settings: Settings, **changes: Any) -> Settings:
    """`settings` with changes."""
    return msgspec.structs.replace(settings, **changes)
