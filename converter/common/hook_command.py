"""Owns the form of an operator's command (a hook): its argv, its environment, and the reported end of its output.

Uses only the standard library. The converter runs `before_publish` and `sign`, the daemon runs `on_success` and
`on_failure`. Commands come only from the configuration or the command line. Text of a checkpoint reaches them as
values, never as words of the command.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from converter.common.errors import printable

EXAMPLE = '["/usr/local/bin/notify", "--all"], or for a shell ["sh", "-c", "…"]'
LAST_BYTES = 4000
"""Bytes of a command's output that are kept: its end."""
_PREFIX = "HOOK_"
_OURS = ("PYTHONPATH", "PYTHONSAFEPATH", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "JOURNAL_STREAM")  # fmt: skip
"""What is ours alone: a command may be another Python, and speaks to no service manager in our name."""
_SECRET = re.compile(r"TOKEN|SECRET|PASS|KEY|CREDENTIAL|WEBHOOK|AUTH", re.IGNORECASE)
"""Names of variables whose values are never repeated."""
_SHORTEST_SECRET = 6


def problem_of(argv: object) -> str | None:
    """What is wrong with `argv` as a command; None for a list of words, an empty one (no command) included."""
    if isinstance(argv, str):  # its first word alone: in the rest may be a secret
        return f"{(argv.split() or [argv])[0]!r} … is text, and no shell reads it: write a list of words, such as {EXAMPLE}"
    if not isinstance(argv, list | tuple) or not all(isinstance(word, str) for word in argv):
        return f"a command is a list of words, such as {EXAMPLE}"
    if any("\0" in word for word in argv) or (argv and not argv[0]):
        return "a command has a first word, and no NUL in any"
    if argv and "/" in argv[0] and not argv[0].startswith("/"):
        return f"{argv[0]!r} depends on the current folder: write an absolute path, or a name that is found in PATH"
    return None


def hook_environment(facts: Mapping[str, Any], base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`base` without what is ours alone, and each plain fact as `HOOK_<NAME>`; lists and tables stand in the JSON only."""
    kept = {name: value for name, value in base.items() if name not in _OURS and not name.startswith((_PREFIX, "DCP2HF_"))}  # fmt: skip
    return kept | {_PREFIX + name.upper(): _text(value) for name, value in facts.items() if _is_plain(value)}


def to_stdin(facts: Mapping[str, Any]) -> bytes:
    """All facts as one line of JSON."""
    return json.dumps(facts).encode() + b"\n"


def last_words(output: bytes, argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """The end of what a command printed, fit for a log: one line, without values that look secret.

    Arguments are left out too, unless they are paths or short: a webhook's address is often its key.
    """
    text = " | ".join(filter(None, map(str.strip, output.decode(errors="replace").splitlines())))
    hidden = {
        value: f"[${name}]" for name, value in environ.items() if _SECRET.search(name) and not name.startswith(_PREFIX)
    }
    hidden |= {word: f"[argument {place}]" for place, word in enumerate(argv) if place and not word.startswith("/")}
    for value in sorted(hidden, key=len, reverse=True):
        text = text.replace(value, hidden[value]) if len(value) >= _SHORTEST_SECRET else text
    return printable(text[-500:])


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).replace("\0", "")
