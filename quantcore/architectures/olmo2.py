"""OLMo 2: norms behind attention and feed-forward instead of before, and on queries and keys as a whole."""

from __future__ import annotations

from quantcore.architectures.base import BLOCK, Architecture, register

NORMS = ("attn_q_norm.weight", "attn_k_norm.weight", "post_attention_norm.weight", "post_ffw_norm.weight")

OLMO2 = register(
    Architecture(
        name="olmo2",
        hf_classes={"Olmo2ForCausalLM": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}},
        rope="neox",
        block=(*(part for part in BLOCK if not part.endswith("_norm.weight")), *NORMS),
        states_head_size=False,
        wide_norms=True,
        unknown_keys=("attention.sliding_window",),  # OLMo 3
    )
)
