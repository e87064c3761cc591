"""Owns what pages are made of: where each part of the daemon's state lies. Nothing is copied; who looks, looks now."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from daemon.conversions import Conversions
from daemon.health import Pulse
from daemon.ledger import Ledger
from daemon.presence import Presence
from daemon.settings import Settings
from daemon.tally import Tally
from daemon.tracker import Tracker
from daemon.watcher import RootWatcher


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
