"""An errno decides the retry policy, whoever met it: what the file system did not say is neither absent nor invalid."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.calls.seam import Kind, Mode, Plan, environment
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.daemon.running import clean

CopyStep = Callable[..., Path]
CASE = BY_NAME["one_rank"]
ERRNOS = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EACCES)


def failure(library: Path, under: Path, kind: Kind, number: int, *arguments: str | Path) -> dict[str, Any]:
    """What a conversion, for which every such call below `under` fails with this errno, says of its failure."""
    plan = Plan((kind,), 1, number, Mode.ALWAYS)
    ended = subprocess.run(
        [sys.executable, "-m", "converter", "convert", "--events", *arguments],
        env=clean(environment(library, under, plan)), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    said: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert said["event"] == "conversion_failed"
    return said


@pytest.mark.parametrize("number", ERRNOS, ids=errno.errorcode.get)
def test_an_assets_folder_that_the_file_system_does_not_show_is_a_machines_failure(
    number: int, library: Path, copy_step: CopyStep, checkpoints: Path
) -> None:
    step, tokenizer = copy_step(CASE), CASE.tokenizer(checkpoints)
    said = failure(library, tokenizer, Kind.STAT, number, "--dcp-path", step)

    assert (said["error"], said["retry"]) == ("MachineFailure", "backoff")
    assert errno.errorcode[number] in said["message"]
    assert said["path"].startswith(str(tokenizer))


@pytest.mark.parametrize("number", ERRNOS, ids=errno.errorcode.get)
def test_an_asset_that_cannot_be_opened_is_a_machines_failure(
    number: int, library: Path, copy_step: CopyStep, checkpoints: Path
) -> None:
    step, asset = copy_step(CASE), CASE.base_assets(checkpoints) / "config.json"
    said = failure(library, asset, Kind.OPEN, number, "--dcp-path", step)

    assert (said["error"], said["retry"], said["path"]) == ("MachineFailure", "backoff", str(asset))


@pytest.mark.parametrize("number", ERRNOS, ids=errno.errorcode.get)
def test_a_run_config_that_cannot_be_read_is_a_machines_failure_and_not_called_half_written(
    number: int, library: Path, copy_step: CopyStep
) -> None:
    step = copy_step(CASE)
    config = step.parent / "config.json"
    said = failure(library, config, Kind.OPEN, number, "--dcp-path", step)

    assert (said["error"], said["retry"], said["path"]) == ("MachineFailure", "backoff", str(config))


def test_the_file_that_failed_is_named_where_the_call_names_a_descriptor_only(
    library: Path, copy_step: CopyStep
) -> None:
    step = copy_step(CASE)
    (shard,) = step.glob("*.distcp")
    said = failure(library, shard, Kind.READ, errno.EIO, "--dcp-path", step)

    assert (said["error"], said["path"]) == ("MachineFailure", str(shard))
