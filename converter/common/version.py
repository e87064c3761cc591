"""Owns the text of `--version`. Two builds of one version have different sources, so they have different digests.

Uses only the standard library.
"""

import argparse
import hashlib
from pathlib import Path


def build() -> str:
    """12 hex digits of the sha256 over the names and bytes of all files of both packages, as they are installed now."""
    parent, digest = Path(__file__).parents[2], hashlib.sha256()
    files = (path for package in ("converter", "daemon") for path in (parent / package).rglob("*"))
    for path in sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts):
        digest.update(f"{path.relative_to(parent)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def text() -> str:
    """ "0.1.0 (build 0123456789ab)"."""
    from importlib.metadata import PackageNotFoundError, version  # takes longer than all else that --help needs

    try:
        number = version("dcp2hf")
    except PackageNotFoundError:  # run from a checkout that is not installed
        number = "not installed"
    return f"{number} (build {build()})"


class ShowVersion(argparse.Action):
    """Prints the program's name and version, and ends it. Only then are the sources read for the build."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"{parser.prog} {text()}")
        parser.exit()
