"""StableLM: layer norms with biases, and heads of which a part is rotated.

Stable LM 2 12B has a norm for each head of q and k, and no norm before its feed-forward part, which then
reads what attention reads. llama.cpp goes by the tensors in this, not by `use_parallel_residual`.
"""

from __future__ import annotations

from quantcore.architectures.base import (
    BLOCK,
    Architecture,
    Config,
    head_size,
    register,
    require_plain_heads,
)
from quantcore.architectures.hparams import ROPE_BASE, rope_parameters, rope_scaling
from quantcore.ggufkv import Value, boolean, f32, u32


def common(config: Config, name: str) -> dict[str, Value]:
    """Return the metadata before the file type, in the order of llama.cpp's converter.

    It leaves out the base and the scaling of rope, which models of this family have at their defaults; they
    are stated here where they differ.
    """
    require_plain_heads(config)
    rope = rope_parameters(config)
    share = rope.get("partial_rotary_factor") or config.get("rope_pct") or 0.25
    values = {
        "context_length": u32(config["max_position_embeddings"]),
        "embedding_length": u32(config["hidden_size"]),
        "block_count": u32(config["num_hidden_layers"]),
        "feed_forward_length": u32(config["intermediate_size"]),
        "rope.dimension_count": u32(int(float(share) * head_size(config))),
        "attention.head_count": u32(config["num_attention_heads"]),
        "attention.head_count_kv": u32(config["num_key_value_heads"]),
        "use_parallel_residual": boolean(bool(config["use_parallel_residual"])),
        "attention.layer_norm_epsilon": f32(config.get("norm_eps") or config["layer_norm_eps"]),
    }
    if rope["rope_theta"] != ROPE_BASE:
        values["rope.freq_base"] = f32(rope["rope_theta"])
    values |= rope_scaling(rope)
    return {f"{name}.{key}": value for key, value in values.items()}


STABLELM = register(
    Architecture(
        name="stablelm",
        hf_classes={
            "StableLmForCausalLM": {
                "max_position_embeddings": 4096,
                "layer_norm_eps": 1e-5,
                "num_key_value_heads": 32,
                "use_parallel_residual": False,
            },
            # The same before it became part of Transformers.
            "StableLMEpochForCausalLM": {
                "max_position_embeddings": 4096,
                "layer_norm_eps": 1e-5,
                "use_parallel_residual": True,
            },
        },
        rope="neox",
        norm="layer",
        block=(*(part for part in BLOCK if part != "ffn_norm.weight"), "attn_norm.bias"),
        optional=(
            "ffn_norm.weight",
            "ffn_norm.bias",
            "attn_q.bias",
            "attn_k.bias",
            "attn_v.bias",
            "attn_q_norm.weight",
            "attn_k_norm.weight",
        ),
        states_head_size=False,
        stacked_norms=True,
        common=common,
    )
)
