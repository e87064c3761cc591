"""The `dcp2hf` command: which steps a PATH means, in which order, what is said where, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.editing import edit_metadata, make_newer
from tests.unit.converter.running import tree

TWO = BY_NAME["two_steps"]
PLAIN = BY_NAME["one_rank"]


Command = Callable[..., tuple[int, str, str]]


def events(out: str) -> list[tuple[str, Any]]:
    """Event and step of each line but those of progress; every line must be one."""
    said = [json.loads(line) for line in out.splitlines()]
    return [(e["event"], e.get("step")) for e in said if e["event"] not in ("conversion_progress", "warning")]


def test_a_run_root_is_done_in_step_order_and_one_failure_stops_no_other(run: Path, dcp2hf: Command) -> None:
    shutil.copytree(run / "step-4", run / "step-10")
    shutil.copytree(run / "step-4", run / "step-004")
    shutil.copytree(run / "step-4", run / "tmp_step-5")
    make_newer(run / "step-2", 60)
    code, out, _ = dcp2hf("convert", "--dcp-path", run, "--events")
    assert code == 1
    passed_over, failures = [("conversion_skipped", None)] * 2, [("conversion_failed", 2)]
    done = [(event, step) for step in (4, 10) for event in ("conversion_started", "conversion_succeeded")]
    assert events(out) == passed_over + failures + done
    failed = json.loads(out.splitlines()[2])
    assert failed["error"] == "StepSuspect"
    assert {"message", "hint", "path", "timestamp", "level"} <= failed.keys()
    assert sorted(path.name for path in run.glob("step-*-hf")) == ["step-10-hf", "step-4-hf"]


def test_an_incomplete_step_is_skipped_in_a_run_root_and_a_failure_when_named(run: Path, dcp2hf: Command) -> None:
    (run / "step-2" / ".metadata").unlink()
    code, out, _ = dcp2hf("convert", "--dcp-path", run, "--events")
    assert code == 0
    assert events(out) == [("conversion_skipped", 2), ("conversion_started", 4), ("conversion_succeeded", 4)]
    code, out, _ = dcp2hf("convert", "--dcp-path", run / "step-2", "--events")
    assert code == 1
    assert events(out) == [("conversion_failed", 2)]


def test_a_run_root_of_nothing_but_incomplete_steps_exits_with_3(run: Path, dcp2hf: Command) -> None:
    for number in (2, 4):
        (run / f"step-{number}" / ".metadata").unlink()
    assert dcp2hf("convert", "--dcp-path", run, "--events")[0] == 3


def test_a_folder_without_steps_exits_with_3_and_a_path_that_is_not_there_with_2(
    tmp_path: Path, dcp2hf: Command
) -> None:
    code, out, err = dcp2hf("convert", "--dcp-path", tmp_path, "--events")
    assert (code, out) == (3, "")
    assert str(tmp_path) in err
    code, out, err = dcp2hf("convert", "--dcp-path", tmp_path / "gone", "--events")
    assert (code, out) == (2, "")
    assert "does not exist" in err


@pytest.mark.parametrize("arguments", [
    [], ["--dtype", "int8"], ["--no-such-option"], ["--max-shard-size", "many"], ["--path-map", "x"], ["--threads", "-1"],
    ["--output", "/no/such/folder/at/all"], ["--max-shard-size", "0"],
], ids=" ".join)  # fmt: skip
def test_wrong_usage_exits_with_2_and_converts_nothing(arguments: list[str], run: Path, dcp2hf: Command) -> None:
    before = tree(run, times=True)
    path = ["--dcp-path", run] if arguments else []
    assert dcp2hf("convert", *path, *arguments)[0] == 2
    assert tree(run, times=True) == before


def test_a_folder_above_the_steps_names_the_one_that_is_meant(run: Path, dcp2hf: Command) -> None:
    code, _, err = dcp2hf("inspect", run.parent)

    assert code == 3
    assert f"{run.parent} holds no step-<number> directory; is {run} meant?" in err


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--io-bandwidth-limit", "fast"),
        ("--max-shard-size", "big"),
        ("--path-map", "/old"),
        ("--before-publish", "card.py -v"),
    ],
)
def test_a_value_that_cannot_be_read_is_refused_with_its_flag(
    flag: str, value: str, run: Path, dcp2hf: Command
) -> None:
    code, _, err = dcp2hf("convert", "--dcp-path", run, flag, value)

    assert code == 2
    assert f"argument {flag}: " in err


def test_the_forms_of_users_scripts_mean_convert(run: Path, checkpoints: Path, dcp2hf: Command) -> None:
    tokenizer = TWO.tokenizer(checkpoints)
    for arguments in (
        ("--dcp-path", run / "step-4"),
        (f"--dcp-path={run / 'step-4'}",),
        ("--dcp-path", run / "step-4", "--tokenizer-path", tokenizer),
        ("--tokenizer-path", tokenizer, "--dcp-path", run / "step-4"),
        ("--dcp-path", run / "step-4" / "__0_0.distcp"),
    ):
        assert dcp2hf(*arguments)[0] == 0
        shutil.rmtree(run / "step-4-hf")
    code, out, _ = dcp2hf("--dry-run", "--dcp-path", run)
    assert code == 0
    assert len(out.splitlines()) == 2
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "step-2", "step-4"]


def test_path_itself_may_be_a_link(run: Path, tmp_path: Path, dcp2hf: Command) -> None:
    (tmp_path / "runs").symlink_to(run)
    (run / "latest").symlink_to("step-4")
    assert dcp2hf("convert", "--dcp-path", tmp_path / "runs" / "latest")[0] == 0
    assert (run / "step-4-hf").is_dir()
    assert dcp2hf("convert", "--dcp-path", tmp_path / "runs", "--if-exists", "skip")[0] == 0
    assert (run / "step-2-hf").is_dir()


def test_a_relative_path_and_output_are_ours_not_the_other_processes(
    run: Path, tmp_path: Path, dcp2hf: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(run.parent)
    code, out, _ = dcp2hf(
        "convert", "--dcp-path", "checkpoint/step-2", "--output", os.path.relpath(tmp_path / "out"), "--events"
    )
    assert code == 0
    output = Path(json.loads(out.splitlines()[-1])["output"])
    assert output.is_absolute()
    assert output.resolve() == tmp_path / "out" / "step-2-hf"


def test_a_dry_run_says_what_would_happen_and_why_not_and_writes_nothing(run: Path, dcp2hf: Command) -> None:
    shutil.copytree(run / "step-4", run / "step-6")
    (run / "step-6" / "__1_0.distcp").unlink()
    shutil.copytree(run / "step-4", run / "step-8")
    (run / "step-8-hf").mkdir()
    (run / "step-8-hf" / "thesis.tex").touch()
    before = tree(run.parent, times=True)
    code, out, _ = dcp2hf("convert", "--dcp-path", run, "--dry-run")
    lines = out.splitlines()
    assert code == 1
    assert lines[:2] == [f"step-{n}: would convert to {run / f'step-{n}-hf'} (float32)" for n in (2, 4)]
    assert lines[2].startswith("step-6: would not convert: the step is not complete: __1_0.distcp is missing")
    assert lines[3].startswith("step-8: would not convert: the published directory holds files")
    assert tree(run.parent, times=True) == before
    assert dcp2hf("convert", "--dcp-path", run / "step-6", "--dry-run")[0] == 1


def test_a_dry_run_says_what_would_be_replaced_whose_and_in_which_dtype(run: Path, dcp2hf: Command) -> None:
    command = ("convert", "--dcp-path", run / "step-4")
    published = run / "step-4-hf"
    published.mkdir()
    would = f"step-4: would convert to {published} (float32)"
    assert dcp2hf(*command, "--dry-run")[1] == f"{would}\n"
    assert dcp2hf(*command, "--dtype", "bfloat16")[0] == 0
    assert dcp2hf(*command, "--dry-run")[1] == f"{would}, replacing our export (bfloat16)\n"
    assert "replacing an up-to-date export" in dcp2hf(*command, "--dry-run", "--dtype", "bfloat16")[1]
    (published / "generation_config.json").write_text("{}")
    edited = "replacing our export (bfloat16); edited files of it are kept beside it: generation_config.json\n"
    assert dcp2hf(*command, "--dry-run")[1] == f"{would}, {edited}"
    (published / "conversion.json").unlink()
    assert dcp2hf(*command, "--dry-run")[1] == f"{would}, replacing an export without our manifest (bfloat16)\n"
    code, out, _ = dcp2hf(*command, "--dry-run", "--if-exists", "skip")
    assert (code, "would not convert" in out, "without our manifest" in out) == (0, True, True)
    (published / "thesis.tex").touch()
    assert "replacing somebody's files (bfloat16)" in dcp2hf(*command, "--dry-run", "--force")[1]


def make_foreign(run: Path) -> None:
    (run / "step-4-hf").mkdir()
    (run / "step-4-hf" / "thesis.tex").touch()


def make_all_suspect(run: Path) -> None:
    for step in run.glob("step-*"):
        make_newer(step, 60)


def make_all_incomplete(run: Path) -> None:
    for step in run.glob("step-*"):
        (step / ".metadata").unlink()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: None,
        make_foreign,
        lambda run: make_newer(run / "step-2", 60),
        make_all_suspect,
        lambda run: (run / "step-2" / ".metadata").unlink(),
        make_all_incomplete,
        lambda run: (run / "step-2" / ".metadata").write_bytes(b"no metadata"),
        lambda run: (run / "config.json").unlink(),
        lambda run: shutil.rmtree(run / "step-2"),
    ],
    ids=[
        "good",
        "foreign",
        "suspect",
        "all suspect",
        "incomplete",
        "all incomplete",
        "damaged",
        "no config",
        "one step",
    ],
)
@pytest.mark.parametrize("options", [(), ("--if-exists", "skip")], ids=["overwrite", "skip"])
def test_a_dry_run_has_the_exit_code_of_the_conversion(
    spoil: Callable[[Path], None], options: tuple[str, ...], run: Path, dcp2hf: Command
) -> None:
    spoil(run)
    for path in (run, run / "step-4"):
        dry = dcp2hf("convert", path, "--dry-run", *options)[0]
        assert dry == dcp2hf("convert", path, "--forward-check", "off", *options)[0]


@pytest.mark.parametrize("name", ["lora", "fused_qkv", "optimizer_only", "torch_checkpointing"])
def test_a_dry_run_knows_a_model_that_would_be_refused_by_its_names(
    name: str, copy_step: Callable[..., Path], dcp2hf: Command
) -> None:
    code, out, _ = dcp2hf("convert", "--dcp-path", copy_step(BY_NAME[name]), "--dry-run")
    assert code == 1
    assert "would not convert" in out


def test_a_dry_run_with_events_says_nothing_but_events(run: Path, dcp2hf: Command) -> None:
    (run / "step-4" / ".metadata").unlink()
    code, out, _ = dcp2hf("convert", run, "--dry-run", "--events")
    said = events(out)

    assert ("conversion_skipped", 4) in said
    assert {event for event, step in said if step != 4} == {"would_convert"}
    assert code == dcp2hf("convert", run, "--dry-run")[0]


def test_what_is_up_to_date_is_skipped_and_a_newer_save_is_not(run: Path, dcp2hf: Command) -> None:
    skip = ("convert", "--dcp-path", run / "step-4", "--if-exists", "skip", "--events")
    assert events(dcp2hf(*skip)[1])[-1] == ("conversion_succeeded", 4)
    before = tree(run, times=True)
    code, out, _ = dcp2hf(*skip)
    assert (code, events(out)) == (0, [("conversion_skipped", 4)])
    assert json.loads(out)["reason"] == "up to date"
    code, out, _ = dcp2hf(*skip, "--dry-run")
    assert (code, "up to date" in out) == (0, True)
    assert tree(run, times=True) == before
    edit_metadata(run / "step-4", lambda metadata: setattr(metadata.storage_meta, "save_id", "a-newer-save"))
    assert events(dcp2hf(*skip)[1])[-1] == ("conversion_succeeded", 4)
    assert json.loads((run / "step-4-hf" / "conversion.json").read_text())["save_id"] == "a-newer-save"
    assert events(dcp2hf(*skip, "--dtype", "bfloat16")[1])[-1] == ("conversion_succeeded", 4)


def test_inspect_says_what_is_in_a_step_and_whether_it_is_whole(run: Path, dcp2hf: Command) -> None:
    code, out, _ = dcp2hf("inspect", run / "step-4")
    assert code == 0
    assert "complete" in out
    assert "tok_embeddings.weight" in out
    code, out, _ = dcp2hf("inspect", "--json", run / "step-4")
    said = json.loads(out)
    assert (code, said["state"], said["ranks"], said["dtypes"]) == (0, "complete", 4, ["float32"])
    assert said["tensors"]["tok_embeddings.weight"] == {"dtype": "float32", "shape": [638, 72], "chunks": 4}
    (run / "step-2" / "__0_0.distcp").unlink()
    code, out, _ = dcp2hf("inspect", "--json", run)
    assert code == 1
    assert [said["state"] for said in json.loads(out)] == ["incomplete", "complete"]
    assert "__0_0.distcp is missing" in dcp2hf("inspect", run)[1]


@pytest.mark.parametrize("command", [("inspect",), ("convert", "--dcp-path")])
def test_a_published_directory_is_no_step_and_verify_is_named(
    tmp_path: Path, dcp2hf: Command, command: tuple[str, ...]
) -> None:
    published = tmp_path / "step-2-hf"
    published.mkdir()
    code, out, said = dcp2hf(*command, published)

    assert (code, out) == (3, "")
    assert f"`dcp2hf verify {published}`" in said


def test_a_run_whose_name_is_no_text_is_converted_and_said(
    copy_run: Callable[..., Path], tmp_path: Path, dcp2hf: Command
) -> None:
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \x1b[31m\nrun"))
    PLAIN.run(copy_run(PLAIN)).rename(run)
    code, out, _ = dcp2hf("convert", "--dcp-path", run / "checkpoint", "--dry-run")
    assert code == 0
    assert "\x1b" not in out
    assert len(out.splitlines()) == 1
    code, out, _ = dcp2hf("convert", "--dcp-path", run / "checkpoint", "--events")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["output"] == str(run / "checkpoint" / "step-2-hf")
    assert dcp2hf("convert", "--dcp-path", run / "checkpoint")[0] == 0
