"""Qwen1.5-MoE and Qwen2-MoE: experts by their shares of all experts, beside one that all tokens share."""

from __future__ import annotations

from quantcore.architectures.base import EXPERTS, SHARED, Architecture, Config, register
from quantcore.architectures.qwen2 import QWEN2
from quantcore.errors import UnknownArchitecture
from quantcore.ggufkv import Value, u32

# Key after the architecture's name, and the field of config.json.
LENGTHS = (
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
)


def lengths(config: Config, name: str) -> dict[str, Value]:
    """Return the lengths of experts; raises `UnknownArchitecture` for layers without any."""
    require_experts_everywhere(config)
    if config.get("norm_topk_prob"):
        raise UnknownArchitecture("norm_topk_prob is set, which GGUF cannot say of qwen2moe")
    return {f"{name}.{key}": u32(config[field]) for key, field in LENGTHS}


def require_experts_everywhere(config: Config) -> None:
    """Raise `UnknownArchitecture` where some layers have no experts, which GGUF cannot say."""
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise UnknownArchitecture("mlp_only_layers or decoder_sparse_step leave layers without experts")


QWEN2MOE = register(
    Architecture(
        name="qwen2moe",
        hf_classes={
            "Qwen2MoeForCausalLM": {
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6,
                "num_key_value_heads": 16,
                "num_experts": 60,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 1408,
                "shared_expert_intermediate_size": 5632,
            }
        },
        rope="neox",
        block=QWEN2.block,
        states_head_size=False,
        extra_hparams=lengths,
        experts=(*EXPERTS, *SHARED),
        shares_add_up=False,
        splits_length=True,
    )
)
