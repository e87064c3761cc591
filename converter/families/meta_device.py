"""Owns how a model is built where it has no values: on the meta device, and without importing what would give it some."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoValues(TorchFunctionMode):
    """Within it nothing is initialised, and counted on the CPU: to do either on meta, torch 2.13 imports sympy."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **{**(kwargs or {}), **({"device": "cpu"} if func is torch.arange else {})})


@contextmanager
def on_meta() -> Iterator[None]:
    """What is built within it takes no memory."""
    with torch.device("meta"), _NoValues():
        yield
