"""Tensors, base assets and vocabulary that do not describe one model HF can be given: one clear error, nothing published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from converter.common import errors
from converter.inspect import preview
from converter.run.base_assets import Search
from converter.run.options import Options
from tests.support.checkpoints.cases import BY_NAME, CASES, KINDS
from tests.unit.converter.editing import edit_json, save_changed
from tests.unit.converter.running import Convert, Refused

CopyStep = Callable[..., Path]
BaseAssets = Callable[..., Path]
TIED = BY_NAME["two_steps"]
UNTIED, MOE = (
    next(c for c in CASES if (c.kind, c.naming, c.assets) == (kind, "0.3", "hub")) for kind in ("dense_untied", "moe")
)
OLD = BY_NAME["one_rank"]
FIGURES = BY_NAME["dense_tied-0.2-fsdp-bfloat16"]


def test_base_assets_of_another_family_are_refused(
    copy_step: CopyStep, base_assets: BaseAssets, refused: Refused
) -> None:
    folder = base_assets(TIED, model_type="llama", architectures=["LlamaForCausalLM"])
    error = refused(copy_step(TIED), errors.AssetsInvalid, search=Search(hf_assets=folder))
    assert "the checkpoint is a qwen3, the base assets' config is not" in error.what
    assert "llama" not in error.what
    assert error.path.startswith(str(folder))


def test_keys_that_say_how_a_reader_loads_a_model_do_not_reach_the_export(
    copy_step: CopyStep, base_assets: BaseAssets, convert: Convert
) -> None:
    keys = {
        "transformers_weights": "other.safetensors",
        "attn_implementation": "flash_attention_2",
        "return_dict": False,
    }
    folder = base_assets(TIED, **keys)
    done = convert(copy_step(TIED), search=Search(hf_assets=folder))
    written = json.loads((done.published / "config.json").read_text())

    assert not keys.keys() & written.keys()
    AutoModelForCausalLM.from_pretrained(done.published, attn_implementation="sdpa")


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"per_layer_config": {"1": {"sliding_window": 4096}}}, errors.AssetsInvalid, "describes layers one by one"),
        ({"num_labels": 10**9}, errors.AssetsInvalid, "no believable number of layers or labels"),
        ({"text_config": {"hidden_size": 8}}, errors.AssetsInvalid, "HF's model cannot be made"),
        ({"pad_token_id": 151_643}, errors.VocabularyMismatch, "pad_token_id is 151,643, the embedding has 638 rows"),
    ],
)
def test_a_base_config_of_which_no_model_is_made_is_refused_before_it_takes_the_memory(
    changes: dict[str, Any], kind: type[errors.ConversionError], said: str, copy_step: CopyStep, base_assets: BaseAssets,
    refused: Refused,
) -> None:  # fmt: skip
    assert said in refused(copy_step(TIED), kind, search=Search(hf_assets=base_assets(TIED, **changes))).what


@pytest.mark.parametrize(("of", "other"), [(TIED, MOE), (MOE, TIED)])
def test_dense_base_assets_for_a_moe_and_the_reverse_are_refused(
    of: Any, other: Any, copy_step: CopyStep, checkpoints: Path, refused: Refused
) -> None:
    refused(copy_step(of), errors.AssetsInvalid, search=Search(hf_assets=other.base_assets(checkpoints)))


CHANGES = [
    (TIED, {"num_hidden_layers": 4, "max_window_layers": 4}, "num_hidden_layers: base 4, run 3"),
    (TIED, {"intermediate_size": 96}, "intermediate_size: base 96, run 94"),
    (TIED, {"hidden_size": 144}, "hidden_size: base 144, run 72"),
    (TIED, {"num_attention_heads": 2}, "num_attention_heads: base 2, run 4"),
    (TIED, {"num_attention_heads": 8, "head_dim": 16}, "head_dim: base 16, run 32"),
    (TIED, {"num_key_value_heads": 4}, "num_key_value_heads: base 4, run 2"),
    (TIED, {"rope_theta": 10_000}, "rope_theta: base 10000.0, run 1000000.0"),
    (TIED, {"rms_norm_eps": 1e-5}, "rms_norm_eps: base 1e-05, run 1e-06"),
    (TIED, {"tie_word_embeddings": False}, "tie_word_embeddings: base False, run True"),
    (UNTIED, {"tie_word_embeddings": True}, "tie_word_embeddings: base True, run False"),
    (TIED, {"attention_bias": True}, "attention_bias: base True, run False"),
    (TIED, {"hidden_act": "gelu"}, "hidden_act: base gelu, run silu"),
    (TIED, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type: base yarn, run default"),
    (
        TIED,
        {"rope_scaling": {"rope_type": "default", "factor": 4.0}},
        "rope_parameters: base {'factor': 4.0}, run None",
    ),
    (TIED, {"is_causal": False}, "is_causal: base False, run True"),
    (TIED, {"is_encoder_decoder": True}, "is_encoder_decoder: base True, run None"),
    (TIED, {"add_cross_attention": True}, "add_cross_attention: base True, run None"),
    (TIED, {"pruned_heads": {"0": [1]}}, "pruned_heads: base {'0': [1]}, run None"),
    (MOE, {"use_bidirectional_attention": True}, "use_bidirectional_attention: base True, run None"),
    (
        TIED,
        {"dual_chunk_attention_config": {"chunk_size": 8}},
        "dual_chunk_attention_config: base {'chunk_size': 8}, run None",
    ),
    (MOE, {"compression_config": {"format": "int"}}, "compression_config: base {'format': 'int'}, run None"),
    (
        MOE,
        {"layer_types": ["chunked_attention"] * 3},
        "layer_types: base ['chunked_attention'], run ['full_attention']",
    ),
    (MOE, {"num_experts": 8}, "num_experts: base 8, run 6"),
    (MOE, {"num_experts_per_tok": 3}, "num_experts_per_tok: base 3, run 2"),
    (MOE, {"norm_topk_prob": False}, "norm_topk_prob: base False, run True"),
    (MOE, {"moe_intermediate_size": 64}, "moe_intermediate_size: base 64, run 56"),
    (MOE, {"mlp_only_layers": [1]}, "mlp_only_layers: base [1], run []"),
]


@pytest.mark.parametrize(("case", "changes", "said"), CHANGES, ids=[said.split(",")[0] for _, _, said in CHANGES])
def test_base_assets_of_another_architecture_are_listed_against_the_run_or_replaced_by_it(
    case: Any, changes: dict[str, Any], said: str, copy_step: CopyStep, base_assets: BaseAssets, refused: Refused,
    convert: Convert,
) -> None:  # fmt: skip
    step, search = copy_step(case), Search(hf_assets=base_assets(case, **changes))
    error = refused(step, errors.ArchitectureMismatch, search=search)
    assert said in error.what
    assert "--architecture run" in error.hint

    converted = convert(step, search=search, architecture="run")
    written = json.loads((converted.published / "config.json").read_text())
    key, _, values = said.partition(": base ")
    told = values.partition(", run ")[2]
    assert said in converted.manifest["accepted"]["architecture"]
    if told == "None":
        assert not written.get(key) or key == "rope_parameters"
        assert written["rope_parameters"] == {"rope_theta": 1_000_000.0, "rope_type": "default"}
        return
    written |= written["rope_parameters"]
    found = sorted(set(written[key])) if key == "layer_types" and key in written else written.get(key, told)
    assert str(float(found) if key == "rope_theta" else found) == told
    assert converted.check("forward")["verdict"] == "passed"


def test_a_run_that_recorded_no_theta_says_that_it_was_taken_from_the_base(
    copy_step: CopyStep, base_assets: BaseAssets, convert: Convert
) -> None:
    converted = convert(copy_step(OLD), search=Search(hf_assets=base_assets(OLD, rope_theta=10_000)))
    assert "rope_theta" in converted.check("independence")["reason"]
    assert any("not checked independently" in text for text in converted.warnings())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda layer: layer["attention"]["inner_attention"].update(window_size=[128, 0]), "window_size [128, 0], not [-1, 0]"),
        (lambda layer: layer["attention"]["qk_norm"].update(eps=1e-7), "rms_norm_eps (1e-06 and 1e-07)"),
        (lambda layer: layer["ffn_norm"].update(eps=0.0), "rms_norm_eps (1e-06 and 0.0)"),
        (lambda layer: layer["attention"]["rope"].update(theta=10_000.0), "rope_theta (1000000.0 and 10000.0)"),
    ],
    ids=["a window", "eps", "no eps", "theta"],
)  # fmt: skip
def test_a_record_of_layers_that_hf_has_no_place_for_is_refused_whatever_the_forward_check_sees(
    change: Callable[[dict[str, Any]], Any], said: str, copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(TIED)
    edit_json(TIED.run_config(step.parents[2]), lambda run: change(run["model_spec"]["model"]["layers"][1]))
    assert said in refused(step, errors.UnsupportedModel, forward_check="off").what


def test_what_a_run_recorded_at_length_is_said_in_brief(copy_step: CopyStep, convert: Convert) -> None:
    step = copy_step(TIED)
    modules = [f"their.module_{number}" for number in range(20_000)]
    edit_json(TIED.run_config(step.parents[2]), lambda run: run.setdefault("override", {}).update(imports=modules))
    converted = convert(step)
    assert "override.imports their.module_0" in converted.check("independence")["reason"]
    assert len(json.dumps(converted.events)) < 50_000, "more than 64 KiB in a line are no event to the daemon"


def test_a_record_of_other_sizes_than_the_tensors_is_refused(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(OLD)
    edit_json(step.parent / "config.json", lambda said: said["model"].update(hidden_size=96, head_dim=32))
    assert "hidden_size: recorded 96, tensors 72" in refused(step, errors.ArchitectureMismatch).what


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("unknown_tensor", errors.UnknownTensor, "vision_proj.weight"),
        ("lora", errors.UnsupportedModel, "LoRA weights"),
        ("fused_qkv", errors.UnsupportedModel, "wqkv.weight"),
        ("untied_values", errors.TiedWeightsDiffer, "lm_head.weight"),
        (
            "nan",
            errors.NonFiniteTensor,
            "model.layers.1.mlp.down_proj.weight (1 NaN, 0 infinite); in the checkpoint layers.1.feed_forward.w2.weight",
        ),
        ("inf", errors.NonFiniteTensor, "model.layers.2.mlp.experts.4.up_proj.weight (0 NaN, 1 infinite)"),
        ("moe_bias", errors.RoutingDrift, "0.5"),
        ("moe_bias_old", errors.RoutingDrift, "0.5"),
    ],
)
def test_tensors_that_hf_cannot_be_given_are_named(
    name: str, kind: type[errors.ConversionError], text: str, copy_step: CopyStep, refused: Refused
) -> None:
    assert text in refused(copy_step(BY_NAME[name]), kind).what


def test_routing_drift_is_published_when_allowed_and_recorded(copy_step: CopyStep, convert: Convert) -> None:
    converted = convert(copy_step(BY_NAME["moe_bias"]), allow_routing_drift=True)
    assert converted.manifest["accepted"] == {"routing_drift": True}
    assert converted.check("balancing_bias")["verdict"] == "accepted"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_values_that_the_dtype_cannot_hold_are_refused(dtype: str, copy_step: CopyStep, refused: Refused) -> None:
    error = refused(copy_step(BY_NAME["overflow"]), errors.CastOverflow, dtype=dtype)
    assert "1 finite values do not fit" in error.what
    assert "model.embed_tokens.weight" in error.what


def test_an_old_and_a_new_name_for_one_tensor_are_refused(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(OLD)
    save_changed(step, lambda states: states.update({"lm_head.weight": states["output.weight"].clone()}))
    assert "same tensor" in refused(step, errors.UnknownTensor).what


@pytest.mark.parametrize("name", ["layers.1.feed_forward.w3.weight", "norm.weight", "layers.0.attention.wk.weight",
                                  "layers.0.feed_forward.w1.weight", "tok_embeddings.weight", "layers.2.ffn_norm.weight"])  # fmt: skip
def test_a_tensor_that_is_not_in_the_checkpoint_is_missed(name: str, copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(OLD)
    save_changed(step, lambda states: states.pop(name))
    with pytest.raises(errors.ConversionError) as caught:
        refused.convert(step)
    assert isinstance(caught.value, errors.PlanMismatch | errors.UnsupportedModel), repr(caught.value)


def test_a_tensor_of_another_shape_is_named(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(OLD)
    save_changed(step, lambda states: states.update({"layers.1.feed_forward.w3.weight": torch.zeros(93, 72)}))
    assert "model.layers.1.mlp.up_proj.weight" in refused(step, errors.PlanMismatch).what


def test_recorded_rows_that_are_not_the_embeddings_are_refused(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(FIGURES)
    edit_json(FIGURES.run_config(step.parents[2]), lambda said: said["model"].update(padded_vocab_size=637))
    assert "recorded 637 rows, the embedding has 638" in refused(step, errors.VocabularyMismatch).what
    step = copy_step(TIED, to=step.parents[2])
    edit_json(TIED.run_config(step.parents[2]), lambda said: said["model_spec"]["model"].update(vocab_size=639))
    assert "639" in refused(step, errors.VocabularyMismatch).what


def test_recorded_tokens_that_are_not_the_tokenizers_are_refused(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(FIGURES)
    edit_json(FIGURES.run_config(step.parents[2]), lambda said: said["model"].update(tokenizer_added_tokens=5))
    assert "recorded 601 tokens, the tokenizer knows 600" in refused(step, errors.VocabularyMismatch).what


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(
    copy_step: CopyStep, checkpoints: Path, tmp_path: Path, refused: Refused
) -> None:
    folder = tmp_path / "longer"
    shutil.copytree(TIED.tokenizer(checkpoints), folder)
    rows = KINDS["dense_tied"].rows

    def lengthen(said: dict[str, Any]) -> None:
        token = said["added_tokens"][-1]
        said["added_tokens"] += [token | {"id": i, "content": f"<{i}>"} for i in range(token["id"] + 1, rows + 1)]

    edit_json(folder / "tokenizer.json", lengthen)
    error = refused(copy_step(TIED), errors.VocabularyMismatch, search=Search(tokenizer=folder))
    assert f"knows {rows + 1} tokens, the embedding has {rows} rows" in error.what
    assert error.path == str(folder)


def test_a_model_of_another_family_is_refused_by_the_conversion_and_by_a_dry_run(
    copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(OLD)
    save_changed(step, lambda states: [states.pop(name) for name in [*states] if name.endswith(".q_norm.weight")])
    assert "another model than Qwen3" in refused(step, errors.UnsupportedModel).what
    with pytest.raises(errors.UnsupportedModel, match="another model than Qwen3"):
        preview(step, Options())
