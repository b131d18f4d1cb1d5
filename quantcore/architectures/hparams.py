"""Hyperparameters that all families share: from config.json to GGUF metadata, rope scaling included.

Keys and types are those of the GGUF specification,
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#metadata.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.errors import UnknownArchitecture
from quantcore.ggufkv import Value, f32, string, u32

Config = Mapping[str, Any]

# Key after the architecture's name, the config.json field it comes from, and its type.
BEFORE_ROPE = (
    ("block_count", "num_hidden_layers", u32),
    ("context_length", "max_position_embeddings", u32),
    ("embedding_length", "hidden_size", u32),
    ("feed_forward_length", "intermediate_size", u32),
    ("attention.head_count", "num_attention_heads", u32),
    ("attention.head_count_kv", "num_key_value_heads", u32),
)

ROPE_BASE = 10000.0  # that both take where a model does not say

LONG_ROPE = ("longrope", "su")  # one rope kind, and what it was called at first

# Rope kinds that change nothing in the metadata: llama3 becomes a tensor of its own.
UNSCALED = ("default", "none", "llama3")


def common_hparams(config: Config, name: str) -> dict[str, Value]:
    """Return the metadata every family has, under `<name>.`, in the order of llama.cpp's converter."""
    values = {key: make(config[field]) for key, field, make in BEFORE_ROPE if config.get(field) is not None}
    rope = rope_parameters(config)
    values |= rope_scaling(rope)
    values["rope.freq_base"] = f32(rope["rope_theta"])
    if local_rope_base(config) is not None:
        values["rope.freq_base_swa"] = f32(local_rope_base(config))
    if config.get("rms_norm_eps") is not None:
        values["attention.layer_norm_rms_epsilon"] = f32(config["rms_norm_eps"])
    values |= _experts(config)
    if config.get("head_dim") is not None:
        values["attention.key_length"] = u32(config["head_dim"])
        values["attention.value_length"] = u32(config["head_dim"])
    return {f"{name}.{key}": value for key, value in values.items()}


def n_experts(config: Config) -> int:
    """Return how many experts a layer has, 0 for a dense model."""
    return int(config.get("num_local_experts") or config.get("num_experts") or 0)


def _experts(config: Config) -> dict[str, Value]:
    if not n_experts(config):
        return {}
    return {
        "expert_count": u32(n_experts(config)),
        "expert_used_count": u32(config["num_experts_per_tok"]),
    }


def rope_parameters(config: Config) -> dict[str, Any]:
    """Return rope settings in one form: newer configurations have `rope_parameters`, older ones
    `rope_theta` and `rope_scaling`, whose kind was once called `type`. Where layers with a window have their
    own, these are the settings of the others.
    """
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = dict(stated.get("full_attention") or {} if _by_layer(stated) else stated)
    rope.setdefault("rope_type", rope.get("type", "default"))
    if config.get("partial_rotary_factor") is not None:
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    rope.setdefault("rope_theta", config.get("rope_theta") or ROPE_BASE)
    if rope.get("original_max_position_embeddings") is None:
        original = config.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        rope["original_max_position_embeddings"] = original
    return rope


def _by_layer(stated: Mapping[str, Any]) -> bool:
    return "full_attention" in stated or "sliding_attention" in stated


def local_rope_base(config: Config) -> Any:
    """Return the rope base that layers with a sliding window have for themselves, None if they have none."""
    stated = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    return stated.get("rope_theta", config.get("rope_local_base_freq"))


def rope_scaling(rope: Mapping[str, Any]) -> dict[str, Value]:
    """Return the metadata of rope scaling; raises `UnknownArchitecture` for kinds that are not known."""
    kind = rope["rope_type"]
    if kind in UNSCALED:
        return {}
    if kind not in ("linear", "yarn") or rope.get("factor") is None:
        raise UnknownArchitecture(f"rope scaling {kind!r} is not known; there are linear, llama3, yarn")
    values = {"rope.scaling.type": string(kind), "rope.scaling.factor": f32(rope["factor"])}
    if kind == "yarn":
        values["rope.scaling.original_context_length"] = u32(rope["original_max_position_embeddings"])
        values |= _yarn_details(rope)
    return values


def _yarn_details(rope: Mapping[str, Any]) -> dict[str, Value]:
    attention = rope.get("attention_factor", rope.get("attn_factor"))
    details = {
        "yarn_ext_factor": rope.get("extrapolation_factor"),
        "yarn_attn_factor": attention,
        "yarn_beta_fast": rope.get("beta_fast"),
        "yarn_beta_slow": rope.get("beta_slow"),
    }
    return {f"rope.scaling.{key}": f32(value) for key, value in details.items() if value is not None}


def rope_factors(config: Config, size: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return the tensors that rope scaling becomes, by name: float32 `(size / 2,)` for the `size` rotated
    elements of a head.
    """
    rope = rope_parameters(config)
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": llama3_factors(config, size)}
    if rope["rope_type"] not in LONG_ROPE:
        return {}
    return {
        f"rope_factors_{length}.weight": np.array(rope[f"{length}_factor"], dtype=np.float32)
        for length in ("long", "short")
    }


def llama3_factors(config: Config, size: int) -> npt.NDArray[np.float32]:
    """Return what each frequency of rope of the llama3 kind is divided by, float32 `(size / 2,)`.

    Short wavelengths stay, long ones are divided by `factor`, those between are blended linearly in
    original length / wavelength. Source: Llama 3.1 release, `apply_scaling`.
    """
    rope = rope_parameters(config)
    factor, original = float(rope.get("factor", 8.0)), float(rope["original_max_position_embeddings"] or 8192)
    low, high = float(rope.get("low_freq_factor", 1.0)), float(rope.get("high_freq_factor", 4.0))
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    wavelengths = 2 * math.pi * np.float32(rope["rope_theta"]) ** exponents
    smooth = (original / wavelengths - low) / (high - low)
    blended = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths < original / high, 1.0, blended)
    return np.where(wavelengths > original / low, factor, factors).astype(np.float32)
