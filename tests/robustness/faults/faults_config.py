"""Faults in what base assets, run record and tokenizer say of the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from converter.common import errors
from tests.robustness.faults.fault import Fault, faults, stored_name
from tests.robustness.faults.scene import Scene
from tests.unit.converter.by_threes import by_threes
from tests.unit.converter.editing import edit_json, save_changed

TIED, UNTIED, MOE, MANY = (
    "dense_tied-0.3-2x2-float32",
    "dense_untied-0.3-fsdp-bfloat16",
    "moe-0.3-2x2-float32",
    "many_experts",
)
OLD = "dense_tied-0.3-fsdp-bfloat16"
FIGURES = ("dense_tied-0.2-fsdp-bfloat16", "dense_untied-between-fsdp-bfloat16", "square_tied", "moe-0.2-2x2-float32")
"""Cases whose 0.2 record has dimensions."""
DENSE, MOES = (TIED, UNTIED, "square"), (MOE, "moe-0.3-fsdp-bfloat16", MANY)
SPREAD = (TIED, "square", MOE)
Places = Iterable[tuple[str, dict[str, Any]]]


def base(scene: Scene, **changes: Any) -> None:
    """The base assets' config says otherwise."""
    folder = scene.base_assets()
    edit_json(folder / "config.json", lambda said: said.update(changes))


def record(scene: Scene, **changes: Any) -> None:
    """The run's 0.2 record says otherwise."""
    edit_json(scene.run_config, lambda said: said["model"].update(changes))


def record_layer(scene: Scene, **changes: Any) -> None:
    """The run's 0.3 record says otherwise of every layer's attention."""

    def change(said: dict[str, Any]) -> None:
        for layer in said["model_spec"]["model"]["layers"]:
            layer["attention"].update(changes)

    edit_json(scene.run_config, change)


def record_rows(scene: Scene, by: int) -> None:
    def change(said: dict[str, Any]) -> None:
        if scene.case.config == "0.3":
            said["model_spec"]["model"]["vocab_size"] += by
        else:
            said["model"]["padded_vocab_size"] += by

    edit_json(scene.run_config, change)


def add_rows(scene: Scene, by: int) -> None:
    """The checkpoint's embedding and head have more rows, or fewer."""

    def change(states: dict[str, torch.Tensor]) -> None:
        for fqn in ("tok_embeddings.weight", stored_name(scene, "lm_head.weight")):
            rows = states[fqn]
            states[fqn] = rows[:by].clone() if by < 0 else torch.cat([rows, rows[:by]])

    save_changed(scene.step, change)


def _tokenizer_json(scene: Scene, change: Callable[[dict[str, Any]], Any]) -> None:
    edit_json(scene.tokenizer() / "tokenizer.json", change)


def more_tokens(scene: Scene, upto: int) -> None:
    """Added tokens up to an id."""

    def change(said: dict[str, Any]) -> None:
        token = said["added_tokens"][-1]
        said["added_tokens"] += [token | {"id": i, "content": f"<{i}>"} for i in range(token["id"] + 1, upto + 1)]

    _tokenizer_json(scene, change)


def fewer_tokens(scene: Scene, by: int) -> None:
    """The last added tokens are missing wherever the tokenizer's files name them."""
    folder = scene.tokenizer()
    said = json.loads((folder / "tokenizer.json").read_text())
    gone = said["added_tokens"][-by:]
    said["added_tokens"] = said["added_tokens"][:-by]
    (folder / "tokenizer.json").write_text(json.dumps(said))
    _forget(folder, {token["content"] for token in gone}, {str(token["id"]) for token in gone})


def _forget(folder: Path, contents: set[str], ids: set[str]) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():

            def change(said: dict[str, Any]) -> None:
                decoder = said.get("added_tokens_decoder", {})
                for key in ids & decoder.keys():
                    del decoder[key]
                for key, held in said.items():
                    if isinstance(held, list):
                        said[key] = [t for t in held if (t["content"] if isinstance(t, dict) else t) not in contents]

            edit_json(folder / name, change)


def break_tokenizer(scene: Scene, name: str, text: str) -> None:
    (scene.tokenizer() / name).write_text(text)


def ignore_class(scene: Scene, tokenizer_class: str) -> None:
    """A tokenizer whose digits go by threes, with a class that splits them one by one whatever the file says."""
    folder = scene.tokenizer()
    by_threes(size=scene.case.known_tokens).save(str(folder / "tokenizer.json"))
    said = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": tokenizer_class}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def change_tokenizer(scene: Scene, normalizer: dict[str, Any] | None) -> None:
    edit_json(scene.tokenizer() / "tokenizer.json", lambda said: said.update(normalizer=normalizer))


def _over(cases: Iterable[str], *changes: dict[str, Any]) -> Places:
    """Each case with each change, or the changes in turn where there are as many."""
    cases = list(cases)
    return [(name, changes[i % len(changes)]) for i, name in enumerate(cases)]


WRONG: list[tuple[str, Places, bool]] = [
    ("rope theta", _over(SPREAD, {"rope_theta": 10_000}, {"rope_theta": 500_000}, {"rope_theta": 2_000_000}), True),
    ("norm eps", _over(SPREAD, {"rms_norm_eps": 1e-5}, {"rms_norm_eps": 1e-3}, {"rms_norm_eps": 1e-4}), True),
    ("activation", _over(SPREAD, {"hidden_act": "gelu"}, {"hidden_act": "relu"}), True),
    ("rope scaling", _over(SPREAD, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}), True),
    ("a sliding window", _over(SPREAD, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}), True),
    ("a sliding window longer than the check's tokens", _over(SPREAD, {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 1}), False),
    ("quantization", _over(SPREAD, {"quantization_config": {"quant_method": "fp8"}}), False),
    ("code beside the weights", _over(SPREAD, {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}), False),
    ("experts per token", _over(MOES, {"num_experts_per_tok": 1}, {"num_experts_per_tok": 3}), True),
    ("normalisation of expert weights", _over(MOES, {"norm_topk_prob": False}), True),
]  # fmt: skip
"""What the base config says wrongly, where, and whether 16 tokens can tell."""
SIZES: list[tuple[str, Places]] = [
    ("of another size", [
        (TIED, {"num_hidden_layers": 4, "max_window_layers": 4}), (UNTIED, {"hidden_size": 144}), ("square", {"intermediate_size": 96}),
        (MOE, {"moe_intermediate_size": 64}), (MANY, {"num_experts": 128}),
    ]),
    ("head count with equal product", [
        (TIED, {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}), (UNTIED, {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}),
        ("square", {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8}), (MOE, {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 8}),
    ]),
    ("tie flag", [(TIED, {"tie_word_embeddings": False}), (UNTIED, {"tie_word_embeddings": True}), (OLD, {"tie_word_embeddings": False}), ("square", {"tie_word_embeddings": True})]),
    ("attention bias", _over(SPREAD, {"attention_bias": True})),
]  # fmt: skip
DISAGREE = errors.ArchitectureMismatch

FAULTS: list[Fault] = [
    *(
        fault
        for what, places, tells in WRONG
        for check, error in (("architecture", DISAGREE), ("config", errors.ExportMismatch), ("forward", errors.ForwardMismatch))
        if tells or check != "forward"
        for fault in faults(f"base config: {what}", check, error, base, places)
    ),
    *(
        fault
        for what, places in SIZES
        for check, error in (("architecture", DISAGREE), ("plan", errors.PlanMismatch))
        for fault in faults(f"base config: {what}", check, error, base, places)
    ),
    *faults(
        "run record (0.2): head count with equal product", "architecture", DISAGREE, record,
        _over(FIGURES, {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}),
    ),
    *faults(
        "run record (0.3): head count with equal product", "architecture", DISAGREE, record_layer,
        _over((TIED, UNTIED, MOE), {"n_heads": 8, "n_kv_heads": 4, "head_dim": 16}),
    ),
    *faults(
        "run record: vocabulary off by one", "vocabulary", errors.VocabularyMismatch, record_rows,
        [(FIGURES[0], {"by": 1}), (TIED, {"by": -1}), (MOE, {"by": 1}), (FIGURES[1], {"by": -1})],
    ),
    *faults(
        "checkpoint: a row more or less than recorded", "vocabulary", errors.VocabularyMismatch, add_rows,
        [(FIGURES[0], {"by": 1}), (UNTIED, {"by": -1}), ("square_tied", {"by": -1})],
    ),
    *faults(
        "a tokenizer longer than the embedding", "vocabulary", errors.VocabularyMismatch, more_tokens,
        [(TIED, {"upto": 638}), (FIGURES[1], {"upto": 700}), (MANY, {"upto": 638})],
    ),
    *faults(
        "a tokenizer of fewer tokens than recorded", "vocabulary", errors.VocabularyMismatch, fewer_tokens,
        [(FIGURES[0], {"by": 1}), (FIGURES[1], {"by": 2}), (FIGURES[3], {"by": 1})],
    ),
    *faults(
        "a tokenizer that does not load", "tokenizer", errors.AssetsInvalid, break_tokenizer,
        [
            (TIED, {"name": "tokenizer.json", "text": "{}"}), (UNTIED, {"name": "tokenizer.json", "text": '{"model": {"type": "BPE"}}'}),
            (MANY, {"name": "tokenizer.json", "text": '{"version": "9.9", "model": null, "added_tokens": []}'}),
        ],
    ),
    *faults(
        "a tokenizer class that ignores the file's pre-tokenizer", "token_ids", errors.TokenizerMismatch, ignore_class,
        _over(SPREAD, {"tokenizer_class": "Qwen2Tokenizer"}, {"tokenizer_class": "Qwen2TokenizerFast"}),
    ),
    *faults(
        "a tokenizer class that ignores the file's normalizer", "token_ids", errors.TokenizerMismatch, change_tokenizer,
        _over(SPREAD, {"normalizer": None}, {"normalizer": {"type": "Lowercase"}}),
    ),
]  # fmt: skip
