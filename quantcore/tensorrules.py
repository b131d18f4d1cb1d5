"""What a tensor is for and what may be done to it, by its name: llama.cpp's broad roles and exclusions."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

Role = Literal[
    "output",
    "token_embd",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_up",
    "ffn_gate",
    "ffn_down",
    "other",
]

# The first part that a name contains decides. Fused and latent projections hold values and go with them.
_ROLES: tuple[tuple[str, Role], ...] = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)

# Parts of names that are never quantized: small, or used otherwise than in a matrix product.
_KEPT = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    *(
        f"time_mix_{part}.weight"
        for part in (
            *("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2"),
            *("decay_w1", "decay_w2", "lerp_fused"),
        )
    ),
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
_KEPT_EXACTLY = frozenset({"position_embd.weight", "token_types.weight"})
_KEPT_OF = {
    "glm5-next": (
        "hc_",
        "indexer.attn_q_b",
        "indexer.attn_k",
        "indexer.proj",
        "indexer_compressor_gate",
        "indexer_compressor_ape",
        *(f"ssm_{part}.weight" for part in ("f_a", "f_b", "g_a", "g_b", "beta")),
        "attn_kv_a_mqa.weight",
        "attn_k_b.weight",
        "attn_v_b.weight",
    ),
}
_EIGHT_BITS_OF = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}
_LAYER = re.compile(r"^blk\.(\d{1,9})\.")

# Where a row is not whole blocks of the type on the left, the type on the right takes its place.
FALLBACK = {
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"),
        "IQ4_NL",
    ),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}

# Without an importance matrix a tensor of these comes out as noise; llama-quantize refuses to make it.
_NOISE_WITHOUT_IMATRIX = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})
# Of these, the arithmetic itself has no form without one, for whichever tensor.
_IMPOSSIBLE_WITHOUT_IMATRIX = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})
_EMBEDDINGS = frozenset({"token_embd.weight", "per_layer_token_embd.weight"})


def role(name: str) -> Role:
    """Return the role that the level's rules speak of."""
    if name == "output.weight":
        return "output"
    if name in _EMBEDDINGS:
        return "token_embd"
    return next((found for part, found in _ROLES if part in name), "other")


@lru_cache(maxsize=16)
def _kept(architecture: str) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, (*_KEPT, *_KEPT_OF.get(architecture, ())))))


def why_kept(name: str, shape: tuple[int, ...], architecture: str = "") -> str:
    """Return why a tensor of `shape` (numpy order) is never quantized, or nothing if it may be."""
    # Outer axes of one are no axes to ggml.
    if all(n == 1 for n in shape[:-1]):
        return "one-dimensional"
    if not name.endswith("weight"):
        return "not a weight"
    if name in _KEPT_EXACTLY or _kept(architecture).search(name):
        return "kept: small or not a matrix product"
    return ""


def wants_eight_bits(name: str, architecture: str) -> bool:
    """Say whether a tensor of this architecture gets Q8_0 in every mixture."""
    return any(part in name for part in _EIGHT_BITS_OF.get(architecture, ()))


def needs_imatrix(name: str, kind: str, level: str) -> bool:
    """Say whether llama-quantize refuses to make this tensor without an entry of an importance matrix."""
    if name == "output.weight" or name in _EMBEDDINGS:
        return kind in _IMPOSSIBLE_WITHOUT_IMATRIX
    return kind in _NOISE_WITHOUT_IMATRIX or (kind == "Q2_K" and level == "Q2_K_S")


def layer(name: str) -> int:
    """Return the layer number in `blk.N.`, or -1 outside the layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def file_order(name: str) -> tuple[int, str]:
    """Sort key of llama.cpp's files: tensors outside the layers first, then layer by layer, by name."""
    return layer(name), name
