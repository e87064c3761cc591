"""Owns the references of pages to the daemon's state. Nothing is copied, so a page shows the current values."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.queue.conversions import Conversions
from daemon.queue.steps import Tracker
from daemon.runners.counters import Tally
from daemon.scanner.client import RootWatcher
from daemon.scanner.known_runs import Presence
from daemon.status.health import Pulse


class Sources(NamedTuple):
    """All of it belongs to the service."""

    settings: Callable[[], Settings]
    ledger: Ledger
    watchers: Mapping[str, RootWatcher]
    tracker: Tracker
    conversions: Conversions
    tally: Tally
    presence: Presence
    pulse: Pulse
