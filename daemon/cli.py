"""Owns the `dcp2hfd` command: run, status, retry, check. It reads settings, calls a module and returns an exit code.

It uses argparse, and imports the modules for `status` only there, because a daemon keeps every import for weeks.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from converter.common import names_on_disk, version
from converter.common.errors import printable
from converter.common.text_columns import allow_any_character
from daemon.config import flag_to_key
from daemon.config import load as config
from daemon.config.load import SettingsError
from daemon.config.settings import Settings
from daemon.ledger.database import LedgerError, LedgerNewer
from daemon.ledger.ledger import Ledger

USAGE = 2
_EXAMPLE = """\
nothing to watch: name a root, which is a run's checkpoint folder or a folder of runs, for example
  dcp2hfd run /checkpoints
or in the config file (--config, $DCP2HF_CONFIG, else /etc/dcp2hf/dcp2hf.toml):
  roots = ["/checkpoints"]"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parser().parse_args(argv)
    flag_to_key.name_config(config.named(options.config))
    try:
        return int(options.go(options))
    except (SettingsError, LedgerError) as error:
        print(f"dcp2hfd: {error}", file=sys.stderr)
        return USAGE if isinstance(error, SettingsError | LedgerNewer) else 1  # the unit is not started again for ever
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is left in the buffer has no reader
        return 1


def parser() -> argparse.ArgumentParser:
    """Commands and options; completion and the man page are made from it."""
    made = argparse.ArgumentParser(
        prog="dcp2hfd",
        description="Watches TorchTitan's checkpoint folders and publishes every complete step in HuggingFace form.",
    )
    made.add_argument("--version", action=version.ShowVersion, nargs=0, help="Show the version and its build.")
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, go: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(go=go)
        added.add_argument(
            "--config",
            metavar="FILE",
            help=f"Configuration file. Default: $DCP2HF_CONFIG, else {config.DEFAULT_CONFIG} if it exists.",
        )
        return added

    run = command("run", _run, "Convert every complete step, then keep watching.")
    run.add_argument(
        "--once",
        action="store_true",
        help="Convert every complete step, then exit (0: all succeeded, 1: a failed attempt or an unreachable root).",
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="Print which steps would be converted and where, and why others would not. Write nothing.",
    )
    run.add_argument(
        "roots",
        nargs="*",
        metavar="ROOT",
        help="A checkpoint folder, or a folder of runs. Replaces `roots` of the configuration.",
    )
    status = command("status", _status, "Show every known step and its state.")
    how = status.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="Print JSON.")
    how.add_argument("--watch", action="store_true", help="On a terminal: refresh in place until Ctrl-C (exit code 0).")
    how.add_argument(
        "--all",
        action="store_true",
        help="Show every step. Otherwise a terminal shows the newest of each run, and some that are not done.",
    )
    retry = command("retry", _retry, "Forget the failures of a step or a run, and try again.")
    retry.add_argument("path", metavar="PATH", help="A step, or a run.")
    retry.add_argument(
        "--accept-copy",
        action="store_true",
        help="Convert a finished copy although its DCP shards are newer than .metadata.",
    )
    command("check", _check, "Validate the configuration and report what it would do.")
    return made


def _run(options: argparse.Namespace) -> int:
    from daemon.host import logs
    from daemon.host.systemd import Notifier
    from daemon.ledger.disk_fallback import KeptLedger
    from daemon.service import Service

    def load() -> Settings:
        return config.load(config=options.config, roots=tuple(options.roots))

    loaded = load()
    if not loaded.roots:
        print(f"dcp2hfd: {_EXAMPLE}", file=sys.stderr)
        return USAGE
    for root in options.roots:
        if names_on_disk.step_number(os.path.basename(os.path.abspath(root))) is not None:
            above = os.path.dirname(os.path.abspath(root))
            raise SettingsError(f"{root} is a step: name the folder that holds it, {above}, or a folder of runs")
    folder, log = config.state_dir(loaded), logs.logger()
    ledger = Ledger.rehearsal(folder) if options.dry_run else KeptLedger(folder, log)

    async def serve() -> int:
        service = Service(
            loaded, ledger, log, once=options.once, dry_run=options.dry_run, notifier=Notifier(), reload=load
        )
        return await service.run()

    try:
        return asyncio.run(serve())
    finally:
        ledger.close()


def _status(options: argparse.Namespace) -> int:
    from daemon.status import report

    settings, problem = config.load_for_status(config=options.config)
    folder, address = config.state_dir(settings), settings.metrics_address
    allow_any_character(sys.stdout)
    if problem:
        print(f"dcp2hfd: the configuration cannot be used: {problem}", file=sys.stderr)
    if options.watch:
        if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
            print("dcp2hfd: --watch needs a terminal that can be redrawn; for scripts there is --json", file=sys.stderr)
            return USAGE
        return _watch(folder, address)
    found = report.look(folder, address) | {"config_error": problem}
    if options.json:
        print(report.as_json(found))
    elif sys.stdout.isatty():
        from daemon.status import terminal

        terminal.draw(found, is_whole=options.all)
    else:
        print(report.plain(found, time.time()))
    return 0


def _watch(folder: Path, address: str) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the terminal gets its screen back
    try:
        from daemon.status import report, terminal

        terminal.watch(report.looking_again(folder, address))
    except KeyboardInterrupt:
        return 0


def _retry(options: argparse.Namespace) -> int:
    from daemon.check import PATIENCE, problem_of

    settings, problem = config.load_for_status(config=options.config)
    if problem:
        print(f"dcp2hfd: the configuration cannot be used: {problem}", file=sys.stderr)
    folder = config.state_dir(settings)
    path = os.path.abspath(options.path)
    if Ledger.read(folder) is None:
        raise LedgerError(
            f"no ledger in {folder}: no daemon ran with this state_dir yet; another configuration's: --config FILE"
        )
    if not os.access(folder, os.W_OK):
        raise LedgerError(f"{folder} is another user's: ask as that user (the service's), or as root")
    ledger = Ledger.open(folder)
    try:
        count = ledger.request(path, accept_copy=options.accept_copy)
        running = any(daemon["what"] == "watch" for daemon in ledger.daemons())
    finally:
        ledger.close()
    if not count:
        print(f"dcp2hfd: no step at or below {path} is known in {folder}; see dcp2hfd status", file=sys.stderr)
        return 1
    if problem := problem_of(path, patience=PATIENCE, listing=os.stat):
        print(
            f"dcp2hfd: {path}: {problem.partition(';')[0]}; its failures are forgotten for when it is back",
            file=sys.stderr,
        )
        return 1
    when = "now" if running else "when a daemon runs"
    print(f"{count} step{'s' if count > 1 else ''} at {path}: failures forgotten, taken up again {when}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from daemon import check

    loaded = config.load(config=options.config)
    folder = config.state_dir(loaded)
    if not loaded.roots:
        print(f"dcp2hfd: {_EXAMPLE}", file=sys.stderr)
        return USAGE
    for line in check.report(loaded, folder):
        print(printable(line))
    return 0
