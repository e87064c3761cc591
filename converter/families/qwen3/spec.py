"""Owns what is known of Qwen3 without torch. Uses only the standard library.

The months are those of 2026 in which TorchTitan's main branch renamed a tensor.
"""

from types import SimpleNamespace
from typing import Any

from converter.families.family import FamilySpec, Shapes


def _adapter_config(shapes: Shapes, tied: bool) -> Any:
    experts = next((shape[0] for name, shape in shapes.items() if name.endswith(".w1_EFD")), 0)
    layer = SimpleNamespace(moe=SimpleNamespace(num_experts=experts) if experts else None)
    return SimpleNamespace(layers=[layer], enable_weight_tying=tied)


SPEC = FamilySpec(
    name="qwen3",
    title="Qwen3",
    models="Qwen3 models, dense and MoE",
    signature=(  # a decoder with norms on queries and keys
        r"layers\.\d+\.attention\.q_norm\.weight|model\.layers\.\d+\.self_attn\.q_norm\.weight",
        r"layers\.\d+\.attention\.qkv_linear\.wq\.weight|model\.layers\.\d+\.self_attn\.q_proj\.weight",
    ),
    renames=(
        (r"layers\.(\d+)\.attention\.w([qkv])\.weight", r"layers.\1.attention.qkv_linear.w\2.weight"),  # 04
        (r"output\.weight", r"lm_head.weight"),  # 04
        (r"layers\.(\d+)\.moe\.expert_bias", r"layers.\1.moe.expert_bias_E"),  # 05
        (
            r"layers\.(\d+)\.moe\.experts\.w([13])(?:_EFD)?",  # 06, 07
            r"layers.\1.moe.routed_experts.inner_experts.w\2_EFD",
        ),
        (r"layers\.(\d+)\.moe\.experts\.w2(?:_EDF)?", r"layers.\1.moe.routed_experts.inner_experts.w2_EDF"),  # 06, 07
    ),
    embedding="tok_embeddings.weight",
    head="lm_head.weight",
    hf_embedding="model.embed_tokens.weight",
    hf_head="lm_head.weight",
    hf_norm="model.norm.weight",
    no_place=r".*\.moe\.expert_bias_E",  # the balancing bias
    hf_types_without_place=frozenset({"qwen3_moe"}),
    adapter_sources=(
        "protocols/state_dict_adapter.py",
        "models/utils.py",
        "models/qwen3/state_dict_adapter.py",
    ),
    adapter_class="Qwen3StateDictAdapter",
    adapter_config=_adapter_config,
    left_out_modules=("torchtitan.models.qwen3.parallelize",),
    hf_folders=("qwen2", "qwen3", "qwen3_moe"),  # tokenizers of Qwen3 are Qwen2's
    tokenizer_classes=("Qwen2Tokenizer", "Qwen2TokenizerFast"),
)
