"""gpt-oss once more: float64, one token and one head at a time, from Hugging Face's weights.

It follows the model's own description, and llama.cpp where that differs: bounds of yarn are whole numbers.
"""

from __future__ import annotations

import math

import numpy as np

from tests.quantcore.convert.gptoss import unpacked

GGUF = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}


def yarn(config):
    """Return frequencies, and what sines and cosines are multiplied by."""
    rope, size, theta = config["rope_scaling"], config["head_dim"], config["rope_theta"]
    length, factor = rope["original_max_position_embeddings"], rope["factor"]

    def dimension(turns):
        return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = math.floor(dimension(rope["beta_fast"])), math.ceil(dimension(rope["beta_slow"]))
    low, high = max(low, 0), min(high, size - 1)
    frequencies = []
    for i in range(size // 2):
        own = theta ** (-2 * i / size)
        slow = min(1, max(0, (i - low) / (high - low)))
        frequencies.append(own * (1 - slow) + own / factor * slow)
    return frequencies, 0.1 * math.log(factor) + 1


def rotate(row, angles):
    """Turn the two halves of a head against each other."""
    first, second = np.split(row, 2)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin])


def norm(x, weight, eps):
    return x / math.sqrt(np.mean(x * x) + eps) * weight


def attention(config, w, layer, states, see):
    block, size = f"model.layers.{layer}.self_attn.", config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    frequencies, magnitude = yarn(config)
    window = config["sliding_window"] if config["layer_types"][layer] == "sliding_attention" else len(states)

    def project(name, x):
        see(layer, GGUF[name], 0, x)
        return w[f"{block}{name}.weight"] @ x + w[f"{block}{name}.bias"]

    def turned(name, x, count, position):
        rows = project(name, x).reshape(count, size)
        return [magnitude * rotate(row, position * np.array(frequencies)) for row in rows]

    keys = [turned("k_proj", x, kv_heads, n) for n, x in enumerate(states)]
    values = [project("v_proj", x).reshape(kv_heads, size) for x in states]
    found = []
    for position, x in enumerate(states):
        queries, mixed = turned("q_proj", x, heads, position), []
        seen = range(max(0, position - window + 1), position + 1)
        for head, query in enumerate(queries):
            own = head // (heads // kv_heads)
            shares = [math.exp(query @ keys[n][own] / math.sqrt(size)) for n in seen]
            total = sum(shares) + math.exp(w[f"{block}sinks"][head])
            mixed.append(sum(s / total * values[n][own] for s, n in zip(shares, seen, strict=True)))
        found.append(project("o_proj", np.concatenate(mixed)))
    return found


def mixture(config, w, layer, x, see):
    part = f"model.layers.{layer}.mlp."
    see(layer, "ffn_gate_inp", 0, x)
    scores = w[f"{part}router.weight"] @ x + w[f"{part}router.bias"]
    chosen = np.argsort(scores)[::-1][: config["num_experts_per_tok"]]
    shares = np.exp(scores[chosen]) / np.exp(scores[chosen]).sum()
    out = 0
    for expert, share in zip(chosen, shares, strict=True):
        both = x @ w[f"{part}experts.gate_up_proj"][expert] + w[f"{part}experts.gate_up_proj_bias"][expert]
        gate, up = np.minimum(both[::2], 7), np.clip(both[1::2], -7, 7)
        inner = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
        for name, value in (("gate", x), ("up", x), ("down", inner)):
            see(layer, f"ffn_{name}_exps", expert, value)
        down = w[f"{part}experts.down_proj"][expert]
        out = out + share * (inner @ down + w[f"{part}experts.down_proj_bias"][expert])
    return out


def plain(weights):
    """Return weights as float64, packed ones as the numbers they stand for."""
    found = {name: array.astype(np.float64) for name, array in weights.items() if array.dtype != np.uint8}
    for name in weights:
        if name.endswith("_blocks"):
            stack = name.removesuffix("_blocks")
            found[stack] = unpacked(weights[name], weights[f"{stack}_scales"])
    return found


def logits(config, weights, tokens, seen=None):
    """Return float64 `(len(tokens), vocab)`; `seen` gets inputs by a matrix's name in GGUF and its number."""

    def see(layer, part, number, x):
        if seen is not None:
            seen.setdefault((f"blk.{layer}.{part}.weight", number), []).append(x)

    w, eps = plain(weights), config["rms_norm_eps"]
    states = [w["model.embed_tokens.weight"][token] for token in tokens]
    for layer in range(config["num_hidden_layers"]):
        first, second = (
            w[f"model.layers.{layer}.{name}_layernorm.weight"] for name in ("input", "post_attention")
        )
        attended = attention(config, w, layer, [norm(x, first, eps) for x in states], see)
        states = [x + y for x, y in zip(states, attended, strict=True)]
        states = [x + mixture(config, w, layer, norm(x, second, eps), see) for x in states]
    return np.stack([w["lm_head.weight"] @ norm(x, w["model.norm.weight"], eps) for x in states])
