"""A model of 3 GB with a large vocabulary, to see how much memory its evaluation takes.

    python benchmarks/big_model.py MODEL.gguf

The shape is that of Llama 3.2 1B with 20 layers: 128,256 tokens, 2048 wide, F16, embeddings that are the
output matrix too. Weights are random, the vocabulary is bytes, pairs of letters and fillers; the file is
written by quantcore.
"""

from __future__ import annotations

import argparse
import string as letters
from itertools import product
from pathlib import Path

import numpy as np
from models import Shape
from tokenizers.pre_tokenizers import ByteLevel

from quantcore.containers.gguf import GGUFSink
from quantcore.ggmltypes import storage_nbytes
from quantcore.ggufkv import ValueType, array, boolean, f32, string, u32
from quantcore.tensors import TensorInfo
from quantcore.tokentypes import TokenType

BIG = Shape("llama-3gb", 20, 2048, 8192, 32, 8, 128_256)
DRAWN = 1 << 22  # random numbers that every tensor is cut from, each from a place of its own


def vocabulary(size):
    """Return tokens, types and merges: text becomes pairs of letters."""
    bytes_ = sorted(ByteLevel.alphabet())
    pairs = list(product(letters.ascii_letters, repeat=2))
    tokens = [*bytes_, *(a + b for a, b in pairs)]
    fillers = [f"[PAD{n}]" for n in range(len(tokens), size)]
    types = [TokenType.NORMAL] * len(tokens) + [TokenType.UNUSED] * len(fillers)
    return [*tokens, *fillers], [int(kind) for kind in types], [f"{a} {b}" for a, b in pairs]


def metadata(shape):
    tokens, types, merges = vocabulary(shape.n_vocab)
    return {
        "general.architecture": string("llama"),
        "general.name": string(shape.name),
        "general.file_type": u32(1),
        "llama.block_count": u32(shape.n_layers),
        "llama.context_length": u32(8192),
        "llama.embedding_length": u32(shape.n_embd),
        "llama.feed_forward_length": u32(shape.n_ff),
        "llama.attention.head_count": u32(shape.n_head),
        "llama.attention.head_count_kv": u32(shape.n_head_kv),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.rope.freq_base": f32(500_000.0),
        "llama.vocab_size": u32(shape.n_vocab),
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("llama-bpe"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.token_type": array(ValueType.INT32, types),
        "tokenizer.ggml.merges": array(ValueType.STRING, merges),
        "tokenizer.ggml.bos_token_id": u32(0),
        "tokenizer.ggml.eos_token_id": u32(1),
        "tokenizer.ggml.add_bos_token": boolean(True),
    }


def infos(shape):
    """Return what tensors there are: norms in F32, matrices in F16."""
    parts = [f"blk.{n}.{part}" for n in range(shape.n_layers) for part in ("attn_norm", "ffn_norm")]
    vectors = [(f"{name}.weight", (shape.n_embd,), "F32") for name in ("output_norm", *parts)]
    matrices = [(name, (rows, row), "F16") for name, rows, row in shape.tensors()]
    return [TensorInfo(*it, storage_nbytes(it[2], it[1])) for it in (*vectors, *matrices)]


def write(shape, path):
    rng = np.random.default_rng(1)
    drawn = (rng.standard_normal(DRAWN) * 0.02).astype(np.float16)
    with GGUFSink(path, metadata(shape), infos(shape)) as sink:
        for info in sink.tensors:
            if info.type == "F32":
                sink.write(info.name, np.ones(info.shape, np.float32).tobytes())
                continue
            left = info.n_elements
            while left:
                at = int(rng.integers(DRAWN // 2))
                part = drawn[at : at + left]
                sink.write(info.name, part.tobytes())
                left -= len(part)
        sink.commit()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    write(BIG, parser.parse_args().model)


if __name__ == "__main__":
    main()
