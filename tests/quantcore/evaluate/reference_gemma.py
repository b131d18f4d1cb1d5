"""Gemma 2 and 3 once more: float64, one token and one head at a time, from Hugging Face's weights."""

from __future__ import annotations

import math

import numpy as np

GGUF = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
GGUF |= {f"{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}


def norm(x, weight, eps):
    return x / math.sqrt(np.mean(x * x) + eps) * (1 + weight)


def capped(x, cap):
    return cap * np.tanh(x / cap) if cap else x


def rotate(head, position, theta, factor):
    half = len(head) // 2
    angles = np.array([position / factor * theta ** (-i / half) for i in range(half)])
    first, second = head[:half], head[half:]
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)]
    )


def turning(config, layer):
    """Return window, rope base, and what positions are divided by, of a layer."""
    if config["model_type"] == "gemma2":
        return (config["sliding_window"] if layer % 2 == 0 else None), config["rope_theta"], 1.0
    if layer % 6 == 5:
        return None, config["rope_theta"], config["rope_scaling"]["factor"]
    return config["sliding_window"], config["rope_local_base_freq"], 1.0


def attention(config, w, layer, states, project):
    """Return what attention adds to each token, before its norm."""
    block, size, eps = f"model.layers.{layer}.self_attn.", config["head_dim"], config["rms_norm_eps"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    window, theta, factor = turning(config, layer)

    def turned(part, x, position):
        found = []
        for head in project(f"{block}{part}_proj", x).reshape(-1, size):
            weight = w.get(f"{block}{part}_norm.weight")
            own = head if weight is None else norm(head, weight, eps)
            found.append(rotate(own, position, theta, factor))
        return found

    keys = [turned("k", x, n) for n, x in enumerate(states)]
    values = [project(f"{block}v_proj", x).reshape(kv_heads, size) for x in states]
    found = []
    for position, x in enumerate(states):
        seen = [n for n in range(position + 1) if window is None or position - n < window]
        mixed = []
        for head, query in enumerate(turned("q", x, position)):
            own = head // (heads // kv_heads)
            scores = [query @ keys[n][own] / math.sqrt(config["query_pre_attn_scalar"]) for n in seen]
            shares = np.exp([capped(score, config["attn_logit_softcapping"]) for score in scores])
            mixed.append(sum(s * values[n][own] for s, n in zip(shares / shares.sum(), seen, strict=True)))
        found.append(project(f"{block}o_proj", np.concatenate(mixed)))
    return found


def fed(block, x, project):
    gate, up = (project(f"{block}mlp.{part}_proj", x) for part in ("gate", "up"))
    gelu = gate / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    return project(f"{block}mlp.down_proj", gelu * up)


def logits(config, weights, tokens, seen=None):
    """Return float64 `(len(tokens), vocab)`; `seen` gets inputs by a matrix's name in GGUF and its number."""

    def project(name, x):
        if seen is not None:
            layer, part = name.split(".")[2], name.split(".")[-1]
            seen.setdefault((f"blk.{layer}.{GGUF[part]}.weight", 0), []).append(x)
        return w[f"{name}.weight"] @ x

    w, eps = {name: array.astype(np.float64) for name, array in weights.items()}, config["rms_norm_eps"]
    embeddings = w["model.embed_tokens.weight"]
    states = [math.sqrt(config["hidden_size"]) * embeddings[token] for token in tokens]
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."

        def normed(name, x, block=block):
            return norm(x, w[f"{block}{name}_layernorm.weight"], eps)

        attended = attention(config, w, layer, [normed("input", x) for x in states], project)
        states = [x + normed("post_attention", y) for x, y in zip(states, attended, strict=True)]
        states = [
            x + normed("post_feedforward", fed(block, normed("pre_feedforward", x), project)) for x in states
        ]
    found = np.stack([embeddings @ norm(x, w["model.norm.weight"], eps) for x in states])
    return capped(found, config["final_logit_softcapping"])
