"""Headers of models whose hyper-parameters are public, for which llama.cpp told the types of each level."""

from __future__ import annotations

from quantcore.ggufkv import Value, f32, string, u32

Shapes = dict[str, tuple[int, ...]]


def _dense(
    *, layers: int, width: int, heads: int, kv_heads: int, ffn: int, vocabulary: int, tied: bool = False,
    fused: bool = False, experts: int = 0,
) -> Shapes:  # fmt: skip
    kv = width // heads * kv_heads
    shapes: Shapes = {"token_embd.weight": (vocabulary, width), "output_norm.weight": (width,)}
    if not tied:
        shapes["output.weight"] = (vocabulary, width)
    for layer in range(layers):
        block = f"blk.{layer}."
        shapes |= {f"{block}attn_norm.weight": (width,), f"{block}ffn_norm.weight": (width,)}
        shapes[f"{block}attn_output.weight"] = (width, width)
        if fused:
            shapes[f"{block}attn_qkv.weight"] = (width + 2 * kv, width)
        else:
            shapes |= {f"{block}attn_q.weight": (width, width)}
            shapes |= {f"{block}attn_k.weight": (kv, width), f"{block}attn_v.weight": (kv, width)}
        if experts:
            shapes |= {f"{block}ffn_gate_inp.weight": (experts, width)}
            shapes |= {f"{block}ffn_{part}_exps.weight": (experts, ffn, width) for part in ("gate", "up")}
            shapes |= {f"{block}ffn_down_exps.weight": (experts, width, ffn)}
        elif fused:
            shapes |= {f"{block}ffn_up.weight": (2 * ffn, width), f"{block}ffn_down.weight": (width, ffn)}
        else:
            shapes |= {f"{block}ffn_{part}.weight": (ffn, width) for part in ("gate", "up")}
            shapes |= {f"{block}ffn_down.weight": (width, ffn)}
    return shapes


def _metadata(
    architecture: str, *, layers: int, width: int, heads: int, kv_heads: int, ffn: int, experts: int = 0
) -> dict[str, Value]:
    prefix = f"{architecture}."
    numbers = {
        "context_length": 4096,
        "embedding_length": width,
        "block_count": layers,
        "feed_forward_length": ffn,
        "rope.dimension_count": width // heads,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
    }
    if experts:
        numbers |= {"expert_count": experts, "expert_used_count": 2}
    metadata = {"general.architecture": string(architecture)}
    metadata |= {prefix + key: u32(number) for key, number in numbers.items()}
    metadata[prefix + "attention.layer_norm_rms_epsilon"] = f32(1e-5)
    return metadata


_SIZES: dict[str, tuple[str, dict[str, int], dict[str, int | bool]]] = {
    "tiny-novels-7m": (
        "llama",
        {"layers": 6, "width": 256, "heads": 8, "kv_heads": 4, "ffn": 768},
        {"vocabulary": 4096},
    ),
    "SmolLM2-135M": (
        "llama",
        {"layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "ffn": 1536},
        {"vocabulary": 49152, "tied": True},
    ),
    "Llama-3.1-8B": (
        "llama",
        {"layers": 32, "width": 4096, "heads": 32, "kv_heads": 8, "ffn": 14336},
        {"vocabulary": 128256},
    ),
    "Llama-3.1-70B": (
        "llama",
        {"layers": 80, "width": 8192, "heads": 64, "kv_heads": 8, "ffn": 28672},
        {"vocabulary": 128256},
    ),
    "Mixtral-8x7B": (
        "llama",
        {"layers": 32, "width": 4096, "heads": 32, "kv_heads": 8, "ffn": 14336},
        {"vocabulary": 32000, "experts": 8},
    ),
    "Qwen2.5-0.5B": (
        "qwen2",
        {"layers": 24, "width": 896, "heads": 14, "kv_heads": 2, "ffn": 4864},
        {"vocabulary": 151936, "tied": True},
    ),
    "Phi-3-mini": (
        "phi3",
        {"layers": 32, "width": 3072, "heads": 32, "kv_heads": 32, "ffn": 8192},
        {"vocabulary": 32064, "fused": True},
    ),
}
MODELS = tuple(_SIZES)


def shapes(model: str) -> Shapes:
    """Return tensor names and shapes (numpy order) of a model in F16."""
    _, sizes, extra = _SIZES[model]
    return _dense(**sizes, **extra)  # type: ignore[arg-type]


def metadata(model: str) -> dict[str, Value]:
    """Return the metadata that the rules of levels depend on."""
    architecture, sizes, extra = _SIZES[model]
    return _metadata(architecture, **sizes, experts=int(extra.get("experts", 0)))
