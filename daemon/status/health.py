"""Owns `/healthz` and `/readyz`: whether the daemon is alive and ready, and why not."""

from collections.abc import Collection
from dataclasses import dataclass

SILENCE = 10.0
"""Seconds without a turn of the loop after which it is taken for dead: it turns every second."""


@dataclass
class Pulse:
    """What the loop says of itself."""

    ticked_at: float = 0.0
    """When it last went round, on the monotonic clock."""
    is_stopping: bool = False
    is_config_good: bool = True
    """False after a reload that was refused."""


def why_not_alive(pulse: Pulse, now: float) -> str:
    """Why the loop is taken for dead; empty: it lives. `now` on the monotonic clock."""
    silence = now - pulse.ticked_at
    return f"the loop did not turn for {silence:.0f} s" if silence > SILENCE else ""


def why_not_ready(
    pulse: Pulse, *, roots: Collection[str], began: Collection[str], away: Collection[str], is_ledger_away: bool
) -> list[str]:
    """Everything that speaks against being ready; empty: new steps are found, converted and remembered.

    `began` are the roots that were scanned or are being scanned, `away` those that cannot be listed now.
    """
    reasons = []
    if pulse.is_stopping:
        reasons.append("stopping")
    if not began:
        reasons.append("no scan began yet")
    if roots and len(away) == len(roots):
        reasons.append(f"every root is unreachable: {', '.join(sorted(away))}")
    if is_ledger_away:
        reasons.append("state_dir fails: what is remembered is in memory only")
    return reasons
