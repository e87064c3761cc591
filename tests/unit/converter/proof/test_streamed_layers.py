"""A streamed layer holds blocks of its weight, never the weight: as a fresh process with the prover's heap sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from converter.common import errors
from converter.proof import streamed_layers

_PASS = """
import re
from converter.proof.malloc import keep_blocks
keep_blocks()
import numpy
import torch
from converter.proof import streamed_layers as streamed

class Made:
    rows, columns = 151_936, 1024
    def read(self, first, last, matrix=0):
        raw = numpy.empty((last - first) * self.columns * 4, numpy.uint8)
        raw.view(numpy.float32)[:] = 0.5
        return torch.from_numpy(raw).view(torch.float32).view(-1, self.columns).to(torch.bfloat16).float()

def most():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

torch.set_num_threads(1)
before = most()
with torch.inference_mode():
    out = streamed.linear(torch.ones(1, 16, Made.columns), Made())
assert out.shape == (1, 16, Made.rows) and bool((out == Made.columns / 2).all())
print((most() - before) // 1024)
"""


def test_a_head_of_151_936_rows_takes_its_output_and_a_few_blocks() -> None:
    ran = subprocess.run([sys.executable, "-c", _PASS], capture_output=True, text=True, check=True)

    assert 5 <= int(ran.stdout) < 64, f"{ran.stdout.strip()} MB: its weight is 594 MB in float32, its output 9"


_EXPERTS = """
import os, re, sys
from converter.proof.malloc import keep_blocks
keep_blocks()
import torch
from converter.proof import streamed_layers as streamed
from converter.common.io_pacing import Traffic

fd = os.memfd_create("shard")
os.ftruncate(fd, 2048 * 768 * 2)
traffic, scratch = Traffic(), streamed.Scratch()
gate = streamed.HFSource(fd, 0, (768, 2048), "bfloat16", traffic, scratch)
down = streamed.HFSource(fd, 0, (2048, 768), "bfloat16", traffic, scratch)

def most():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

torch.set_num_threads(1)
x, kept, before = torch.ones(3, 2048), [], None
with torch.inference_mode():
    for expert in range(640):
        hidden = streamed.linear(x, gate) * streamed.linear(x, gate)
        kept.append(streamed.linear(hidden, down)[-1].clone())
        before = before or most()
print((most() - before) // 1024)
"""


def test_what_is_kept_of_640_experts_does_not_cut_the_blocks_that_are_read_next() -> None:
    ran = subprocess.run([sys.executable, "-c", _EXPERTS], capture_output=True, text=True, check=True)

    assert int(ran.stdout) < 16, f"{ran.stdout.strip()} MB for 640 vectors of 8 kB"


class _Held:
    """A weight that is held whole."""

    def __init__(self, weight: torch.Tensor):
        self._weight = weight
        self.rows, self.columns = weight.shape

    def read(self, first: int, last: int, matrix: int = 0) -> torch.Tensor:
        return self._weight[first:last]


def _streamed(layer: nn.Linear) -> nn.Module:
    model = nn.ModuleDict({"projection": layer})
    held: dict[str, Any] = {"projection.weight": _Held(layer.weight.detach())}
    streamed_layers.fill(model, held.__getitem__, lambda name, module: None, Path("/run/step-1"))
    return model["projection"]


def test_a_linear_layer_is_streamed_without_a_bias_and_refused_with_one_that_would_be_left_out() -> None:
    x = torch.randn(2, 3)
    plain = nn.Linear(3, 4, bias=False)
    assert torch.equal(_streamed(plain)(x), plain(x))

    with pytest.raises(errors.UnsupportedModel, match=r"projection has a bias") as caught:
        _streamed(nn.Linear(3, 4))
    assert caught.value.path == "/run/step-1"
