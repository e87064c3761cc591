"""Base assets and tokenizer: found where recorded paths lead, never read beyond what is allowed, checked before use."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from converter.common import errors
from converter.run import base_assets
from converter.run import path_permission as recorded_files
from converter.run.base_assets import Search, disagreements
from converter.run.path_permission import LIMIT
from converter.run.run_config import RunConfig
from converter.run.tokenizer_fit import check_there, check_tokens, check_vocabulary


def run(hf_assets: object = None, tokenizer: object = None, **fields: Any) -> RunConfig:
    return RunConfig(
        path=Path("/run/config.json"), sha256="0" * 64, generation="0.2", model_name="qwen3", flavor="0.6B", dtype="float32", seq_len=8,
        keep_latest_k=4, hf_assets_path=hf_assets and str(hf_assets), tokenizer_path=tokenizer and str(tokenizer), **fields,
    )  # fmt: skip


def make(folder: Path, **files: str) -> Path:
    """A folder that passes for base assets with tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"config.json": "{}", "tokenizer.json": "{}"} | {
        name.replace("__", "."): text for name, text in files.items()
    }
    for name, text in whole.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def step(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "a" / "step-1"
    path.mkdir(parents=True)
    return path


def test_what_a_person_names_wins_over_what_was_recorded(step: Path, tmp_path: Path) -> None:
    recorded, mine, words = (make(tmp_path / name) for name in ("recorded", "mine", "words"))
    assert base_assets.read(step, run(recorded), Search()).base_path == recorded
    found = base_assets.read(step, run(recorded), Search(hf_assets=mine, tokenizer=words / "tokenizer.json"))
    assert (found.base_path, found.tokenizer_path) == (mine, words)
    assert base_assets.read(step, run(), Search(hf_assets=mine, tokenizer=mine)).base_path == mine


def test_a_tokenizer_recorded_as_a_file_means_its_folder(step: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "t", tokenizer_config__json="{}")
    found = base_assets.read(step, run(folder, folder / "tokenizer.json"), Search())
    assert found.tokenizer_path == folder
    assert set(found.tokenizer) == {"tokenizer.json", "tokenizer_config.json"}


def test_recorded_paths_are_tried_in_the_documented_order(step: Path, tmp_path: Path) -> None:
    mapped, root = tmp_path / "mapped", tmp_path / "root"
    search = Search(assets_roots=(root,), path_map=(("/data/hf", str(mapped)),))
    places = [mapped / "m", root / "data/hf/m", root / "m"]
    for place in places:
        make(place)
    for place in places:
        assert base_assets.read(step, run("/data/hf/m"), search).base_path == place
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
    with pytest.raises(errors.AssetsMissing) as caught:
        base_assets.read(step, run("/data/hf/m"), search)
    assert all(str(place) in caught.value.what for place in places)


@pytest.mark.parametrize("recorded", ["../secret", "a/../../secret", "./x/../../../secret"])
def test_a_relative_path_does_not_climb_out(recorded: str, step: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "secret", step.parents[1] / "secret", tmp_path / "root" / "secret"):
        make(place)
    with pytest.raises(errors.AssetsMissing):
        base_assets.read(step, run(recorded), Search(assets_roots=(tmp_path / "root" / "sub",)))


def test_a_path_map_maps_whole_parts_of_paths_only(step: Path, tmp_path: Path) -> None:
    make(tmp_path / "new" / "x")
    make(tmp_path / "newer" / "x")
    with pytest.raises(errors.AssetsMissing):
        base_assets.read(step, run("/old-er/x"), Search(path_map=(("/old", str(tmp_path / "new")),)))
    assert (
        base_assets.read(
            step, run("/old/x"), Search(path_map=(("/", str(tmp_path)), ("/old/", str(tmp_path / "new"))))
        ).base_path
        == tmp_path / "new" / "x"
    )


def test_restricted_assets_are_followed_below_the_allowed_folders_only(step: Path, tmp_path: Path) -> None:
    outside, allowed = make(tmp_path / "outside"), tmp_path / "allowed"
    inside = make(allowed / "hf")
    restricted = Search(restrict=(allowed,))
    assert base_assets.read(step, run(inside), restricted).base_path == inside
    with pytest.raises(errors.AssetsNotConfigured, match="outside' are outside what restrict_assets allows") as refused:
        base_assets.read(step, run(outside), restricted)
    assert refused.value.hint == "add its folder to --restrict-assets, or name it with --hf-assets"
    (allowed / "link").symlink_to(outside)
    for recorded in (allowed / "link", allowed / "hf" / ".." / ".." / "outside"):
        with pytest.raises(errors.AssetsNotConfigured, match="outside what restrict_assets allows"):
            base_assets.read(step, run(recorded), restricted)
    assert base_assets.read(step, run(outside), Search(restrict=(allowed,), hf_assets=outside, tokenizer=outside))
    (inside / "tokenizer.json").unlink()
    (inside / "tokenizer.json").symlink_to(outside / "tokenizer.json")
    with pytest.raises(errors.AssetsInvalid, match="link leads outside"):
        base_assets.read(step, run(inside), restricted)


def test_an_asset_may_be_a_link_as_in_hub_caches(step: Path, tmp_path: Path) -> None:
    blobs = make(tmp_path / "blobs", tokenizer__json='{"a": 1}')
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (snapshot / name).symlink_to(os.path.relpath(blobs / name, snapshot))
    assert base_assets.read(step, run(snapshot), Search()).tokenizer["tokenizer.json"] == b'{"a": 1}'


def test_only_regular_files_up_to_the_limit_are_read(step: Path, tmp_path: Path) -> None:
    for number, spoil in enumerate((os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"))):
        folder = make(tmp_path / str(number))
        (folder / "tokenizer.json").unlink()
        spoil(folder / "tokenizer.json")
        with pytest.raises(errors.AssetsInvalid, match="not a regular file"):
            base_assets.read(step, run(folder), Search())
    folder = make(tmp_path / "large")
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(LIMIT + 1)
    with pytest.raises(errors.AssetsInvalid, match="larger than"):
        base_assets.read(step, run(folder), Search())


def test_a_folder_without_a_tokenizer_is_named(step: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "t")
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(errors.AssetsMissing, match="no tokenizer"):
        base_assets.read(step, run(folder), Search())
    (folder / "vocab.json").write_text("{}")
    assert set(base_assets.read(step, run(folder), Search()).tokenizer) == {"merges.txt", "vocab.json"}


@pytest.mark.parametrize(
    ("name", "empty", "full"),
    [("tokenizer.json", {"model": {"vocab": {}}}, {"model": {"vocab": {"a": 0}}}), ("vocab.json", {}, {"a": 0})],
)
def test_a_vocabulary_without_ids_is_refused(
    name: str, empty: dict[str, Any], full: dict[str, Any], step: Path, tmp_path: Path
) -> None:
    folder = make(tmp_path / "t")
    (folder / "tokenizer.json").unlink()
    (folder / name).write_text(json.dumps(full))
    found = base_assets.read(step, run(folder), Search())
    check_there(tuple(found.tokenizer), found.highest_id, folder)

    (folder / name).write_text(json.dumps(empty))
    if name == "tokenizer.json":  # which is what transformers reads where there are both
        (folder / "vocab.json").write_text('{"a": 0}')
    found = base_assets.read(step, run(folder), Search())
    with pytest.raises(errors.AssetsInvalid, match="no vocabulary"):
        check_there(tuple(found.tokenizer), found.highest_id, folder)


def test_embedding_recorded_figures_and_tokenizer_must_fit() -> None:
    where = Path("/tokenizer")
    check_vocabulary(run(), 638, 600, 599, where)
    check_vocabulary(run(padded_vocab_size=638, known_tokens=600), 638, 600, 637, where)
    for recorded, length, highest in (
        (run(padded_vocab_size=637), 600, 599), (run(known_tokens=599), 600, 599), (run(), 639, 600), (run(), 600, 638),
    ):  # fmt: skip
        with pytest.raises(errors.VocabularyMismatch):
            check_vocabulary(recorded, 638, length, highest, where)


def test_the_checks_tokens_are_known_ones_always_the_same_and_added_ones_among_them() -> None:
    for length, added in ((600, [596, 597, 598, 599]), (600, []), (5, [4]), (151_673, list(range(151_643, 151_673)))):
        tokens = check_tokens(length, added, 32)
        assert tokens == check_tokens(length, added, 32)
        assert len(tokens) == 32
        assert all(0 <= token < length for token in tokens)
        assert set(added[-8:]) <= set(tokens)
    assert len(set(check_tokens(151_673, list(range(151_643, 151_673)), 32))) == 32


@pytest.mark.parametrize(
    ("config", "generation", "special", "said"),
    [
        ({"eos_token_id": 2}, {"eos_token_id": [2, 0]}, {"eos": 2}, []),
        ({"eos_token_id": 2}, {"eos_token_id": [3]}, {"eos": 2}, ["EOS"]),
        ({"bos_token_id": 1}, {}, {"bos": 0}, ["BOS"]),
        ({"pad_token_id": None}, {"pad_token_id": 0}, {"pad": 0}, []),
        ({}, {"pad_token_id": 5}, {"pad": 0}, ["PAD"]),
    ],
)
def test_special_tokens_that_differ_are_warned_of(
    config: dict[str, Any], generation: dict[str, Any], special: dict[str, int], said: list[str]
) -> None:
    found = base_assets.Assets(Path("/b"), {}, json.dumps(generation).encode(), Path("/t"), {})
    assert [text.split()[0] for text in disagreements(config, found, special)] == said


@pytest.mark.parametrize(
    ("generation", "said"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}, "do_sample True, temperature 0.6, top_k 20, top_p 0.95"),
        ({"temperature": 0.7}, "temperature 0.7"),
        ({"repetition_penalty": 1.05}, "repetition_penalty 1.05"),
        ({"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "eos_token_id": 2}, None),
        ({"temperature": None, "do_sample": "true"}, None),
        (None, None),
    ],
)  # fmt: skip
def test_a_generation_config_that_samples_is_warned_of_with_its_settings(
    generation: dict[str, Any] | None, said: str | None
) -> None:
    payload = None if generation is None else json.dumps(generation).encode()
    told = disagreements({}, base_assets.Assets(Path("/b"), {}, payload, Path("/t"), {}), {})
    assert [f"({said})" in text and "use_model_defaults=False" in text for text in told] == ([True] if said else [])


def test_a_tokenizer_class_that_older_readers_lack_is_warned_of() -> None:
    for kind, warned in (("TokenizersBackend", True), ("Qwen2Tokenizer", False)):
        files = {"tokenizer_config.json": json.dumps({"tokenizer_class": kind}).encode()}
        found = disagreements({}, base_assets.Assets(Path("/b"), {}, None, Path("/t"), files), {})
        assert any("transformers 5 only" in text for text in found) == warned


def test_an_asset_that_its_folder_lists_is_no_asset_that_may_be_left_out(step: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "base")
    os.symlink(folder / "blob-that-is-not-there", folder / "vocab.json")
    with pytest.raises(errors.MachineFailure, match=r"vocab\.json"):
        base_assets.read(step, run(folder), Search())


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE], ids=errno.errorcode.get)
def test_a_failing_file_system_makes_no_asset_invalid(
    code: int, step: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "base")

    def fail(path: Path, **_: object) -> bytes:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(recorded_files, "read_regular", fail)
    with pytest.raises(OSError, match=os.strerror(code)):
        base_assets.read(step, run(folder), Search())


def test_special_tokens_past_the_embedding_are_warned_of_with_their_file() -> None:
    generation = b'{"eos_token_id": [151645, 3], "bos_token_id": 2}'
    found = base_assets.Assets(Path("/b"), {}, generation, Path("/t"), {})
    config = {"vocab_size": 638, "eos_token_id": 151_645, "pad_token_id": 5}
    said = [text for text in disagreements(config, found, {}) if "past the embedding" in text]

    assert [text.partition(" names")[0] for text in said] == ["config.json", "generation_config.json"]
    assert all("151645" in text and "638 rows" in text for text in said)
    assert not any("past the embedding" in text for text in disagreements(config | {"vocab_size": 151_646}, found, {}))
