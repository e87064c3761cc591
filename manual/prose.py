"""Owns the parts of the man pages that are not in the parsers: purpose, exit statuses, files, examples."""

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


_NO_COLOR = "If it is set and not empty, the output has no colours."
DATE = "2026-11-28"
"""When these words last changed."""
DOCUMENTS = "share/doc/dcp2hf/docs below the prefix it is installed in"
KEYS = (
    'TOML. The variable DCP2HF_KEY sets a key and overrides the file (lists as JSON). A key marked "per root" may also '
    'stand in a table [root."/path"]. An unknown key is an error. SIGHUP reloads the file.'
)
PAGES = {
    "dcp2hf": Page(
        section=1,
        name="convert TorchTitan checkpoints to HuggingFace directories",
        description=(
            "dcp2hf converts a step-N directory to a step-N-hf directory beside it. The weights are bit for bit the "
            "checkpoint's and are checked against TorchTitan's own model. The directory is published complete, or "
            "not at all.",
            "On a terminal dcp2hf shows progress, tables and colours. Elsewhere it prints log lines and plain columns.",
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
            "step-N-hf/conversion.json": "The manifest: save id, versions, sha256 of each file, each check and its "
            "verdict.",
            "config.json, job_config.json": "The run config. It is searched for in the step, the checkpoint folder "
            "and its parent.",
        },
        examples={
            "dcp2hf convert --dcp-path RUN/checkpoint": "Convert every step of a run.",
            "dcp2hf convert --dcp-path RUN/checkpoint --dry-run": "Show which steps would be converted and where.",
            "dcp2hf verify RUN/checkpoint/step-1800": "Check that step-1800-hf is exactly what its checkpoint gives.",
        },
        see="dcp2hfd",
        hooks=(
            "--before-publish and --sign take a command as a JSON list of words. No shell reads it. The command runs "
            "in the staging directory when every check has passed. It gets its facts in HOOK_... variables and as "
            "JSON on stdin.",
            "Files that --before-publish adds are published too, and the manifest lists them under added. --sign "
            "runs last, and writes model.sig and nothing else. If a command fails, changes a file of the export or "
            f"takes longer than --hook-timeout, nothing is published. All rules are in hooks.md, in {DOCUMENTS}.",
        ),
    ),
    "dcp2hfd": Page(
        section=8,
        name="watch checkpoint folders and convert each completed step",
        description=(
            "A root is a checkpoint folder (it contains step-*) or a folder of runs. dcp2hfd converts each complete "
            "step once, with dcp2hf in a separate process. It keeps its history in state_dir.",
        ),
        exits={
            "0": "Stopped on request; with --once, everything succeeded.",
            "1": "With --once, an attempt failed or a root was unreachable; the ledger cannot be used; retry found "
            "no such step.",
            "2": "Wrong usage, an invalid setting, or a ledger of a newer version.",
        },
        environment={
            "DCP2HF_CONFIG": "The configuration file, if --config names none.",
            "DCP2HF_KEY": "A key of the configuration, such as DCP2HF_WORKERS.",
            "STATE_DIRECTORY, XDG_STATE_HOME": "The folder of the ledger, if state_dir names none.",
            "NO_COLOR": _NO_COLOR,
        },
        files={
            str(load.DEFAULT_CONFIG): "The configuration, if neither --config nor DCP2HF_CONFIG names another.",
            "state_dir/ledger.sqlite": "The history of steps and attempts. It may be removed, because published "
            "directories are recognised by their manifests.",
        },
        examples={
            "dcp2hfd run --once /checkpoints": "Convert every complete step, then exit.",
            "dcp2hfd status --watch": "Show the state of every run, refreshed in place.",
            "dcp2hfd retry /checkpoints/run/checkpoint/step-1800": "Forget the failures of a step, and try again.",
        },
        see="dcp2hf",
        hooks=(
            "before_publish and sign run in the converter, before a step is published; see dcp2hf(1). on_success and "
            "on_failure run in parallel with conversions. They neither delay a conversion nor make it fail. Each "
            "call is made at least once, even if the daemon dies in between. A repeated call has the same HOOK_KEY. A "
            "call that fails is made again, up to twelve times in all.",
            "Each hook is a list of words. No shell reads it. It gets its facts in HOOK_... variables and as JSON on "
            f"stdin, and is killed after hook_timeout. All rules are in hooks.md, in {DOCUMENTS}.",
        ),
        has_keys=True,
    ),
}
