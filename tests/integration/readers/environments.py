"""Owns the readers' environments: which versions, made with venv and pip, kept for the next session.

Each is a virtual environment with its own transformers, tokenizers and huggingface_hub, made in seconds and small: all
else, torch first, it takes from the environment that runs the tests, whose packages come after its own on sys.path.
They lie in $TEST_READERS, else in pytest's cache folder.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PATIENCE = 240
"""Seconds for one call of pip; it takes 5 to 20."""


@dataclass(frozen=True)
class Environment:
    """One reader's packages."""

    name: str
    pins: tuple[str, ...]
    """All that pip installs."""
    shares: bool = True
    """Whether the packages of the running environment come after its own."""


def _transformers(version: str, *others: str) -> Environment:
    return Environment(f"transformers-{version}", (f"transformers=={version}", *others))


TRANSFORMERS = {
    "4.51.3": _transformers("4.51.3", "tokenizers==0.21.4", "huggingface_hub==0.36.0"),
    "4.57.6": _transformers("4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.0"),
    "5.0.0": _transformers("5.0.0", "tokenizers==0.22.2", "huggingface_hub==1.3.3", "typer-slim==0.21.1"),
}
"""Older readers; the installed version is the one they are compared with."""

LLAMA_CPP = Environment("llama.cpp", ("xllamacpp==2026.10.11549",), shares=False)
"""llama.cpp's runtime, ready made."""
LLAMA_CPP_CONVERTER = Environment("llama.cpp-converter", ("sentencepiece==0.2.1",))
"""What llama.cpp's converter imports besides (0.3.36: for a dense Qwen before it looks whether there is a
tokenizer.model)."""
LLAMA_CPP_SOURCE = "llama-cpp-python==0.3.36"
"""The source package that carries llama.cpp's converter and Qwen's vocabulary; nothing of it is compiled."""
_WANTED = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/", "models/ggml-vocab-qwen2.gguf")
"""What of it is kept, below vendor/llama.cpp: 7 MB of 200."""


class Unavailable(Exception):
    """pip could not get it on this machine; the message is pip's own last line."""


def make(environment: Environment, place: Path) -> Path:
    """The environment's Python below `place`, made unless it is there already.

    Raises:
        Unavailable: pip could not install what is pinned.
    """
    folder = place / environment.name
    python = folder / "bin" / "python"
    shared = _packages() if environment.shares else None
    stamp = json.dumps([sys.version, shared, environment.pins])
    with only_one(folder):
        if _stamp(folder) != stamp:
            subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
            if shared:
                (own,) = folder.glob("lib/python3*/site-packages")
                (own / "shared.pth").write_text(shared + "\n")
            # --no-deps: the pins are all there is to it, and pip would count what is shared as its own to change
            _pip("--python", str(python), "install", "--no-deps", *environment.pins)
            (folder / "made").write_text(stamp)
    return python


def llama_cpp_source(place: Path) -> Path:
    """The folder with llama.cpp's `convert_hf_to_gguf.py`, downloaded and unpacked unless it is there already.

    Raises:
        Unavailable: pip could not download it.
    """
    folder = place / "llama.cpp-source"
    with only_one(folder):
        if _stamp(folder) != LLAMA_CPP_SOURCE:
            folder.mkdir(exist_ok=True)
            package, _, _ = LLAMA_CPP_SOURCE.partition("==")  # :all: would have pip build its build tools, for minutes
            _pip("download", "--no-deps", "--no-binary", package, "--dest", str(folder), LLAMA_CPP_SOURCE)
            (archive,) = folder.glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                for member in tar:
                    _, _, name = member.name.partition("/vendor/llama.cpp/")
                    if member.isfile() and name.startswith(_WANTED) and ".." not in name:
                        (folder / name).parent.mkdir(parents=True, exist_ok=True)
                        content = tar.extractfile(member)
                        assert content is not None
                        (folder / name).write_bytes(content.read())
            archive.unlink()
            (folder / "made").write_text(LLAMA_CPP_SOURCE)
    return folder


def _packages() -> str:
    """Where the running environment's packages lie, torch among them."""
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    return str(Path(torch.origin).parent.parent)


def _stamp(folder: Path) -> str | None:
    made = folder / "made"
    return made.read_text() if made.exists() else None


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"pip {' '.join(arguments)}: not done after {_PATIENCE} s") from None
    if ended.returncode != 0:
        last = (ended.stderr.strip() or ended.stdout.strip() or "no output").splitlines()[-1]
        raise Unavailable(f"pip {' '.join(arguments)}: {last}")


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds the lock beside `folder`, so that two sessions do not make its content at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
