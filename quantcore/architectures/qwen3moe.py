"""Qwen3-MoE: Qwen3's attention, and experts whose shares add up to one."""

from __future__ import annotations

from quantcore.architectures.base import EXPERTS, Architecture, Config, register
from quantcore.architectures.qwen2moe import require_experts_everywhere
from quantcore.architectures.qwen3 import QWEN3
from quantcore.errors import UnknownArchitecture
from quantcore.ggufkv import Value, u32


def length(config: Config, name: str) -> dict[str, Value]:
    """Return the length of experts; raises `UnknownArchitecture` for what llama.cpp does otherwise."""
    require_experts_everywhere(config)
    if not config.get("norm_topk_prob"):
        raise UnknownArchitecture("norm_topk_prob is not set, which GGUF cannot say of qwen3moe")
    return {f"{name}.expert_feed_forward_length": u32(config["moe_intermediate_size"])}


QWEN3MOE = register(
    Architecture(
        name="qwen3moe",
        hf_classes={
            "Qwen3MoeForCausalLM": {
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6,
                "num_key_value_heads": 4,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "moe_intermediate_size": 768,
            }
        },
        rope="neox",
        block=QWEN3.block,
        extra_hparams=length,
        experts=EXPERTS,
        splits_length=True,
    )
)
