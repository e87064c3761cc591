"""Owns the list of all faults, and the document that is made of what became of them."""

from __future__ import annotations

from collections.abc import Mapping

from tests.robustness.faults import faults_config, faults_metadata, faults_stored, faults_values, faults_work
from tests.robustness.faults.checks import CHECKS, READING
from tests.robustness.faults.fault import Fault
from tests.robustness.faults.faults_unseen import UNSEEN

INPUT = {
    "In the bytes of a step": faults_stored.FAULTS,
    "In storage metadata": faults_metadata.FAULTS,
    "In the values, and in steps in HF form": faults_values.FAULTS,
    "In base assets, run record and tokenizer": faults_config.FAULTS,
}
WORK = {"In our own work": faults_work.FAULTS}
GROUPS = INPUT | WORK
ALL = [fault for found in GROUPS.values() for fault in found]

_HEAD = """# Faults and the checks that catch them

This page lists the faults that the tests make, and the check that catches each of them. `tests/robustness/faults` makes
the page (`WRITE_DOCS=1 pytest tests/robustness/faults`); do not edit it.

The tests put every fault below into a real tiny checkpoint, or into our own work by a wrapper. They convert each step
twice. The first time, the check named for the fault runs alone, and every other check is replaced by a pass. The
conversion must then be refused with the named error and leave nothing behind. The second time, all checks are replaced.
The last column shows the result: *published, wrong* (with other files than the right ones), *published, right* (the
fault is in bytes that are not read), or an end because something cannot be read at all.

`(reading)` is not a check. It means that the file cannot be parsed.

"""


def document(without: Mapping[Fault, str]) -> str:
    """docs/faults.md. `without`: what became of each fault with every check replaced by a pass."""
    lines = [
        _HEAD,
        "## Checks\n\n",
        "The names are those of the manifest.\n\n",
        "| check | promise | faults |\n|---|---|---|\n",
    ]
    for name, check in CHECKS.items():
        lines.append(f"| `{name}` | {check.promise} | {sum(fault.check == name for fault in ALL)} |\n")
    kinds = len({(fault.kind, fault.check) for fault in ALL})
    lines.append(f"\n{kinds} kinds of fault in {len(ALL)} places.\n")
    for title, found in GROUPS.items():
        lines.append(f"\n## {title}\n\n| fault | where | caught by | as | without any check |\n|---|---|---|---|---|\n")
        for kind, check in dict.fromkeys((fault.kind, fault.check) for fault in found):
            places = [fault for fault in found if (fault.kind, fault.check) == (kind, check)]
            where = "<br>".join(f"{fault.case.name}: {fault.place}".rstrip(": ") for fault in places)
            error = places[0].error.__name__ if places[0].error else "the right thing is published"
            became = "; ".join(dict.fromkeys(without[fault] for fault in places))
            lines.append(f"| {kind} | {where} | {check if check == READING else f'`{check}`'} | {error} | {became} |\n")
    lines.append(
        "\n## Faults that no check can detect\n\nThe tests confirm that these faults pass every check.\n\n"
        "| fault | why | the manifest says |\n|---|---|---|\n"
    )
    for unseen in UNSEEN:
        says = "`{}`: {}".format(*unseen.says) if unseen.says else ""
        lines.append(f"| {unseen.what} | {unseen.why} | {says} |\n")
    return "".join(lines)
