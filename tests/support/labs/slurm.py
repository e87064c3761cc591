"""Owns a Slurm cluster on this host, on loopback: controller, nodes in PID namespaces of their own, munge, accounting if asked.

What Slurm does is real; what makes tests slow is shortened: SlurmdTimeout 10 s (300), KillWait 2 s (30), and after 5 s
(120) a requeued job may start again. Memory is limited by the kernel where cgroup v1 has the controller, else by polling.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.labs.machine import UNTIL_DEATH, lacks, wait_until

PACKAGES = "slurmctld slurmd slurm-client munge util-linux procps"
ACCOUNTING = "slurmdbd mariadb-server"
_MEMORY = Path("/sys/fs/cgroup/memory")
_CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={lab}/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={port}
SlurmdPort={node_port}
StateSaveLocation={lab}/state
SlurmdSpoolDir={lab}/spool/%n
SlurmctldPidFile={lab}/slurmctld.pid
SlurmdPidFile={lab}/spool/%n.pid
SlurmctldLogFile={lab}/log/slurmctld.log
SlurmdLogFile={lab}/log/%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldTimeout=30
SlurmdTimeout=10
KillWait=2
MinJobAge={forget}
NodeName=DEFAULT CPUs=4 RealMemory=100000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1
NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1
"""
_BY_KERNEL = "TaskPlugin=task/cgroup\nJobAcctGatherParams=NoOverMemoryKill\n"
_BY_POLLING = "TaskPlugin=task/none\nJobAcctGatherParams=OverMemoryKill\n"
_CGROUP = "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nConstrainRAMSpace=yes\nConstrainCores=no\n"
_NO_HISTORY = "AccountingStorageType=accounting_storage/none\n"
_HISTORY = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={lab}/munge/socket
"""
_SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={lab}/munge/socket,cred_expire=5
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={lab}/log/slurmdbd.log
PidFile={lab}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""
_NODE = (
    'hostname "$1"; mount --bind "$0/hosts" /etc/hosts; while :; do slurmd -D -f "$SLURM_CONF" -N "$1"; sleep 1; done'
)


def missing(*, accounting: bool = False) -> str:
    """Why there can be no such cluster here, or ""."""
    programs = ["slurmctld", "slurmd", "sbatch", "munged", "unshare", "setpriv", "pgrep"]
    if accounting:
        programs += ["slurmdbd", "mariadbd", "mariadb-install-db", "sacct"]
    return lacks(programs, f"{PACKAGES} {ACCOUNTING}" if accounting else PACKAGES)


class Cluster:
    """One node of 4 CPUs; its jobs see this host's files, not its processes. Partition `main` preempts `low`."""

    def __init__(self, folder: Path, *, accounting: bool, forget: int) -> None:
        self._lab, self._accounting = folder, accounting
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self.limits_memory = (_MEMORY / "cgroup.procs").exists()
        """Whether the kernel holds jobs to their memory; else Slurm's polling does."""
        self.environ = {"SLURM_CONF": str(folder / "slurm.conf")}
        """What Slurm's commands need."""
        for name in ("state", "spool", "munge", "log"):
            (folder / name).mkdir(parents=True)
        port, node_port, history_port = _free_ports(3)
        self.node = f"n{node_port}"
        """Its name, which no other cluster of this host has."""
        of_memory = _BY_KERNEL if self.limits_memory else _BY_POLLING
        history = _HISTORY if accounting else _NO_HISTORY
        text = (of_memory + history.format(lab=folder, port=history_port)) + _CONF.format(
            lab=folder,
            host=socket.gethostname().partition(".")[0],
            port=port,
            node_port=node_port,
            node=self.node,
            forget=forget,
        )
        (folder / "slurm.conf").write_text(text)
        (folder / "cgroup.conf").write_text(_CGROUP)
        (folder / "slurmdbd.conf").write_text(_SLURMDBD.format(lab=folder, port=history_port))
        (folder / "slurmdbd.conf").chmod(0o600)
        (folder / "hosts").write_text(Path("/etc/hosts").read_text() + f"127.0.0.1 {self.node}\n")

    def start(self) -> None:
        """Starts everything; returns once the node is up."""
        key = self._lab / "munge.key"
        key.touch(0o400)
        key.write_bytes(os.urandom(1024))
        munge = self._lab / "munge"
        self._begin(
            "munged", "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={self._lab}/log/munged.log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        wait_until((munge / "socket").exists, 10)
        if self._accounting:
            self._start_accounting()
        self.start_controller("-c")
        self.boot_node()

    def stop(self) -> None:
        """Ends everything it started."""
        for name in (self.node, "slurmctld", "slurmdbd", "mariadbd", "munged"):
            self._end(name)
        group = _MEMORY / f"slurm_{self.node}"
        with contextlib.suppress(AssertionError):
            wait_until(lambda: _remove_group(group), 5)

    # Slurm's commands
    def run(self, *command: str, timeout: float = 30.0) -> str:
        """What a command of Slurm's prints. Raises CalledProcessError."""
        return subprocess.run(
            command, env=os.environ | self.environ, check=True, capture_output=True, text=True, timeout=timeout, cwd="/"
        ).stdout

    def jobs(self, name: str = "") -> list[tuple[str, str, str]]:
        """(id, state, name) of all jobs that the controller knows, ended ones too; `name` begins theirs."""
        lines = self.run("squeue", "-h", "-t", "all", "-o", "%i %T %j").splitlines()
        found = [line.split(" ", 2) for line in lines]
        return [(i, state, job) for i, state, job in found if job.startswith(name)]

    def busy(self) -> bool:
        """Whether a job waits, runs, or is being ended; or does so on the node alone, since its controller lost its state and
        will give its number to another (a node that is given a number twice is drained)."""
        return bool(self.run("squeue", "-h", "-o", "%i").split()) or self._has_steps()

    def _has_steps(self) -> bool:
        inside = os.readlink(f"/proc/{self._started[self.node].pid}/ns/pid_for_children")
        found = subprocess.run(["pgrep", "-f", "^slurmstepd: "], check=False, capture_output=True, text=True)
        for pid in found.stdout.split():
            with contextlib.suppress(OSError):  # it ended meanwhile
                if os.readlink(f"/proc/{pid}/ns/pid") == inside:
                    return True
        return False

    # Accidents
    def start_controller(self, *options: str) -> None:
        """slurmctld comes, with the state it saved (`-c`: none)."""
        self._begin("slurmctld", "slurmctld", "-D", "-f", self.environ["SLURM_CONF"], *options)
        self._wait(lambda: "UP" in self.run("scontrol", "ping"))

    def stop_controller(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """slurmctld ends as it does when it is restarted, or is killed."""
        self._end("slurmctld", sig)

    @contextlib.contextmanager
    def hanging_controller(self) -> Iterator[None]:
        """slurmctld does not answer."""
        self._started["slurmctld"].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._started["slurmctld"].send_signal(signal.SIGCONT)

    def kill_slurmd(self) -> None:
        """slurmd alone is killed, and comes back a second later; its jobs go on."""
        found = subprocess.run(
            ["pgrep", "-f", f"^slurmd -D -f {self.environ['SLURM_CONF']} -N {self.node}$"], check=True, capture_output=True, text=True
        )  # fmt: skip
        os.kill(int(found.stdout.split()[0]), signal.SIGKILL)

    def crash_node(self) -> None:
        """The node loses power, with all that runs on it; the controller is told, and need not wait for its silence."""
        self._end(self.node)
        self.run("scontrol", "update", f"nodename={self.node}", "state=down", "reason=power")

    def mend_node(self) -> None:
        """What an administrator does with a node that the controller took out of use (drained, down); nothing to one in use."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.run("scontrol", "update", f"nodename={self.node}", "state=resume")

    def boot_node(self) -> None:
        """The node comes up."""
        inside = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--uts", "--propagation", "slave"]
        self._begin(self.node, *inside, "/bin/sh", "-c", _NODE, str(self._lab), self.node)
        self.mend_node()
        self._wait(lambda: set(self.run("sinfo", "-h", "-N", "-o", "%t").split()) <= {"idle", "mix", "alloc"})

    # Processes
    def _start_accounting(self) -> None:
        data, sock = self._lab / "mysql", self._lab / "mysql.sock"
        made = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"]
        subprocess.run([*made, "--auth-root-authentication-method=socket"], check=True, capture_output=True)
        self._begin(
            "mariadbd", "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={sock}", "--skip-networking",
            f"--pid-file={self._lab}/mysql.pid", "--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0",
        )  # fmt: skip
        create = ("mariadb", "--no-defaults", "-uroot", "-S", str(sock), "-e", "create database slurm_acct_db")
        self._wait(lambda: self.run(*create) == "")
        os.environ["MYSQL_UNIX_PORT"] = str(sock)
        try:
            self._begin("slurmdbd", "slurmdbd", "-D")
        finally:
            del os.environ["MYSQL_UNIX_PORT"]
        self._wait(lambda: self.run("sacctmgr", "-n", "list", "cluster") == "")
        self.run("sacctmgr", "-i", "add", "cluster", "lab")

    def _begin(self, name: str, *command: str) -> None:
        with (self._lab / "log" / f"{name}.out").open("ab") as log:
            self._started[name] = subprocess.Popen(
                [*UNTIL_DEATH, *command], env=os.environ | self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, cwd="/",
            )  # fmt: skip

    def _end(self, name: str, sig: signal.Signals = signal.SIGKILL) -> None:
        if process := self._started.pop(name, None):
            process.send_signal(sig)
            process.wait(20)

    def _wait(self, is_so: Callable[[], bool]) -> None:
        def asked() -> bool:
            try:
                return is_so()
            except subprocess.SubprocessError:
                return False

        wait_until(asked, 30)


@contextlib.contextmanager
def cluster(folder: Path, *, accounting: bool = False, forget: int = 300) -> Iterator[Cluster]:
    """A running cluster; `folder` (empty) keeps its logs. It forgets jobs `forget` seconds after their end."""
    made = Cluster(folder, accounting=accounting, forget=forget)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]


def _remove_group(group: Path) -> bool:
    """Whether a control group of Slurm's is gone: its processes take a moment to leave it."""
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    return not group.exists()


def wait_for(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits for what only Slurm knows."""
    ends = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.2)
