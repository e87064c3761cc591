"""Owns how this process takes memory for blocks: from a heap that it keeps.

Standard library only. glibc gives a block past 128 KiB back to the kernel when it is freed, and pays for the next one page
by page: a third of both forward passes went there (0.6B: 4.3 to 3.2 s of processor time; docs/performance.md).
"""

import ctypes
import gc
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 32 << 20
"""Bytes: the largest block that glibc can be told to keep."""


def keep_blocks() -> None:
    """Freed blocks stay with this process, up to twice the largest. Nothing where there is no glibc."""
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST)


def give_back() -> None:
    """What was freed goes back to the kernel at once: for after something large that does not come again."""
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
