"""Owns what the proving process leaves out of its imports: compilers, sharding, training, operators taken apart.

Importing torchtitan and transformers takes 4.3 s of processor time after torch's 1.5, and 3.6 of them, and 0.5 of torch's,
go to modules of which nothing is called here: torch._dynamo and _inductor, sympy, triton (70 MB), decompositions and meta
kernels written in Python, DCP, FSDP, pipelining, quantizers, HTTP, and a scan of every model folder of transformers (torch
2.13.0, torchtitan 0.3.0, transformers 5.23.0; docs/performance.md). Stand-ins lie in their place; whatever of them is
called raises LeftOut, and the process begins again with everything imported (`process`).
"""

import sys
import types
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NoReturn

from converter.families.registry import FAMILIES

NAMES = (
    "PIL",
    "httpx",
    "jinja2",
    "torch._decomp",
    "torch._dynamo",
    "torch._inductor",
    "torch._meta_registrations",
    "torch._native",
    "torch._prims",
    "torch._refs",
    "torch.ao",
    "torch.distributed._composable",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.pipelining",
    "torch.distributed.tensor._ops",
    "torch.distributed.tensor.experimental",
    "torch.distributions",
    "torch.export",
    "torch.fx.experimental.symbolic_shapes",
    "torch.utils.data",
    "torchgen",
    "torchtitan.components.optimizer",
    "torchtitan.config.manager",
    "torchtitan.distributed.compile",
    "torchtitan.distributed.minimal_async_ep",
    "torchtitan.distributed.pipeline_parallel",
    "transformers.generation.continuous_batching",
    "transformers.quantizers",
    "triton",
    *(name for family in FAMILIES for name in family.left_out_modules),
)
"""Modules, and all below them."""
MODEL_FOLDERS = ("auto", *(folder for family in FAMILIES for folder in family.hf_folders))
"""Of transformers.models, in which its lazy imports look for classes."""
_SCAN = "transformers.utils.import_utils"


class LeftOut(BaseException):
    """Something was called that was not imported. No Exception: nobody may take it for a failure and go another way."""


def leave_out() -> None:
    """From now on this process has stand-ins for NAMES; to be called before torch is imported."""
    sys.meta_path.insert(0, _Finder())
    import torch

    torch.compile = _as_it_is


def _as_it_is(function: Any = None, *_: Any, **__: Any) -> Any:
    """What tells a compiler of a function leaves it as it is where there is no compiler."""
    return function if function is not None else lambda function: function


def _itself(condition: Any) -> bool:
    """What `guard_or_false` gives for a condition that is no symbol (torch 2.13.0)."""
    if type(condition) is not bool:
        raise LeftOut("a guard on a symbol")
    return condition


_DECORATORS = ("allow_in_graph", "assume_constant_result", "disable", "disallow_in_graph")
_MEANT: dict[str, Callable[..., Any]] = {
    **{f"torch._dynamo.{name}": _as_it_is for name in _DECORATORS},
    "torch.fx.experimental.symbolic_shapes.guard_or_false": _itself,
}


_OPERATORS = (
    *("iter", "next", "reversed", "len", "contains", "aiter", "anext", "await"),
    *("enter", "exit", "aenter", "aexit", "setitem", "delitem"),
    *("eq", "ne", "lt", "le", "gt", "ge", "index", "int", "float", "complex", "bytes", "fspath"),
    *("neg", "pos", "abs", "invert", "round", "trunc", "floor", "ceil"),
    *(
        f"{side}{name}"
        for name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift", "and", "xor")
        for side in ("", "r", "i")
        if (side, name) != ("i", "divmod")
    ),
    "ior",
)  # fmt: skip
"""What Python does to a value by a method of its class. Without `__iter__`, a loop would ask `__getitem__` for ever; without
another, Python raises a TypeError that a caller may take for an answer."""


def _refuse(self: "_Absent", *_: Any) -> NoReturn:
    raise LeftOut(self.__name__)


class _Absent:
    """Stands for anything: it can be named, subscripted, derived from (to no effect) and asked about, but not used."""

    def __init__(self, name: str):
        self.__name__ = self.__qualname__ = name

    def __getattr__(self, name: str) -> "_Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self.__name__}.{name}")

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise LeftOut(self.__name__)

    def __bool__(self) -> NoReturn:
        raise LeftOut(self.__name__)

    def __hash__(self) -> int:
        return id(self)

    def __mro_entries__(self, _: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    def __instancecheck__(self, _: Any) -> bool:
        return False

    def __subclasscheck__(self, _: Any) -> bool:
        return False

    def __getitem__(self, _: Any) -> "_Absent":
        return self

    def __or__(self, _: Any) -> "_Absent":
        return self

    __ror__ = __or__


for _name in _OPERATORS:
    setattr(_Absent, f"__{_name}__", _refuse)


class _StandIn(types.ModuleType):
    """A module that has every name."""

    __path__: list[str] = []  # noqa: RUF012 - a package, in which nothing is found but by the finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        return _MEANT.get(full) or _Absent(full)


class _Finder(MetaPathFinder, Loader):
    """Finds stand-ins for NAMES; and lets transformers scan MODEL_FOLDERS only."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if any(name == left or name.startswith(f"{left}.") for left in NAMES):
            return ModuleSpec(name, self, is_package=True)
        scan = sys.modules.get(_SCAN)
        if scan is not None and not hasattr(scan, "_scans_all"):
            _scan_less(scan)
        return None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing is in it."""


def _scan_less(scan: types.ModuleType) -> None:
    """Narrows `create_import_structure_from_path` (transformers 5.23.0), once it is defined."""
    whole = getattr(scan, "create_import_structure_from_path", None)
    if whole is None:
        return

    def narrowed(module_path: Any) -> Any:
        folder = Path(module_path)
        folder = folder.parent if folder.suffix == ".py" else folder
        if (folder.parent.name, folder.name) != ("transformers", "models"):
            return whole(module_path)
        return {name: whole(folder / name) for name in MODEL_FOLDERS}

    scan.create_import_structure_from_path = narrowed  # type: ignore[attr-defined]
    scan._scans_all = whole  # type: ignore[attr-defined]
