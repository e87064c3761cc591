"""A checkpoint written by a stranger: nothing in it is run, followed out of the step, or given memory without end."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.checkpoint import probe
from converter.common import errors
from converter.common.files import read_regular
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.editing import edit_metadata
from tests.unit.converter.running import Refused, tree

CopyStep = Callable[..., Path]
PLAIN = BY_NAME["one_rank"]


class Runs:
    """Pickles as a call of `os.system`."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_pickle_that_would_run_a_command_is_refused_and_runs_nothing(
    copy_step: CopyStep, tmp_path: Path, refused: Refused
) -> None:
    step, ran = copy_step(PLAIN), tmp_path / "ran"
    (step / ".metadata").write_bytes(pickle.dumps(Runs(f"touch {ran}")))
    error = refused(step, errors.HostileCheckpoint)
    assert "posix.system" in error.what
    assert error.path == str(step / ".metadata")
    assert not ran.exists()


def test_a_command_inside_an_honest_metadata_is_refused_and_runs_nothing(
    copy_step: CopyStep, tmp_path: Path, refused: Refused
) -> None:
    step, ran = copy_step(PLAIN), tmp_path / "ran"
    edit_metadata(step, lambda metadata: setattr(metadata, "planner_data", Runs(f"touch {ran}")))
    refused(step, errors.HostileCheckpoint)
    assert not ran.exists()


HOSTILE, UNKNOWN = errors.HostileCheckpoint, errors.UnknownObject


@pytest.mark.parametrize(("name", "kind"), [
    ("builtins.eval", HOSTILE), ("builtins.getattr", HOSTILE), ("torch.load", HOSTILE), ("subprocess.Popen", HOSTILE),
    ("torch.storage._load_from_bytes", HOSTILE), ("pathlib.Path.home", HOSTILE),
    ("torch._utils._rebuild_tensor_v2", UNKNOWN), ("trainer.state.Progress", UNKNOWN), ("datetime.datetime", UNKNOWN),
])  # fmt: skip
def test_a_name_that_no_metadata_holds_is_refused_and_called_hostile_only_if_it_could_run_code(
    name: str, kind: type[errors.ConversionError], copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(PLAIN)
    module, _, attribute = name.rpartition(".")
    (step / ".metadata").write_bytes(b"\x80\x02c" + module.encode() + b"\n" + attribute.encode() + b"\n.")
    assert name in refused(step, kind).what


def test_a_command_in_an_items_own_pickle_is_refused_and_runs_nothing(
    copy_step: CopyStep, tmp_path: Path, refused: Refused
) -> None:
    step, ran = copy_step(PLAIN), tmp_path / "ran"
    shard = step / "__0_0.distcp"
    at = shard.stat().st_size
    with shard.open("ab") as file:
        torch.save([torch.zeros(72), Runs(f"touch {ran}")], file)

    def point_there(metadata: Any) -> None:
        index = next(index for index in metadata.storage_data if index.fqn == "norm.weight")
        info = metadata.storage_data[index]
        info.offset, info.length = at, shard.stat().st_size - at

    edit_metadata(step, point_there)
    error = refused(step, errors.HostileCheckpoint, forward_check="off")
    assert error.path == str(shard)
    assert not ran.exists()


@pytest.mark.parametrize(
    "name", ["../../secret.distcp", "/etc/passwd", "sub/__0_0.distcp", "..", ".hidden.distcp", "__0_0.distcp\n"]
)
def test_a_path_that_leaves_the_step_is_refused(name: str, copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(PLAIN)
    (step.parents[1] / "secret.distcp").write_bytes(bytes(1 << 20))

    def lead_away(metadata: Any) -> None:
        next(iter(metadata.storage_data.values())).relative_path = name

    edit_metadata(step, lead_away)
    assert "outside the step" in refused(step, errors.HostileCheckpoint).what


@pytest.mark.parametrize("payload", [
    b"\x80\x02Nr\x00\xc2\xeb\x0b.",  # LONG_BINPUT at index 200,000,000: 3 GB in the C unpickler
    b"\x80\x04N" + b"\x85" * 2_000_000 + b".",  # a tuple nested two million deep
    b"\x80\x04\x8e\x00\x00\x00\x00\x20\x00\x00\x00.",  # BINBYTES8 that promises 128 GB
], ids=["memo", "nesting", "length"])  # fmt: skip
def test_a_bomb_costs_no_more_than_its_limits(payload: bytes, copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(PLAIN)
    (step / ".metadata").write_bytes(payload)
    begun = time.monotonic()
    with pytest.raises(errors.ConversionError) as caught:
        probe.read(step)
    assert type(caught.value) in (errors.StepDamaged, errors.MetadataLimit)
    assert probe.probe_apart(step)["state"] == "damaged"
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_metadata_that_ends_early_is_damaged(cut: int, copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(PLAIN)
    (step / ".metadata").write_bytes((step / ".metadata").read_bytes()[:cut])
    refused(step, errors.StepDamaged)


_FUZZ = """
import resource, sys
from pathlib import Path
from converter.checkpoint import tensors as checkpoint; from converter.common import errors
from converter.checkpoint.completeness import list_step
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
step = Path(sys.argv[1])
whole, listing = (step / ".metadata").read_bytes(), list_step(step)
refused = 0
for position in range(0, len(whole), 1009):
    for value in {0, 255, whole[position] ^ 1} - {whole[position]}:
        try:
            found = checkpoint.from_pickle(whole[:position] + bytes([value]) + whole[position + 1 :], listing)
        except (errors.StepDamaged, errors.HostileCheckpoint, errors.UnknownObject, MemoryError):
            refused += 1
        else:
            assert all(Path(name).name == name for name in found.extent)
print(refused)
"""


def test_no_single_byte_of_metadata_brings_the_reader_down_or_writes_anything(copy_step: CopyStep) -> None:
    step = copy_step(PLAIN)
    before = tree(step, times=True)
    ran = subprocess.run([sys.executable, "-c", _FUZZ, str(step)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 20
    assert tree(step, times=True) == before


def test_control_characters_of_a_hostile_name_reach_no_terminal(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(PLAIN)

    def rename(metadata: Any) -> None:
        entry = metadata.state_dict_metadata.pop("norm.weight")
        metadata.state_dict_metadata["norm.weight\x1b]0;owned\x07"] = entry

    edit_metadata(step, rename)
    assert refused(step, errors.StepDamaged).what.isprintable()
    assert probe.probe_apart(step)["reason"].isprintable()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(tmp_path / "pipe", limit=10)
