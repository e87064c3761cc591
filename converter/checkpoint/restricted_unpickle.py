"""Owns unpickling by an allow-list. A pickle gets stand-ins for the listed names that it asks for, and nothing else.

Uses only the standard library. Nothing that a pickle names is imported, because it would run with the rights of the
reader (PyTorch's SECURITY.md puts that out of its scope). An allow-list stops code, but not the use of memory. The
caller limits memory and time, see `probe`.
"""

import io
import pickle
import pickletools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.common import errors

_PLAIN = frozenset({
    "collections.Counter", "collections.OrderedDict", "collections.defaultdict", "collections.deque", "copyreg._reconstructor",
    "datetime.date", "datetime.datetime", "datetime.timedelta", "datetime.timezone", "decimal.Decimal", "fractions.Fraction",
    "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "uuid.UUID",
})  # fmt: skip
"""Of Python's own names, those that a trainer's state may hold."""


def _could_run_code(name: str) -> bool:
    """Whether a pickle that asks for this name is after running something: all else of Python's own, and any loader."""
    is_pythons = name.partition(".")[0] in sys.stdlib_module_names | {"__builtin__"}
    return (is_pythons and name not in _PLAIN) or "load" in name.rpartition(".")[2]


def need(holds: bool, what: str) -> None:
    """Checks of hostile bytes must not go away with `python -O`, as assertions do."""
    if not holds:
        raise ValueError(what)


@dataclass(frozen=True, slots=True)
class Named:
    """A torch dtype, storage class or layout, by its name alone."""

    name: str


_DTYPE = re.compile(r"bool|(?:float|bfloat|complex|u?int|qu?int|bits)[0-9]+[0-9a-z_]*")


def is_dtype(name: str) -> bool:
    """Whether `torch.<name>` is called as torch calls its dtypes, today's and those to come: state beside the model may
    have any (an optimizer's float8_e8m0fnu). Which of them are read is decided where a tensor is the model's."""
    return len(name) <= 40 and _DTYPE.fullmatch(name) is not None


_PUTS, _GETS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"}), frozenset({"GET", "BINGET", "LONG_BINGET"})
_SHARED = frozenset({"GLOBAL", "STACK_GLOBAL", "BINUNICODE", "SHORT_BINUNICODE"})
"""What makes an object that an honest pickle of a tensor names twice: a class, a text."""


def is_bomb(payload: bytes) -> bool:
    """Whether what this pickle makes could be larger than the pickle: for those that no limited process reads.

    Nine bytes ask the C unpickler for a memo of 200 million places (3 GB); a tuple of twice the tuple before, a hundred
    times over, takes for ever to hash. Raises ValueError for what is no pickle.
    """
    made: dict[int, str] = {}
    maker = ""
    for opcode, argument, _ in pickletools.genops(payload):
        place = argument if isinstance(argument, int) else -1
        if opcode.name in _PUTS:
            if place > len(payload):
                return True
            made[place] = maker
        elif opcode.name == "MEMOIZE":
            made[len(made)] = maker
        elif (opcode.name in _GETS and made.get(place, "") not in _SHARED) or opcode.name == "DUP":
            return True
        else:
            maker = opcode.name
    return False


class _AllowList(pickle.Unpickler):
    """An unpickler that knows the names it is given and no other."""

    def __init__(
        self, payload: bytes, names: dict[tuple[str, str], Any], persistent: Callable[[object], object] | None, after: str | None
    ):  # fmt: skip
        super().__init__(io.BytesIO(payload))
        self._names, self._persistent, self._after = names, persistent, after
        self._reached = False

    def find_class(self, module: str, name: str) -> Any:
        reached = self._reached
        self._reached = name == self._after or (reached and name.startswith("_rebuild"))
        if (module, name) in self._names:
            return self._names[module, name]
        if module == "torch" and is_dtype(name):
            return Named(name)
        raise (NotListed if reached else _Refused)(f"{module}.{name}")

    def persistent_load(self, pid: object) -> object:
        if self._persistent is None:
            raise pickle.UnpicklingError("a persistent id has no place here")
        return self._persistent(pid)


class _Refused(pickle.UnpicklingError):
    """A name that is not on the list."""


class NotListed(pickle.UnpicklingError):
    """The same, where the pickle may honestly ask for a class that we do not know."""


def load(
    payload: bytes, names: dict[tuple[str, str], Any], where: Path, persistent: Callable[[object], object] | None = None,
    *, after: str | None = None,
) -> Any:  # fmt: skip
    """The pickle's root, of stand-ins. `where` and `persistent` (its persistent ids) are the caller's.

    Raises HostileCheckpoint or UnknownObject for a name that is not listed, or NotListed for the class asked for right after a function
    called `after` (and others that rebuild); StepDamaged for what does not parse; MemoryError.
    """
    try:
        return _AllowList(payload, names, persistent, after).load()
    except _Refused as error:
        name = str(error)[:200]
        if _could_run_code(name):
            raise errors.HostileCheckpoint(
                f"the pickle asks for {name}, which could run code; nothing of it was run",
                path=where,
                hint="find out who wrote this checkpoint",
            ) from None
        raise errors.UnknownObject(
            f"the pickle asks for {name}, which no checkpoint of TorchTitan's holds; nothing of it was run",
            path=where,
            hint="save plain tensors; if your trainer does not save this, find out who wrote this checkpoint",
        ) from None
    except (MemoryError, RecursionError, NotListed):
        raise
    except Exception as error:  # an unpickler raises whatever the bytes provoke
        raise errors.StepDamaged(
            f"the pickle does not parse ({type(error).__name__})", path=where, hint="save this step again"
        ) from None
