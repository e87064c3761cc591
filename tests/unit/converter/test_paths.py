"""What PATH means: one path however it is given, and a line for what lies there and is passed over."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.checkpoint import step_selection
from tests.support.checkpoints.cases import BY_NAME

Command = Callable[..., tuple[int, str, str]]


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


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EACCES, errno.EIO])
def test_a_step_that_the_file_system_does_not_give_now_is_never_taken_for_none(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = tmp_path / "step-10"
    step.mkdir()
    real = os.stat

    def fail(path: object, **options: bool) -> os.stat_result:
        if str(path) == str(step):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "stat", fail)
    # As Python 3.14 has them: any error is absence.
    monkeypatch.setattr(Path, "is_dir", lambda path: os.path.isdir(path))
    monkeypatch.setattr(Path, "is_symlink", lambda path: os.path.islink(path))
    for look in (lambda: step_selection.steps_of(tmp_path), lambda: step_selection.passed_over(tmp_path)):
        with pytest.raises(OSError) as caught:
            look()
        assert caught.value.errno == code
