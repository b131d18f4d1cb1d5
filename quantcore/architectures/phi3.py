"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: q, k and v in one matrix, gate and up in another.

The longer ones divide their frequencies by two lists of factors (longrope): one for contexts of the length
that the model was first trained with, one for longer ones. Ding et al. 2024, https://arxiv.org/abs/2402.13753.
The sliding window of some of them is written, but llama.cpp switches it off while it reads the file, since
files of before have wrong ones (its pull request 13676): every layer sees all, and therefore here too.
"""

from __future__ import annotations

import math

from quantcore.architectures.base import Architecture, Config, register, require_plain_heads
from quantcore.architectures.hparams import LONG_ROPE, rope_parameters
from quantcore.errors import UnknownArchitecture
from quantcore.ggufkv import Value, f32, u32


def rotated(config: Config) -> int:
    """Return how many elements of a head are rotated."""
    share = float(rope_parameters(config).get("partial_rotary_factor") or 1.0)
    return int(share * config["hidden_size"]) // int(config["num_attention_heads"])


def common(config: Config, name: str) -> dict[str, Value]:
    """Return the metadata before the file type, in the order of llama.cpp's converter."""
    require_plain_heads(config)
    rope = rope_parameters(config)
    values = {
        "context_length": u32(config["max_position_embeddings"]),
        "rope.scaling.original_context_length": u32(rope["original_max_position_embeddings"]),
        "embedding_length": u32(config["hidden_size"]),
        "feed_forward_length": u32(config["intermediate_size"]),
        "block_count": u32(config["num_hidden_layers"]),
        "attention.head_count": u32(config["num_attention_heads"]),
        "attention.head_count_kv": u32(config["num_key_value_heads"]),
        "attention.layer_norm_rms_epsilon": f32(config["rms_norm_eps"]),
        "rope.dimension_count": u32(rotated(config)),
        "rope.freq_base": f32(rope["rope_theta"]),
    }
    return {f"{name}.{key}": value for key, value in values.items()}


def sliding_window(config: Config, name: str) -> dict[str, Value]:
    """Return the window, 0 if there is none."""
    return {f"{name}.attention.sliding_window": u32(config.get("sliding_window") or 0)}


def attention_factor(config: Config, name: str) -> dict[str, Value]:
    """Return what a longrope multiplies cosines and sines by: sqrt(1 + ln(scale) / ln(original length)).

    Raises `UnknownArchitecture` for other ropes, and for factors that do not fit what is rotated.
    """
    rope = rope_parameters(config)
    if rope["rope_type"] == "default":
        return {}
    if rope["rope_type"] not in LONG_ROPE:
        raise UnknownArchitecture(f"rope scaling {rope['rope_type']!r} is not known; {name} has longrope")
    for field in ("long_factor", "short_factor"):
        if len(rope[field]) != rotated(config) // 2:
            raise UnknownArchitecture(
                f"{field} has {len(rope[field])} numbers, {rotated(config) // 2} pairs are rotated"
            )
    original = rope["original_max_position_embeddings"]
    scale = config["max_position_embeddings"] / original
    factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return {f"{name}.rope.scaling.attn_factor": f32(rope.get("attention_factor") or factor)}


PHI3 = register(
    Architecture(
        name="phi3",
        hf_classes={
            "Phi3ForCausalLM": {
                "max_position_embeddings": 4096,
                "original_max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
            }
        },
        rope="neox",
        block=(
            "attn_norm.weight",
            "attn_qkv.weight",
            "attn_output.weight",
            "ffn_norm.weight",
            "ffn_up.weight",
            "ffn_down.weight",
        ),
        optional=("attn_qkv.bias",),
        fused={"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_up": ("ffn_gate", "ffn_up")},
        states_head_size=False,
        common=common,
        extra_hparams=sliding_window,
        leading=attention_factor,
        added_as_stated=True,
    )
)
