"""Owns what the man pages say beyond the parsers: purpose, exit statuses, files, examples."""

from dataclasses import dataclass

from converter.cli import main
from daemon.config import load


@dataclass(frozen=True)
class Page:
    """The words of one man page."""

    section: int
    name: str
    description: tuple[str, ...]
    exits: dict[str, str]
    environment: dict[str, str]
    files: dict[str, str]
    examples: dict[str, str]
    see: str
    hooks: tuple[str, ...]
    has_keys: bool = False


_NO_COLOR = "Where it is set and not empty, nothing is coloured."
DATE = "2026-11-24"
"""When these words last changed."""
DOCUMENTS = "share/doc/dcp2hf/docs below the prefix it is installed in"
KEYS = (
    'TOML. Each key has a twin DCP2HF_KEY in the environment (lists as JSON); keys marked "per root" may stand in a '
    'table [root."/path"]. An unknown key is an error. SIGHUP reloads.'
)
PAGES = {
    "dcp2hf": Page(
        section=1,
        name="convert TorchTitan checkpoints to HuggingFace directories",
        description=(
            "A step-N directory becomes step-N-hf beside it: weights bit for bit the checkpoint's, proven against "
            "TorchTitan's own model, published in one step or not at all.",
            "On a terminal it shows progress, tables and colours; elsewhere log lines and plain columns.",
            "dcp2hf --dcp-path PATH without a command means convert.",
        ),
        exits={
            str(main.EXIT_OK): "Everything requested was done, or had been done before.",
            str(main.EXIT_FAILED): "A step failed, a named step is not complete, or verify found a difference.",
            str(main.EXIT_USAGE): "Wrong usage, or the path does not exist.",
            str(main.EXIT_NOTHING): "Nothing to convert was found.",
            str(main.EXIT_INTERRUPTED): "Interrupted (Ctrl-C, SIGTERM); no partial result was left.",
        },
        environment={"NO_COLOR": _NO_COLOR},
        files={
            "step-N-hf/conversion.json": "The manifest: save id, versions, sha256 of each file, every check and its verdict.",
            "config.json, job_config.json": "The run config, looked for in the step, the checkpoint folder and its parent.",
        },
        examples={
            "dcp2hf convert --dcp-path RUN/checkpoint": "Every step of a run.",
            "dcp2hf convert --dcp-path RUN/checkpoint --dry-run": "What would be converted to where, and why not.",
            "dcp2hf verify RUN/checkpoint/step-1800": "Is step-1800-hf exactly what its checkpoint gives?",
        },
        see="dcp2hfd",
        hooks=(
            "--before-publish and --sign take a command as JSON: a list of words that no shell reads. It runs in the staging "
            "directory when every check has passed, and is given facts in HOOK_... variables and as JSON on stdin.",
            "What --before-publish leaves there is published too, and listed in the manifest under added; --sign, last, leaves "
            "model.sig and nothing else. If one fails, changes a file of the export or takes longer than --hook-timeout, "
            f"nothing is published. All rules: hooks.md, in {DOCUMENTS}.",
        ),
    ),
    "dcp2hfd": Page(
        section=8,
        name="watch checkpoint folders and convert each completed step",
        description=(
            "A root is a run (it holds step-*) or a folder of runs. Each completed step is converted once, by dcp2hf in a "
            "process of its own; what was done is remembered in state_dir.",
        ),
        exits={
            "0": "Stopped on request; with --once, everything succeeded.",
            "1": "With --once, an attempt failed or a root was unreachable; the ledger cannot be used; retry found no such step.",
            "2": "Wrong usage, an invalid setting, or a ledger of a newer version.",
        },
        environment={
            "DCP2HF_CONFIG": "The configuration file, where --config names none.",
            "DCP2HF_KEY": "A key of the configuration, such as DCP2HF_WORKERS.",
            "STATE_DIRECTORY, XDG_STATE_HOME": "Where the ledger lies, unless state_dir says so.",
            "NO_COLOR": _NO_COLOR,
        },
        files={
            str(load.DEFAULT_CONFIG): "The configuration, where neither --config nor DCP2HF_CONFIG names another.",
            "state_dir/ledger.sqlite": "What is remembered of steps and attempts. It may be removed: what is published is "
            "recognised by its manifest.",
        },
        examples={
            "dcp2hfd run --once /checkpoints": "Convert what is complete, then exit.",
            "dcp2hfd status --watch": "Where every run stands, refreshed in place.",
            "dcp2hfd retry /checkpoints/run/checkpoint/step-1800": "Forget the failures of a step and try again.",
        },
        see="dcp2hf",
        hooks=(
            "before_publish and sign run in the converter, before a step is published, as dcp2hf(1) says. on_success and "
            "on_failure run beside conversions, which they neither delay nor fail: each is told of every step at least once, "
            "whoever dies meanwhile, and the same thing has the same HOOK_KEY each time. A call that fails is made again, "
            "twelve times in all.",
            "Each is a list of words that no shell reads, is given facts in HOOK_... variables and as JSON on stdin, and is "
            f"killed after hook_timeout. All rules: hooks.md, in {DOCUMENTS}.",
        ),
        has_keys=True,
    ),
}
