"""What a tensor is for and what may be done to it, by its name: llama.cpp's broad roles and exclusions."""

from __future__ import annotations

import re

_ROLES = (
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
_LAYER = re.compile(r"^blk\.(\d+)\.")

# Where a row is not whole blocks of the type on the left, the type on the right takes its place.
FALLBACK = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def role(name: str) -> str:
    """Return the role that the level's rules speak of: output, token_embd, attn_v, ffn_down, ..., other."""
    if name == "output.weight":
        return "output"
    if name in {"token_embd.weight", "per_layer_token_embd.weight"}:
        return "token_embd"
    return next((found for part, found in _ROLES if part in name), "other")


def why_kept(name: str, n_dims: int) -> str:
    """Return why a tensor is never quantized, or nothing if it may be."""
    if n_dims < 2:
        return "one-dimensional"
    if not name.endswith("weight"):
        return "not a weight"
    if name in _KEPT_EXACTLY or any(part in name for part in _KEPT):
        return "kept: small or not a matrix product"
    return ""


def layer(name: str) -> int:
    """Return the layer number in `blk.N.`, or -1 outside the layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def file_order(name: str) -> tuple[int, str]:
    """Sort key of llama.cpp's files: tensors outside the layers first, then layer by layer, by name."""
    return layer(name), name
