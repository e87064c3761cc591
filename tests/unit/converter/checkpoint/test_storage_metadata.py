"""`.metadata` read by an allow-list says what torch's own unpickler says; what it must hold is checked."""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata

from converter.checkpoint import probe
from converter.checkpoint import tensors as checkpoint
from converter.checkpoint.completeness import list_step
from converter.checkpoint.storage_metadata import parse
from converter.common import errors
from tests.support.checkpoints.cases import ALL, BY_NAME, Case
from tests.unit.converter.editing import edit_metadata, save

DCP = [case for case in ALL if not case.name.startswith(("last_in_hf", "torch_checkpointing"))]
PLAIN = BY_NAME["one_rank"]
CopyStep = Callable[..., Path]


def by_torch(step: Path) -> Any:
    return pickle.loads((step / ".metadata").read_bytes())  # noqa: S301 - written by our own builders


@pytest.mark.parametrize("case", DCP, ids=lambda case: case.name)
def test_all_that_is_taken_is_what_torch_reads(case: Case, checkpoints: Path) -> None:
    for number in case.steps:
        step = case.step(checkpoints, number)
        ours, theirs = parse((step / ".metadata").read_bytes(), step / ".metadata"), by_torch(step)
        assert ours.save_id == theirs.storage_meta.save_id
        items = {(i.fqn, i.offsets, i.file, i.offset, i.length, i.transforms) for i in ours.items}
        assert len(items) == len(ours.items)
        assert items == {
            (index.fqn, index.offset and tuple(index.offset), info.relative_path, info.offset, info.length, ())
            for index, info in theirs.storage_data.items()
        }
        tensors = {k: v for k, v in theirs.state_dict_metadata.items() if isinstance(v, TensorStorageMetadata)}
        assert {t.fqn for t in ours.tensors} == tensors.keys()
        for tensor in ours.tensors:
            entry = tensors[tensor.fqn]
            assert tensor.shape == tuple(entry.size)
            assert f"torch.{tensor.dtype}" == str(entry.properties.dtype)
            assert tensor.chunks == tuple((tuple(c.offsets), tuple(c.sizes)) for c in entry.chunks)


@pytest.mark.parametrize("case", DCP, ids=lambda case: case.name)
def test_the_model_is_told_from_the_rest_and_every_chunk_has_its_place(case: Case, checkpoints: Path) -> None:
    step = case.step(checkpoints)
    found = checkpoint.from_pickle((step / ".metadata").read_bytes(), list_step(step))
    theirs = by_torch(step)
    model = {
        fqn: entry
        for fqn, entry in theirs.state_dict_metadata.items()
        if not isinstance(entry, BytesStorageMetadata)
        and not fqn.startswith(("optimizer.", "lr_scheduler.", "dataloader.", "train_state."))
    }
    assert found.tensors.keys() == model.keys()
    places = {
        (i.fqn, i.offset and tuple(i.offset)): (s.relative_path, s.offset, s.length)
        for i, s in theirs.storage_data.items()
    }
    for fqn, tensor in found.tensors.items():
        whole = [c for c in model[fqn].chunks if 0 not in c.sizes]
        assert {(c.offsets, c.sizes) for c in tensor.chunks} == {(tuple(c.offsets), tuple(c.sizes)) for c in whole}
        assert all((c.file, c.offset, c.length) == places[fqn, c.offsets] for c in tensor.chunks)
    assert found.extent == {path.name: path.stat().st_size for path in step.glob("*.distcp")}
    assert checkpoint.from_json(checkpoint.to_json(found)) == found


def test_real_metadata_asks_for_few_names(checkpoints: Path) -> None:
    asked = set()
    for case in DCP:
        strings: list[str] = []
        for code, argument, _ in pickletools.genops((case.step(checkpoints) / ".metadata").read_bytes()):
            if code.name == "STACK_GLOBAL":
                asked.add(".".join(strings[-2:]))
            elif code.name == "GLOBAL":
                asked.add(str(argument).replace(" ", "."))
            elif isinstance(argument, str):
                strings.append(argument)
    assert len(asked) < 25, asked


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_any_protocol_of_pickle_is_read(protocol: int, checkpoints: Path) -> None:
    step = PLAIN.step(checkpoints)
    payload = pickle.dumps(by_torch(step), protocol=protocol)
    assert parse(payload, step).tensors == parse((step / ".metadata").read_bytes(), step).tensors


def test_a_checkpoint_without_a_save_id_is_told_apart_by_its_metadata_and_times(copy_step: CopyStep) -> None:
    step = copy_step(PLAIN)
    edit_metadata(step, lambda metadata: setattr(metadata, "storage_meta", None))
    first = probe.read(step)[1].save_id
    assert len(first) == 32
    assert probe.read(step)[1].save_id == first
    (step / "__0_0.distcp").touch()
    assert probe.read(step)[1].save_id != first


CHANGES: dict[str, Callable[[Any], Any]] = {
    "an item stored nowhere": lambda m: m.storage_data.pop(next(i for i in m.storage_data if i.fqn == "norm.weight")),
    "a chunk that leaves its tensor": lambda m: setattr(
        m.state_dict_metadata["norm.weight"].chunks[0], "offsets", type(m.state_dict_metadata["norm.weight"].size)([1])
    ),
    "an item without a tensor": lambda m: m.state_dict_metadata.pop("norm.weight"),
    "a negative offset": lambda m: setattr(next(iter(m.storage_data.values())), "offset", -1),
    "an empty item": lambda m: setattr(next(iter(m.storage_data.values())), "length", 0),
    "a length that is no number": lambda m: setattr(next(iter(m.storage_data.values())), "length", "9"),
    "no storage data": lambda m: setattr(m, "storage_data", None),
    "a file that is no text": lambda m: setattr(next(iter(m.storage_data.values())), "relative_path", 7),
    "a tensor that is none": lambda m: m.state_dict_metadata.update({"norm.weight": 5}),
    "a name that is no text": lambda m: m.state_dict_metadata.update({5: m.state_dict_metadata.pop("norm.weight")}),
    "an offset that is no number": lambda m: object.__setattr__(
        next(i for i in m.storage_data if i.fqn == "norm.weight"), "offset", ([0],)
    ),
}  # fmt: skip


def test_stream_transforms_are_unsupported_and_not_called_damaged(copy_step: CopyStep) -> None:
    step = copy_step(PLAIN)
    index = "norm.weight"
    edit_metadata(
        step,
        lambda m: setattr(
            m.storage_data[next(i for i in m.storage_data if i.fqn == index)], "transform_descriptors", ["zstd/1"]
        ),
    )
    with pytest.raises(errors.UnsupportedFormat, match="zstd/1"):
        checkpoint.from_pickle((step / ".metadata").read_bytes(), list_step(step))
    answer = probe.probe_apart(step)
    assert (answer["state"], answer["error"]) == ("unsupported", "UnsupportedFormat")


@pytest.mark.parametrize("name", CHANGES)
def test_metadata_that_no_writer_leaves_is_damaged_and_says_how(name: str, copy_step: CopyStep) -> None:
    step = copy_step(PLAIN)
    edit_metadata(step, CHANGES[name])
    with pytest.raises(errors.StepDamaged) as caught:
        checkpoint.from_pickle((step / ".metadata").read_bytes(), list_step(step))
    assert caught.value.path == str(step / ".metadata")
    assert probe.probe_apart(step)["state"] == "damaged"
    assert "memory" not in probe.probe_apart(step)["reason"]


def test_a_torch_object_that_is_no_metadata_is_damaged(copy_step: CopyStep) -> None:
    step = copy_step(PLAIN)
    for value in (None, {}, [1, 2], "text", b"bytes", {"state_dict_metadata": {}}):
        (step / ".metadata").write_bytes(pickle.dumps(value))
        with pytest.raises(errors.StepDamaged):
            probe.read(step)


def test_a_step_saved_in_this_process_is_complete_at_once(tmp_path: Path) -> None:
    import torch

    save(tmp_path / "step-1", {"tok_embeddings.weight": torch.zeros(3, 2), "optimizer": {"x": torch.zeros(1)}})
    said = probe.probe_apart(tmp_path / "step-1")
    assert (said["state"], said["model_elements"], said["dtypes"]) == ("complete", 6, ["float32"])
