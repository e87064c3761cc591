"""Owns what tests of the example hooks share: conversions in this process, and runs for a daemon with a stand-in converter."""

from tests.unit.converter.conftest import convert
from tests.unit.daemon.conftest import make_run, saved

__all__ = ["convert", "make_run", "saved"]
