"""The forward pass once more: float64, one token and one head at a time, from Hugging Face's weights.

It shares nothing with the product: Hugging Face's row order, its rotation of halves, its names.
"""

from __future__ import annotations

import math

import numpy as np

from tests.quantcore.evaluate import reference_gemma, reference_gptoss

GGUF = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
GGUF |= {f"{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}


def rope_frequencies(config, size):
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta")
    frequencies = [theta ** (-2 * i / size) for i in range(size // 2)]
    if config.get("rope_scaling"):
        return [f / config["rope_scaling"]["factor"] for f in frequencies]
    if rope.get("rope_type") == "llama3":
        return [_llama3(f, rope) for f in frequencies]
    return frequencies


def _llama3(frequency, rope):
    length, low, high = (
        rope["original_max_position_embeddings"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
    )
    wavelength = 2 * math.pi / frequency
    if wavelength < length / high:
        return frequency
    if wavelength > length / low:
        return frequency / rope["factor"]
    smooth = (length / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / rope["factor"] + smooth * frequency


def rotate(head, position, frequencies):
    half = len(head) // 2
    turned = np.empty_like(head)
    for i, frequency in enumerate(frequencies):
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        turned[i] = head[i] * cos - head[i + half] * sin
        turned[i + half] = head[i + half] * cos + head[i] * sin
    return turned


def norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x) + eps) * weight


def mixture(config, w, block, x, seen):
    """Return what the experts make of one token; `seen` gets inputs by name and number of the expert."""
    if config.get("num_local_experts"):
        part, names = f"{block}block_sparse_moe.", ("w1", "w3", "w2")
    else:
        part, names = f"{block}mlp.", ("gate_proj", "up_proj", "down_proj")

    layer = block.split(".")[2]

    def note(name, number, value):
        if seen is not None:
            seen.setdefault((f"blk.{layer}.ffn_{name}.weight", number), []).append(value)

    def expert(which, kind="exps", number=0):
        gate, up, down = (w[f"{part}{which}.{name}.weight"] for name in names)
        inner = gate @ x
        inner = inner / (1 + np.exp(-inner)) * (up @ x)
        for name, value in (("gate", x), ("up", x), ("down", inner)):
            note(f"{name}_{kind}", number, value)
        return down @ inner

    scores = w[f"{part}gate.weight"] @ x
    shares = np.exp(scores) / np.exp(scores).sum()
    chosen = np.argsort(shares)[::-1][: config["num_experts_per_tok"]]
    total = shares[chosen].sum() if config.get("norm_topk_prob", "num_local_experts" in config) else 1.0
    out = sum(shares[e] / total * expert(f"experts.{e}", number=e) for e in chosen)
    note("gate_inp", 0, x)
    if f"{part}shared_expert_gate.weight" in w:
        note("gate_inp_shexp", 0, x)
        out = out + expert("shared_expert", "shexp") / (
            1 + np.exp(-(w[f"{part}shared_expert_gate.weight"] @ x))
        )
    return out


def logits(config, weights, tokens, seen=None):
    """Return float64 `(len(tokens), vocab)`; `seen` gets inputs by a matrix's name in GGUF and its number."""
    own = {"GptOssForCausalLM": reference_gptoss.logits}
    own |= dict.fromkeys(("Gemma2ForCausalLM", "Gemma3ForCausalLM"), reference_gemma.logits)
    return own.get(config["architectures"][0], common_logits)(config, weights, tokens, seen)


def common_logits(config, weights, tokens, seen):
    """Return the logits of a family that is not too far from Llama."""

    def project(name, x):
        if seen is not None:
            layer, part = name.split(".")[2], name.split(".")[-1]
            seen.setdefault((f"blk.{layer}.{GGUF[part]}.weight", 0), []).append(x)
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0.0)

    w = {name: array.astype(np.float64) for name, array in weights.items()}
    eps, heads, kv_heads = (
        config["rms_norm_eps"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
    )
    size = config.get("head_dim") or config["hidden_size"] // heads
    frequencies = rope_frequencies(config, size)
    # Factors of Granite, 1 in all others.
    residual, score = config.get("residual_multiplier", 1.0), config.get("attention_multiplier")
    embedding = config.get("embedding_multiplier", 1.0)
    rotated = config.get("no_rope_layers", [1] * config["num_hidden_layers"])
    behind = "model.layers.0.post_feedforward_layernorm.weight" in w  # norms stand behind the parts
    states = [embedding * w["model.embed_tokens.weight"][token] for token in tokens]
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        keys, values = [], []
        for position, x in enumerate(states):
            normed = x if behind else norm(x, w[f"{block}input_layernorm.weight"], eps)
            q, k, v = (project(f"{block}self_attn.{p}_proj", normed) for p in "qkv")
            if behind:
                q = norm(q, w[f"{block}self_attn.q_norm.weight"], eps)
                k = norm(k, w[f"{block}self_attn.k_norm.weight"], eps)
            q, k = q.reshape(heads, size), k.reshape(kv_heads, size)
            if f"{block}self_attn.q_norm.weight" in w and not behind:
                q = np.stack([norm(head, w[f"{block}self_attn.q_norm.weight"], eps) for head in q])
                k = np.stack([norm(head, w[f"{block}self_attn.k_norm.weight"], eps) for head in k])
            place = position if rotated[layer] else 0
            keys.append([rotate(head, place, frequencies) for head in k])
            values.append(v.reshape(kv_heads, size))
            mixed = []
            for h in range(heads):
                g, query = h // (heads // kv_heads), rotate(q[h], place, frequencies)
                scores = np.array([query @ key[g] for key in keys]) * (score or 1 / math.sqrt(size))
                share = np.exp(scores - scores.max())
                mixed.append(sum(s * value[g] for s, value in zip(share / share.sum(), values, strict=True)))
            attended = project(f"{block}self_attn.o_proj", np.concatenate(mixed))
            after = w[f"{block}post_attention_layernorm.weight"]
            attended = x + residual * (norm(attended, after, eps) if behind else attended)
            normed = attended if behind else norm(attended, after, eps)
            if config.get("num_experts") or config.get("num_local_experts"):
                fed = mixture(config, w, block, normed, seen)
            else:
                gate, up = (project(f"{block}mlp.{p}_proj", normed) for p in ("gate", "up"))
                fed = project(f"{block}mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
            if behind:
                fed = norm(fed, w[f"{block}post_feedforward_layernorm.weight"], eps)
            states[position] = attended + residual * fed
    output = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    found = np.stack([output @ norm(x, w["model.norm.weight"], eps) for x in states])
    return found / config.get("logits_scaling", 1.0)
