"""What a checkpoint claims to be larger than it is, or is in the place of a file: refused at once, at no cost."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.checkpoint import probe
from converter.checkpoint.hf_step import header
from converter.checkpoint.restricted_unpickle import is_bomb
from converter.common import errors, metadata_limits
from tests.robustness.faults.stored import item, put_elsewhere, rezip
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.editing import edit_metadata
from tests.unit.converter.running import Refused

CopyStep = Callable[..., Path]
PLAIN = BY_NAME["one_rank"]
FQN = "layers.0.attention_norm.weight"


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)  # its own path may be too long for an address
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_hole(path: Path) -> None:
    """A file of 2 GiB that takes no room."""
    with path.open("wb") as file:
        file.truncate(2 * metadata_limits.SIZE_LIMIT)


@pytest.mark.parametrize("put", [a_pipe, a_socket, a_folder, a_hole])
def test_what_is_no_metadata_is_refused_at_once_in_converter_and_scanner(
    put: Callable[[Path], None], copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(PLAIN)
    (step / ".metadata").unlink()
    put(step / ".metadata")
    begun = time.monotonic()
    refused(step, errors.StepDamaged)
    assert probe.probe_apart(step)["state"] == "damaged"
    assert time.monotonic() - begun < probe.DEFAULT_LIMITS.seconds / 2


@pytest.mark.parametrize("put", [a_pipe, a_folder])
def test_a_step_with_something_else_in_a_shards_place_stays_incomplete(
    put: Callable[[Path], None], copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(PLAIN)
    (step / "__0_0.distcp").unlink()
    put(step / "__0_0.distcp")
    assert "is no file" in refused(step, errors.StepIncomplete).what


@pytest.mark.parametrize("gone", [".metadata", "."], ids=["metadata", "step"])
def test_a_step_that_is_purged_between_listing_and_reading_has_vanished(
    gone: str, copy_step: CopyStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = copy_step(PLAIN)
    run_apart = probe._run_apart

    def purge_first(*arguments: Any) -> dict[str, Any]:
        (shutil.rmtree if gone == "." else os.unlink)(step / gone)
        return run_apart(*arguments)

    monkeypatch.setattr(probe, "_run_apart", purge_first)
    with pytest.raises(errors.StepVanished):
        probe.read(step)
    assert probe.probe(step)["state"] == "incomplete"


def test_a_reading_process_that_the_machine_ended_says_nothing_about_the_step(tmp_path: Path) -> None:
    assert probe._said(tmp_path, -9, b"", b"")["error"] == "MachineFailure"
    assert (
        probe._said(tmp_path, 1, b"", b"Traceback\nOSError: [Errno 5] Input/output error")["error"] == "MachineFailure"
    )
    assert probe._said(tmp_path, -24, b"", b"")["error"] == "MetadataLimit"


def _tensor(metadata: Any) -> Any:
    return metadata.state_dict_metadata[FQN]


def _huge_tensor(metadata: Any) -> None:
    """2**122 elements: no 64 bits of a message hold them, and no file system has room."""
    _tensor(metadata).size = torch.Size([2**61, 2**61])
    _tensor(metadata).chunks[0].offsets = torch.Size([0, 0])
    _tensor(metadata).chunks[0].sizes = torch.Size([72, 1])
    index = next(index for index in metadata.storage_data if index.fqn == FQN)
    object.__setattr__(index, "offset", torch.Size([0, 0]))


def _huge_chunk(metadata: Any) -> None:
    _tensor(metadata).size = _tensor(metadata).chunks[0].sizes = torch.Size([2**61])


def _negative_size(metadata: Any) -> None:
    _tensor(metadata).chunks[0].sizes = torch.Size([-72])


def _long_name(metadata: Any) -> None:
    metadata.state_dict_metadata["x" * 100_000] = metadata.state_dict_metadata.pop(FQN)


def _huge_offset(metadata: Any) -> None:
    next(iter(metadata.storage_data.values())).offset = 10**5000


def _long_file(metadata: Any) -> None:
    next(iter(metadata.storage_data.values())).relative_path = "x" * 100_000 + ".distcp"


@pytest.mark.parametrize(
    "change",
    [_huge_tensor, _huge_chunk, _negative_size, _long_name, _huge_offset, _long_file],
    ids=lambda f: f.__name__,
)
def test_a_claim_that_no_file_holds_is_refused_in_converter_and_scanner(
    change: Callable[[Any], None], copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(PLAIN)
    edit_metadata(step, change)
    with pytest.raises(errors.ConversionError) as caught:
        probe.read(step)
    error = refused(step, type(caught.value))
    assert type(error) in (errors.StepDamaged, errors.HostileCheckpoint)
    assert len(error.what) < 3000
    answer = probe.probe_apart(step)
    assert answer["state"] == "damaged"
    assert len(answer["reason"]) < 3000


def doubled(depth: int) -> bytes:
    """A dict whose key is a tuple of twice a tuple of twice … : its hash takes 2**depth steps."""
    levels = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(depth))
    return b"\x80\x02)q\x00" + levels + b"}" + b"h" + bytes([depth]) + b"Ns."


@pytest.mark.parametrize("description", [
    b"\x80\x02Nr\x00\xc2\xeb\x0b.",  # LONG_BINPUT at index 200,000,000: 3 GB in the C unpickler
    b"\x80\x02Np200000000\n.",
    doubled(100),
    b"\x80\x02]q\x00h\x00a.",  # a list in itself
    b"\x80\x04N" + b"\x85" * 3000 + b".",
], ids=["memo", "memo in text", "hash", "self", "nesting"])  # fmt: skip
def test_a_bomb_in_an_items_own_pickle_is_refused_before_it_is_read(
    description: bytes, copy_step: CopyStep, refused: Refused
) -> None:
    """No limited process reads these: there is one in each item."""
    step = copy_step(PLAIN)
    put_elsewhere(
        step, FQN, rezip(item(step, FQN).blob, lambda name, said: description if name == "data.pkl" else said)
    )
    begun = time.process_time()
    refused(step, errors.StepDamaged, forward_check="off")
    assert time.process_time() - begun < 10


def test_no_honest_item_is_a_bomb() -> None:
    assert not is_bomb(pickle.dumps({"a": ("b", 1), "c": "b"}, protocol=2))
    assert not is_bomb(pickle.dumps([torch.float32, torch.float32], protocol=2))
    assert is_bomb(doubled(1))


def test_a_memo_is_as_large_as_its_pickle_at_most() -> None:
    def memo(place: int) -> bytes:
        return b"\x80\x02Nr" + place.to_bytes(4, "little") + b"."

    assert not is_bomb(memo(len(memo(0))))
    assert is_bomb(memo(len(memo(0)) + 1))


def test_a_header_that_claims_more_than_64_bits_is_no_header(tmp_path: Path) -> None:
    for shape in ("[4611686018427387904]", "[4000000000, 4000000000]", "[" + "1," * 16 + "1]"):
        text = b'{"a": {"dtype": "F32", "shape": %s, "data_offsets": [0, 4]}}' % shape.encode()
        (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        with pytest.raises(ValueError, match="entry 'a'"):
            header(tmp_path / "x.safetensors")
