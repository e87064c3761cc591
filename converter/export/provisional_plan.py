"""Owns the provisional plan: TorchTitan's own adapter, run over stand-ins that only record names and slices.

Standard library only. Importing torch, torchtitan and transformers takes 5 s, moving the bytes of a 0.6B takes 3: with
a plan at hand, the bytes move while the other process imports. The adapter's source is executed with stand-ins for all
it imports but the standard library; whatever it does that a stand-in does not know ends in None, and the export waits
for the real plan. Nothing is published unless the real adapter, on meta tensors, gave the same plan.
"""

import builtins
import importlib.util
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from converter.export.plan import Export, Plan
from converter.families.family import FamilySpec, Shapes


class _Meta(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _Anything(metaclass=_Meta):
    """Stands in for a class of torch or torchtitan: can be named and subclassed, and nothing is an instance of it."""


class _Slice:
    """Stands in for a tensor: whose it is, from which element on, in which shape."""

    def __init__(self, source: str, start: int, shape: tuple[int, ...]):
        self.source, self.start, self.shape = source, start, shape

    def split(self, size: int) -> list["_Slice"]:
        """Along dim 0, as `torch.split`."""
        row = prod(self.shape[1:])
        return [
            _Slice(self.source, self.start + at * row, (min(size, self.shape[0] - at), *self.shape[1:]))
            for at in range(0, self.shape[0], size)
        ]

    def squeeze(self) -> "_Slice":
        """Without dimensions of 1."""
        return _Slice(self.source, self.start, tuple(n for n in self.shape if n != 1))


def _split(tensor: _Slice, size: int, dim: int = 0) -> list[_Slice]:
    if dim != 0:
        raise NotImplementedError(f"split along dim {dim}")
    return tensor.split(size)


def provisional_plan(family: FamilySpec, sources: Mapping[str, str], shapes: Shapes, *, tied: bool) -> Plan | None:
    """The plan that the adapter will give, or None where it cannot be told without torch.

    `sources`: installed name -> FQN in the checkpoint; `shapes`: installed name -> shape. `tied` is the base assets'
    word, which the run's may contradict. Exports come in the checkpoint's order, not in HF's.
    """
    try:
        adapter = _adapter(family)(family.adapter_config(shapes, tied), None)
        made = adapter.to_hf({name: _Slice(name, 0, tuple(shape)) for name, shape in shapes.items()})
        exports = tuple(Export(name, sources[part.source], part.start, part.shape) for name, part in made.items())
    except Exception:  # whatever another torchtitan's adapter does with a stand-in: the real plan is waited for
        return None
    used = {export.source for export in exports}
    left = [name for name in shapes if sources[name] not in used]
    embedding, head = family.embedding, family.head
    heads = (sources[embedding], sources[head]) if tied and head in left and embedding in sources else None
    return Plan(exports, heads, tuple(sources[name] for name in left if family.must_be_zero(name)))


def same(provisional: Plan, real: Plan) -> bool:
    """Whether the two export the same elements to the same names; the order does not matter to one HF shard."""
    one, other = set(provisional.exports), set(real.exports)
    return one == other and provisional.tied == real.tied and set(provisional.zero) == set(real.zero)


def _adapter(family: FamilySpec) -> Any:
    found = importlib.util.find_spec("torchtitan")
    assert found is not None
    assert found.submodule_search_locations
    root = Path(found.submodule_search_locations[0])
    torch = SimpleNamespace(split=_split, Tensor=_Anything)
    known: dict[str, Any] = {"torch": torch}

    def stand_in(name: str, globals_: Any = None, locals_: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if level == 0 and name.partition(".")[0] in sys.stdlib_module_names:
            return builtins.__import__(name, globals_, locals_, fromlist, level)
        return known.get(name, _Anything) if level == 0 else _Anything

    scope: dict[str, Any] = {}
    for source in family.adapter_sources:
        text = (root / source).read_text()
        scope = {"__name__": source, "__builtins__": vars(builtins) | {"__import__": stand_in}}
        exec(compile(text, str(root / source), "exec"), scope)  # noqa: S102 - the installed package's own source
        known["torchtitan." + source.removesuffix(".py").replace("/", ".")] = SimpleNamespace(**scope)
    return scope[family.adapter_class]
