"""Owns what a model family provides: its `SPEC`, which needs no torch, and its `model` module, which does.

Uses only the standard library. An architecture is a dict in HF's words: run record, tensor shapes and base assets are
compared in this form.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from converter.run.run_config import RunConfig

Shapes = Mapping[str, tuple[int, ...]]
"""Installed name (torchtitan 0.3.0's) of each tensor -> its shape."""
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True)
class FamilySpec:
    """What is known of a family without torch: `SPEC` in its `spec` module."""

    name: str
    """TorchTitan's name for it, which runs record, and the name of its folder here."""
    title: str
    """Its name in messages."""
    models: str
    """Which of its models are converted, in messages."""
    signature: tuple[str, ...]
    """Regular expressions: a model is this family's if each of them matches a tensor's installed name, or HF's."""
    renames: tuple[tuple[str, str], ...]
    """Regular expression for an older name of a tensor, and the installed name it is replaced by."""
    embedding: str
    head: str
    """Installed names."""
    hf_embedding: str
    hf_head: str
    hf_norm: str
    """HF's names; of the norms, the last one."""
    no_place: str
    """Regular expression: tensors that HF's model has no place for, so that they must be zero."""
    hf_types_without_place: frozenset[str]
    """HF's model types of the models that have such tensors."""
    adapter_sources: tuple[str, ...]
    """Files of the adapter below torchtitan's folder, each behind those it imports names from: the provisional plan
    executes them. Where there are none, the export waits for the real plan."""
    adapter_class: str
    """In the last of them."""
    adapter_config: Callable[[Shapes, bool], Any]
    """(shapes, whether embedding and head are tied) -> what the adapter reads of TorchTitan's model config."""
    left_out_modules: tuple[str, ...]
    """Modules that the proving process does not need to import."""
    hf_folders: tuple[str, ...]
    """Folders of transformers.models with the classes of models and tokenizers."""
    tokenizer_classes: tuple[str, ...]
    """Tokenizer classes of transformers that are in those folders."""

    def owns(self, names: Iterable[str]) -> bool:
        """Whether tensors of these names are a model of this family. One lost tensor changes nothing."""
        names = [*names]
        return all(any(re.fullmatch(pattern, name) for name in names) for pattern in self.signature)

    def must_be_zero(self, name: str) -> bool:
        """Whether HF's model has no place for the tensor with this installed name."""
        return re.fullmatch(self.no_place, name) is not None

    def part_of(self, hf_name: str) -> str:
        """The part of the model that a HF tensor belongs to: a layer's number, embedding, head, norm, or other."""
        if match := _LAYER.search(hf_name):
            return str(int(match[1]))
        return {self.hf_embedding: "embedding", self.hf_head: "head", self.hf_norm: "norm"}.get(hf_name, "other")


@dataclass(frozen=True)
class Experts:
    """Where the weights of one layer's experts are."""

    hf_name: str
    """HF's name of the module; an expert's is this with its number behind it."""
    weight: Callable[[str, int], tuple[str, int]]
    """(projection "gate" | "up" | "down", expert) -> name of the tensor, and which matrix of it."""


@dataclass(frozen=True)
class Routing:
    """The router of a layer of TorchTitan's model."""

    router: Any
    """A module whose output's third part is scores, [1, positions, experts], and which has `top_k`."""
    bias: str
    """Installed name of the balancing bias, if HF's model has no place for it; else empty."""


class FamilyModel(Protocol):
    """What a family's `model` module provides, as functions; it needs torch, torchtitan and transformers.

    `config` is TorchTitan's model config (a `Decoder.Config`), `hf_config` a `PretrainedConfig`.
    """

    SPEC: FamilySpec

    def shapes_of_hf(self, hf_shapes: Shapes) -> tuple[dict[str, tuple[int, ...]], dict[str, list[str]]]:
        """TorchTitan's shapes of a step in HF form, and for each of its tensors the HF tensors it is made of."""

    def hf_config(self, base: dict[str, Any], names: Iterable[str], *, where: Path) -> Any:
        """A config.json as transformers reads it, for a checkpoint with tensors of these names.

        Raises AssetsInvalid for another architecture's, or one that does not load.
        """

    def architecture_of_base(self, hf_config: Any) -> dict[str, Any]:
        """The architecture that a config.json describes."""

    def architecture_of(self, config: Any) -> dict[str, Any]:
        """The architecture that TorchTitan builds."""

    def check_told(self, run: RunConfig, shapes: Shapes, where: Path) -> None:
        """Where `where`, the base assets, have no config.json, the run recorded all that shapes do not tell. Raises
        AssetsMissing."""

    def recorded_config(
        self, step: Path, run: RunConfig, shapes: Shapes, base: dict[str, Any]
    ) -> tuple[Any, list[str]]:
        """TorchTitan's model config as the run recorded it, and what in it could not be told without `base`, the base
        assets' architecture. Raises ArchitectureMismatch, UnsupportedModel, PlanMismatch, VocabularyMismatch."""

    def with_architecture(self, base: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
        """A config.json with another architecture."""

    def made_config(self, special: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
        """A config.json of an architecture, where there is none; `special`: ids of special tokens."""

    def older_keys(self, said: dict[str, Any], hf_config: Any) -> dict[str, Any]:
        """Keys to add to the config.json `said` for readers before transformers 5."""

    def check_written(
        self, said: dict[str, Any], wanted: Mapping[str, Any], besides: Mapping[str, Any], dtype: str, *, where: Path
    ) -> None:
        """The config.json that was written says the architecture `wanted`, the keys `besides` and the dtype, to every
        version of transformers. Raises ExportMismatch."""

    def adapter(self, config: Any) -> Any:
        """TorchTitan's own state dict adapter."""

    def titan_model(self, config: Any, positions: int) -> Any:
        """TorchTitan's model on the meta device, with attention that runs on a CPU, for `positions` positions."""

    def titan_buffers(self, model: Any) -> None:
        """Makes on the CPU the buffers of TorchTitan's model that no checkpoint holds."""

    def titan_experts(self, name: str) -> Experts | None:
        """The experts that the module of this name in TorchTitan's model holds, as one module for all of them."""

    def routing(self, index: str, layer: Any) -> Routing | None:
        """The router of a layer of TorchTitan's model, if it has one."""

    def hf_model(self, hf_config: Any) -> Any:
        """HF's model on the meta device."""

    def hf_buffers(self, model: Any, hf_config: Any) -> None:
        """Makes on the CPU the buffers of HF's model that no file holds."""

    def hf_experts(self, name: str) -> Experts | None:
        """The experts that the module of this name in HF's model holds."""

    def is_router(self, hf_name: str) -> bool:
        """Whether HF's module of this name is a router."""

    def modules(self, layers: int) -> dict[str, str]:
        """HF's name of each module that holds weights, but for the experts -> TorchTitan's."""


def differences(said: Mapping[str, Any], run: Mapping[str, Any], who: str = "base") -> list[str]:
    """Where `who` (the base assets) describes another architecture than the run trained."""
    return [f"{key}: {who} {said.get(key)}, run {run[key]}" for key in run if said.get(key) != run[key]]
