"""The newcomer's demonstration, `make run`: a small TorchTitan run saves checkpoints, the daemon converts them live.

    DIR/runs      the run (examples/demo_run.py)
    DIR/state     the daemon's ledger

When all is converted it says how to load a model, and the daemon keeps watching until Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SAVES = 5
PAGE = "127.0.0.1:9469"
"""Where the daemon serves its status page by default."""
_HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", nargs="?", default=Path("demo"))
    folder: Path = parser.parse_args().folder.absolute()
    runs, state = folder / "runs", folder / "state"
    runs.mkdir(parents=True, exist_ok=True)
    address = os.environ.get("DCP2HF_METRICS_ADDRESS", PAGE)
    if address == PAGE and not _is_free(address):
        print(f"The address of the status page, {PAGE}, is taken: this demonstration serves none.")
        address = ""
    print(f"A small TorchTitan run saves {SAVES} checkpoints below {runs}; dcp2hfd converts each as it completes.")
    print("Ctrl-C stops both.\n", flush=True)
    trainer = subprocess.Popen(  # in a session of its own: Ctrl-C is passed on once, by us
        [sys.executable, str(_HERE / "demo_run.py"), str(folder), "--steps", str(SAVES)], start_new_session=True
    )
    processes = [trainer]
    try:
        while trainer.poll() is None and not any(runs.glob("*/checkpoint/step-*")):
            time.sleep(0.2)  # there is nothing to watch yet
        environ = {"DCP2HF_STATE_DIR": str(state), "DCP2HF_METRICS_ADDRESS": address}
        daemon = subprocess.Popen(
            [sys.executable, "-P", "-m", "daemon", "run", str(runs)], env=os.environ | environ, start_new_session=True
        )
        processes.append(daemon)
        return _watch(runs, state, daemon, trainer, address)
    except KeyboardInterrupt:
        print("\nstopping", flush=True)
        return 0
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second one, as `make` sends, must not cut the stopping short
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()


def _is_free(address: str) -> bool:
    """Whether nobody listens there."""
    host, _, port = address.rpartition(":")
    with socket.socket() as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            here.bind((host, int(port)))
        except OSError:
            return False
    return True


def _watch(
    runs: Path, state: Path, daemon: subprocess.Popen[bytes], trainer: subprocess.Popen[bytes], address: str
) -> int:
    """Until the daemon ends; says once how to load what was converted."""
    told = False
    while daemon.poll() is None:
        time.sleep(0.5)
        if told or trainer.poll() is None:
            continue
        if trainer.returncode != 0:
            print(f"the demonstration run failed with exit code {trainer.returncode}", file=sys.stderr)
            return 1
        steps = _steps(state)
        count = sum(1 for _ in runs.glob("*/checkpoint/step-*[0-9]"))
        if steps and len(steps) == count and all(step["state"] == "done" for step in steps):
            told = True
            _show([step["output"] for step in steps], state, address)
        time.sleep(0.5)
    return daemon.returncode


def _steps(state: Path) -> list[dict[str, Any]]:
    """Every step that the daemon knows, in order: only it can say that its conversions are over."""
    command = [sys.executable, "-P", "-m", "daemon", "status", "--json"]
    said = subprocess.run(command, env=os.environ | {"DCP2HF_STATE_DIR": str(state)}, capture_output=True, check=False)
    return [step for run in json.loads(said.stdout)["runs"] for step in run["steps"]] if said.stdout else []


def _show(published: list[str], state: Path, address: str) -> None:
    print(f"\nAll {len(published)} steps are converted and verified. Load one:\n", flush=True)
    print(f"{sys.executable} - <<'EOF'")  # not indented: a shell that is given it finds its end
    print("from transformers import AutoModelForCausalLM, AutoTokenizer")
    print(f'path = "{published[-1]}"')
    print("model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)")
    print('prompt = tokenizer("The ", return_tensors="pt")')
    print("print(tokenizer.decode(model.generate(**prompt, max_new_tokens=20)[0]))")
    print("EOF\n")
    print(f"The status page is http://{address}/; in another terminal:\n" if address else "In another terminal:\n")
    print(f"DCP2HF_STATE_DIR={state} {Path(sys.executable).with_name('dcp2hfd')} status --watch\n")
    print("The daemon keeps watching; Ctrl-C stops it.", flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
