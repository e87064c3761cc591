"""Runs the real service with a stand-in converter: `serve.py STATE_DIR [--once|--dry-run] [--scanner-of=ROOT=CODE] [--clock=FILE] ROOT…`.

FILE holds the seconds by which the wall clock was set forward.
"""

import asyncio
import sys
import time
from pathlib import Path

from daemon.config import load as configuration
from daemon.config.settings import Settings
from daemon.host import logs
from daemon.host.systemd import Notifier
from daemon.ledger.disk_fallback import KeptLedger
from daemon.ledger.ledger import Ledger
from daemon.runners.local_process import Request
from daemon.service import Service

STUB = Path(__file__).with_name("stub_converter.py")


def command(request: Request, _: Settings) -> list[str]:
    return [
        sys.executable,
        "-P",
        str(STUB),
        request.path,
        request.folder,
        *(["overwrite"] if request.overwrite else []),
    ]


def main() -> int:
    state, *rest = sys.argv[1:]
    once, dry_run = "--once" in rest, "--dry-run" in rest
    stubs = dict(
        argument.removeprefix("--scanner-of=").split("=", 1)
        for argument in rest
        if argument.startswith("--scanner-of=")
    )
    config = next((argument.removeprefix("--config=") for argument in rest if argument.startswith("--config=")), None)
    offset = next(
        (Path(argument.removeprefix("--clock=")) for argument in rest if argument.startswith("--clock=")), None
    )
    roots = tuple(argument for argument in rest if not argument.startswith("--"))

    def scanner(root: str) -> list[str]:
        from daemon.host import process

        return [sys.executable, "-c", stubs[root]] if root in stubs else process.python("daemon.scanner.process")

    async def serve() -> int:
        service = Service(
            loaded, ledger, log, once=once, dry_run=dry_run, notifier=Notifier(), reload=load, command=command, scanner=scanner,
            jitter=lambda: 0.0, clock=clock,
        )  # fmt: skip
        return await service.run()

    def clock() -> float:
        return time.time() + (float(offset.read_text() or 0) if offset is not None else 0.0)

    def load() -> Settings:
        return configuration.load(config=config, roots=roots, default="/nonexistent")

    loaded = load()
    log, folder = logs.logger(), Path(state)
    ledger = Ledger.rehearsal(folder) if dry_run else KeptLedger(folder, log)
    return asyncio.run(serve())


sys.exit(main())
