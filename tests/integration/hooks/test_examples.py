"""The hooks of examples/hooks do what they say, called by the daemon or the converter as an operator's are."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from converter.publish import manifest
from converter.publish.publish_hooks import PublishHooks
from daemon.ledger.database import NAME
from tests.integration.hooks.servers import Hub, Recorder, serving
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.running import Convert
from tests.unit.daemon.running import REPOSITORY, Daemon, daemons

EXAMPLES = REPOSITORY / "examples/hooks"
SERVE = REPOSITORY / "tests/unit/daemon/serve.py"
Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(on_success=[…], NAME="…")`: a daemon with a stand-in converter, these hooks, and this environment."""
    fast = {"DCP2HF_BACKOFF_INITIAL": "0.1", "DCP2HF_BACKOFF_MAX": "0.1"}
    with daemons() as begin:

        def go(
            *arguments: str, on_success: list[str] | None = None, on_failure: list[str] | None = None, **environ: str
        ) -> Daemon:
            commands = {"DCP2HF_ON_SUCCESS": on_success, "DCP2HF_ON_FAILURE": on_failure}
            said = {name: json.dumps(list(map(str, argv))) for name, argv in commands.items() if argv}
            return begin(SERVE, tmp_path / "state", *arguments, str(tmp_path / "root"), **fast | said | environ)

        yield go


@pytest.fixture
def secret(tmp_path: Path) -> Callable[[str], str]:
    """Writes an address into a file, as operators keep them, and gives the file's name."""

    def write(address: str) -> str:
        (tmp_path / "address").write_text(address + "\n")
        return str(tmp_path / "address")

    return write


def on_path(folder: Path, **scripts: str) -> str:
    """A PATH on which these shell scripts come first."""
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_a_model_card_is_made_from_the_manifest(copy_step: Callable[..., Path], convert: Convert) -> None:
    made = convert(
        copy_step(BY_NAME["one_rank"]),
        hooks=PublishHooks(before_publish=(sys.executable, str(EXAMPLES / "model_card.py"))),
    )
    card = (made.published / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert made.manifest["save_id"] in card
    assert f"{made.manifest['parameters']:,} parameters" in card
    for check in made.manifest["checks"]:
        assert f"| {check['name']} | {check['verdict']} |" in card
    assert list(made.manifest["added"]) == ["README.md"]
    assert manifest.foreign_files(made.published) == []


def test_an_evaluation_job_is_submitted_once_for_each_published_step(
    make_run: Callable[..., Path], tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10, 20)
    jobs = tmp_path / "jobs"
    # Stand-ins that keep what sbatch was asked for, and know a job by its name, as squeue does.
    path = on_path(
        tmp_path / "bin",
        sbatch=f'for a; do case "$a" in --job-name=*) echo "${{a#*=}} $MODEL $*" >> {jobs};; esac; done; echo 1',
        squeue=f'for a; do case "$a" in --name=*) touch {jobs}; grep "^${{a#*=}} " {jobs} | cut -c1-3;; esac; done; true',
    )
    argv = [EXAMPLES / "evaluate.sh", "/etc/dcp2hf/evaluate.sbatch"]
    assert start("--once", on_success=argv, PATH=path).end() == 0
    with sqlite3.connect(tmp_path / "state" / NAME) as db:  # as if the daemon had died before it noted that it had told
        db.execute("UPDATE outbox SET ended = NULL, owner = ''")
    again = start("--once", on_success=argv, PATH=path)
    assert again.end() == 0
    assert len(again.events("hook_delivered")) == 2
    lines = sorted(line.split(maxsplit=2)[1:] for line in jobs.read_text().splitlines())
    assert [model for model, _ in lines] == [f"{run}/step-10-hf", f"{run}/step-20-hf"]
    assert lines[0][1].endswith("--comment=a step 10 --export=MODEL /etc/dcp2hf/evaluate.sbatch")


def test_a_cluster_that_does_not_answer_gets_its_job_later(
    make_run: Callable[..., Path], tmp_path: Path, start: Start
) -> None:
    make_run("a", 10)
    down = f"test -e {tmp_path}/up || {{ touch {tmp_path}/up; echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1; }}"
    path = on_path(tmp_path / "bin", squeue=down, sbatch=f"echo job >> {tmp_path}/jobs")
    daemon = start(on_success=[EXAMPLES / "evaluate.sh", "x.sbatch"], PATH=path)
    daemon.wait_for("hook_delivered", tries=2)
    assert "Unable to contact slurm controller" in daemon.events("hook_failed")[0]["hint"]
    assert (tmp_path / "jobs").read_text() == "job\n"


def test_a_heartbeat_is_sent_and_its_address_is_never_logged(
    make_run: Callable[..., Path], start: Start, secret: Callable[[str], str]
) -> None:
    make_run("a", 10)
    with serving(Recorder) as (server, address):
        server.refuse += [503]
        daemon = start(on_success=[EXAMPLES / "heartbeat.sh", secret(f"{address}/ping/d0nt-t3ll")])
        daemon.wait_for("hook_delivered", tries=2)
    assert [request[:2] for request in server.requests] == [("GET", "/ping/d0nt-t3ll")] * 2
    assert "503" in daemon.events("hook_failed")[0]["hint"]
    assert "d0nt-t3ll" not in json.dumps(daemon.log)


def test_a_chat_room_hears_of_broken_weights_with_what_to_do(
    make_run: Callable[..., Path], start: Start, secret: Callable[[str], str]
) -> None:
    (make_run("a", 10) / "behaviour-step-10").write_text("nan")
    make_run("a", 20)
    with serving(Recorder) as (server, address):
        argv = [sys.executable, EXAMPLES / "chat.py", secret(f"{address}/hooks/s3cret")]
        daemon = start("--once", on_success=argv, on_failure=argv)
        assert daemon.end() == 1
    said = {headers["Idempotency-Key"]: json.loads(body)["text"] for _, _, headers, body in server.requests}
    failed, published = sorted(said.values())
    assert failed == "a step 10: NaN or infinity in the weights: as told (given up)\nnone"
    assert published.startswith("a step 20 is published: ")
    assert "s3cret" not in json.dumps(daemon.log)


@pytest.mark.skipif(
    shutil.which("hf", path=str(Path(sys.executable).parent)) is None, reason="no `hf` beside this Python"
)
def test_a_step_is_uploaded_as_a_revision_of_its_own_the_manifest_last_and_resumed(
    copy_step: Callable[..., Path], convert: Convert, tmp_path: Path
) -> None:
    made = convert(copy_step(BY_NAME["one_rank"]), hooks=PublishHooks(sign=("sh", "-c", "echo signature > model.sig")))
    with serving(Hub) as (hub, address):
        environ = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "HF_ENDPOINT": address,
            "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HOOK_OUTPUT": str(made.published), "HOOK_STEP": "2", "HOOK_RUN": "a", "HOOK_SAVE_ID": "s",
        }  # fmt: skip

        def upload() -> subprocess.CompletedProcess[str]:
            argv = [EXAMPLES / "upload.sh", "team/model"]
            return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=120, check=False)

        hub.refuse += [403]  # one object does not get through
        assert upload().returncode != 0
        assert hub.branches == {"step-2": []}
        sent = len(hub.objects)
        assert sent == 1
        ran = upload()
        assert ran.returncode == 0, ran.stderr
        puts = [path for method, path, _, _ in hub.requests if method == "PUT"]
    assert len(puts) == 3  # refused, through at once, and again: what was there is not sent twice
    first, second, third = hub.branches["step-2"]
    assert not {"conversion.json", "model.sig"} & first.keys()
    assert (list(second), list(third)) == (["conversion.json"], ["model.sig"])
    there = {
        str(p.relative_to(made.published)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in made.published.rglob("*")
        if p.is_file()
    }
    assert first | second | third == there
