"""A demonstration run: `python examples/demo_run.py DIR [--steps N] [--every SECONDS]`.

Trains a tiny Qwen3 on a few sentences with TorchTitan 0.3.0, on the processor, and lets TorchTitan's own
CheckpointManager save it asynchronously every few seconds, as a real run would:

    DIR/assets/tiny-qwen3            base assets and tokenizer, made here
    DIR/runs/tiny-qwen3/checkpoint   step-10, step-20, … and, after the first of them, the run's config.json

Run again, it goes on from the last step, as TorchTitan does. SIGINT and SIGTERM end it after the save in progress.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = "tiny-qwen3"
TOKENS, ROWS = 600, 640
SEQ_LEN, BATCH, INTERVAL = 64, 8, 10
"""Tokens a sequence, sequences a step, steps from one checkpoint to the next."""
KEEP_ALL = 0
"""`keep_latest_k`: nothing is purged. TorchTitan up to 0.3.0 would purge exports, too (docs/retention.md)."""


class Counter:
    """A part of the trainer's state that only counts (the data loader's place, the step): what DCP calls Stateful."""

    def __init__(self, **counts: int) -> None:
        self.counts = counts

    def state_dict(self) -> dict[str, int]:
        return dict(self.counts)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.counts = dict(state)


def write_assets(folder: Path) -> Any:
    """Base assets as from the hub; returns the architecture they describe."""
    from examples import base_assets, small_tokenizer

    architecture = base_assets.Architecture(
        vocab_size=ROWS,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
    )
    if not (folder / "config.json").exists():
        added = small_tokenizer.DOMAIN_TOKENS
        tokenizer = small_tokenizer.extended(small_tokenizer.train(TOKENS - len(added)), added)
        base_assets.write_hub(folder, architecture, tokenizer)
    return architecture


class Run:
    """Model, optimizer and checkpoints of one run, put together from TorchTitan's own parts."""

    def __init__(self, folder: Path, assets: Path, architecture: Any) -> None:
        import torch
        from tokenizers import Tokenizer
        from torchtitan.components.checkpointer import CheckpointManager
        from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
        from torchtitan.models.qwen3 import Qwen3StateDictAdapter

        from examples import small_tokenizer, titan_model

        self._torch = torch
        torch.manual_seed(0)
        config = titan_model.model_config(architecture)
        self.record = titan_model.trainer_config(
            config, flavor="tiny", dump_folder=folder, hf_assets=assets, seq_len=SEQ_LEN, keep_latest_k=KEEP_ALL
        )
        titan_model.use_plain_attention(config)
        self.model = config.build()
        self.model.init_states(buffer_device=torch.device("cpu"))
        adamw = default_adamw(lr=2e-3)
        adamw.implementation = "foreach"
        self.optimizers = adamw.build(model_parts=[self.model])
        schedule = LRSchedulersContainer.Config(warmup_steps=10)
        self.lr_schedulers = schedule.build(optimizers=self.optimizers, training_steps=10_000)
        text = "\n".join(small_tokenizer.CORPUS)
        self._text = torch.tensor(Tokenizer.from_file(str(assets / "tokenizer.json")).encode(text).ids)
        self.progress = Counter(step=0, ntokens_seen=0)
        self.checkpoints = CheckpointManager.Config(
            enable=True, interval=INTERVAL, async_mode="async", keep_latest_k=KEEP_ALL
        ).build(
            dataloader=Counter(sequences=0),
            model_parts=[self.model],
            optimizers=self.optimizers,
            lr_schedulers=self.lr_schedulers,
            states={"train_state": self.progress},
            sd_adapter=Qwen3StateDictAdapter(config, str(assets)),
            base_folder=str(folder),
        )
        self.checkpoints.load()

    @property
    def step(self) -> int:
        return self.progress.counts["step"]

    def train(self) -> float:
        """One step on random excerpts; returns the loss."""
        torch = self._torch
        starts = [random.randrange(len(self._text) - SEQ_LEN) for _ in range(BATCH)]
        excerpts = torch.stack([self._text[start : start + SEQ_LEN + 1] for start in starts])
        positions = torch.arange(SEQ_LEN).expand(BATCH, SEQ_LEN)
        logits = self.model(excerpts[:, :-1], positions=positions)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), excerpts[:, 1:].flatten())
        self.optimizers.zero_grad()
        loss.backward()
        self.optimizers.step()
        self.lr_schedulers.step()
        self.progress.counts["step"] += 1
        self.progress.counts["ntokens_seen"] += BATCH * SEQ_LEN
        return float(loss.detach())

    def close(self) -> None:
        self.checkpoints.maybe_wait_for_saving()
        self.checkpoints.close()


def demonstrate(folder: Path, saves: int, every: float) -> None:
    """`saves` checkpoints, one every `every` seconds, or until a signal comes."""
    import torch.distributed as dist

    run_folder, assets = folder / "runs" / NAME, folder / "assets" / NAME
    architecture = write_assets(assets)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    run = Run(run_folder, assets, architecture)
    stop = threading.Event()
    on_signals(lambda *_: stop.set())
    checkpoint = run_folder / "checkpoint"
    try:
        for _ in range(saves):
            began = time.monotonic()
            losses = [run.train() for _ in range(INTERVAL)]
            run.checkpoints.save(run.step)
            print(f"demo run: saving {checkpoint / f'step-{run.step}'} (loss {losses[-1]:.2f})", flush=True)
            if stop.wait(max(0.2, every - (time.monotonic() - began))):
                break
            write_run_config(checkpoint, run.record)
    finally:
        run.close()
        dist.destroy_process_group()
    write_run_config(checkpoint, run.record)
    print("demo run: " + ("stopped" if stop.is_set() else "finished"), flush=True)


def write_run_config(checkpoint: Path, record: dict[str, Any]) -> None:
    """As a launcher does that waits for the first step: late, in place, once."""
    config = checkpoint / "config.json"
    if any(checkpoint.glob("step-*")) and not config.exists():
        config.write_text(json.dumps(record, indent=2))


def on_signals(react: Callable[..., object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, react)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--steps", type=int, default=6, metavar="N", help="how many checkpoints (default 6)")
    parser.add_argument("--every", type=float, default=3.0, metavar="SECONDS", help="from one to the next (default 3)")
    arguments = parser.parse_args()

    on_signals(lambda *_: sys.exit(0))  # nothing is being saved yet
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; tiny matrices gain nothing from more
    logging.disable(logging.WARNING)  # torchtitan's, and below torch's
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # `examples`, whatever the current folder
    print("demo run: loading torch and torchtitan (some seconds)", flush=True)
    demonstrate(arguments.folder.absolute(), arguments.steps, arguments.every)
    return 0


if __name__ == "__main__":
    sys.exit(main())
