"""`dcp2hf verify`: a good directory is equal; one flipped byte, anywhere in it, is told by its file, and its tensor."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from converter import verify
from converter.cli import main
from converter.cli.verify_report import VerifyResult
from converter.run.base_assets import Search
from converter.run.options import Options
from tests.robustness.faults.scene import in_this_process
from tests.support.checkpoints.cases import BY_NAME, Case
from tests.unit.converter.editing import edit_json, edit_metadata, make_newer
from tests.unit.converter.running import Convert, InProcessProver

MANIFEST = "conversion.json"


@dataclass
class Verified:
    """A converted run of its own, and what verifying it says."""

    case: Case
    step: Path
    published: Path

    def __call__(self, sample: tuple[int, int] = (1, 1), path: Path | None = None, **options: Any) -> VerifyResult:
        step, published, number = verify.locate(path or self.published)
        return verify.verify(step, published, number, Options(**options), sample)


MADE = {
    "tied": ("dense_tied-0.2-2x2-float32", {}),
    "bfloat16": ("dense_untied-0.3-fsdp-bfloat16", {}),
    "moe": ("moe-between-2x2-float32", {"dtype": "bfloat16"}),
    "sharded": ("moe-0.3-fsdp-bfloat16", {"max_shard_size": 150_000}),
    "hf_form": ("last_in_hf", {}),
}
"""Case and options of each directory that is verified."""


@pytest.fixture(scope="module", autouse=True)
def _here() -> Iterator[None]:
    with in_this_process(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "Prover", InProcessProver)
        yield


@pytest.fixture(scope="module")
def convert_run(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Verified]:
    def convert(name: str, change: Callable[[Path], Any] = lambda step: None, **options: Any) -> Verified:
        case, out = BY_NAME[name], tmp_path_factory.mktemp(name)
        shutil.copytree(case.run(checkpoints), case.run(out), symlinks=True)
        step = case.step(out)
        change(step)
        return Verified(case, step, Convert()(step, **options).published)

    return convert


@pytest.fixture(scope="module", params=MADE)
def verified(request: pytest.FixtureRequest, convert_run: Callable[..., Verified]) -> Verified:
    name, options = MADE[request.param]
    return convert_run(name, **options)


@pytest.fixture
def fresh(convert_run: Callable[..., Verified]) -> Verified:
    """One to be changed at will."""
    return convert_run(MADE["tied"][0])


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`command(path, "--sample", "1/2")` gives exit code and what was printed."""

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main.main(["verify", *map(str, arguments)])
        return int(left.value.code or 0), capsys.readouterr().out

    return run


def tensors_at(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor of a safetensors file lies: first byte, one past the last."""
    blob = path.read_bytes()
    start = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:start])
    return {
        name: (start + said["data_offsets"][0], start + said["data_offsets"][1])
        for name, said in header.items()
        if name != "__metadata__"
    }


def positions(path: Path) -> list[int]:
    """Bytes of a file to flip: its ends, its middle; of weights the header's ends and the ends of some tensors too."""
    size = path.stat().st_size
    found = {0, size // 3, size // 2, size - 1}
    if path.suffix == ".safetensors":
        places = sorted(tensors_at(path).values())
        begin = places[0][0]
        found |= {7, 8, begin // 2, begin - 1, begin}
        for first, last in places[:: max(1, len(places) // 3)]:
            found |= {first, last - 1}
    if path.name == MANIFEST:
        found |= set(range(1, size - 1, max(1, size // 30)))
    return sorted(found)


def flips(published: Path) -> Iterator[tuple[Path, int]]:
    """Flips one byte after the other and puts each back, its file's times too."""
    for path in sorted(path for path in published.rglob("*") if path.is_file()):
        facts, whole = path.stat(), path.read_bytes()
        for number, position in enumerate(positions(path)):
            other = bytes([whole[position] ^ (1 << number % 8)])
            path.write_bytes(whole[:position] + other + whole[position + 1 :])
            yield path, position
        path.write_bytes(whole)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def names(verdict: VerifyResult) -> set[str]:
    """Files that something is said of."""
    return {text.partition(":")[0] for text in verdict.differences}


def test_a_good_directory_is_equal(verified: Verified) -> None:
    for path in (verified.published, verified.step):
        found = verified(path=path)
        assert found.differences == found.not_verified == []
        assert found.against == "the checkpoint"
        weights = list(verified.published.glob("*.safetensors"))
        assert found.tensors == sum(len(tensors_at(file)) for file in weights)
        assert found.bytes_compared == sum(file.stat().st_size for file in weights)


def test_any_flipped_byte_is_told_by_its_file_and_its_tensor(verified: Verified) -> None:
    for path, position in flips(verified.published):
        if path.name == MANIFEST:
            continue
        found = verified()
        assert path.name in names(found), (path, position)
        assert names(found) <= {path.name, MANIFEST}  # the manifest has another sha256 for it
        if path.suffix == ".safetensors":
            held = [name for name, (first, last) in tensors_at_start(path, position) if first <= position < last]
            told = " ".join(text for text in found.differences if text.startswith(path.name))
            assert (held[0] if held else "(header)") in told, (position, told)
            assert f"{position:,}" in told
    assert verified().equal


def tensors_at_start(path: Path, position: int) -> list[tuple[str, tuple[int, int]]]:
    """`tensors_at`, of a file whose header may be what was flipped: then none."""
    try:
        return list(tensors_at(path).items())
    except (ValueError, KeyError, TypeError):
        return []


def _exit_code(verified: Verified) -> int:
    with pytest.raises(SystemExit) as left:
        main.main(["verify", str(verified.published)])
    return int(left.value.code or 0)


def test_a_flipped_byte_of_the_manifest_is_told(verified: Verified, command: Callable[..., tuple[int, str]]) -> None:
    for path, _ in flips(verified.published):
        if path.name == MANIFEST:
            code, said = command(verified.published)
            assert code == 1
            assert MANIFEST in said


def test_without_the_checkpoint_any_flipped_byte_is_told_by_its_file(verified: Verified) -> None:
    aside = verified.step.rename(verified.step.with_name("away"))
    try:
        assert verified().equal
        assert "the checkpoint is gone" in verified().against
        for path, position in flips(verified.published):
            if path.name != MANIFEST:
                assert path.name in names(verified()), (path, position)
            else:
                assert _exit_code(verified) == 1, position
    finally:
        aside.rename(verified.step)


@pytest.mark.parametrize("parts", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_the_parts_of_a_sample_cover_all_of_it(verified: Verified, parts: int) -> None:
    samples = [(n, parts) for n in range(1, parts + 1)]
    good = [verified(sample) for sample in samples]
    assert all(found.equal for found in good)
    files = {path: tensors_at(path) for path in verified.published.glob("*.safetensors")}
    assert sum(found.tensors for found in good) == sum(map(len, files.values()))
    for path, held in files.items():
        whole = path.read_bytes()
        for name, (first, _) in list(held.items())[:: max(1, len(held) // 5)]:
            path.write_bytes(whole[:first] + bytes([whole[first] ^ 4]) + whole[first + 1 :])
            told = [found for found in map(verified, samples) if not found.equal]
            assert len(told) == 1
            assert any(name in text for text in told[0].differences)
        path.write_bytes(whole)


def test_the_parts_of_a_sample_cover_all_of_it_without_the_checkpoint(verified: Verified) -> None:
    aside = verified.step.rename(verified.step.with_name("away"))
    try:
        for path in sorted(verified.published.glob("*.safetensors")):
            whole = path.read_bytes()
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            told = [n for n in (1, 2, 3) if path.name in names(verified((n, 3)))]
            path.write_bytes(whole)
            assert len(told) == 1
    finally:
        aside.rename(verified.step)


def test_a_missing_and_an_extra_file_are_told(fresh: Verified, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        aside = (fresh.published / name).rename(tmp_path / name)
        assert name in names(fresh())
        aside.rename(fresh.published / name)
    for name in ("notes.txt", "additional_chat_templates/mine.jinja", "model-00001-of-00002.safetensors"):
        extra = fresh.published / name
        extra.parent.mkdir(exist_ok=True)
        extra.write_text("mine")
        assert names(fresh()) == {name}
        extra.unlink()
    (fresh.published / "link").symlink_to("/nowhere")
    assert names(fresh()) == {"link"}


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:100], lambda b: b""])
def test_a_file_of_another_length_is_told(fresh: Verified, change: Callable[[bytes], bytes]) -> None:
    for path in sorted(path for path in fresh.published.iterdir() if path.name != MANIFEST):
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        assert path.name in names(fresh())
        path.write_bytes(whole)


def test_what_cannot_be_found_is_not_verified(
    fresh: Verified, checkpoints: Path, command: Callable[..., tuple[int, str]]
) -> None:
    edit_json(fresh.case.run_config(fresh.step.parents[2]), lambda said: said["model"].update(hf_assets_path="/gone"))
    code, said = command(fresh.published)
    assert code == 1
    assert "not verified: the recorded base assets" in said
    assert "--hf-assets" in said
    found = fresh()
    assert found.differences == []
    assert found.against == "the manifest"
    given = fresh(search=Search(hf_assets=fresh.case.base_assets(checkpoints)))
    assert given.not_verified == []
    assert names(given) == {MANIFEST}  # it has the sha256 of the run config as it was


def test_a_damaged_checkpoint_is_not_verified_but_the_files_are_those_of_the_manifest(fresh: Verified) -> None:
    shard = fresh.step / "__2_0.distcp"
    whole, facts = shard.read_bytes(), shard.stat()
    shard.write_bytes(whole[: len(whole) // 2])
    os.utime(shard, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    found = fresh()
    assert found.differences == []
    assert "not complete" in found.not_verified[0]


def test_a_step_saved_again_is_told(fresh: Verified, command: Callable[..., tuple[int, str]]) -> None:
    edit_metadata(fresh.step, lambda metadata: setattr(metadata.storage_meta, "save_id", "another"))
    code, said = command(fresh.step)
    assert code == 1
    assert f"differs: {MANIFEST}: it is of save" in said
    assert "the checkpoint is save another" in said


def test_a_directory_of_another_step_is_told(fresh: Verified) -> None:
    shutil.copytree(fresh.step, fresh.step.with_name("step-7"))
    fresh.published.rename(fresh.step.with_name("step-7-hf"))
    found = fresh(path=fresh.step.with_name("step-7"))
    assert f"{MANIFEST}: it is of step 2" in found.differences


def test_a_directory_in_the_folder_hf_is_found_from_both_ends(
    convert_run: Callable[..., Verified], command: Callable[..., tuple[int, str]]
) -> None:
    def keep_two(step: Path) -> None:
        edit_json(BY_NAME["dense_tied-0.2-2x2-float32"].run_config(step.parents[2]), lambda said: said["checkpoint"].update(keep_latest_k=2))  # fmt: skip

    made = convert_run("dense_tied-0.2-2x2-float32", keep_two)
    assert made.published == made.step.parent / "hf" / "step-2-hf"
    for path in (made.step, made.published):
        code, said = command(path)
        assert code == 0
        assert said.startswith(f"equal: {made.published}")


@pytest.mark.parametrize(
    ("name", "change", "options"),
    [
        ("moe_bias", lambda step: None, {"allow_routing_drift": True}),
        ("one_rank", lambda step: make_newer(step, 60), {"accept_copy": True}),
        ("dense_tied-0.3-2x2-float32", lambda step: None, {"architecture": "run"}),
        ("crc_off", lambda step: None, {"forward_check": "off"}),
        ("moe-0.2-2x2-float32", lambda step: None, {"dtype": "float16", "max_shard_size": 60_000}),
    ],
)
def test_what_was_accepted_or_asked_for_is_taken_from_the_manifest(
    name: str, change: Callable[[Path], Any], options: dict[str, Any], convert_run: Callable[..., Verified],
    base_assets: Callable[..., Path],
) -> None:  # fmt: skip
    search = Search(hf_assets=base_assets(BY_NAME[name], rope_theta=10_000)) if "architecture" in options else Search()
    made = convert_run(name, change, search=search, **options)
    found = made(search=search)
    assert found.differences == found.not_verified == []


def test_another_version_is_said_not_hidden(fresh: Verified, monkeypatch: pytest.MonkeyPatch) -> None:
    from converter.proof import session

    tools = session.tools() | {"torch": "9.9"}
    monkeypatch.setattr(session, "tools", lambda: tools)
    assert "torch" in fresh().not_verified[0]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 2}', "\xff"])
def test_a_manifest_that_is_none_of_ours_is_named(
    fresh: Verified, text: str, command: Callable[..., tuple[int, str]]
) -> None:
    (fresh.published / MANIFEST).write_text(text, encoding="latin-1")
    code, said = command(fresh.published)
    assert code == 1
    assert "no manifest of ours" in said
    assert MANIFEST in said


def test_nothing_is_written_by_verifying(fresh: Verified) -> None:
    before = {path: path.stat().st_mtime_ns for path in fresh.step.parent.rglob("*")}
    fresh()
    assert {path: path.stat().st_mtime_ns for path in fresh.step.parent.rglob("*")} == before
