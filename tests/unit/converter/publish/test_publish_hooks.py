"""`before_publish` and `sign`: what they add is listed and signed; what they must not do fails the attempt, and leaves nothing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from converter import verify
from converter.cli import main
from converter.common import errors, interrupts, names_on_disk
from converter.publish import manifest, publish_hooks
from converter.publish.publish_hooks import PublishHooks
from converter.run.options import Options
from tests.robustness.faults.scene import in_this_process
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.running import Convert, InProcessProver, Refused, ours

REPOSITORY = Path(__file__).parents[4]
CASE = BY_NAME["one_rank"]


@pytest.fixture(scope="module", autouse=True)
def _here() -> Iterator[None]:
    with in_this_process(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "Prover", InProcessProver)
        yield


@pytest.fixture
def step(copy_step: Callable[..., Path]) -> Path:
    return copy_step(CASE)


def sh(script: str, **others: object) -> PublishHooks:
    """PublishHooks whose `before_publish` is this shell script."""
    return PublishHooks(before_publish=("sh", "-c", script), **others)  # type: ignore[arg-type]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_what_a_hook_adds_is_published_listed_and_ours(step: Path, convert: Convert) -> None:
    made = convert(step, hooks=sh("echo card > README.md; mkdir -p eval/a; echo 1 > eval/a/b.json; mkdir empty"))
    assert made.manifest["added"] == {
        "README.md": {"size": 5, "sha256": hashlib.sha256(b"card\n").hexdigest()},
        "eval/a/b.json": {"size": 2, "sha256": hashlib.sha256(b"1\n").hexdigest()},
    }
    assert (made.published / "README.md").read_text() == "card\n"
    assert not (made.published / "empty").exists()
    assert manifest.foreign_files(made.published) == []
    assert convert(step, if_exists="skip").result["reason"] == "up to date"
    assert verify.verify(*verify.locate(made.published), Options()).equal


def test_all_but_what_was_added_is_as_without_a_hook(step: Path, convert: Convert) -> None:
    plain = convert(step).manifest
    hooked = convert(step, hooks=sh("date +%N > README.md")).manifest
    again = convert(step, hooks=sh("date +%N > README.md")).manifest
    for said in (plain, hooked, again):
        del said["added"], said["manifest_sha256"]
    assert plain == hooked == again


def test_a_hook_is_told_the_facts_and_runs_in_the_staging_directory(
    step: Path, convert: Convert, tmp_path: Path
) -> None:
    made = convert(step, hooks=sh(f"cat > {tmp_path}/stdin; env > {tmp_path}/env; pwd > {tmp_path}/pwd"))
    said = json.loads((tmp_path / "stdin").read_text())
    environ = dict(line.partition("=")[::2] for line in (tmp_path / "env").read_text().splitlines())
    assert said["manifest"]["files"] == made.manifest["files"]
    assert said["manifest"]["checks"] == made.manifest["checks"]
    assert environ["HOOK_EVENT"] == said["event"] == "before_publish"
    assert environ["HOOK_STEP"] == "2"
    assert environ["HOOK_PATH"] == str(step)
    assert environ["HOOK_OUTPUT"] == str(made.published)
    assert environ["HOOK_SAVE_ID"] == made.manifest["save_id"]
    assert environ["HOOK_DTYPE"] == made.manifest["dtype"]
    assert environ["HOOK_STAGING"] == (tmp_path / "pwd").read_text().strip() != str(made.published)
    assert "HOOK_MANIFEST" not in environ
    assert "PYTHONPATH" not in environ


def test_a_hook_that_reads_no_facts_and_prints_without_end_holds_nothing_up(step: Path, convert: Convert) -> None:
    made = convert(step, hooks=sh("head -c 5000000 /dev/zero; echo done > done.txt"))
    assert list(made.manifest["added"]) == ["done.txt"]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo x >> config.json", "changed, linked or removed config.json"),
        ("echo x > copy && mv copy config.json", "changed, linked or removed config.json"),
        ("rm model.safetensors", "changed, linked or removed model.safetensors"),
        ("ln model.safetensors ../linked; rm -f ../linked-not", "changed, linked or removed model.safetensors"),
        ("rm tokenizer.json; ln -s /etc/hostname tokenizer.json", "changed, linked or removed tokenizer.json"),
        ("printf '\\1' | dd of=model.safetensors bs=1 seek=900 conv=notrunc; touch -r config.json model.safetensors", "model.safetensors"),
        ("ln -s /etc/passwd README.md", "left 'README.md', which is no file of its own"),
        ("ln -s /etc folder", "left 'folder', which is no file of its own"),
        ("ln -s model.safetensors also", "left 'also', which is no file of its own"),
        ("echo a > a; ln a b", "which is no file of its own"),
        ("mkfifo pipe", "left 'pipe', which is no file of its own"),
        ("echo '{}' > conversion.json", "added conversion.json: that name is an export's own"),
        ("echo x > model.sig", "added model.sig: that name is an export's own"),
        ("echo x > model-00001-of-00002.safetensors", "that name is an export's own"),
        ("echo x > vocab.txt", "added vocab.txt: that name is an export's own"),
        ("echo x > .dcp2hf-5.lock", "no name for a published file"),
        ("echo x > \"$(printf 'a\\nb')\"", "no name for a published file"),
        ("mkdir -p 1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17; echo x > 1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17/a", "no name"),
        ("truncate -s 2G big", "ended with exit code"),
        ("for i in 1 2 3; do truncate -s 600M big$i; done", "bytes: 1,073,741,824 at most"),
        ("i=0; while [ $i -lt 10001 ]; do : > f$i; i=$((i+1)); done", "added 10,001 files"),
        ("exit 3", "ended with exit code 3"),
        ("kill -9 $$", "ended by SIGKILL"),
    ],
)  # fmt: skip
def test_what_a_hook_must_not_do_fails_the_attempt_and_publishes_nothing(
    script: str, why: str, step: Path, convert: Convert
) -> None:
    outside = step.parent / "linked"
    with pytest.raises(errors.HookFailed, match="the hook before_publish ") as caught:
        convert(step, hooks=sh(script))
    outside.unlink(missing_ok=True)
    assert why in caught.value.what
    assert caught.value.hint
    assert caught.value.retry == errors.Retry.BACKOFF
    assert not step.with_name("step-2-hf").exists()
    assert ours(step.parent) == []


def test_a_hook_may_touch_our_files_as_long_as_their_bytes_stay(step: Path, convert: Convert) -> None:
    assert convert(step, hooks=sh("touch model.safetensors; chmod a+r config.json; cp config.json x; mv x config.json"))


def test_a_failure_says_what_the_command_printed_at_its_end(step: Path, refused: Refused) -> None:
    error = refused(step, errors.HookFailed, hooks=sh("echo first; echo 'the card has no licence' >&2; exit 1"))
    assert error.hint == "the command printed at its end: first | the card has no licence"


def test_a_hook_that_is_not_there_is_a_failure_in_words(step: Path, refused: Refused) -> None:
    error = refused(step, errors.HookFailed, hooks=PublishHooks(before_publish=("/nowhere/card",)))
    assert "cannot be started" in error.what


def test_a_hook_that_hangs_is_ended_with_all_it_started(step: Path, refused: Refused, tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 600 & echo $! > {tmp_path}/pid; echo waiting; wait; sleep 600"
    began = time.monotonic()
    error = refused(step, errors.HookFailed, hooks=sh(script, timeout=0.5))
    assert "did not end within 0.5 s" in error.what
    assert "waiting" in error.hint
    assert time.monotonic() - began < 60
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_what_a_hook_leaves_in_the_background_writes_into_nothing_published(
    step: Path, convert: Convert, tmp_path: Path
) -> None:
    made = convert(step, hooks=sh(f"(sleep 600; echo late > late.txt) & echo $! > {tmp_path}/pid"))
    assert made.manifest["added"] == {}
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_secrets_and_arguments_are_not_repeated(step: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_TOKEN", "hf_topsecret")
    script = 'echo "$HUB_TOKEN $1"; exit 1'
    hooks = PublishHooks(before_publish=("sh", "-c", script, "sh", "https://chat.example/hooks/key"))
    error = refused(step, errors.HookFailed, hooks=hooks)
    assert error.hint.endswith("[$HUB_TOKEN] [argument 4]")
    assert "topsecret" not in str(error.as_event())


def test_a_hook_shows_signs_of_life_while_it_runs(step: Path, convert: Convert) -> None:
    made = convert(step, hooks=sh("true"))
    phases = [fields["phase"] for event, fields in made.events if event == "conversion_progress"]
    assert "before_publish" in phases


SIGN = ("sh", "-c", "sha256sum $(find . -type f ! -name model.sig) > model.sig")


def test_a_signature_is_made_over_all_the_rest(step: Path, convert: Convert) -> None:
    made = convert(step, hooks=sh("echo card > README.md", sign=SIGN))
    signature = made.published / "model.sig"
    signed = {line.split("./")[1] for line in signature.read_text().splitlines()}
    assert signed == {str(p.relative_to(made.published)) for p in made.published.rglob("*") if p.is_file()} - {
        "model.sig"
    }
    assert names_on_disk.MANIFEST in signed
    ran = subprocess.run(["sha256sum", "--check", "--quiet", "model.sig"], cwd=made.published, check=False)
    assert ran.returncode == 0
    assert "model.sig" not in made.manifest["added"]
    assert manifest.foreign_files(made.published) == []
    assert convert(step, if_exists="skip").result["reason"] == "up to date"


def test_verify_knows_the_signature_and_tells_what_was_added_and_has_changed(
    step: Path, convert: Convert, capsys: pytest.CaptureFixture[str]
) -> None:
    made = convert(step, hooks=sh("echo card > README.md", sign=SIGN))

    def verified() -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main.main(["verify", str(made.published)])
        return int(left.value.code or 0), capsys.readouterr().out

    code, said = verified()
    assert code == 0
    assert "signed: model.sig" in said
    (made.published / "README.md").write_text("other")
    code, said = verified()
    assert code == 1
    assert "differs: README.md: is not what the hook put there" in said


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("true", "left no model.sig"),
        ("echo x > model.sig; echo y > other", "left more than model.sig: other"),
        ("echo x > model.sig; echo '{}' > conversion.json", "changed, linked or removed conversion.json"),
        ("echo x > model.sig; rm README.md", "changed, linked or removed README.md"),
        ("ln -s config.json model.sig", "no file of its own"),
        ("exit 1", "ended with exit code 1"),
    ],
)
def test_what_a_signer_must_not_do_fails_the_attempt(script: str, why: str, step: Path, refused: Refused) -> None:
    error = refused(step, errors.HookFailed, hooks=sh("echo card > README.md", sign=("sh", "-c", script)))
    assert "the hook sign " in error.what
    assert why in error.what


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("card.sh --all", '["sh", "-c", "…"]'),
        ('"card.sh"', '["sh", "-c", "…"]'),
        ("[1]", "a list of words"),
        ('["./card.sh"]', "absolute path"),
        ('[""]', "first word"),
    ],
)
def test_a_command_that_is_no_list_of_words_is_refused_with_what_to_write(
    text: str, why: str, step: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main.main(["convert", "--dcp-path", str(step), "--before-publish", text])
    assert left.value.code == 2
    said = "".join(part for part in capsys.readouterr().err if part not in "│\n ")
    assert why.replace(" ", "") in said


def test_a_stop_in_the_middle_of_a_hook_ends_it_and_leaves_nothing(step: Path, tmp_path: Path) -> None:
    argv = json.dumps(
        ["sh", "-c", f"echo $$ > {tmp_path}/pid.part; mv {tmp_path}/pid.part {tmp_path}/pid; exec sleep 600"]
    )
    command = [sys.executable, "-m", "converter", "convert", "--dcp-path", str(step), "--before-publish", argv]
    child = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE)
    try:
        ends = time.monotonic() + 120
        while not (tmp_path / "pid").exists() and child.poll() is None and time.monotonic() < ends:
            time.sleep(0.1)
        assert child.poll() is None, child.communicate()[1]
        pid = int((tmp_path / "pid").read_text())
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 130
    finally:
        child.kill()
        child.communicate()
    assert not is_running(pid)
    assert os.listdir(step.parent).count("step-2-hf") == 0
    assert ours(step.parent) == []


def test_a_stop_that_comes_while_a_hook_starts_leaves_nothing_of_it(
    step: Path, convert: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"

    class Stopped(subprocess.Popen[bytes]):
        """The signal arrives when the command runs, and has started another, but is not in its caller's hands yet."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            while not pids.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(publish_hooks.subprocess, "Popen", Stopped)
    interrupts.install()
    with pytest.raises(KeyboardInterrupt):
        convert(step, hooks=sh(f"sleep 60 & echo $$ $! > {pids}.part; mv {pids}.part {pids}; sleep 60"))

    assert not any(is_running(int(pid)) for pid in pids.read_text().split())
    assert ours(step.parent) == []
