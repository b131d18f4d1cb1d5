"""Qwen3, dense: RMS norm on each head of q and k before rope, no biases."""

from __future__ import annotations

from quantcore.architectures.base import BLOCK, Architecture, register

QWEN3 = register(
    Architecture(
        name="qwen3",
        hf_classes={
            "Qwen3ForCausalLM": {
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6,
                "head_dim": 128,
                "num_key_value_heads": 32,
            }
        },
        rope="neox",
        block=(*BLOCK, "attn_q_norm.weight", "attn_k_norm.weight"),
    )
)
