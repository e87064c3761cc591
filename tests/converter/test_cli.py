"""The `dcp2hf` command: which steps a PATH means, in which order, what is said where, and with which exit code it ends."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from converter import cli, interrupts
from converter.convert import convert_step
from tests.build.cases import BY_NAME
from tests.converter.editing import edit_metadata, make_newer
from tests.converter.running import InProcessProver, tree

TWO = BY_NAME["two_steps"]
PLAIN = BY_NAME["one_rank"]


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cli, "convert_step", functools.partial(convert_step, prover=InProcessProver))
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(copy_run: Callable[..., Path]) -> Path:
    """A private run with steps 2 and 4."""
    return TWO.checkpoint(copy_run(TWO))


@pytest.fixture
def dcp2hf(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, said.out, said.err

    return call


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


@pytest.mark.parametrize("dry", [True, False], ids=["dry", "real"])
def test_what_lies_in_a_run_and_is_passed_over_is_one_line_each(dry: bool, run: Path, dcp2hf: Command) -> None:
    (run / "step-8").symlink_to("step-4")
    (run / "latest").symlink_to("step-4")
    shutil.copytree(run / "step-4", run / "step-0010")
    (run / "step-9").write_text("no folder")
    (run / "step-2-hf").mkdir()
    shutil.rmtree(run / "step-2")
    code, out, err = dcp2hf("convert", run, *(["--dry-run"] if dry else ["--if-exists", "skip"]))

    lines = [line for line in (out if dry else err).splitlines() if "passed over" in line]
    assert code == 0
    assert len(lines) == 4
    for name, why in (
        ("latest", "symbolic link"),
        ("step-0010", "its name is not step-<number>"),
        ("step-8", "symbolic link"),
        ("step-9", "not a directory"),
    ):
        assert sum(name in line and why in line for line in lines) == 1


def test_a_run_of_links_says_why_nothing_in_it_is_converted(run: Path, tmp_path: Path, dcp2hf: Command) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "step-4").symlink_to(run / "step-4")
    code, _, err = dcp2hf("convert", tmp_path / "links")

    assert code == 3
    assert "step-4: passed over: a symbolic link" in err
    assert str(run / "step-4") in err, "what helps is named"


def test_path_is_an_argument_or_dcp_path_and_not_two_paths(run: Path, dcp2hf: Command) -> None:
    for arguments in ((run,), ("--dcp-path", run), (run, "--dcp-path", run)):
        code, out, _ = dcp2hf("convert", "--dry-run", *arguments)
        assert (code, len(out.splitlines())) == (0, 2)
    code, out, err = dcp2hf("convert", "--dry-run", run, "--dcp-path", run / "step-4")
    assert (code, out) == (2, "")
    assert str(run / "step-4") in err
    code, _, err = dcp2hf("convert", "--dry-run")
    assert (code, "PATH" in err) == (2, True)


@pytest.mark.parametrize("command", [(), ("convert",), ("verify",), ("inspect",)])
def test_h_is_help(command: tuple[str, ...], dcp2hf: Command) -> None:
    assert dcp2hf(*command, "-h") == dcp2hf(*command, "--help")
    assert dcp2hf(*command, "-h")[0] == 0


def test_verify_of_a_path_that_is_not_there_exits_with_2(tmp_path: Path, dcp2hf: Command) -> None:
    for name in ("nope", "step-2", "step-2-hf"):
        code, out, err = dcp2hf("verify", tmp_path / name)
        assert (code, out) == (2, "")
        assert f"{tmp_path / name} does not exist" in err


def test_inspect_says_in_words_why_a_tied_model_is_exported_with_fewer_parameters(
    copy_step: Callable[..., Path], dcp2hf: Command
) -> None:
    step = copy_step(BY_NAME["dense_tied-0.3-fsdp-float32"])
    stored = json.loads(dcp2hf("inspect", "--json", step)[1])["model_elements"]
    code, out, _ = dcp2hf("convert", step, "--events")
    exported = json.loads(out.splitlines()[-1])["parameters"]

    assert (code, exported < stored) == (0, True)
    assert f"`convert` counts {stored - exported:,} less" in dcp2hf("inspect", step)[1]


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
    assert f"Invalid value: {flag}" in err


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
    assert code == 0
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
    (published / "conversion.json").unlink()
    assert dcp2hf(*command, "--dry-run")[1] == f"{would}, replacing an export without our manifest (bfloat16)\n"
    code, out, _ = dcp2hf(*command, "--dry-run", "--if-exists", "skip")
    assert (code, "would not convert" in out, "without our manifest" in out) == (1, True, True)
    (published / "thesis.tex").touch()
    assert "replacing somebody's files (bfloat16)" in dcp2hf(*command, "--dry-run", "--force")[1]


@pytest.mark.parametrize("name", ["lora", "fused_qkv", "optimizer_only", "torch_checkpointing"])
def test_a_dry_run_knows_a_model_that_would_be_refused_by_its_names(
    name: str, copy_step: Callable[..., Path], dcp2hf: Command
) -> None:
    code, out, _ = dcp2hf("convert", "--dcp-path", copy_step(BY_NAME[name]), "--dry-run")
    assert code == 1
    assert "would not convert" in out


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
