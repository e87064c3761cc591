"""Owns the notation of durations, sizes, times and addresses: it converts `"10s"` and `"50GB"` to numbers, and back."""

import re
import time

DURATIONS = {"ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZES = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("kMGTP", start=1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGTP", start=1)},
    "KB": 1000,
}
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})")
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def duration(text: str) -> float:
    """Seconds of `"90"`, `"90s"`, `"1.5min"`, `"2h"`, `"1d"`, `"250ms"`. Raises ValueError."""
    return _quantity(text, DURATIONS, "s")


def size(text: str) -> int:
    """Bytes of `"50GB"` (decimal, as transformers reads it), `"2GiB"`, `"1000"`. Raises ValueError."""
    return int(_quantity(text, SIZES, "B"))


def _quantity(text: str, units: dict[str, float] | dict[str, int], bare: str) -> float:
    match = _QUANTITY.fullmatch(text)
    if match is None or (match[2] or bare) not in units:
        raise ValueError(f"{text!r} is not a number with one of the units {', '.join(units)}")
    return float(match[1]) * units[match[2] or bare]


def address(text: str) -> tuple[str, int]:
    """Host and port of `"127.0.0.1:9469"`, `"[::1]:9469"`, `"login1:9469"`. Raises ValueError."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[3]) < 1 << 16:
        raise ValueError(f"{text!r} is not an address and a port, such as 127.0.0.1:9469 or [::1]:9469")
    return match[1] or match[2], int(match[3])


def show_duration(seconds: float) -> str:
    """A duration as a person writes it: `10s`, `2min`, `1h`, `1.5s`."""
    for unit in ("d", "h", "min"):
        if seconds and seconds % DURATIONS[unit] == 0:
            return f"{seconds / DURATIONS[unit]:.0f}{unit}"
    return f"{seconds:g}s"


def show_size(count: int) -> str:
    """A configured size as a person wrote it, exactly: `50GB`, `512MiB`, `1234B`."""
    for unit in ("TB", "GB", "MB", "kB", "TiB", "GiB", "MiB", "KiB"):
        if count and count % SIZES[unit] == 0:
            return f"{count // SIZES[unit]}{unit}"
    return f"{count}B"


def counted(count: int, what: str) -> str:
    """ "1 root", "2 roots"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def utc(seconds: float) -> str:
    """Epoch seconds as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
