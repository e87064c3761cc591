"""Owns the flags that several commands of `dcp2hf` share, and how their values are read."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from converter.common import hook_command
from converter.run.base_assets import Search

_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_size(text: str, flag: str) -> int:
    """ "50GB", "512MiB" or a number of bytes, as `flag` was given it."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise typer.BadParameter(f"{flag} {text!r} is no size like 50GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_command(text: str | None, flag: str) -> tuple[str, ...]:
    """A command as a JSON list of words, as `flag` was given it; none is an empty one."""
    if text is None:
        return ()
    try:
        argv = json.loads(text)
    except ValueError:
        argv = text
    if problem := hook_command.problem_of(argv):
        raise typer.BadParameter(f"{flag}: {problem}")
    return tuple(argv)


def _pair(text: str) -> tuple[str, str]:
    old, found, new = text.partition("=")
    if not (found and old and new):
        raise typer.BadParameter(f"--path-map {text!r} is not OLD=NEW")
    return old, new


BeforePublishOption = Annotated[
    str | None,
    typer.Option(
        "--before-publish", metavar="COMMAND", help='Sees the staging directory and may add files: ["card.py", "-v"].'
    ),
]
SignOption = Annotated[
    str | None,
    typer.Option("--sign", metavar="COMMAND", help="Leaves model.sig there, over all the rest; a JSON list as well."),
]
HookTimeoutOption = Annotated[
    float, typer.Option("--hook-timeout", min=0.1, metavar="SECONDS", help="Each of these commands may take.")
]
StatisticsOption = Annotated[
    Path | None,
    typer.Option(
        "--statistics",
        metavar="DIR",
        readable=False,
        help="Say the RMS of weights and updates by layer; DIR keeps samples of one run.",
    ),
]
RunConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--run-config",
        metavar="FILE",
        readable=False,
        help="The run config (JSON, or a TOML of 0.2), instead of looking for one.",
    ),
]
NamesOption = Annotated[
    list[str] | None,
    typer.Option("--run-config-name", metavar="NAME", help="Another name a run config may have (repeatable)."),
]
LogsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--logs-root", metavar="DIR", readable=False, help="Look for <DIR>/<run name>/job_config.json too (repeatable)."
    ),
]
AssetsOption = Annotated[
    Path | None,
    typer.Option(
        "--hf-assets", metavar="DIR", readable=False, help="The base model's folder, instead of the recorded one."
    ),
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        "--tokenizer-path",
        metavar="DIR",
        readable=False,
        help="The tokenizer's folder, instead of the recorded one.",
    ),
]
RootsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--assets-root", metavar="DIR", readable=False, help="Where recorded asset paths may begin (repeatable)."
    ),
]
MapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--path-map", metavar="OLD=NEW", help="Recorded paths that begin with OLD lie under NEW (repeatable)."
    ),
]
RestrictOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--restrict-assets",
        metavar="DIR",
        readable=False,
        help="Follow recorded asset paths only below these folders (repeatable).",
    ),
]


def search_of(
    hf_assets: Path | None, tokenizer: Path | None, roots: list[Path] | None, maps: list[str] | None, restrict: list[Path] | None
) -> Search:  # fmt: skip
    """How recorded asset paths are followed, by these flags."""
    return Search(
        hf_assets, tokenizer, tuple(roots or ()), tuple(map(_pair, maps or ())), tuple(restrict) if restrict else None
    )
