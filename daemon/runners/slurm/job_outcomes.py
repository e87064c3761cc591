"""Owns the outcome of an attempt from the end of its job: the message for an operator, and when to try again. Pure."""

import msgspec

from converter.common.errors import Retry
from converter.common.text_columns import about
from daemon.config import units
from daemon.ledger.records import Outcome
from daemon.runners.slurm.job_states import Ending, Sight
from daemon.runners.slurm.resources import Needs

_MEND = "mend it; the queue of this root is tried again by itself"


def outcome(
    ending: Ending, sight: Sight | None, needs: Needs, said: Outcome | None, *, why: str = "", output: str = ""
) -> Outcome | None:
    """The outcome of an attempt whose job ended like this; None: that was no attempt.

    `said` is the converter's own, if it left a result; `why` is what `sbatch` said; `output` where the job's lies.
    """
    if ending == Ending.SAID and said is not None:
        is_machine = said.result == "failed" and said.retry == Retry.BACKOFF
        return msgspec.structs.replace(said, hint=f"{said.hint}{_at(output)}") if is_machine else said
    shown = f"{sight.state}{f' ({sight.reason})' if sight.reason not in ('', 'None') else ''}" if sight else "nothing"
    retry = Retry.BACKOFF
    match ending:
        case Ending.LOST:
            return None
        case Ending.MEMORY:
            message = f"the job needed more memory than the {about(needs.memory)} it had"
            hint = "the next one asks for twice as much; slurm.memory is what the first one asks for"
        case Ending.KILLED:
            message = f"the job was killed, maybe for its memory ({about(needs.memory)})"
            hint = "the next one asks for twice as much; slurm.memory is what the first one asks for"
        case Ending.TIME:
            message = f"the job needed more time than the {units.show_duration(needs.seconds)} it had"
            hint = "the next one asks for twice as much; slurm.time or slurm.rate is what the first one goes by"
        case Ending.CANCELLED:
            message, hint = "somebody cancelled the job", "it is submitted anew, with the configuration of then"
        case Ending.LAUNCH:
            message, retry = f"the job could not begin: {shown}", Retry.SPACE
            hint = f"see that slurm.shared is there on the nodes, and that one can run such a job; {_MEND}"
        case Ending.REFUSED:
            message, hint, retry = f"sbatch refused the job: {why}", f"look at [slurm]; {_MEND}", Retry.SPACE
        case Ending.GONE:
            message = "Slurm does not know the job any more, and it left no result"
            hint = "see that slurm.shared is the same folder here and on the nodes"
        case Ending.SILENT:
            message = f"no progress for {why}: cancelled"
            hint = "the file system may hang; raise `deadline` if it is only slow"
        case _:
            message, hint = f"the job ended as {shown} and left no result", "see its output"
    return Outcome(result="failed", error="MachineFailure", message=message, hint=f"{hint}{_at(output)}", retry=retry)


def of_code(code: int, tail: str) -> Outcome:
    """Of a converter that ended without an event that its exit code agrees with."""
    message = f"the converter ended with exit code {code} and no result"
    hint = "128 and a signal: 137 is often the kernel's out-of-memory killer" if code > 128 else "see the job's output"
    return Outcome(
        result="failed", error="MachineFailure", message=f"{message}: {tail}" if tail else message, hint=hint, retry=Retry.BACKOFF
    )  # fmt: skip


def _at(output: str) -> str:
    return f"; output of the job: {output}" if output else ""
