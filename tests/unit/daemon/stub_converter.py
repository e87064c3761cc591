"""A stand-in for the converter in tests of the daemon's plumbing: publishes a directory with a real manifest and says so.

`stub_converter.py STEP FOLDER [overwrite]`. What it does is said by the file `behaviour` in the run's folder, or in the step's.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from converter.checkpoint import probe as storage
from converter.common import names_on_disk
from converter.publish import manifest
from converter.publish.lock import Lock

step, folder = Path(sys.argv[1]), Path(sys.argv[2])
behaviour = next(
    (f.read_text().strip() for f in (step.parent / f"behaviour-{step.name}", step.parent / "behaviour") if f.exists()),
    "",
)


def say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, "path": str(step)} | fields), flush=True)


def fail(error: str, retry: str, **fields: object) -> None:
    say("conversion_failed", error=error, message="as told", hint="none", retry=retry, **fields)
    sys.exit(1)


def publish() -> None:
    number = names_on_disk.step_number(step.name)
    assert number is not None
    folder.mkdir(exist_ok=True)
    with Lock(folder, number) as lock:
        target = folder / names_on_disk.published_name(number)
        probe = storage.probe(step)
        if not sys.argv[3:] and manifest.is_up_to_date(
            target, save_id=probe["save_id"], dtype="bfloat16", max_shard_size=50_000_000_000
        ):
            say("conversion_skipped", reason="up_to_date")
            return
        staging = folder / names_on_disk.staging_name(number, lock.owner.token)
        staging.mkdir()
        signal.signal(signal.SIGTERM, lambda *_: (staging.rmdir(), os.unlink(lock.path), os._exit(130)))
        if behaviour == "hang":
            say("conversion_progress", phase="export", bytes_done=3, bytes_total=9)
            time.sleep(600)
        if behaviour == "slow":
            time.sleep(1.5)
        manifest.write(
            staging,
            manifest.Manifest(
                step=number, save_id=probe["save_id"], dtype="bfloat16", max_shard_size=50_000_000_000, tensors=1, parameters=1, tools={},
                run_config_sha256="", files={}, checks=(),
            ),
        )  # fmt: skip
        shutil.rmtree(target, ignore_errors=True)
        os.rename(staging, target)
        say(
            "conversion_succeeded", output=str(target), bytes_written=1, save_id=probe["save_id"], duration_seconds=0.1,
            listing="of another host" if behaviour == "lists otherwise" else probe["fingerprint"],
            statistics={"compared_with": None, "parts": ["0"], "rms": [0.5], "rms_error": [0.0], "update": None, "update_error": None, "added_rows": None},
        )  # fmt: skip


if "--dry-run" in sys.argv:
    if behaviour.startswith("fail "):
        _, error, retry = behaviour.split()
        fail(error, retry)
    say("would_convert")
    sys.exit(0)
with (step.parent / "conversions").open("a") as log:
    log.write(f"{step.name}\n")
say("conversion_started")
match behaviour.split():
    case ["fail", error, retry]:
        fail(error, retry)
    case ["fail_late", error, retry]:
        time.sleep(5)
        fail(error, retry)
    case ["nan"]:
        broken = {"layers.0.w": {"nan": 3, "inf": 0}, "layers.1.w": {"nan": 0, "inf": 1}}
        fail("NonFiniteTensor", "never", figures={"tensors": broken, "count": 2, "nan": 3, "inf": 1})
    case ["drift"]:
        fail("RoutingDrift", "unsupported", figures={"largest": 0.1})
    case _:
        publish()
