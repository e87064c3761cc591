"""Owns what pages are made of: where each part of the daemon's state lies. Nothing is copied; who looks, looks now."""

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
