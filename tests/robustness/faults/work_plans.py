"""Wrappers round plan and adapter that make them wrong. The product has no switches for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from converter.export import provisional_plan
from converter.export.plan import Export, Plan
from converter.families.qwen3 import model
from converter.proof import adapter_plan
from tests.robustness.faults.scene import Scene

Change = Callable[[dict[str, Export]], dict[str, Export]]


def _changed(made: Plan, change: Change) -> Plan:
    return replace(made, exports=tuple(change({e.name: e for e in made.exports}).values()))


def _real_plan(scene: Scene, change: Change) -> None:
    make = adapter_plan.make_plan
    scene.patch.setattr(adapter_plan, "make_plan", lambda *args: _changed(make(*args), change))


def _provisional_plan(scene: Scene, change: Change) -> None:
    make = provisional_plan.provisional_plan

    def wrong(*args: Any, **named: Any) -> Plan | None:
        made = make(*args, **named)
        assert made is not None
        return _changed(made, change)

    scene.patch.setattr(provisional_plan, "provisional_plan", wrong)


def _plans(scene: Scene, change: Change) -> None:
    """Both plans are changed alike, the real one once its own checks are done."""
    _real_plan(scene, change)
    _provisional_plan(scene, change)


def _adapter(scene: Scene, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """What TorchTitan's adapter gives is changed before anything of ours sees it."""
    make = model.adapter

    def wrong(config: Any) -> Any:
        made = make(config)
        to_hf = made.to_hf
        made.to_hf = lambda states: change(to_hf(states))
        return made

    scene.patch.setattr(model, "adapter", wrong)


def _swapped(exports: dict[str, Export], one: str, other: str) -> dict[str, Export]:
    a, b = exports[one], exports[other]
    assert a.shape == b.shape
    exchanged = {one: replace(a, source=b.source, start=b.start), other: replace(b, source=a.source, start=a.start)}
    return exports | exchanged


def swap(scene: Scene, name: str, other: str) -> None:
    """Two HF tensors hold each other's elements."""
    _plans(scene, lambda exports: _swapped(exports, name, other))


def swap_in_adapter(scene: Scene, name: str, other: str) -> None:
    _provisional_plan(scene, lambda exports: _swapped(exports, name, other))
    _adapter(scene, lambda made: made | {name: made[other], other: made[name]})


def swap_provisionally(scene: Scene, name: str, other: str) -> None:
    _provisional_plan(scene, lambda exports: _swapped(exports, name, other))


def swap_layers(scene: Scene, layer: int, other: int) -> None:
    """Two layers hold each other's tensors."""

    def change(exports: dict[str, Export]) -> dict[str, Export]:
        for name in [name for name in exports if name.startswith(f"model.layers.{layer}.")]:
            exports = _swapped(exports, name, name.replace(f"layers.{layer}.", f"layers.{other}.", 1))
        return exports

    _plans(scene, change)


def _experts(names: Iterable[str], layer: int, part: str) -> list[str]:
    found = [
        name for name in names if re.fullmatch(rf"model\.layers\.{layer}\.mlp\.experts\.\d+\.{part}_proj\.weight", name)
    ]
    return sorted(found, key=lambda name: int(name.split(".")[5]))


def shift_experts(scene: Scene, layer: int, part: str, by: str) -> None:
    """Each expert's slice begins one expert, or one row, too late; the last one's is the first one's, or is right."""

    def change(exports: dict[str, Export]) -> dict[str, Export]:
        names = _experts(exports, layer, part)
        shifted = {}
        for name, after in zip(names, [*names[1:], names[0]], strict=True):
            row = exports[name].shape[1] if name != names[-1] else 0
            shifted[name] = replace(
                exports[name], start=exports[after].start if by == "expert" else exports[name].start + row
            )
        return exports | shifted

    _plans(scene, change)


def shift_in_adapter(scene: Scene, layer: int, part: str) -> None:
    """An expert's slice begins a row too late, as the adapter gives it."""

    def change(made: dict[str, Any]) -> dict[str, Any]:
        first, second = _experts(made, layer, part)[:2]
        whole = made[first]._base
        rows, columns = made[first].shape
        late = whole.view(-1, columns)[1 : rows + 1]
        return made | {first: late, second: made[second]}

    def alike(exports: dict[str, Export]) -> dict[str, Export]:
        first = exports[_experts(exports, layer, part)[0]]
        return exports | {first.name: replace(first, start=first.start + first.shape[1])}

    _adapter(scene, change)
    _provisional_plan(scene, alike)


def leave_out(scene: Scene, name: str) -> None:
    _provisional_plan(scene, lambda made: {key: e for key, e in made.items() if key != name})
    _adapter(scene, lambda made: {key: tensor for key, tensor in made.items() if key != name})


def add(scene: Scene, name: str, of: str) -> None:
    """One more HF tensor, of the elements of another."""
    _provisional_plan(scene, lambda made: made | {name: replace(made[of], name=name)})
    _adapter(scene, lambda made: made | {name: made[of]})
