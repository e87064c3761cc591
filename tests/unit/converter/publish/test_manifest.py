"""The manifest says what a directory is: read back as written, never mistaken, and whose files are whose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from converter.common import names_on_disk
from converter.publish import manifest
from converter.publish.manifest import Check, FileEntry, Manifest, foreign_files, is_up_to_date

MADE = Manifest(
    step=2, save_id="a-save", dtype="bfloat16", max_shard_size=5, tensors=3, parameters=7, tools={"torch": "2"}, run_config_sha256="0" * 64,
    files={"config.json": FileEntry(2, "1" * 64)}, checks=(Check("finite", "passed"), Check("forward", "not run", reason="off")),
)  # fmt: skip


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "step-2-hf"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    manifest.write(folder, MADE)
    return folder


def up_to_date(folder: Path, **changes: object) -> bool:
    asked: dict[str, object] = {"save_id": "a-save", "dtype": "bfloat16", "max_shard_size": 5} | changes
    return is_up_to_date(folder, **asked)  # type: ignore[arg-type]


def test_it_is_read_as_it_was_written(published: Path) -> None:
    assert manifest.read(published) == MADE


def test_it_is_up_to_date_for_this_save_dtype_and_shard_size_alone(published: Path) -> None:
    assert up_to_date(published)
    assert not up_to_date(published, save_id="another")
    assert not up_to_date(published, dtype="float32")
    assert not up_to_date(published, max_shard_size=6)


def test_it_is_not_up_to_date_once_a_file_is_gone_or_of_another_size(published: Path) -> None:
    (published / "config.json").write_text("{ }")
    assert not up_to_date(published)
    (published / "config.json").unlink()
    assert not up_to_date(published)
    assert not up_to_date(published.parent / "nowhere")


@pytest.mark.parametrize("name", ["config.json/x", "y" * 300, "/".join(["y" * 250] * 20)])
def test_a_name_that_no_file_can_have_makes_it_not_up_to_date(name: str, published: Path) -> None:
    (published / names_on_disk.MANIFEST).unlink()
    manifest.write(published, replace(MADE, files=MADE.files | {name: FileEntry(2, "1" * 64)}))
    assert manifest.read(published) is not None
    assert not up_to_date(published)


@pytest.mark.parametrize("save_id", ["\ud800", "a\nb"])
def test_a_save_that_cannot_be_named_is_no_save_of_ours(save_id: str, published: Path) -> None:
    (published / names_on_disk.MANIFEST).unlink()
    manifest.write(published, replace(MADE, save_id=save_id))
    assert manifest.read(published) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"format": 1}', '{"format": 2, "save_id": "a-save"}', '{"format": 1, "files": 5}'],
)
def test_what_is_no_manifest_of_ours_is_none(text: str, published: Path) -> None:
    (published / names_on_disk.MANIFEST).write_text(text)
    assert manifest.read(published) is None
    assert not up_to_date(published)


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"save_id": 5}, {"step": "2"}, {"dtype": None}, {"files": []}, {"files": {"a": {"size": "2", "sha256": ""}}},
     {"checks": 5}, {"unknown": 1}, {"added": None}],
    ids=str,
)  # fmt: skip
def test_a_manifest_with_a_wrong_field_is_none(change: dict[str, object], published: Path) -> None:
    said = json.loads((published / names_on_disk.MANIFEST).read_text())
    (published / names_on_disk.MANIFEST).write_text(json.dumps(said | change))
    assert manifest.read(published) is None


def test_files_that_an_export_may_have_are_foreign_only_where_our_manifest_does_not_list_them(published: Path) -> None:
    for name in ("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
                 "generation_config.json", "chat_template.jinja", ".nfs000001"):  # fmt: skip
        (published / name).touch()
    (published / "additional_chat_templates").mkdir()
    (published / "additional_chat_templates" / "rag.jinja").touch()
    assert len(foreign_files(published)) == 7, "where our manifest is, only what it lists is ours"
    (published / names_on_disk.MANIFEST).unlink()
    assert foreign_files(published) == []


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "pytorch_model.bin",
        "README.md",
        "adapter_model.safetensors",
        "eval/results.json",
        "additional_chat_templates/x.py",
        ".git/config",
    ],
)
def test_other_files_are_somebodys(name: str, published: Path) -> None:
    (published / name).parent.mkdir(exist_ok=True)
    (published / name).touch()
    assert foreign_files(published) == [name.partition("/")[0]]


def test_what_a_hook_added_is_ours(published: Path) -> None:
    (published / names_on_disk.MANIFEST).unlink()
    manifest.write(
        published, replace(MADE, added={"card.md": FileEntry(0, "2" * 64), "eval/a.json": FileEntry(0, "3" * 64)})
    )
    (published / "eval").mkdir()
    for name in ("card.md", "eval/a.json"):
        (published / name).touch()
    assert foreign_files(published) == []
    (published / "eval" / "b.json").touch()
    assert foreign_files(published) == ["eval"]
