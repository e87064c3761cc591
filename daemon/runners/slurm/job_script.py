"""Owns the job script: fixed text around one quoted command line, and the names of a job's files in the shared folder.

The result file is written last and renamed. It alone shows that a job ended by itself. A conversion that was asked to
end (SIGTERM: cancelled, preempted, out of time) leaves none, so that a requeued job runs again. A conversion can be
repeated, because it takes the step's lock and finds what is already published.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from converter.common import names_on_disk
from daemon.host import process

NAME = re.compile(r"dcp2hf-(0|[1-9][0-9]{0,17})-[0-9a-f]{16}")
EVENTS, RESULT, OUTPUT = ".events", ".result", ".output"
"""What stands after a job's name: the converter's event lines, its exit code, all else that it and Slurm print."""
OF_THIS_HOST = ("TMPDIR", "CREDENTIALS_DIRECTORY")
"""Variables that mean nothing on a node."""
_TEXT = """\
#!/bin/sh
# dcp2hf: one conversion. What it does is in the log of the daemon that submitted it.
set -u
umask {umask}
events={events}
result={result}
if [ -e "$result" ]; then exit 0; fi  # started again after its end
trap : TERM  # the converter gets it too, and cleans up
uname -n
set -- env -i
for name in {kept}; do
  eval "value=\\${{$name-}}"
  if [ -n "$value" ]; then set -- "$@" "$name=$value"; fi
done
"$@" {command} >> "$events"
code=$?
case $code in 130 | 143) exit "$code" ;; esac
part="$result.$$"
{{ echo "$code" > "$part" && {{ sync "$part" || sync; }} && mv "$part" "$result"; }} || exit 75
exit "$code"
"""


def new_name(step: int) -> str:
    """A job's name, which no other has."""
    return f"dcp2hf-{step}-{names_on_disk.new_token()}"


def text(name: str, folder: str, argv: Sequence[str], *, has_own_python: bool) -> str:
    """The script of the job `name`, whose files lie in `folder`; `argv` is the converter's command line.

    Of the environment there it keeps what a local conversion keeps of ours. With `has_own_python` the interpreter
    has a dcp2hf of its own; else ours is found where it lies here.
    """
    fixed = {key: value for key, value in process.SET.items() if not (has_own_python and key == "PYTHONPATH")}
    command = [f"{key}={value}" for key, value in fixed.items()] + list(argv)
    return _TEXT.format(
        umask=_umask(),
        events=shlex.quote(f"{folder}/{name}{EVENTS}"),
        result=shlex.quote(f"{folder}/{name}{RESULT}"),
        kept=" ".join(key for key in process.KEPT if key not in OF_THIS_HOST),
        command=shlex.join(command),
    )


def _umask() -> str:
    """This process's, as a shell takes it (proc(5): asking umask(2) would change it)."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^Umask:\s*([0-7]+)$", status, re.MULTILINE)
    return found[1] if found else "022"
