"""Run configs and assets written by a stranger: no bomb goes off, no secret of ours comes to light."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.common import errors
from converter.common.files import CONFIG_LIMIT
from converter.run.base_assets import Search
from converter.run.run_config import find
from tests.support.checkpoints.cases import BY_NAME, Case
from tests.unit.converter.editing import edit_json
from tests.unit.converter.running import Convert, Refused

CopyStep = Callable[..., Path]
PLAIN = BY_NAME["one_rank"]
OLD, NEW = BY_NAME["dense_tied-0.2-2x2-bfloat16"], BY_NAME["dense_untied-0.3-fsdp-float32"]
SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n"
BOMBS = {
    "depth": b"[" * 1_000_000,
    "objects": b'{"a":' * 500_000 + b"1" + b"}" * 500_000,
    "digits": b'{"training": ' + b"9" * 1_000_000 + b"}",
    "size": b" " * (CONFIG_LIMIT + 1),
    "elements": b"[" + b"{}," * 1_000_000 + b"0]",
    "bytes": b"\xff\xfe\x00",
}
bombs = pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())


@pytest.fixture(autouse=True)
def _at_once() -> Any:
    begun = time.process_time()
    yield
    assert time.process_time() - begun < 30


@bombs
def test_a_bomb_in_the_place_of_the_run_config_is_refused(bomb: bytes, copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(PLAIN)
    PLAIN.run_config(step.parents[2]).write_bytes(bomb)
    with pytest.raises(errors.ConversionError) as caught:
        find(step)
    assert type(caught.value) in (errors.RunConfigUnreadable, errors.RunConfigMissing)
    refused(step, type(caught.value))


@bombs
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_bomb_among_the_assets_is_refused(
    name: str, bomb: bytes, copy_step: CopyStep, refused: Refused, checkpoints: Path, tmp_path: Path
) -> None:
    step, folder = copy_step(NEW), tmp_path / "assets"
    shutil.copytree(NEW.base_assets(checkpoints), folder)
    (folder / name).write_bytes(bomb)
    edit_json(NEW.run_config(step.parents[2]), lambda said: said.update(hf_assets_path=str(folder)))
    refused(step, errors.AssetsInvalid, forward_check="off")


@pytest.mark.parametrize(
    ("key", "value"),
    [("seq_len", 10**30), ("seq_len", 2**31), ("seq_len", float("nan")), ("dtype", "x" * 1_000_000), ("dtype", ["float32"] * 9)],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_a_value_past_all_measure_is_refused_in_a_few_words(
    key: str, value: object, copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(PLAIN)
    edit_json(PLAIN.run_config(step.parents[2]), lambda said: said["training"].update({key: value}))
    assert len(refused(step, errors.RunConfigUnreadable).what) < 3000


@pytest.mark.parametrize("keep", [10**30, -1, 2**31, "4", 4.0, True, None, [], float("inf")], ids=str)
def test_a_number_of_checkpoints_that_is_none_is_not_taken(keep: object, copy_step: CopyStep) -> None:
    step = copy_step(PLAIN)
    edit_json(PLAIN.run_config(step.parents[2]), lambda said: said["checkpoint"].update(keep_latest_k=keep))
    assert find(step).keep_latest_k is None


def test_a_million_recorded_layers_are_not_built(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(NEW)
    edit_json(NEW.run_config(step.parents[2]), lambda said: said["model_spec"]["model"].update(layers=[{}] * 1_000_000))
    assert "num_hidden_layers" in refused(step, errors.ArchitectureMismatch, forward_check="off").what


@pytest.mark.parametrize("layers", [10**9, 2**40, -1, "3", None, 1e9], ids=str)
def test_a_billion_layers_of_the_base_assets_are_not_listed(
    layers: object, copy_step: CopyStep, refused: Refused, base_assets: Callable[..., Path]
) -> None:
    search = Search(hf_assets=base_assets(PLAIN, num_hidden_layers=layers))
    refused(copy_step(PLAIN), errors.AssetsInvalid, forward_check="off", search=search)


def recorded(case: Case, step: Path, path: Path) -> None:
    """The run config names this folder, or this file, for its tokenizer."""
    edit_json(case.run_config(step.parents[2]), lambda said: said["model"].update(tokenizer_override=str(path)))


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "chat_template.jinja", "tokenizer.model", "vocab.txt", "merges.txt"]
)
def test_a_link_to_a_file_that_the_runs_owner_may_not_read_is_refused_and_quoted_nowhere(
    name: str, copy_step: CopyStep, refused: Refused, checkpoints: Path, tmp_path: Path
) -> None:
    """Whoever writes a run config must not get at the private key of whoever converts."""
    step, folder, secret = copy_step(OLD), tmp_path / "theirs", tmp_path / "id_ed25519"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    shutil.copytree(OLD.tokenizer(checkpoints), folder)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    recorded(OLD, step, folder)
    _owned_by_another(step)
    error = refused(step, errors.AssetsInvalid, forward_check="off")
    assert "may not read it" in error.what
    assert "KEY" not in json.dumps(error.as_event())


def _owned_by_another(step: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    os.chown(step, 65534, 65534)


def test_what_the_owner_of_the_run_may_read_himself_is_read(
    copy_step: CopyStep, convert: Convert, checkpoints: Path, tmp_path: Path
) -> None:
    step, folder = copy_step(OLD), tmp_path / "theirs"
    shutil.copytree(OLD.tokenizer(checkpoints), folder)
    for path in folder.iterdir():
        path.chmod(0o600)
    recorded(OLD, step, folder)
    assert convert(step, forward_check="off").published.is_dir()


@pytest.mark.parametrize(
    "place", ["/etc/shadow", "/etc", "/dev/zero", "/dev", "/proc/self/environ", "/proc/self", "/proc/self/fd"]
)
def test_a_path_that_holds_no_tokenizer_is_refused_and_quoted_nowhere(
    place: str, copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(OLD)
    recorded(OLD, step, Path(place))
    error = refused(step, errors.AssetsMissing, forward_check="off")
    assert "root:" not in json.dumps(error.as_event())
    assert os.environ.get("PATH", "PATH") not in json.dumps(error.as_event())


@pytest.mark.parametrize("text", ["a\nb", "\x1b]0;owned\x07", "\udc80", "\u202e", "x" * 100_000, "a\0b"], ids=ascii)
def test_a_recorded_path_reaches_messages_in_printable_characters_alone(
    text: str, copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(OLD)
    edit_json(
        OLD.run_config(step.parents[2]), lambda said: said["model"].update(tokenizer_override=f"/nowhere/{text[:2000]}")
    )
    error = refused(step, errors.AssetsMissing, forward_check="off")
    assert error.what.isprintable()
    assert len(error.what) < 3000
