"""Statistics are of the checkpoint's own values: the same elements in each step, as good as stated, and never in the way."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from converter.checkpoint.tensors import TensorItems
from converter.common import errors
from converter.export import exporter
from converter.families.qwen3.spec import SPEC
from converter.run.base_assets import Search
from converter.run.tokenizer_fit import added_ids, added_rows, highest_id
from converter.statistics import element_sampling, sample_files
from converter.statistics.element_sampling import POSITIONS, positions, weights
from tests.support.checkpoints import reference
from tests.support.checkpoints.cases import BASE_ROWS, BY_NAME, Case
from tests.unit.converter.running import Convert, Converted, Refused, ours

TWO = BY_NAME["two_steps"]
VARIED = ["dense_tied-0.2-2x2-float32", "moe-0.3-fsdp-bfloat16", "moe-0.2-2x2-bfloat16", "dense_untied-between-fsdp-float32"]  # fmt: skip
PINNED = [174, 308, 697, 999888]
"""Steps of one run are compared across an upgrade."""
Converting = Callable[..., Converted]
SURE = 5
"""Standard errors within which an estimate lies."""


@pytest.fixture
def convert(convert: Convert) -> Converting:
    """Converts without the forward check, which has no part in it."""
    return partial(convert, forward_check="off")


def truth(case: Case, step: Path) -> dict[str, torch.Tensor]:
    """By part of the model, all of its values in float64."""
    parts = defaultdict(list)
    for name, tensor in reference.hf_weights(case, reference.weights(case, step)).items():
        parts[SPEC.part_of(name)].append(tensor.double().flatten())
    return {part: torch.cat(tensors) for part, tensors in parts.items()}


def rms(values: torch.Tensor) -> float:
    return math.sqrt(float((values**2).mean()))


@pytest.mark.parametrize("elements", [1, 5, POSITIONS - 1, POSITIONS, POSITIONS + 1, 6768, 151_936 * 1024, 1 << 40])
def test_positions_are_one_in_each_part_or_all(elements: int) -> None:
    found = positions("a[1]", elements)

    assert found.size == min(elements, POSITIONS)
    assert (np.diff(found) > 0).all()
    assert found[0] >= 0
    assert found[-1] < elements
    assert weights(elements, found.size).sum() == pytest.approx(1)
    parts = found.astype(object) * found.size // elements
    assert (np.abs(parts - np.arange(found.size)) <= 1).all()


def test_positions_depend_on_name_and_shape_alone_and_never_change() -> None:
    assert positions("a[9000]", 9000).tolist() != positions("b[9000]", 9000).tolist()
    assert positions(element_sampling.identity("layers.0.w", (1000, 1000)), 1_000_000)[[0, 1, 2, -1]].tolist() == PINNED


@pytest.mark.parametrize(("tensors", "most"), [(1, 4096), (2048, 4096), (2049, 2048), (36_096, 128), (10**6, 8)])
def test_of_many_tensors_fewer_elements_each_are_looked_at_so_that_all_are_not_too_many(
    tensors: int, most: int
) -> None:
    assert element_sampling.share(tensors) == most
    found = positions("a[9000]", 9000, most)
    assert found.size == most
    assert (np.abs(found.astype(object) * most // 9000 - np.arange(most)) <= 1).all()
    assert weights(9000, most).sum() == pytest.approx(1)
    sampler = element_sampling.Sampler(tensors=tensors)
    sampler.of(TensorItems("a", "bfloat16", (90, 100), ()))
    assert sampler.whole["a"].values.size == most


def test_rows_that_are_a_range_stay_one_however_many_are_claimed() -> None:
    rows = 10**12
    added = added_rows(5, 10**15, (), rows)
    assert added is not None
    assert added.ids == range(5, rows)
    sampler = element_sampling.Sampler({"e": added.ids})
    sampler.of(TensorItems("e", "bfloat16", (rows, 3), ()))
    assert sampler.of_rows["e"].elements == 3 * (rows - 5)


def test_ids_past_all_numbers_are_none() -> None:
    for said in ({"a": math.inf}, {"a": 1}):
        tokenizer = {"model": {"vocab": said}, "added_tokens": [{"id": math.inf}]}
        assert added_ids(tokenizer) == ()
        assert highest_id(tokenizer) == -1


def test_kept_values_that_a_disk_has_changed_into_none_are_not_compared_with(
    checkpoints: Path, tmp_path: Path, convert: Converting
) -> None:
    folder = tmp_path / "kept"
    convert(TWO.step(checkpoints, TWO.steps[0]), output=tmp_path, statistics=folder)
    (path,) = folder.iterdir()
    payload = bytearray(path.read_bytes())
    payload[-4:] = b"\xff\xff\xff\xff"
    path.write_bytes(payload)
    said = convert(TWO.step(checkpoints, TWO.steps[1]), output=tmp_path, statistics=folder).result["statistics"]

    assert said["update"].count(None) == 1
    json.dumps(said, allow_nan=False)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_values_are_torchs_in_float32_whatever_the_source(dtype: str) -> None:
    tensor = torch.randn(200, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(
        getattr(torch, dtype)
    )
    at = positions("a[200, 100]", tensor.numel())
    sample = element_sampling.Sample(at, tensor.numel())
    for first in range(0, tensor.numel(), 700):
        sample.take(first, tensor.flatten()[first : first + 700].view(torch.uint8).numpy(), dtype)

    assert torch.equal(torch.from_numpy(sample.values), tensor.flatten()[torch.from_numpy(at)].float())


@pytest.mark.parametrize("name", VARIED)
def test_what_is_kept_are_the_checkpoints_values_at_these_positions(
    name: str, checkpoints: Path, tmp_path: Path, convert: Converting
) -> None:
    case = BY_NAME[name]
    convert(case.step(checkpoints), output=tmp_path, statistics=tmp_path / "kept", dtype="bfloat16")
    (found,) = (tmp_path / "kept").iterdir()
    values = load_file(found)
    source = reference.load_source(case.step(checkpoints))

    assert found.name == f"samples-{case.steps[-1]}.safetensors"
    expected = {}
    for fqn, tensor in source.items():
        identity = element_sampling.identity(fqn, tensor.shape)
        at = torch.from_numpy(positions(identity, tensor.numel()))
        expected[identity] = tensor.flatten()[at].float()
    missing = expected.keys() - values.keys()
    assert {identity.partition(".")[0] for identity in missing} <= {"layers", "output", "lm_head"}
    assert all("bias" in i or "lm_head" in i or "output" in i for i in missing), "no HF tensor comes of these"
    assert values.keys() <= expected.keys()
    for identity, found_values in values.items():
        assert torch.equal(found_values, expected[identity]), identity


@pytest.mark.parametrize("name", VARIED)
def test_the_rms_of_each_part_is_within_its_stated_error(
    name: str, checkpoints: Path, tmp_path: Path, convert: Converting
) -> None:
    case = BY_NAME[name]
    said = convert(case.step(checkpoints), output=tmp_path, statistics=tmp_path / "kept").result["statistics"]
    parts = truth(case, case.step(checkpoints))

    assert said["parts"] == ["embedding", *map(str, range(case.dims.layers)), "norm", *(["head"] if not case.dims.tied else [])]  # fmt: skip
    assert set(said["parts"]) == set(parts)
    for part, found, error in zip(said["parts"], said["rms"], said["rms_error"], strict=True):
        assert abs(found - rms(parts[part])) <= SURE * error + 1e-5 * found, part
        assert error < 0.05 * found, part
    assert said["rms_error"][said["parts"].index("norm")] == 0, "all of it was looked at"
    assert said["compared_with"] is None
    assert said["update"] is None


def test_the_second_step_says_how_far_the_weights_went(checkpoints: Path, tmp_path: Path, convert: Converting) -> None:
    folder = tmp_path / "kept"
    for number in TWO.steps:
        said = convert(TWO.step(checkpoints, number), output=tmp_path, statistics=folder).result["statistics"]
    first, second = (truth(TWO, TWO.step(checkpoints, number)) for number in TWO.steps)
    kept_values = [load_file(folder / f"samples-{number}.safetensors") for number in TWO.steps]

    assert said["compared_with"] == TWO.steps[0]
    for part, found, error in zip(said["parts"], said["update"], said["update_error"], strict=True):
        assert abs(found - rms(second[part] - first[part])) <= SURE * error + 1e-5 * found, part
        assert error < 0.1 * found, part
    before, after = (np.concatenate([v.double() for n, v in k.items() if n.startswith("norm")]) for k in kept_values)
    change = math.sqrt(((after - before) ** 2).mean())
    assert said["update"][said["parts"].index("norm")] == pytest.approx(change, rel=1e-5), "of all elements: exact"


def test_threads_and_blocks_change_nothing(
    checkpoints: Path, tmp_path: Path, convert: Converting, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = BY_NAME["moe-0.2-2x2-bfloat16"].step(checkpoints)
    found = []
    for threads, block in ((1, exporter.BLOCK), (4, exporter.BLOCK), (3, 512)):
        monkeypatch.setattr(exporter, "BLOCK", block)
        folder = tmp_path / f"{threads}-{block}"
        said = convert(step, output=tmp_path, threads=threads, statistics=folder).result["statistics"]
        found.append((said, next(folder.iterdir()).read_bytes()))

    assert found[0] == found[1] == found[2]


def test_rows_of_added_tokens_are_those_past_the_bases_vocabulary_or_else_the_tokenizers_added_ones(
    checkpoints: Path, tmp_path: Path, convert: Converting, base_assets: Callable[..., Path]
) -> None:
    case = BY_NAME["dense_tied-0.2-2x2-float32"]
    step = case.step(checkpoints)
    embedding = truth(case, step)["embedding"].reshape(case.dims.rows, -1)
    said = convert(step, output=tmp_path, statistics=tmp_path / "kept").result["statistics"]["added_rows"]

    assert case.known_tokens < BASE_ROWS
    assert said["rule"] == "added_tokens"
    last = case.known_tokens
    assert said["rms"] == pytest.approx(rms(embedding[last - said["rows"] : last]), rel=1e-5)

    fewer = base_assets(case, vocab_size=case.known_tokens - 3)
    said = convert(step, output=tmp_path, statistics=tmp_path / "kept", search=_assets(fewer)).result["statistics"]
    assert (said["added_rows"]["rule"], said["added_rows"]["rows"]) == ("past_base_vocab", 3)
    assert said["added_rows"]["rms"] == pytest.approx(rms(embedding[last - 3 : last]), rel=1e-5)


def _assets(folder: Path) -> Search:
    return Search(hf_assets=folder)


def test_only_the_two_written_last_are_kept_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "1.safetensors").write_text("mine")
    (tmp_path / ".samples-7.partial").write_text("of one that was killed")
    os.utime(tmp_path / ".samples-7.partial", (0, 0))
    for step in (30, 20, 40):
        sample_files.write(tmp_path, step, {"a[2]": np.array([1, step], np.float32)})

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "1.safetensors", "notes", "samples-20.safetensors", "samples-40.safetensors"
    ]  # fmt: skip
    assert sample_files.others(tmp_path, 25) == [20, 40]
    assert sample_files.others(tmp_path, 20) == [40]
    assert load_file(tmp_path / "samples-40.safetensors")["a[2]"].tolist() == [1, 40]


def test_samples_that_cannot_be_kept_are_a_warning_and_the_step_is_published(
    checkpoints: Path, tmp_path: Path, convert: Converting
) -> None:
    (tmp_path / "file").write_text("no folder")
    converted = convert(TWO.step(checkpoints), output=tmp_path, statistics=tmp_path / "file" / "kept")

    assert converted.manifest["step"] == TWO.steps[-1]
    assert any("statistics cannot be kept" in warning for warning in converted.warnings())
    assert converted.result["statistics"]["rms"]
    assert not ours(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 100, None])
def test_samples_that_cannot_be_read_are_a_warning_and_compared_with_nothing(
    damage: bytes | None, checkpoints: Path, tmp_path: Path, convert: Converting
) -> None:
    folder = tmp_path / "kept"
    sample_files.write(folder, 1, {"a[2]": np.ones(2, np.float32)})
    path = folder / "samples-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    converted = convert(TWO.step(checkpoints), output=tmp_path, statistics=folder)

    assert any("statistics of step 1 cannot be read" in warning for warning in converted.warnings())
    assert converted.result["statistics"]["compared_with"] is None


def test_a_step_of_another_form_or_shape_is_not_compared(
    checkpoints: Path, tmp_path: Path, convert: Converting
) -> None:
    folder = tmp_path / "kept"
    convert(BY_NAME["last_in_hf"].step(checkpoints), output=tmp_path, statistics=folder)
    said = convert(TWO.step(checkpoints), output=tmp_path / "two", statistics=folder).result["statistics"]

    assert len(list(folder.iterdir())) == 2
    assert said["compared_with"] is None


def test_a_step_that_is_refused_leaves_no_samples(checkpoints: Path, tmp_path: Path, refused: Refused) -> None:
    refused(BY_NAME["nan"].step(checkpoints), errors.NonFiniteTensor, output=tmp_path, statistics=tmp_path / "kept")

    assert not (tmp_path / "kept").exists()


def test_without_the_option_nothing_is_said(checkpoints: Path, tmp_path: Path, convert: Converting) -> None:
    assert "statistics" not in convert(TWO.step(checkpoints), output=tmp_path).result
