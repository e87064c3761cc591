"""The run config: found where it lies, told from other JSON, and read the same whatever generation wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from converter.common import errors
from converter.run import run_config
from converter.run.run_config import RunConfig, find
from tests.support.checkpoints.cases import ADDED_TOKENS, ALL, BASE_TOKENS, BY_NAME, SEQ_LEN, Case
from tests.unit.converter.dialects import to_main

MINIMAL: dict[str, Any] = {
    "model": {"name": "qwen3", "flavor": "0.6B"},
    "training": {"dtype": "bfloat16", "seq_len": 4096},
}


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """`run/checkpoint/step-1`, with nothing in it."""
    path = tmp_path / "dump" / "checkpoint" / "step-1"
    path.mkdir(parents=True)
    return path


def put(path: Path, **changes: Any) -> Path:
    """A minimal 0.2 config with sections replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(MINIMAL | changes))
    return path


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_every_real_run_config_is_found_and_read(case: Case, checkpoints: Path) -> None:
    found = find(case.step(checkpoints))
    assert found.path == case.run_config(checkpoints)
    assert found.generation == case.config[:3]
    assert (found.flavor, found.dtype, found.seq_len) == (case.flavor, case.dtype, SEQ_LEN)
    assert found.hf_assets_path == str(case.base_assets(checkpoints))
    assert found.tokenizer_path == str(case.tokenizer(checkpoints))
    assert found.keep_latest_k == (4 if case.config == "0.3" else found.keep_latest_k)
    assert (found.model is not None) == (case.config == "0.3")
    figures = case.config == "0.2-figures"
    assert found.known_tokens == (BASE_TOKENS + ADDED_TOKENS if figures else None)
    assert found.padded_vocab_size == (case.dims.rows if figures else None)
    assert ("hidden_size" in found.dimensions) == figures
    assert RunConfig.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_first_of_the_places_wins(step: Path, tmp_path: Path) -> None:
    run, logs = step.parent, tmp_path / "logs"
    places = [
        step / "config.json", step / "job_config.json", step / "mine.json",
        run / "config.json", run / "job_config.json", run / "mine.json",
        run.parent / "config.json", run.parent / "job_config.json", run.parent / "mine.json",
        logs / "checkpoint" / "job_config.json", logs / "checkpoint" / "mine.json", logs / "dump" / "job_config.json",
    ]  # fmt: skip
    for path in places:
        put(path)
    for path in places:
        assert find(step, names=("mine.json",), logs_roots=(logs,)).path == path
        path.unlink()
    with pytest.raises(errors.RunConfigMissing):
        find(step, names=("mine.json",), logs_roots=(logs,))


@pytest.mark.parametrize("imports", [5, True, "x", {"a": 1}])
def test_overrides_that_are_no_list_are_named(imports: Any, step: Path) -> None:
    put(step.parent / "config.json", override={"imports": imports})
    with pytest.raises(errors.RunConfigUnreadable, match=r"override\.imports"):
        find(step)


def test_a_file_named_by_a_person_is_the_only_candidate(step: Path, tmp_path: Path) -> None:
    put(step.parent / "config.json")
    mine = put(tmp_path / "mine.json", training={"dtype": "float32", "seq_len": 8})
    (tmp_path / "link.json").symlink_to(mine)
    for path in (mine, tmp_path / "link.json"):
        assert find(step, file=path).seq_len == 8
    with pytest.raises(errors.RunConfigMissing):
        find(step, file=tmp_path / "gone.json")


@pytest.mark.parametrize(
    "other", [[], 5, {}, {"model": "x", "training": {}}, {"training": {}}, {"model_type": "qwen3", "vocab_size": 7}]
)
def test_other_json_is_passed_over(other: Any, step: Path) -> None:
    (step.parent / "config.json").write_text(json.dumps(other))
    expected = put(step.parent.parent / "config.json")
    assert find(step).path == expected


def test_a_link_a_pipe_or_a_folder_in_its_place_is_unreadable_not_missing(step: Path, tmp_path: Path) -> None:
    import os

    path = step.parent / "config.json"
    target = put(tmp_path / "elsewhere.json")
    for make in (lambda: path.symlink_to(target), lambda: os.mkfifo(path), path.mkdir):
        make()
        with pytest.raises(errors.RunConfigUnreadable) as caught:
            find(step)
        assert caught.value.path == str(path)
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_file_past_the_limit_is_refused_unread(step: Path) -> None:
    path = step.parent / "config.json"
    with path.open("wb") as file:
        file.truncate(run_config.CONFIG_LIMIT + 1)
    with pytest.raises(errors.RunConfigUnreadable, match="larger than"):
        find(step)


KEYS = [("model", "tokenizer_override"), ("molgen_data", "tokenizer_override"), ("tokenizer", "path"), ("model", "tokenizer_path"), ("model", "hf_assets_path")]  # fmt: skip


@pytest.mark.parametrize("first", range(len(KEYS)))
def test_the_first_tokenizer_that_is_set_is_the_runs(first: int, step: Path) -> None:
    said: dict[str, Any] = json.loads(json.dumps(MINIMAL))
    for index, (section, key) in enumerate(KEYS):
        said.setdefault(section, {})[key] = f"/{section}/{key}" if index >= first else (None if index % 2 else "")
    (step / "config.json").write_text(json.dumps(said))
    section, key = KEYS[first]
    assert find(step).tokenizer_path == f"/{section}/{key}"


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ({"training": {"dtype": "float32", "seq_len": 4096}}, ("dtype",)),
        ({"training": {"dtype": "bfloat16", "seq_len": 64}}, ("seq_len",)),
        ({"model": {"name": "qwen3", "flavor": "4B"}}, ("flavor",)),
        ({"model": {"name": "qwen3", "flavor": "0.6B", "hf_assets_path": "/x"}}, ("hf_assets_path", "tokenizer_path")),
        ({"molgen_data": {"tokenizer_override": "/t"}}, ("tokenizer_path",)),
        ({"job": {"description": "another"}}, None),
    ],
)
def test_a_second_config_that_differs_in_what_matters_is_a_conflict(
    changed: dict[str, Any], differs: tuple[str, ...] | None, step: Path
) -> None:
    used = put(step.parent / "config.json")
    other = put(step.parent / "job_config.json", **changed)
    found = find(step)
    assert found.path == used
    if differs is None:
        assert found.conflict is None
    else:
        assert found.conflict is not None
        assert (found.conflict.other, found.conflict.differs) == (other, differs)
        assert found.conflict.other_sha256 != found.sha256


def test_a_half_written_second_config_is_no_reason_to_wait(step: Path) -> None:
    put(step.parent / "config.json")
    (step.parent / "job_config.json").write_text('{"model": ')
    assert find(step).conflict is None


def test_recorded_dimensions_are_told_in_hfs_words(step: Path) -> None:
    model = {
        "name": "x",
        "flavor": "y",
        "dim": 64,
        "n_layers": 3,
        "n_kv_heads": 2,
        "norm_eps": 1e-5,
        "hidden_dim": None,
        "other": 1,
    }
    put(step / "config.json", model=model)
    assert find(step).dimensions == {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
    }


def test_overrides_of_a_new_run_are_kept(checkpoints: Path, step: Path) -> None:
    said = json.loads(BY_NAME["two_steps"].run_config(checkpoints).read_text())
    said["override"] = {"imports": ["my.module"]}
    (step / "config.json").write_text(json.dumps(said))
    assert find(step).overrides == ("my.module",)


@pytest.mark.parametrize("in_spec", [False, True], ids=["training", "model_spec"])
def test_a_record_of_torchtitans_main_branch_is_read_wherever_its_length_stands(
    in_spec: bool, checkpoints: Path, step: Path
) -> None:
    said = json.loads(BY_NAME["two_steps"].run_config(checkpoints).read_text())
    to_main(said, in_spec=in_spec)
    (step.parent / "config.json").write_text(json.dumps(said))
    found = find(step)
    assert (found.generation, found.seq_len, found.assumed) == ("0.3", SEQ_LEN, ())


def test_a_model_that_allows_more_than_it_was_trained_with_has_the_trained_length(step: Path) -> None:
    spec = {"name": "qwen3", "flavor": "0.6B", "max_context_length": 40960}
    put(step.parent / "config.json", model_spec=spec, training={"dtype": "bfloat16", "max_context_length": 4096})
    found = find(step)
    assert (found.seq_len, found.assumed) == (4096, ())


def test_two_lengths_that_differ_are_named(step: Path) -> None:
    put(step.parent / "config.json", training={"dtype": "bfloat16", "seq_len": 2048, "max_context_length": 4096})
    found = find(step)
    assert found.seq_len == 4096
    assert "training.max_context_length is 4096, training.seq_len is 2048" in found.assumed[0]


@pytest.mark.parametrize("length", [0, "4096", True, [1]])
def test_a_length_of_the_main_branch_that_is_none_is_refused_by_its_name(length: Any, step: Path) -> None:
    put(step.parent / "config.json", training={"dtype": "bfloat16", "max_context_length": length})
    with pytest.raises(errors.RunConfigUnreadable, match=r"training\.max_context_length"):
        find(step)
