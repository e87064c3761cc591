"""Owns what a published directory must be that differs from the unmutated checkpoint's: what torch and TorchTitan read.

The weights by `dcp.load` of the mutated checkpoint (or safetensors, for steps in HF form), TorchTitan's adapter and a cast;
the config by what the mutated run config says. Nothing of ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from converter.common.names_on_disk import INDEX
from converter.publish.manifest import ASSET_NAMES, TEMPLATES
from tests.robustness.faults.scene import Scene, digests
from tests.support.checkpoints import reference


def dishonest(scene: Scene, published: Path, right: Path) -> str | None:
    """In what `published` is not an honest export of what the mutated checkpoint now says; `right` is that of before."""
    run = json.loads(scene.run_config.read_bytes())
    dtype = getattr(torch, run["training"].get("dtype", "float32"))
    theirs, ours = _small_files(right, run), digests(published)
    rest = {name: digest for name, digest in ours.items() if name not in ("config.json", "model.safetensors")}
    if rest != theirs:
        return f"other files: {dict(rest.items() ^ theirs.items())}"
    if (said := _config(published)) != (wanted := _wanted_config(right, run)):
        return f"config.json says {dict(said.items() - wanted.items())}"
    expected, found = _expected(scene, dtype), load_file(published / "model.safetensors")
    if expected.keys() != found.keys():
        return f"other tensors: {sorted(expected.keys() ^ found.keys())}"
    for name, tensor in expected.items():
        if not _same(tensor, found[name]):
            return f"{name} is not what torch reads"
    return None


def _small_files(right: Path, run: dict[str, Any]) -> dict[str, str]:
    """Digests of all but weights and config: the tokenizer's files are those of the folder that the run config names."""
    named = [run.get("hf_assets_path")] if "model_spec" in run else _tokenizers(run)
    folder = Path(next(path for path in named if isinstance(path, str) and path))
    found = digests(folder if folder.is_dir() else folder.parent)
    tokenizer = {name: found[name] for name in found if name in ASSET_NAMES or name.startswith(TEMPLATES)}
    return tokenizer | {"generation_config.json": digests(right)["generation_config.json"]}


def _tokenizers(run: dict[str, Any]) -> list[Any]:
    """torchtitan 0.2: the first that is set."""
    places = (
        "model.tokenizer_override",
        "molgen_data.tokenizer_override",
        "tokenizer.path",
        "model.tokenizer_path",
        "model.hf_assets_path",
    )
    pairs = [place.split(".") for place in places]
    return [run[section].get(key) for section, key in pairs if isinstance(run.get(section), dict)]


def _config(published: Path) -> dict[str, Any]:
    return {key: json.dumps(value) for key, value in json.loads((published / "config.json").read_bytes()).items()}


def _wanted_config(right: Path, run: dict[str, Any]) -> dict[str, Any]:
    dtype = json.dumps(run["training"].get("dtype", "float32"))
    length = json.dumps(run["training"]["seq_len"])
    return _config(right) | {"dtype": dtype, "torch_dtype": dtype, "max_position_embeddings": length}


def _expected(scene: Scene, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    if (scene.step / INDEX).exists():
        files = set(json.loads((scene.step / INDEX).read_bytes())["weight_map"].values())
        held = {name: tensor for file in files for name, tensor in load_file(scene.step / file).items()}
        return {name: tensor.to(dtype) for name, tensor in held.items()}
    return reference.hf_weights(scene.case, reference.weights(scene.case, scene.step), dtype)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
