"""What a listing alone tells: the format of a step, whether it is whole, and whether anybody writes to it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from converter.checkpoint import probe
from converter.checkpoint.completeness import FileFacts, Listing, completeness, kind_of, list_step
from converter.common import names_on_disk
from tests.support.checkpoints.cases import BY_NAME

SECOND = 1_000_000_000
HOUR = 3600 * SECOND


def listing(*files: tuple[str, int, int]) -> Listing:
    return Listing(Path("/run/step-1"), tuple(FileFacts(*file) for file in files))


@pytest.mark.parametrize(
    ("files", "state", "said"),
    [
        ([("a.distcp", 10, HOUR)], "incomplete", "no .metadata yet"),
        ([(".metadata", 1, HOUR)], "incomplete", "a.distcp is missing"),
        ([(".metadata", 1, HOUR), ("a.distcp", 9, HOUR)], "incomplete", "a.distcp has 9 of 10 bytes"),
        ([(".metadata", 1, HOUR), ("a.distcp", 10, HOUR)], "complete", ""),
        ([(".metadata", 1, HOUR), ("a.distcp", 11, 0)], "complete", ""),
        ([(".metadata", 1, HOUR), ("a.distcp", 10, HOUR + 1)], "settling", "0.000 s newer"),
        ([(".metadata", 1, HOUR), ("a.distcp", 10, HOUR + 5 * SECOND)], "settling", "5.000 s newer"),
        ([(".metadata", 1, HOUR), ("a.distcp", 10, HOUR + 5 * SECOND + 1)], "suspect", "5 s newer"),
        ([(".metadata", 1, HOUR), ("a.distcp", 10, 3 * HOUR)], "suspect", "7,200 s newer"),
        ([(".metadata", 1, HOUR), ("a.distcp", 9, 3 * HOUR)], "incomplete", "9 of 10"),
        ([(".metadata", 1, HOUR), ("a.distcp", 10, HOUR), ("b.distcp", 10, 3 * HOUR)], "complete", ""),
        ([(".metadata", 1, HOUR + 1), ("a.distcp", 10, 0)], "suspect", "3,600 s older"),
        ([(".metadata", 1, 3 * HOUR), ("a.distcp", 10, 3 * HOUR), ("b.distcp", 10, 0)], "complete", ""),
    ],
)
def test_a_step_is_whole_when_each_file_named_is_there_and_none_is_newer(
    files: list[tuple[str, int, int]], state: str, said: str
) -> None:
    found, reason = completeness(listing(*files), {"a.distcp": 10})
    assert found == state
    assert said in reason
    assert bool(reason) == (state != "complete")


@pytest.mark.parametrize(
    ("name", "of"),
    [
        (".a.distcp.AbC123", "rsync"), ("..metadata.x0Yz91", "rsync"), ("a.distcp.partial", "rclone"), ("a.distcp.1f2e3d4c.partial", "rclone"),
        ("a.distcp.6eF78d1A", "aws s3"), ("a.distcp_.gstmp", "gsutil"), ("a.distcp.part.minio", "mc"), ("a.distcp.filepart", "WinSCP"),
        (".syncthing.a.distcp.tmp", "syncthing"), (".azDownload-6f1d8c3e-0b1a-4c5d-8e9f-001122334455-a.distcp", "azcopy"), (".in.a.distcp.", "lftp"),
    ],
)  # fmt: skip
def test_a_file_that_another_tool_is_writing_makes_a_step_suspect(name: str, of: str) -> None:
    whole = [FileFacts(".metadata", 1, HOUR, ctime_ns=5), FileFacts("a.distcp", 10, HOUR, ctime_ns=5)]

    def state(*more: FileFacts) -> str:
        return completeness(Listing(Path("/run/step-1"), (*whole, *more)), {"a.distcp": 10})[0]

    assert state() == "complete"
    assert state(FileFacts(name, 3, HOUR, ctime_ns=6)) == "suspect", of
    assert state(FileFacts(name, 3, HOUR, ctime_ns=4)) == "complete", "left over: the file came after it"


@pytest.mark.parametrize("name", [".~tmp~", ".rsync-partial"])
def test_rsyncs_folder_of_files_that_wait_makes_a_step_suspect(name: str) -> None:
    files = (
        FileFacts(".metadata", 1, HOUR),
        FileFacts(name, 4096, HOUR, is_file=False),
        FileFacts("a.distcp", 10, HOUR),
    )

    assert completeness(Listing(Path("/run/step-1"), files), {"a.distcp": 10})[0] == "suspect"


@pytest.mark.parametrize(
    "name",
    [
        "a.distcp.sha256", "a.distcp.md5", "a.distcp.bak", "a.distcp.20260820", ".metadata.bak", "notes.txt", ".other.AbC123",
        ".a.distcp.sha512", "config.json",
    ],
)  # fmt: skip
def test_what_people_put_beside_a_shard_does_not(name: str) -> None:
    assert completeness(listing((".metadata", 1, HOUR), ("a.distcp", 10, HOUR), (name, 1, 0)), {"a.distcp": 10}) == (
        "complete",
        "",
    )


def test_files_of_a_step_in_hf_form_that_are_newer_than_its_index_are_being_written(
    checkpoints: Path, tmp_path: Path
) -> None:
    step = Path(shutil.copytree(BY_NAME["last_in_hf"].step(checkpoints), tmp_path / "step-2"))
    index = step / "model.safetensors.index.json"
    states = [probe.probe(step)["state"]]
    for seconds in (3, 60, -7200):
        at = index.stat().st_mtime_ns + seconds * SECOND
        os.utime(step / "model-00001-of-00002.safetensors", ns=(at, at))
        states.append(probe.probe(step)["state"])

    assert states == ["complete", "settling", "suspect", "suspect"]


def test_any_write_to_a_checkpoints_file_changes_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.distcp").write_text("x")
    seen = {list_step(tmp_path).fingerprint}
    os.utime(tmp_path / "a.distcp", ns=(1, 1))
    seen.add(list_step(tmp_path).fingerprint)
    (tmp_path / "a.distcp").write_text("xy")
    os.utime(tmp_path / "a.distcp", ns=(1, 1))
    seen.add(list_step(tmp_path).fingerprint)
    (tmp_path / "b").symlink_to("a.distcp")
    seen.add(list_step(tmp_path).fingerprint)
    (tmp_path / "a.distcp").rename(tmp_path / "c.distcp")
    seen.add(list_step(tmp_path).fingerprint)
    assert len(seen) == 5
    (tmp_path / ".nfs0000001").touch()
    assert list_step(tmp_path).fingerprint in seen


TEMPORARY = (
    ".{}.AbC123", "{}.1a2b3c4d.partial", "{}.partial", "{}.1a2b3c4D", "{}_.gstmp", "{}.part.minio", ".syncthing.{}.tmp",
    ".azDownload-01234567-89ab-cdef-0123-456789abcdef-{}", ".unison.{}.0123.unison.tmp", "{}.filepart", ".in.{}.",
)  # fmt: skip
"""A temporary name of every tool that `listing` knows."""


@pytest.mark.parametrize("form", TEMPORARY)
@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "model-00001-of-00002.safetensors", "eval.result"])
def test_a_temporary_file_is_of_the_checkpoint_only_if_it_becomes_a_file_of_it(name: str, form: str) -> None:
    without = listing(("a.distcp", 10, HOUR))
    beside = listing(("a.distcp", 10, HOUR), (form.format(name), 1, HOUR))

    assert (without.fingerprint == beside.fingerprint) == (name == "eval.result")


def test_links_are_told_apart_and_never_files(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").symlink_to("/etc/passwd")
    (tmp_path / "gone").symlink_to("nowhere")
    found = list_step(tmp_path)
    assert found.links == ("__0_0.distcp", "gone")
    assert found.files == ()


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ([".metadata"], "dcp"), (["__0_0.distcp"], "dcp"), (["metadata.pkl"], "torch_checkpointing"), (["model_0.pt"], "torch_checkpointing"),
        (["sharded"], "hf"), (["model-00001-of-00002.safetensors"], "hf"), (["model.safetensors.index.json"], "hf"), ([], "unknown"),
        (["optimizer.pt", ".metadata.tmp"], "unknown"), ([".metadata", "model.safetensors"], "dcp"),
    ],
)  # fmt: skip
def test_each_format_is_known_by_its_names(names: list[str], kind: str) -> None:
    assert kind_of(listing(*((name, 1, 1) for name in names))) == kind


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("one_rank", "complete"), ("two_steps", "complete"), ("dataloader_only", "no_model"), ("optimizer_only", "no_model"),
        ("torch_checkpointing", "unsupported"), ("last_in_hf", "complete"), ("last_in_hf_one_file", "complete"), ("last_in_hf_moe", "complete"),
    ],
)  # fmt: skip
def test_the_daemons_question_is_answered_for_each_kind_of_step(name: str, state: str, checkpoints: Path) -> None:
    case = BY_NAME[name]
    said = probe.probe_apart(case.step(checkpoints))
    assert said["state"] == state
    assert said["step"] == case.steps[-1]
    if state == "complete":
        assert said["model_elements"] > 190_000
        assert said["model_bytes"] >= said["model_elements"] * 2
        assert 0 < said["largest_item"] <= said["model_bytes"]


def test_the_daemons_question_has_an_answer_for_what_is_gone_or_empty(tmp_path: Path) -> None:
    (tmp_path / "step-1").mkdir()
    assert probe.probe_apart(tmp_path / "step-1")["state"] == "incomplete"
    assert probe.probe(tmp_path / "step-2")["state"] == "incomplete"


@pytest.mark.parametrize("name", [f"step-{10**18}", "step-9223372036854775808", "step-1\uff12", "step-\u0661"])
def test_what_no_ledger_holds_or_another_step_may_be_taken_for_is_no_step(name: str) -> None:
    assert names_on_disk.step_number(name) is None
    assert names_on_disk.published_step(f"{name}-hf") is None


@pytest.mark.parametrize("name", ["step-0", "step-7", "step-1800", f"step-{10**18 - 1}"])
def test_only_exact_names_are_steps(name: str) -> None:
    number = int(name[5:])
    assert names_on_disk.step_number(name) == number
    for other in (
        f"{name}-hf",
        f"tmp_{name}",
        f"{name} ",
        f"{name}\n",
        name.upper(),
        f"{name}.bak",
        name.replace("-", "-0"),
    ):
        assert names_on_disk.step_number(other) is None or other == name
    assert names_on_disk.published_step(names_on_disk.published_name(number)) == number


def test_no_name_of_ours_but_the_published_one_looks_like_a_checkpoint_to_torchtitan() -> None:
    import re

    token = names_on_disk.new_token()
    names = [
        names_on_disk.staging_name(18, token),
        names_on_disk.replaced_name(18, token),
        names_on_disk.lock_name(18),
        f"{names_on_disk.lock_name(18)}.{token}",
    ]
    for name in names:
        assert not re.search(r"step-(\d+)", name)
        assert name.startswith(names_on_disk.PREFIX)
        assert names_on_disk.parse_ours(name) is not None
    assert [names_on_disk.parse_ours(name) for name in names[:3]] == [
        (18, token, "staging"),
        (18, token, "replaced"),
        (18, None, "lock"),
    ]
    for foreign in (
        "step-18-hf",
        ".dcp2hf-18",
        ".dcp2hf-18.staging",
        f".dcp2hf-018.{token}.staging",
        f"x.dcp2hf-18.{token}.staging",
    ):
        assert names_on_disk.parse_ours(foreign) is None
