"""Owns Slurm's commands `sbatch`, `squeue`, `sacct` and `scancel`: their arguments, and how their answers are read.

Jobs have names and are looked up by name, because an id may never have been recorded. Answers are lines of the
requested fields, which all versions print. JSON answers need a plugin that not every cluster has.
"""

import os
from collections.abc import Callable, Mapping, Sequence

from daemon.config.settings import Settings
from daemon.host import process
from daemon.runners.counters import Tally
from daemon.runners.slurm.calls import LIMIT, CommandResult, call
from daemon.runners.slurm.job_script import OF_THIS_HOST, OUTPUT
from daemon.runners.slurm.job_states import Sight
from daemon.runners.slurm.resources import Needs

_FIELDS = "JobID:|,State:|,Reason:|,exit_code:|,RestartCnt:|,Name:|"
_HISTORY = "jobid,state,exitcode,jobname"
REMEMBERED = "now-14days"
"""How far back accounting is asked."""
_MIB = 1 << 20


def environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The commands', and so a job's: a few harmless names of ours, and where the cluster is; no `SBATCH_…` of a user's."""
    kept = {name: value for name, value in process.environment(base).items() if name not in OF_THIS_HOST}
    return kept | {name: base[name] for name in ("SLURM_CONF",) if name in base}


class Commands:
    """What is asked of Slurm, counted in the tally by command and how it went."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    async def submit(self, name: str, script: str, folder: str, needs: Needs, settings: Settings) -> tuple[str, str]:
        """(id, what went wrong): no id does not say that nothing was submitted."""
        argv = ["sbatch", *arguments(name, folder, needs, settings)]
        answer = await self._ask(argv, stdin=script.encode())
        identity = answer.output.decode(errors="replace").strip().partition(";")[0]
        if answer.code == 0 and identity.isdigit():
            return identity, ""
        return "", answer.message if answer.code != 0 else f"sbatch said {answer.output[:100]!r}"

    async def queue(self, names: Sequence[str]) -> dict[str, list[Sight]] | str:
        """The controller's jobs of these names, ended ones too; text: it does not answer, and why."""
        user = str(os.getuid())
        argv = ["squeue", "--noheader", "--states=all", f"--user={user}", f"--name={','.join(names)}", "-O", _FIELDS]
        answer = await self._ask(argv)
        return _sights(answer.output, _of_queue) if answer.code == 0 else answer.message

    async def history(self, names: Sequence[str]) -> dict[str, list[Sight]] | str:
        """Accounting's jobs of these names; text: there is none, or it does not answer."""
        argv = [
            "sacct", "--allocations", "--noheader", "--parsable2", f"--user={os.getuid()}", f"--starttime={REMEMBERED}",
            f"--name={','.join(names)}", f"--format={_HISTORY}",
        ]  # fmt: skip
        answer = await self._ask(argv)
        return _sights(answer.output, _of_history) if answer.code == 0 else answer.message

    async def cancel(self, name: str, *, limit: float = LIMIT) -> str:
        """Cancels every job of this name; what went wrong, or empty."""
        answer = await self._ask(["scancel", "--quiet", f"--user={os.getuid()}", f"--name={name}"], limit=limit)
        return "" if answer.code == 0 else answer.message

    async def _ask(self, argv: list[str], *, stdin: bytes = b"", limit: float = LIMIT) -> CommandResult:
        answer = await call(argv, environment(), stdin=stdin, limit=limit)
        self._tally.slurm_calls[argv[0], "ok" if answer.code == 0 else "failed"] += 1
        return answer


def arguments(name: str, folder: str, needs: Needs, settings: Settings) -> list[str]:
    """`sbatch`'s, ours after the configuration's, so that they hold.

    `--requeue`: where a node is lost or a job preempted Slurm itself runs it again, in its place in the queue.
    `singleton`: a second submission of the same job by mistake waits for the first one, and then finds its result.
    `--export=ALL`, all of the few that `environment` gives to `sbatch`: for NONE or a list Slurm 22.05 runs the user's login
    profile on the node first, and a profile that hangs delays the job for a minute, or holds it for ever.
    """
    slurm = settings.slurm
    wishes = {"--partition": slurm.partition, "--account": slurm.account, "--qos": slurm.qos}
    wishes |= {"--nice": str(slurm.nice) if slurm.nice else ""}
    return [
        *slurm.extra_args,
        *(f"{flag}={value}" for flag, value in wishes.items() if value),
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={needs.cpus}",
        f"--mem={-(-needs.memory // _MIB)}M",
        f"--time={round(needs.seconds / 60)}",
        "--gres=none",
        f"--job-name={name}",
        "--dependency=singleton",
        "--requeue",
        "--open-mode=append",
        "--export=ALL",
        "--propagate=NONE",
        "--chdir=/",
        f"--output={folder.replace('%', '%%')}/{name}{OUTPUT}",
        "--parsable",
    ]


def _of_queue(cells: list[str]) -> tuple[str, Sight]:
    identity, state, reason, status, restarts, name = cells[:6]
    return name, Sight(identity, state, reason, int(status or 0), int(restarts or 0))


def _of_history(cells: list[str]) -> tuple[str, Sight]:
    identity, state, status, name = cells[:4]
    code, _, signal = status.partition(":")
    return name, Sight(identity, state.partition(" ")[0], "", int(code) * 256 + int(signal or 0), from_history=True)


def _sights(output: bytes, read: Callable[[list[str]], tuple[str, Sight]]) -> dict[str, list[Sight]]:
    """By name; a line that is none (a warning of a plugin's) is left out."""
    found: dict[str, list[Sight]] = {}
    for line in output.decode(errors="replace").splitlines():
        try:
            name, sight = read(line.split("|"))
        except ValueError:
            continue
        found.setdefault(name, []).append(sight)
    return found
