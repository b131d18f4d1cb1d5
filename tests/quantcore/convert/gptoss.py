"""A tiny gpt-oss with seeded weights: experts in MXFP4 as they are published, or in plain numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

GPT_OSS: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "attention_bias": True,
    "sliding_window": 12,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_theta": 1000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 8.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 16,
        "truncate": True,
    },
    "swiglu_limit": 7.0,
}
MXFP4 = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
# By nibble: one bit of sign, two of exponent, one of mantissa.
NIBBLES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
NIBBLES = np.concatenate([NIBBLES, -NIBBLES])


def attention_shapes(config: dict[str, Any], block: str) -> dict[str, tuple[int, ...]]:
    heads, kv_heads, size = (config[f] for f in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    biases = {"q": heads * size, "k": kv_heads * size, "v": kv_heads * size, "o": config["hidden_size"]}
    shapes: dict[str, tuple[int, ...]] = {f"{block}self_attn.{p}_proj.bias": (n,) for p, n in biases.items()}
    return shapes | {f"{block}self_attn.sinks": (heads,)}


def expert_shapes(config: dict[str, Any], block: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of router and experts; those of matrices in MXFP4 are of their bytes."""
    n, width, inner = (config[f] for f in ("num_local_experts", "hidden_size", "intermediate_size"))
    part = f"{block}mlp.experts."
    shapes: dict[str, tuple[int, ...]] = {
        f"{block}mlp.router.weight": (n, width),
        f"{block}mlp.router.bias": (n,),
        f"{part}gate_up_proj_bias": (n, 2 * inner),
        f"{part}down_proj_bias": (n, width),
    }
    for name, outputs, inputs in (("gate_up_proj", 2 * inner, width), ("down_proj", width, inner)):
        if config.get("quantization_config"):
            shapes[f"{part}{name}_blocks"] = (n, outputs, inputs // 32, 16)
            shapes[f"{part}{name}_scales"] = (n, outputs, inputs // 32)
        else:
            shapes[f"{part}{name}"] = (n, inputs, outputs)
    return shapes


def draw(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return weights large enough that the clamp, the sinks and every bias show in the result."""
    if name.endswith("_blocks"):
        return random.integers(0, 256, shape, dtype=np.uint8)
    if name.endswith("_scales"):
        return random.integers(122, 127, shape, dtype=np.uint8)
    spread = 1.5 if name.endswith(("sinks", "gate_up_proj_bias")) else 0.3
    return (random.standard_normal(shape) * spread + ("norm" in name)).astype(np.float32)


def unpacked(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the numbers of packed experts, float64 `(experts, inputs, outputs)` as plain ones are stored.

    Each byte holds two neighbours, the first in its low half.
    """
    pairs = np.stack([NIBBLES[blocks & 15], NIBBLES[blocks >> 4]], axis=-1)
    rows = pairs.reshape(*blocks.shape[:-1], 32) * np.ldexp(1.0, scales.astype(int) - 127)[..., None]
    return rows.reshape(*blocks.shape[:2], -1).swapaxes(1, 2)  # (experts, inputs, outputs)


WORD = r"[^\r\n\p{L}\p{N}]?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"{WORD}{UPPER}*{LOWER}+{ENDING}|{WORD}{UPPER}+{LOWER}*{ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|startoftext|>", "<|channel|>", "<|return|>")
TEMPLATE = "{% for message in messages %}<|channel|>{{ message.content }}<|return|>{% endfor %}"


def write_tokenizer(directory: Path, byte_level: dict[str, Any]) -> None:
    """Write the tokenizer of 256 bytes cut as o200k cuts, with one merge and the special tokens."""
    vocab = {text: index for text, index in byte_level["model"]["vocab"].items() if index < 257}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": 257 + n, "content": text, "special": True, **plain} for n, text in enumerate(SPECIAL)]
    split = {"type": "Split", "pattern": {"Regex": O200K}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["t", "h"]]},
    }
    start, _, end = SPECIAL
    config = {"bos_token": start, "eos_token": end, "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
