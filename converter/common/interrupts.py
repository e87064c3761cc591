"""Owns the signals that stop a conversion. They interrupt its work, but not clean-up or the swap of directories.

Uses only the standard library. Python runs signal handlers in the main thread, between any two instructions.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a stop, and the end of a terminal session."""

_held = 0
"""Blocks of `held` that the main thread is in."""
_waiting = False
"""A signal came meanwhile."""


def install() -> None:
    """Lets SIGNALS raise KeyboardInterrupt in the main thread, once; those that this process ignores (nohup) stay ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def ignore() -> None:
    """Ignores SIGNALS from now on: as Python ends it gives others their default back, and one would change the exit code."""
    for number in SIGNALS:
        if signal.getsignal(number) == _interrupt:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A signal that comes within the block raises KeyboardInterrupt at its end. Blocks may be nested."""
    global _held, _waiting
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if _waiting and not _held:
            _waiting = False
            if not _is_stopping():
                raise KeyboardInterrupt


def _interrupt(*_: object) -> None:
    """A second signal must not interrupt what the first one's KeyboardInterrupt is cleaning up."""
    global _waiting
    if _held:
        _waiting = True
    elif not _is_stopping():
        raise KeyboardInterrupt


def _is_stopping() -> bool:
    """Whether the main thread is in an `except`, a `finally` or an `__exit__` that a KeyboardInterrupt led to."""
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
