"""Owns the terminal output of `dcp2hfd status`, once or refreshed in place. It alone imports rich here."""

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NoReturn

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from converter.common.errors import printable
from daemon.ledger.records import State
from daemon.status import report

COLOURS = {
    State.DONE: "green", State.RUNNING: "cyan", State.FAILED: "yellow", State.SUSPECT: "yellow", State.FOREIGN: "yellow",
    State.QUARANTINED: "red",
}  # fmt: skip
NEWEST = 10
"""Steps of a run that are shown, and as many older ones of those that are not done."""
REFRESH = 2.0
"""Seconds between two looks of `--watch`."""
SHARE = 5
"""`--watch` rests so many times as long as a look took: a ledger of many steps must not cost a core."""
_NARROW = 60
"""Columns below which only step, state and what are shown."""


def draw(found: dict[str, Any], *, is_whole: bool) -> None:
    """Prints a report once; `is_whole`: every step."""
    console, now = Console(highlight=False), time.time()
    runs = [_run(run, None if is_whole else NEWEST, console.width, now) for run in found["runs"]]
    console.print(_head(found), *(runs or [Group(report.nothing(found))]))


def watch(look: Callable[[], dict[str, Any]], *, sleep: Callable[[float], None] = time.sleep) -> NoReturn:
    """Draws what `look` finds, again and again, until KeyboardInterrupt.

    It takes the whole screen, and gives it back as it was.
    """
    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            begun = time.monotonic()
            live.update(_fitting(look(), console), refresh=True)
            sleep(max(REFRESH, SHARE * (time.monotonic() - begun)))


def _fitting(found: dict[str, Any], console: Console) -> RenderableType:
    """As many steps of each run as the screen has lines for; then only the runs, those that moved last first."""
    head, now = _head(found), time.time()
    room = console.height - _lines(head, console)
    shown = sorted(found["runs"], key=_last_moved, reverse=True)
    for newest in (NEWEST, 5, 3, 1, 0):
        if newest and sum(4 + min(newest, len(run["steps"])) for run in shown) > room:
            continue  # seen without drawing it
        runs = [_run(run, newest, console.width, now) for run in shown]
        ends = list(accumulate(_lines(run, console) for run in runs))
        if not ends or ends[-1] <= room:
            return Group(head, *(runs or [Group(report.nothing(found))]))
    fit = bisect_right(ends, room - 1)
    return Group(head, *runs[:fit], Text(f"{len(runs) - fit:,} more runs: dcp2hfd status", "dim"))


def _lines(drawn: RenderableType, console: Console) -> int:
    return len(console.render_lines(drawn, pad=False))


def _last_moved(run: dict[str, Any]) -> str:
    return max((step["last_attempt_at"] or "" for step in run["steps"]), default="")


def _head(found: dict[str, Any]) -> Text:
    mark = ("● ", "green") if found["daemons"] else ("○ ", "red")
    notices = [(f"\n{printable(notice)}", "" if "root:" in notice else "red") for notice in report.notices(found)]
    return Text.assemble(
        mark, f"daemon: {report.who_runs(found)}", (f"; ledger in {printable(found['state_dir'])}", "dim"), *notices
    )


def _run(run: dict[str, Any], newest: int | None, width: int, now: float) -> Group:
    """A run: its name, how many steps stand where, and `newest` of them (None: all)."""
    name = Text.assemble((printable(run["run"]), "bold"), (f"  {report.where(run)}", "dim"))
    steps = run["steps"] if newest is None else _chosen(run["steps"], newest)
    parts: list[RenderableType] = ["", name, _sum(run)]
    if hazard := report.risk(run):
        parts.append(Text(printable(f"warning: {hazard}"), "yellow"))
    if steps:
        parts += [_table(run, steps, width, now), *_reasons(steps)]
    if steps and (left := len(run["steps"]) - len(steps)):
        parts.append(Text(f"{left:,} more step{'s' if left > 1 else ''}: dcp2hfd status --all", "dim"))
    return Group(*parts)


def _sum(run: dict[str, Any]) -> Text:
    """How many steps of a run stand where."""
    count = Counter(step["state"] for step in run["steps"])
    said = [Text(f"{count[state]:,} {state}", COLOURS.get(state, "")) for state in State if count[state]]
    return Text(", ").join(said)


def _chosen(steps: Sequence[dict[str, Any]], newest: int) -> list[dict[str, Any]]:
    """The newest steps, and before them the newest of the older ones that are not done."""
    border = max(0, len(steps) - newest)
    other = [step for step in steps[:border] if step["state"] != State.DONE]
    return [*other[max(0, len(other) - newest) :], *steps[border:]]


def _table(run: dict[str, Any], steps: Sequence[dict[str, Any]], width: int, now: float) -> Table:
    is_narrow = width < _NARROW
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in () if is_narrow else ("attempts", "took", "size", "when"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what", overflow="fold")
    for step in steps:
        what = printable(step["output"] or "") if step["state"] == State.DONE else report.brief(step, now)
        facts = (
            () if is_narrow else (str(step["attempts"] or ""), _took(step, now), report.size(step), _when(step, now))
        )
        state = Text(step["state"], COLOURS.get(step["state"], ""))
        table.add_row(str(step["step"]), state, *facts, Text(what.removeprefix(f"{report.where(run)}/")))
    return table


def _reasons(steps: Sequence[dict[str, Any]]) -> Iterator[Text]:
    """Why steps are not done and what to do, each once with the steps that it is said of."""
    said: dict[tuple[str, str], list[str]] = {}
    for step in steps:
        if step["state"] != State.DONE and (step["reason"] or step["hint"]):
            said.setdefault((step["reason"], step["hint"] or ""), []).append(str(step["step"]))
    for (reason, hint), numbers in said.items():
        rest = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
        yield Text.assemble(
            (f"{', '.join(numbers[:5])}{rest}: ", "bold"),
            printable(reason),
            (f" → {printable(hint)}" if hint else "", "cyan"),
        )


def _took(step: dict[str, Any], now: float) -> str:
    """How long the last attempt took, or takes so far."""
    if step["state"] == State.RUNNING and step["last_attempt_at"]:
        return f"{max(0.0, now - report.seconds(step['last_attempt_at'])):.0f} s …"
    return f"{step['duration_seconds']:.1f} s" if step["duration_seconds"] else ""


def _when(step: dict[str, Any], now: float) -> str:
    """How long ago the last attempt began."""
    if not step["last_attempt_at"]:
        return ""
    ago = max(0.0, now - report.seconds(step["last_attempt_at"]))
    unit, name = next(((u, n) for u, n in ((86400, "d"), (3600, "h"), (60, "min")) if ago >= u), (1, "s"))
    return f"{ago // unit:.0f} {name} ago"
