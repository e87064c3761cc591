"""Owns the protocol of runners, which the queue uses to run conversions, and the runner of this host.

Two runners satisfy the protocol: `Local`, with processes on this host (`local_process`), and jobs of a cluster
(`daemon.runners.slurm`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from daemon.config.settings import Settings
from daemon.host.logs import Logger
from daemon.ledger.records import Outcome, Row
from daemon.runners import local_process
from daemon.scanner.messages import Step

Command = Callable[[local_process.Request, Settings], list[str]]
IsWanted = Callable[[str, str, str], bool | None]
"""Whether a conversion is wanted, by root, path and save; None: not known yet."""


class Order(NamedTuple):
    """A conversion that is to be carried out."""

    argv: list[str]
    settings: Settings
    """As they hold for its root."""
    facts: Step
    row: Row
    log: Logger
    """For lines about the step."""
    on_event: Callable[[dict[str, Any]], None]
    on_output: Callable[[str], None]


class Attempt(Protocol):
    """One conversion, from start to end."""

    async def run(self) -> Outcome:
        """Sees it through. Raises nothing expected."""

    def stop(self) -> None:
        """The daemon ends: within seconds `run` returns `interrupted`."""

    def outdate(self) -> None:
        """The step was purged or saved again."""


class Runner(Protocol):
    """Carries conversions out."""

    def has_slot(self, running: int, settings: Settings) -> bool:
        """Whether one more may be started beside so many."""

    @property
    def are_left(self) -> bool:
        """Whether it has conversions to go on with, or to end, which earlier lives began."""

    def holds(self, path: str, save_id: str) -> bool:
        """Whether one of this save is among them: it is gone on with, whatever room or slots there are."""

    def attempt(self, order: Order) -> Attempt:
        """One that goes on, or begins."""

    def let_go(self, is_wanted: IsWanted) -> None:
        """Ends what earlier lives left and nobody wants."""

    async def stop(self) -> None:
        """Ends what it does by itself."""


class Local:
    """Processes of this host."""

    def has_slot(self, running: int, settings: Settings) -> bool:
        """Up to `workers`."""
        return running < settings.workers

    are_left = False
    """They die with the daemon."""

    def holds(self, path: str, save_id: str) -> bool:
        """Never."""
        return False

    def attempt(self, order: Order) -> Attempt:
        """A process."""
        return local_process.LocalAttempt(
            order.argv, order.settings, on_event=order.on_event, on_output=order.on_output
        )

    def let_go(self, is_wanted: IsWanted) -> None:
        """Nothing is left."""

    async def stop(self) -> None:
        """Nothing runs but attempts."""
