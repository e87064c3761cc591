"""OpenSSF model-signing signs what is published, and its own verify accepts that and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from converter import verify
from converter.publish.publish_hooks import PublishHooks
from converter.run.options import Options
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.running import Convert, InProcessProver
from tests.unit.daemon.running import REPOSITORY

PINS = ("model-signing==1.1.1", "pyOpenSSL==26.4.0")
"""model-signing 1.1.1 imports pyOpenSSL without asking pip for it."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def signer(request: pytest.FixtureRequest) -> Path:
    """The folder of `model_signing`, in an environment of its own that is kept in pytest's cache."""
    folder = Path(request.config.cache.mkdir("model-signing")) / "-".join(PINS)
    command = folder / "bin" / "model_signing"
    if not command.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        ran = subprocess.run([folder / "bin/pip", "install", "-q", *PINS], capture_output=True, text=True, check=False)
        if ran.returncode:
            pytest.skip(f"pip cannot install model-signing here: {ran.stderr.strip().splitlines()[-1]}")
    return command.parent


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; its public one is beside it, with `.pub` added."""
    private = tmp_path / "key.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private], check=True)
    public = ["openssl", "ec", "-in", private, "-pubout", "-out", f"{private}.pub"]
    subprocess.run(public, check=True, capture_output=True)
    return private


def test_what_is_published_is_signed_over_all_the_rest(
    copy_step: Callable[..., Path], convert: Convert, signer: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{signer}:{os.environ['PATH']}")
    monkeypatch.setattr(verify, "Prover", InProcessProver)
    sign = (str(REPOSITORY / "examples/hooks/sign.sh"), str(key))
    hooks = PublishHooks(before_publish=("sh", "-c", "echo card > README.md"), sign=sign)
    published = convert(copy_step(BY_NAME["one_rank"]), hooks=hooks).published

    def is_accepted() -> bool:
        argv = ["verify", "key", "--signature", "model.sig", "--public_key", f"{key}.pub", "."]
        return subprocess.run([signer / "model_signing", *argv], cwd=published, capture_output=True).returncode == 0

    assert is_accepted()
    found = verify.verify(*verify.locate(published), Options())
    assert found.equal
    assert found.signed
    for name in ("conversion.json", "README.md", "model.safetensors"):
        whole = (published / name).read_bytes()
        (published / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert not is_accepted(), name
        (published / name).write_bytes(whole)
    assert is_accepted()
