"""Llama, Mistral and Mixtral, which GGUF calls by one name.

llama.cpp rotates neighbouring elements of a head for this name, so the rows of q and k are reordered on the
way in. Mistral's first models have a sliding window in config.json, of 4096 tokens in every layer. The
converter of llama.cpp does not write it, and under this name the engine heeds none even where a file states
it; so neither is done here, and beyond the window such models see more than they do in Transformers.
"""

from __future__ import annotations

from quantcore.architectures.base import BLOCK, EXPERTS, Architecture, Config, head_size, register
from quantcore.ggufkv import Value, u32


def sizes(config: Config, name: str) -> dict[str, Value]:
    """Return the two sizes that llama.cpp's converter writes for this family alone."""
    return {
        f"{name}.vocab_size": u32(config["vocab_size"]),
        f"{name}.rope.dimension_count": u32(head_size(config)),
    }


LLAMA = register(
    Architecture(
        name="llama",
        hf_classes={
            "LlamaForCausalLM": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
            "MistralForCausalLM": {
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-6,
                "num_key_value_heads": 8,
            },
            "MixtralForCausalLM": {
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
                "num_key_value_heads": 8,
                "head_dim": None,  # not written unless it is stated
                "num_local_experts": 8,
                "num_experts_per_tok": 2,
            },
        },
        rope="normal",
        block=BLOCK,
        experts=EXPERTS,
        optional=(
            "attn_q.bias",
            "attn_k.bias",
            "attn_v.bias",
            "attn_output.bias",
            "ffn_gate.bias",
            "ffn_up.bias",
            "ffn_down.bias",
        ),
        interleaved=("attn_q", "attn_k"),
        extra_hparams=sizes,
    )
)
