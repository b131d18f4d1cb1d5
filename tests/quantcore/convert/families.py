"""Tiny Hugging Face models with seeded weights, one of each family, written as real directories."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tests.quantcore.convert import gemma, gptoss

SMALL = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10.0,
    "factor": 8.0,
    "low_freq_factor": 2.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# Half of eight elements, or three quarters of sixteen, are rotated.
PHI3_LONG: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_size": 64,
    "rope_theta": 100.0,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {
        "type": "longrope",
        "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
        "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.5],
    },
    "tie_word_embeddings": True,
}
STABLELM: dict[str, Any] = {
    "architectures": ["StableLmForCausalLM"],
    "model_type": "stablelm",
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_parameters": LLAMA3_ROPE},
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "rope_theta": 100.0,
        "head_dim": 16,
        "sliding_window": 5,  # which llama.cpp has no place for
    },
    "linear": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_theta": 100.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "attention_bias": True,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rope_theta": 100.0,
        "tie_word_embeddings": True,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "rope_theta": 100.0,
        "head_dim": 16,
    },
    "granite": {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "rope_theta": 100.0,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.5,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.0,
    },
    "smollm3": {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "rope_theta": 100.0,
        "num_hidden_layers": 4,
        "no_rope_layers": [1, 1, 1, 0],
        "tie_word_embeddings": True,
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "rope_theta": 100.0,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen2moe": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "rope_theta": 100.0,
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
    },
    "qwen3moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "rope_theta": 100.0,
        "head_dim": 16,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
    "olmo2": {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "rope_theta": 100.0},
    "yarn": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rope_theta": 10.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "rope_theta": 100.0,
        "original_max_position_embeddings": 64,
        "sliding_window": 8,
    },
    # Its first factors are for contexts of up to 256 tokens, as llama.cpp counts them.
    "phi3short": {**PHI3_LONG, "max_position_embeddings": 2048, "original_max_position_embeddings": 256},
    "phi3long": {**PHI3_LONG, "original_max_position_embeddings": 16},
    "stablelm": {
        **STABLELM,
        "use_qkv_bias": True,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "use_parallel_residual": False,
    },
    "stablelm12b": {
        **STABLELM,
        "rope_theta": 10000.0,
        "qk_layernorm": True,
        "use_parallel_residual": True,
        "head_dim": None,
    },
    # As it was called before it was part of Transformers, which then had other names.
    "stablelm, older": {
        "architectures": ["StableLMEpochForCausalLM"],
        "model_type": "stablelm_epoch",
        "norm_eps": 1e-5,
        "rope_pct": 0.5,
        "rope_theta": 10000.0,
    },
    "gpt-oss": gptoss.GPT_OSS | gptoss.MXFP4,
    "gpt-oss, plain": gptoss.GPT_OSS,
    "gemma2": gemma.GEMMA2,
    "gemma3": gemma.GEMMA3,
}


def config_of(family: str) -> dict[str, Any]:
    return SMALL | FAMILIES[family]


def weights_of(config: dict[str, Any], seed: int = 7) -> dict[str, np.ndarray]:
    """Return float32 weights under Hugging Face names, large enough that every part shows in the result."""
    random = np.random.default_rng(seed)
    width = config["hidden_size"]
    size = config.get("head_dim") or width // config["num_attention_heads"]
    q, kv = size * config["num_attention_heads"], size * config["num_key_value_heads"]
    kind = config["architectures"][0]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        shapes |= {
            f"{block}{'post_feedforward' if kind == 'Olmo2ForCausalLM' else 'input'}_layernorm.weight": (
                width,
            ),
            f"{block}post_attention_layernorm.weight": (width,),
            f"{block}self_attn.q_proj.weight": (q, width),
            f"{block}self_attn.k_proj.weight": (kv, width),
            f"{block}self_attn.v_proj.weight": (kv, width),
            f"{block}self_attn.o_proj.weight": (width, q),
            **feed_forward_of(config, block),
        }
        if config.get("attention_bias"):
            shapes[f"{block}self_attn.o_proj.bias"] = (width,)
        if kind in {"Qwen2ForCausalLM", "Qwen2MoeForCausalLM"} or config.get("attention_bias"):
            shapes |= {f"{block}self_attn.{p}_proj.bias": (n,) for p, n in (("q", q), ("k", kv), ("v", kv))}
        if kind in {"Qwen3ForCausalLM", "Qwen3MoeForCausalLM"}:
            shapes |= {f"{block}self_attn.{p}_norm.weight": (size,) for p in "qk"}
        if kind == "Olmo2ForCausalLM":
            shapes |= {f"{block}self_attn.{p}_norm.weight": (n,) for p, n in (("q", q), ("k", kv))}
        if kind == "GptOssForCausalLM":
            shapes |= gptoss.attention_shapes(config, block)
        if kind.startswith("Gemma"):
            shapes |= gemma.shapes_of(config, block)
    draws = {
        "GptOssForCausalLM": gptoss.draw,
        "Gemma2ForCausalLM": gemma.draw,
        "Gemma3ForCausalLM": gemma.draw,
    }
    if kind in draws:
        return {name: draws[kind](random, name, shape) for name, shape in shapes.items()}
    shapes = RESHAPED.get(kind, lambda _config, same: same)(config, shapes)
    return {
        name: (random.standard_normal(shape) * 0.3 + ("norm" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }


def fused(_config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes with q, k and v in one matrix, and gate and up in another."""
    wholes = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
    wholes |= {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        part = name.split(".")[-2]
        whole = name.replace(part, wholes.get(part, part))
        found[whole] = (found[whole][0] + shape[0], *shape[1:]) if whole in found else shape
    return found


def layer_normed(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a StableLM: biases of norms, of q, k and v, and norms of heads, as it is asked."""
    found, size = dict(shapes), config["hidden_size"] // config["num_attention_heads"]
    for name, shape in shapes.items():
        if name.endswith("post_attention_layernorm.weight") and config.get("use_parallel_residual"):
            del found[name]
        elif "norm" in name:
            found[name.replace("weight", "bias")] = shape
        part = name.split(".")[-2]
        if part in {"q_proj", "k_proj", "v_proj"} and config.get("use_qkv_bias"):
            found[name.replace("weight", "bias")] = shape[:1]
        if part in {"q_proj", "k_proj"} and config.get("qk_layernorm"):
            norms = name.replace(f"{part}.weight", f"{part[0]}_layernorm.norms")
            found |= {f"{norms}.{head}.weight": (size,) for head in range(shape[0] // size)}
    return found


RESHAPED = {
    "Phi3ForCausalLM": fused,
    "StableLmForCausalLM": layer_normed,
    "StableLMEpochForCausalLM": layer_normed,
}


def feed_forward_of(config: dict[str, Any], block: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer's feed-forward part: dense, or a mixture of experts."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    if config["architectures"] == ["GptOssForCausalLM"]:
        return gptoss.expert_shapes(config, block)
    experts = config.get("num_local_experts") or config.get("num_experts")
    if not experts:
        return _gated(f"{block}mlp.", ("gate_proj", "up_proj", "down_proj"), width, inner)
    if config.get("num_local_experts"):
        part, names = f"{block}block_sparse_moe.", ("w1", "w3", "w2")
    else:
        part, names, inner = (
            f"{block}mlp.",
            ("gate_proj", "up_proj", "down_proj"),
            config["moe_intermediate_size"],
        )
    shapes: dict[str, tuple[int, ...]] = {f"{part}gate.weight": (experts, width)}
    for expert in range(experts):
        shapes |= _gated(f"{part}experts.{expert}.", names, width, inner)
    shared = config.get("shared_expert_intermediate_size")
    if shared:
        shapes |= _gated(f"{part}shared_expert.", names, width, shared)
        shapes[f"{part}shared_expert_gate.weight"] = (1, width)
    return shapes


def _gated(part: str, names: tuple[str, str, str], width: int, inner: int) -> dict[str, tuple[int, ...]]:
    gate, up, down = (f"{part}{name}.weight" for name in names)
    return {gate: (inner, width), up: (inner, width), down: (width, inner)}


def safetensors_bytes(tensors: dict[str, np.ndarray], dtype: str = "F32") -> bytes:
    """Return a safetensors file; "BF16" cuts float32 to its upper half. Bytes stay bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    payload = b""
    for name, array in tensors.items():
        kind = "U8" if array.dtype == np.uint8 else dtype
        if kind == "U8":
            raw = array.tobytes()
        elif kind == "BF16":
            raw = (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16).tobytes()
        else:
            raw = array.astype({"F32": np.float32, "F16": np.float16}[kind]).tobytes()
        place = [len(payload), len(payload) + len(raw)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": place}
        payload += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


# What the published library asks of an added token.
PLAIN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def byte_tokenizer() -> dict[str, Any]:
    """Return a byte-level tokenizer.json: 256 bytes, three merges and one special token."""
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in letters]
    alphabet = [chr(byte) for byte in letters] + [chr(256 + place) for place in range(len(rest))]
    vocab = {text: index for index, text in enumerate([*alphabet, "th", "the", "Ġthe"])}
    return {
        "added_tokens": [{"id": 259, "content": "<s>", "special": True, **PLAIN}],
        "pre_tokenizer": {
            "type": "ByteLevel",
            "use_regex": True,
            **dict.fromkeys(("add_prefix_space", "trim_offsets"), False),
        },
        "model": {"type": "BPE", "vocab": vocab, "merges": [["t", "h"], ["th", "e"], ["Ġ", "the"]]},
    }


# What the published library needs to take the tokenizer for no more than it is.
TOKENIZER_CONFIG = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<s>") | {
    "tokenizer_class": "GPT2Tokenizer"
}


def write_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    (directory / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))


def write_model(directory: Path, family: str, dtype: str = "F32") -> dict[str, np.ndarray]:
    """Write a model of `family` into `directory` and return its weights."""
    config = config_of(family)
    weights = weights_of(config)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(safetensors_bytes(weights, dtype))
    if config["architectures"] == ["GptOssForCausalLM"]:
        gptoss.write_tokenizer(directory, byte_tokenizer())
    elif config["architectures"][0].startswith("Gemma"):
        gemma.write_tokenizer(directory)
    else:
        write_tokenizer(directory)
    return weights


def write_seeing(directory: Path, dtype: str = "BF16", decoder: str = "language_model.model.") -> None:
    """Write a Gemma 3 that sees; weights of its text decoder have names that begin with `decoder`."""
    weights = write_model(directory, "gemma3", dtype)
    named = {name.replace("model.", decoder, 1): array for name, array in weights.items()}
    outer = decoder.removesuffix("model.").removesuffix("language_model.")
    named[f"{outer}vision_tower.vision_model.post_layernorm.weight"] = np.ones(4, dtype=np.float32)
    named[f"{outer}multi_modal_projector.mm_soft_emb_norm.weight"] = np.ones(4, dtype=np.float32)
    (directory / "model.safetensors").write_bytes(safetensors_bytes(named, dtype))
    (directory / "config.json").write_text(json.dumps(gemma.seeing(config_of("gemma3"))))
