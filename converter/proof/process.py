"""Owns the proving process: what it is asked, what it answers, and how it begins again.

Run as `python -P -m converter.proof.process PARENT` (its process id). One JSON request a line on stdin, one answer a line on
stdout; an expected failure answers `{"failed": {...}}`. Whatever a library prints goes to stderr. What is not needed is
not imported (`import_stubs`); where it turns out to be, the process begins again, imports everything (`--whole FD`), and is asked
once more what it had been asked.
"""

import argparse
import ctypes
import json
import os
import signal
import sys
from typing import IO, NoReturn

from converter.common import errors
from converter.proof.import_stubs import LeftOut
from converter.proof.malloc import keep_blocks
from converter.proof.session import ProofSession


def main() -> int:
    """Answers requests until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m converter.proof.process", description=__doc__)
    parser.add_argument("parent", type=int)
    parser.add_argument("--whole", type=int, metavar="FD", help="import everything; FD holds earlier requests")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a parent that is killed leaves nothing behind
    keep_blocks()
    if os.getppid() != options.parent:
        return 1  # it was killed before that
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    prover = ProofSession(answers, whole=options.whole is not None)
    asked: list[str] = []
    if options.whole is not None:
        *asked, last = os.fdopen(options.whole).readlines()
        prover.silent = True
        for line in asked:
            _answer(prover, line)
        prover.silent = False
        asked.append(last)
        answers.write(_answer(prover, last))
    for line in sys.stdin:
        asked.append(line)
        try:
            answer = _answer(prover, line)
        except LeftOut as missed:
            print(f"everything is imported after all, for {missed}", file=sys.stderr, flush=True)
            _begin_again(options.parent, answers, asked)
        answers.write(answer)
    return 0


def _answer(prover: ProofSession, line: str) -> str:
    request = json.loads(line)
    try:
        answer = getattr(prover, request.pop("do"))(**request)
    except errors.ConversionError as error:
        answer = {"failed": error.as_event()}
    except OSError as error:
        answer = {"failed": errors.from_oserror(error).as_event()}
    except Exception as error:
        if prover.whole:
            raise
        raise LeftOut(f"a {type(error).__name__}") from error  # of something that was not there, perhaps
    return json.dumps(answer) + "\n"


def _begin_again(parent: int, answers: IO[str], asked: list[str]) -> NoReturn:
    """This process once more, with everything imported and asked the same."""
    earlier = os.memfd_create("asked", 0)
    with os.fdopen(os.dup(earlier), "w") as file:
        file.writelines(asked)
    os.lseek(earlier, 0, os.SEEK_SET)
    os.dup2(answers.fileno(), 1)
    command = [sys.executable, "-P", "-m", "converter.proof.process", str(parent), "--whole", str(earlier)]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    sys.exit(main())
