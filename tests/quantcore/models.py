"""Small models that tests make: real files, seeded weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from quantcore.containers.gguf import GGUFSink
from quantcore.ggmltypes import storage_nbytes
from quantcore.ggufkv import Value, f32, string, u32
from quantcore.tensors import TensorInfo


def llama_metadata(
    *, layers: int = 2, heads: int = 4, kv_heads: int = 2, width: int = 256
) -> dict[str, Value]:
    return {
        "general.architecture": string("llama"),
        "general.name": string("Small"),
        "llama.block_count": u32(layers),
        "llama.context_length": u32(128),
        "llama.embedding_length": u32(width),
        "llama.feed_forward_length": u32(2 * width),
        "llama.attention.head_count": u32(heads),
        "llama.attention.head_count_kv": u32(kv_heads),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.rope.dimension_count": u32(width // heads),
    }


def llama_shapes(
    *, layers: int = 2, heads: int = 4, kv_heads: int = 2, width: int = 256, vocabulary: int = 64
) -> dict[str, tuple[int, ...]]:
    kv_width = width // heads * kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, width),
        "output_norm.weight": (width,),
        "output.weight": (vocabulary, width),
    }
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (width,),
            f"blk.{layer}.attn_q.weight": (width, width),
            f"blk.{layer}.attn_k.weight": (kv_width, width),
            f"blk.{layer}.attn_v.weight": (kv_width, width),
            f"blk.{layer}.attn_output.weight": (width, width),
            f"blk.{layer}.ffn_norm.weight": (width,),
            f"blk.{layer}.ffn_gate.weight": (2 * width, width),
            f"blk.{layer}.ffn_up.weight": (2 * width, width),
            f"blk.{layer}.ffn_down.weight": (width, 2 * width),
        }
    return shapes


def tensor_infos(shapes: Mapping[str, tuple[int, ...]], kind: str = "F16") -> list[TensorInfo]:
    infos = []
    for name, shape in shapes.items():
        stored = "F32" if len(shape) == 1 else kind
        infos.append(TensorInfo(name, shape, stored, storage_nbytes(stored, shape)))
    return infos


def write_gguf(
    path: Path, metadata: Mapping[str, Value], infos: Sequence[TensorInfo], *, seed: int = 7
) -> Path:
    """Write seeded normal weights under the infos given (F16 and F32 only)."""
    draw = np.random.default_rng(seed)
    with GGUFSink(path, metadata, infos) as sink:
        for info in infos:
            values = draw.standard_normal(info.n_elements, dtype=np.float32) * np.float32(0.05)
            sink.write(info.name, values.astype(np.float16 if info.type == "F16" else np.float32).tobytes())
        sink.commit()
    return path


def small_llama(path: Path, **sizes: int) -> Path:
    """Write a two-layer F16 llama with seeded weights and no vocabulary."""
    shape_sizes = dict(sizes)
    metadata_sizes = {key: value for key, value in sizes.items() if key != "vocabulary"}
    return write_gguf(path, llama_metadata(**metadata_sizes), tensor_infos(llama_shapes(**shape_sizes)))
