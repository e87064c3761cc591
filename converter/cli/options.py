"""Owns the command line of `dcp2hf`: commands, options, and how their values are read.

argparse starts in a few hundredths of a second. Completion and the man page are made from the parser.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from converter.common import hook_command, version

if TYPE_CHECKING:
    from converter.run.options import Options

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
Go = Callable[[argparse.Namespace], int]
"""Runs a command; returns its exit code."""


def parser(convert: Go, verify: Go, inspect: Go) -> argparse.ArgumentParser:
    """Commands and options; `go` of what was parsed runs the command."""
    made = argparse.ArgumentParser(
        prog="dcp2hf",
        description="Converts TorchTitan checkpoints to HuggingFace directories, exactly.",
        allow_abbrev=False,
    )
    made.add_argument("--version", action=version.ShowVersion, nargs=0, help="Show the version and its build.")
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, go: Go, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(go=go)
        return added

    _convert(command("convert", convert, "Convert a step, or every step of a run."))
    added = command(
        "verify",
        verify,
        "Check that a published directory is exactly what its checkpoint gives or, if that is gone, its manifest says.",
    )
    added.add_argument("path", metavar="PATH", type=Path, help="A step directory, or its published directory.")
    added.add_argument(
        "--sample", metavar="N/T", type=_part, default="1/1", help="Compare only the N-th of T parts of the weights."
    )
    _add_run(added)
    added = command(
        "inspect",
        inspect,
        "Show the content of a checkpoint: names, tensors, dtypes, ranks, sizes, and whether it is complete.",
    )
    added.add_argument(
        "path", metavar="PATH", type=Path, help="A step directory, or a checkpoint folder with all its steps."
    )
    added.add_argument("--json", action="store_true", help="Print JSON.")
    return made


def options_of(given: argparse.Namespace) -> "Options":
    """The options of a conversion; of `verify`, those that say where the run's files are."""
    from converter.common.metadata_limits import Limits
    from converter.publish.publish_hooks import PublishHooks
    from converter.run.base_assets import Search
    from converter.run.options import Options

    search = Search(
        given.hf_assets, given.tokenizer, tuple(given.assets_root), tuple(given.path_map),
        tuple(given.restrict_assets) if given.restrict_assets else None,
    )  # fmt: skip
    run = {
        "run_config": given.run_config,
        "run_config_names": tuple(given.run_config_name),
        "logs_roots": tuple(given.logs_root),
        "search": search,
    }
    if "output" not in given:
        return Options(**run)
    return Options(
        **run,
        output=given.output and given.output.absolute(),
        dtype=given.dtype,
        architecture=given.architecture,
        untie=given.untie,
        ignore_tensors=tuple(given.ignore_tensors),
        allow_routing_drift=given.allow_routing_drift,
        accept_copy=given.accept_copy,
        force=given.force,
        max_shard_size=given.max_shard_size,
        threads=given.threads,
        forward_check=given.forward_check,
        if_exists=given.if_exists,
        ours_only=given.ours_only,
        metadata_limits=Limits(given.metadata_memory_limit, given.metadata_deadline),
        io_bandwidth_limit=given.io_bandwidth_limit or 0,
        hooks=PublishHooks(given.before_publish, given.sign, given.hook_timeout),
        statistics=given.statistics and given.statistics.absolute(),
    )


def _convert(to: argparse.ArgumentParser) -> None:
    add = to.add_argument
    add(
        "path",
        metavar="PATH",
        type=Path,
        nargs="?",
        help="A step directory, a checkpoint folder with all its steps, or a *.distcp file of a step.",
    )
    add("--dcp-path", metavar="PATH", type=Path, help="PATH as an option.")
    add(
        "--dry-run",
        action="store_true",
        help="Print which steps would be converted and where, and why others would not. Write nothing.",
    )
    add(
        "--output",
        metavar="DIR",
        type=Path,
        help="Folder in which step-N-hf is created. Default: beside the step, unless that would harm training.",
    )
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="Dtype of the export. auto uses the run's training.dtype.",
    )
    _add_run(to)
    add(
        "--architecture",
        choices=("base", "run"),
        default="base",
        help="Architecture to use where base assets and run differ. base refuses to convert. run uses what the run "
        "recorded, also where the base assets have no config.json.",
    )
    add(
        "--untie",
        action="store_true",
        help="Export embedding and head as two tensors where the run calls them tied and they differ "
        "(TorchTitan 0.2.0, 0.2.1).",
    )
    add(
        "--ignore-tensors",
        metavar="PATTERN",
        action="append",
        default=[],
        help="Leave out tensors beside the model. A shell pattern of whole names: rng_state, 'ema.*' (repeatable).",
    )
    add("--allow-routing-drift", action="store_true", help="Publish a MoE whose balancing bias is not zero.")
    add(
        "--accept-copy",
        action="store_true",
        help="Convert a copy although its DCP shards are newer than .metadata. It is watched for a minute first.",
    )
    add(
        "--force",
        action="store_true",
        help="Replace a published directory even if it contains a person's files or is of another run.",
    )
    add("--max-shard-size", metavar="SIZE", type=_size, default="50GB", help="Largest HF shard.")
    add(
        "--threads",
        metavar="N",
        type=_count,
        default=0,
        help="Threads that read, cast and write. 0: one for each core, at most 4.",
    )
    add(
        "--forward-check",
        choices=("full", "off"),
        default="full",
        help="Compare TorchTitan's logits with HF's before publishing.",
    )
    add(
        "--if-exists",
        choices=("overwrite", "skip"),
        default="overwrite",
        help="skip: do not replace an export that is up to date, or that is not ours.",
    )
    add("--ours-only", action="store_true", help="Replace only an export with our manifest. --force replaces all.")
    add(
        "--io-bandwidth-limit",
        metavar="SIZE",
        type=_size,
        help="Read and write at most this many bytes per second (200MB).",
    )
    add(
        "--metadata-memory-limit",
        metavar="SIZE",
        type=_size,
        default="512MiB",
        help="Memory limit for reading .metadata, plus 24 times the size of the file.",
    )
    add(
        "--metadata-deadline",
        metavar="SECONDS",
        type=float,
        default=30.0,
        help="Processor time limit for reading .metadata, plus 1 s for each 2 MB of it.",
    )
    add(
        "--before-publish",
        metavar="COMMAND",
        type=_command,
        default=(),
        help='Command (a JSON list of words) that runs in the staging directory and may add files: ["card.py", "-v"].',
    )
    add(
        "--sign",
        metavar="COMMAND",
        type=_command,
        default=(),
        help="Command (a JSON list of words) that writes model.sig there, after all other files.",
    )
    add(
        "--hook-timeout",
        metavar="SECONDS",
        type=_seconds,
        default=600.0,
        help="Time limit of each of these commands.",
    )
    add(
        "--statistics",
        metavar="DIR",
        type=Path,
        help="Report the RMS of weights and updates by layer. DIR keeps samples of one run.",
    )
    add("--events", action="store_true", help="Print one JSON object per line on stdout, and nothing else.")


def _add_run(to: argparse.ArgumentParser) -> None:
    """Where the run's own files are."""
    add = to.add_argument
    add(
        "--run-config",
        metavar="FILE",
        type=Path,
        help="Run config (JSON, or TOML of TorchTitan 0.2) to use instead of searching for one.",
    )
    add(
        "--run-config-name",
        metavar="NAME",
        action="append",
        default=[],
        help="Another file name that a run config may have (repeatable).",
    )
    add("--hf-assets", metavar="DIR", type=Path, help="Base model's folder to use instead of the one the run recorded.")
    add(
        "--tokenizer",
        "--tokenizer-path",
        metavar="DIR",
        type=Path,
        help="Tokenizer's folder to use instead of the one the run recorded.",
    )
    add(
        "--logs-root",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="Folder to search for <run name>/job_config.json (repeatable).",
    )
    add(
        "--assets-root",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="Folder below which to search for asset paths that the run recorded as relative (repeatable).",
    )
    add(
        "--path-map",
        metavar="OLD=NEW",
        type=_pair,
        action="append",
        default=[],
        help="Replace the prefix OLD of recorded paths by NEW (repeatable).",
    )
    add(
        "--restrict-assets",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="Follow recorded asset paths only below this folder (repeatable).",
    )


def _size(text: str) -> int:
    """Bytes of "50GB", "512MiB" or a number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 50GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _command(text: str) -> tuple[str, ...]:
    """A command as a JSON list of words."""
    try:
        argv = json.loads(text)
    except ValueError:
        argv = text
    if problem := hook_command.problem_of(argv):
        raise argparse.ArgumentTypeError(problem)
    return tuple(argv)


def _pair(text: str) -> tuple[str, str]:
    old, found, new = text.partition("=")
    if not (found and old and new):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW")
    return old, new


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1")
    return seconds


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text} is not N/T with N from 1 to T")
    return int(match[1]), int(match[2])
