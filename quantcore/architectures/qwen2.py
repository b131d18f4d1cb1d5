"""Qwen2 and Qwen2.5: biases on q, k and v."""

from __future__ import annotations

from quantcore.architectures.base import BLOCK, Architecture, register

QWEN2 = register(
    Architecture(
        name="qwen2",
        hf_classes={
            "Qwen2ForCausalLM": {
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6,
                "num_key_value_heads": 32,
            }
        },
        rope="neox",
        block=(*BLOCK, "attn_q.bias", "attn_k.bias", "attn_v.bias"),
        states_head_size=False,
    )
)
