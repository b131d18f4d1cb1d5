"""The forward pass once more: float64, one token and one head at a time, from Hugging Face's weights.

It shares nothing with the product: Hugging Face's row order, its rotation of halves, its names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tests.quantcore.evaluate import reference_gemma, reference_gptoss

GGUF = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
GGUF |= {f"{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}


GGUF["qkv_proj"] = "attn_qkv"
# Matrices of one input that are one matrix in the file are seen once.
FUSED = {"q_proj": "qkv_proj", "k_proj": "", "v_proj": "", "gate_proj": ""}


def rope_frequencies(config, size):
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type")
    size = int(size * (config.get("partial_rotary_factor") or config.get("rope_pct", 1.0)))
    theta = rope.get("rope_theta") or config.get("rope_theta")
    frequencies = [theta ** (-2 * i / size) for i in range(size // 2)]
    if kind == "linear":
        return [f / rope["factor"] for f in frequencies]
    if kind == "yarn":
        return [_yarn(i, f, theta, size, rope) for i, f in enumerate(frequencies)]
    if kind == "longrope":
        factors = rope["long_factor" if config["original_max_position_embeddings"] < 256 else "short_factor"]
        return [f / factor for f, factor in zip(frequencies, factors, strict=True)]
    if kind == "llama3":
        return [_llama3(f, rope) for f in frequencies]
    return frequencies


def rope_strength(config):
    """Return what rotated heads are multiplied by."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type")
    if kind == "yarn":
        return 0.1 * math.log(rope["factor"]) + 1
    if kind == "longrope":
        length = config["original_max_position_embeddings"]
        return math.sqrt(1 + math.log(config["max_position_embeddings"] / length) / math.log(length))
    return 1.0


def _yarn(i, frequency, theta, size, rope):
    """Blend by how often a pair turns within the original context, as Transformers does."""
    length = rope["original_max_position_embeddings"]

    def pair(turns):
        return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(pair(32)), 0), min(math.ceil(pair(1)), size - 1)
    slow = min(max((i - low) / max(high - low, 0.001), 0), 1)
    return frequency / rope["factor"] * slow + frequency * (1 - slow)


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


def rotate(head, position, frequencies, strength=1.0):
    half = len(frequencies)
    turned = np.array(head)
    for i, frequency in enumerate(frequencies):
        cos, sin = strength * math.cos(position * frequency), strength * math.sin(position * frequency)
        turned[i] = head[i] * cos - head[i + half] * sin
        turned[i + half] = head[i + half] * cos + head[i] * sin
    return turned


def norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x) + eps) * weight


def layer_norm(x, weight, bias, eps):
    return norm(x - np.mean(x), weight, eps) + bias


def apart(config, weights, size):
    """Return the weights with one matrix each for q, k, v, gate and up, where they are fused."""
    q, kv = size * config["num_attention_heads"], size * config["num_key_value_heads"]
    inner = config["intermediate_size"]
    found = {}
    for name, rows in weights.items():
        if name.endswith("qkv_proj.weight"):
            pieces = {"q_proj": rows[:q], "k_proj": rows[q : q + kv], "v_proj": rows[q + kv :]}
        elif name.endswith("gate_up_proj.weight"):
            pieces = {"gate_proj": rows[:inner], "up_proj": rows[inner:]}
        else:
            pieces = {name.split(".")[-2]: rows}
        found |= {name.replace(name.split(".")[-2], part): piece for part, piece in pieces.items()}
    return found


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


@dataclass(frozen=True)
class Loops:
    """The parts of a layer, for one token; `seen` gets inputs by a matrix's name in GGUF and its number."""

    config: dict
    w: dict
    seen: dict | None
    fused: bool

    @property
    def size(self):
        return head_size(self.config)

    def project(self, name, x):
        if self.seen is not None:
            layer, part = name.split(".")[2], name.split(".")[-1]
            part = FUSED.get(part, part) if self.fused else part
            if part in GGUF:
                self.seen.setdefault((f"blk.{layer}.{GGUF[part]}.weight", 0), []).append(x)
        return self.w[f"{name}.weight"] @ x + self.w.get(f"{name}.bias", 0.0)

    def normed(self, name, x):
        eps = self.config["rms_norm_eps"]
        if f"{name}.bias" in self.w:
            return layer_norm(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps)
        return norm(x, self.w[f"{name}.weight"], eps)

    def heads(self, block, part, x):
        """Return queries (`part` q) or keys (k) `(heads, size)`, normed as the model norms them."""
        y = self.project(f"{block}self_attn.{part}_proj", x)
        whole, each = f"{block}self_attn.{part}_norm", f"{block}self_attn.{part}_layernorm.norms"
        if len(self.w.get(f"{whole}.weight", ())) == len(y):
            return self.normed(whole, y).reshape(-1, self.size)
        heads = y.reshape(-1, self.size)
        if f"{whole}.weight" in self.w:
            return np.stack([self.normed(whole, head) for head in heads])
        if f"{each}.0.weight" in self.w:
            weights = [self.w[f"{each}.{number}.weight"] for number in range(len(heads))]
            eps = self.config["layer_norm_eps"]
            return np.stack(
                [layer_norm(head, weight, 0.0, eps) for head, weight in zip(heads, weights, strict=True)]
            )
        return heads

    def attend(self, queries, keys, values):
        """Return what the heads `queries` see in `keys` and `values`, lists over positions."""
        score = self.config.get("attention_multiplier") or 1 / math.sqrt(self.size)
        mixed = []
        for h, query in enumerate(queries):
            g = h // (len(queries) // len(keys[0]))
            scores = np.array([query @ key[g] for key in keys]) * score
            share = np.exp(scores - scores.max())
            mixed.append(sum(s * value[g] for s, value in zip(share / share.sum(), values, strict=True)))
        return np.concatenate(mixed)

    def feed(self, block, x):
        if self.config.get("num_experts") or self.config.get("num_local_experts"):
            return mixture(self.config, self.w, block, x, self.seen)
        gate, up = (self.project(f"{block}mlp.{p}_proj", x) for p in ("gate", "up"))
        return self.project(f"{block}mlp.down_proj", gate / (1 + np.exp(-gate)) * up)


def head_size(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def logits(config, weights, tokens, seen=None):
    """Return float64 `(len(tokens), vocab)`; `seen` gets inputs by a matrix's name in GGUF and its number."""
    own = {"GptOssForCausalLM": reference_gptoss.logits}
    own |= dict.fromkeys(("Gemma2ForCausalLM", "Gemma3ForCausalLM"), reference_gemma.logits)
    return own.get(config["architectures"][0], common_logits)(config, weights, tokens, seen)


def common_logits(config, weights, tokens, seen):
    """Return the logits of a family that is not too far from Llama."""
    size = head_size(config)
    w = {name: array.astype(np.float64) for name, array in apart(config, weights, size).items()}
    model = Loops(config, w, seen, fused=len(w) > len(weights))
    frequencies, strength = rope_frequencies(config, size), rope_strength(config)
    # Factors of Granite, 1 in all others.
    residual, embedding = config.get("residual_multiplier", 1.0), config.get("embedding_multiplier", 1.0)
    rotated = config.get("no_rope_layers", [1] * config["num_hidden_layers"])
    behind = "model.layers.0.post_feedforward_layernorm.weight" in w  # norms stand behind the parts
    states = [embedding * w["model.embed_tokens.weight"][token] for token in tokens]
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        after = f"{block}post_attention_layernorm"
        keys, values = [], []
        for position, x in enumerate(states):
            read = x if behind else model.normed(f"{block}input_layernorm", x)
            place = position if rotated[layer] else 0
            q, k = (
                [rotate(head, place, frequencies, strength) for head in model.heads(block, part, read)]
                for part in "qk"
            )
            keys.append(k)
            values.append(model.project(f"{block}self_attn.v_proj", read).reshape(-1, size))
            attended = model.project(f"{block}self_attn.o_proj", model.attend(q, keys, values))
            attended = x + residual * (model.normed(after, attended) if behind else attended)
            if f"{after}.weight" in w:  # else both parts read the same
                read = attended if behind else model.normed(after, attended)
            fed = model.feed(block, read)
            if behind:
                fed = model.normed(f"{block}post_feedforward_layernorm", fed)
            states[position] = attended + residual * fed
    output = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    found = np.stack([output @ model.normed("model.norm", x) for x in states])
    return found / config.get("logits_scaling", 1.0)
