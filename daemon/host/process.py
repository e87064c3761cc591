"""Owns the start of our processes (interpreter, clean environment, priority, limits) and their names.

It does not use asyncio, because scanners are small.
"""

import contextlib
import ctypes
import gc
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

KEPT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "CREDENTIALS_DIRECTORY")  # fmt: skip
SET = {
    "PYTHONSAFEPATH": "1",
    "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    "PYTHONUNBUFFERED": "1",
    # The trainer's GPUs are never touched.
    "CUDA_VISIBLE_DEVICES": "",
    "HIP_VISIBLE_DEVICES": "",
    "ROCR_VISIBLE_DEVICES": "",
    "NVIDIA_VISIBLE_DEVICES": "void",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # OpenMP pools beside a busy trainer cost 60 times the work (facts/numbers).
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
_PR_SET_PDEATHSIG = 1
_IOPRIO_WHO_PROCESS, _IOPRIO_CLASS_IDLE, _IOPRIO_CLASS_SHIFT = 1, 3, 13
_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "ppc64le": 273, "s390x": 282, "riscv64": 30}
_libc = ctypes.CDLL(None, use_errno=True)


def environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of our processes: none of the caller's but a few harmless names, and no GPU.

    PYTHONPATH is where these packages lie, whatever the caller's says: a converter is the daemon's own version.
    """
    kept = {name: value for name, value in base.items() if name in KEPT or name.startswith("LC_")}
    return kept | SET


def python(module: str, *arguments: str) -> list[str]:
    """The command line of a module of ours, run by this very interpreter and never from the current folder."""
    return [sys.executable, "-P", "-m", module, *arguments]


def die_with_parent(sig: signal.Signals) -> None:
    """This process gets `sig` when the one that started it dies, however it dies (prctl(2))."""
    _libc.prctl(_PR_SET_PDEATHSIG, sig, 0, 0, 0)


def lower_priority(nice: int) -> None:
    """Gives this process the CPU priority `nice` and the idle I/O class; what the system does not offer is left."""
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    if number := _SYS_IOPRIO_SET.get(os.uname().machine):
        _libc.syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_CLASS_IDLE << _IOPRIO_CLASS_SHIFT)


def limit_data(limit: int) -> None:
    """Limits the private writable memory (heap, anonymous maps) of this process and its children; 0 is no limit.

    Not RLIMIT_AS: importing torch maps many times what it uses.
    """
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def settle_memory() -> None:
    """What lives now lives for weeks: the collector need not look at it again, and what the start took goes back."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError):
        _libc.malloc_trim(0)  # glibc's; musl has none


def peak_memory(pid: int) -> int:
    """Bytes: the sum of what `pid` and its descendants each had resident at most (VmHWM, proc(5)); 0 once it is gone."""
    total = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total = int(line.split()[1]) << 10
        for thread in os.listdir(f"/proc/{pid}/task"):
            children = Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
            total += sum(peak_memory(int(child)) for child in children)
    return total


def owner_of(pid: int) -> str:
    """A process as it is named for others: pid and start time, since a pid alone may be another process by now."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{pid} {fields[19]}" if fields[0] not in "ZX" else ""


def is_alive(owner: str) -> bool:
    """Whether the process of that name still runs."""
    return owner_of(int(owner.partition(" ")[0])) == owner
