"""The newcomer's demonstration, `make run`: a small TorchTitan run saves checkpoints, the daemon converts them live.

    DIR/runs      the run (examples/demo_run.py)
    DIR/state     the daemon's ledger

When all is converted it says how to load a model, and the daemon keeps watching until Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SAVES = 5
_HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", nargs="?", default=Path("demo"))
    folder: Path = parser.parse_args().folder.absolute()
    runs, state = folder / "runs", folder / "state"
    runs.mkdir(parents=True, exist_ok=True)
    print(f"A small TorchTitan run saves {SAVES} checkpoints below {runs}; dcp2hfd converts each as it completes.")
    print("Ctrl-C stops both.\n", flush=True)
    daemon = subprocess.Popen(
        [sys.executable, "-P", "-m", "daemon", "run", str(runs)],
        env=os.environ | {"DCP2HF_STATE_DIR": str(state)},
        start_new_session=True,  # Ctrl-C is passed on once, by us
    )
    trainer = subprocess.Popen(
        [sys.executable, str(_HERE / "demo_run.py"), str(folder), "--steps", str(SAVES)], start_new_session=True
    )
    try:
        return _watch(runs, state, daemon, trainer)
    except KeyboardInterrupt:
        print("\nstopping", flush=True)
        return 0
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second one, as `make` sends, must not cut the stopping short
        for process in (trainer, daemon):
            if process.poll() is None:
                process.terminate()
        for process in (trainer, daemon):
            process.wait()


def _watch(runs: Path, state: Path, daemon: subprocess.Popen[bytes], trainer: subprocess.Popen[bytes]) -> int:
    """Until the daemon ends; says once how to load what was converted."""
    told = False
    while daemon.poll() is None:
        time.sleep(0.5)
        if told or trainer.poll() is None:
            continue
        if trainer.returncode != 0:
            print(f"the demonstration run failed with exit code {trainer.returncode}", file=sys.stderr)
            return 1
        steps = [step for step in runs.glob("*/checkpoint/step-*") if not step.name.endswith("-hf")]
        published = sorted(
            (step.with_name(f"{step.name}-hf") for step in steps), key=lambda path: int(path.name.split("-")[1])
        )
        if published and all((path / "conversion.json").exists() for path in published):
            told = True
            _show(published, state)
    return daemon.returncode


def _show(published: list[Path], state: Path) -> None:
    print(f"\nAll {len(published)} steps are converted and verified. Load one:\n", flush=True)
    print(f"{sys.executable} - <<'EOF'")  # not indented: a shell that is given it finds its end
    print("from transformers import AutoModelForCausalLM, AutoTokenizer")
    print(f'path = "{published[-1]}"')
    print("model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)")
    print('prompt = tokenizer("The ", return_tensors="pt")')
    print("print(tokenizer.decode(model.generate(**prompt, max_new_tokens=20)[0]))")
    print("EOF\n")
    address = os.environ.get("DCP2HF_METRICS_ADDRESS", "127.0.0.1:9469")
    print(f"The status page is http://{address}/; in another terminal:\n" if address else "In another terminal:\n")
    print(f"DCP2HF_STATE_DIR={state} {Path(sys.executable).with_name('dcp2hfd')} status --watch\n")
    print("The daemon keeps watching; Ctrl-C stops it.", flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
