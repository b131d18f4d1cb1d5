"""Freeze what ggml makes of a few awkward blocks: python make_gguf_blocks.py LIBGGML_BASE

Writes gguf_blocks.npz beside this script:

    x, importance             the numbers, float32 (rows, 256) and (256,)
    <TYPE>, <TYPE>+importance  the bytes that `ggml_quantize_chunk` makes of them, uint8 (rows, bytes per row)
    <TYPE>=                    SHA-256 of what ggml decodes <TYPE> to, as float32

Types that need importance have no plain entry; their hash is of what was made with it.
"""

import ctypes
import hashlib
import sys
from pathlib import Path

import numpy as np

from quantcore.ggmltypes import block_and_bytes, type_number

ROW = 256
PLAIN = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}
QUANTIZED = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
QUANTIZED += ["IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0"]
READ_ONLY = ["IQ2_S", "IQ3_XXS", "IQ3_S"]
NEEDS_IMPORTANCE = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"]
FLOATS = ctypes.POINTER(ctypes.c_float)


def rows():
    """Return float32 (rows, 256), one difficulty per row."""
    rng = np.random.default_rng(1)
    normal = rng.normal(size=(16, ROW))
    signs = np.sign(normal)
    sparse = np.where(rng.random(ROW) < 0.9, 0.0, normal[0])
    made = [
        normal[1],
        normal[2] * 0.02,
        rng.standard_t(2, size=ROW) * 0.01,
        np.zeros(ROW),
        -np.zeros(ROW),
        np.where(signs[3] > 0, 0.0, -0.0),
        np.full(ROW, 0.37),
        np.full(ROW, -2.5),
        signs[4],  # magnitudes that tie
        rng.integers(-8, 8, ROW) * 0.5,  # on a lattice: sums tie, codes fall on halves
        (np.round(normal[5] * 3) + 0.5) / 8,
        np.abs(normal[6]),
        -np.abs(normal[7]),
        normal[8] * 1e-7,
        normal[9] * 1e-20,  # counts as zero
        normal[10] * 1e-41,  # subnormal: reciprocals overflow
        normal[11] * 1e3,
        normal[12] + 5,
        np.repeat(10.0 ** rng.uniform(-9, 2, ROW // 16), 16) * normal[13],  # groups of unlike size
        np.where(np.arange(ROW) % 64 < 32, 0.0, normal[14]),
        sparse,
        np.tile(np.linspace(-1, 1, 32), ROW // 32),
    ]
    return np.array(made, dtype=np.float32)


def main(path):
    lib = ctypes.CDLL(path)
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, FLOATS, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, FLOATS
    ]  # fmt: skip
    x = rows()
    importance = np.random.default_rng(2).gamma(0.5, size=ROW).astype(np.float32)
    importance[::37] = 0
    frozen = {"x": x, "importance": importance}

    def quantize(name, weights):
        block, size = block_and_bytes(name)
        out = np.empty((x.shape[0], ROW // block * size), np.uint8)
        where = None if weights is None else weights.ctypes.data_as(FLOATS)
        lib.ggml_quantize_chunk(
            type_number(name), x.ctypes.data_as(FLOATS), out.ctypes.data, 0, *x.shape, where
        )
        return out

    def decode_hash(name, packed):
        out = np.empty(x.shape, np.float32)
        call = getattr(lib, PLAIN.get(name, f"dequantize_row_{name.lower().replace('_k', '_K')}"))
        call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        call(packed.ctypes.data, out.ctypes.data, x.size)
        return np.frombuffer(hashlib.sha256(out.tobytes()).digest(), np.uint8)

    for name in (*PLAIN, *QUANTIZED, *READ_ONLY):
        frozen[name] = quantize(name, None)
        frozen[f"{name}="] = decode_hash(name, frozen[name])
    for name in QUANTIZED:
        frozen[f"{name}+importance"] = quantize(name, importance)
    for name in NEEDS_IMPORTANCE:
        frozen[f"{name}+importance"] = quantize(name, importance)
        frozen[f"{name}="] = decode_hash(name, frozen[f"{name}+importance"])
    np.savez_compressed(Path(__file__).with_name("gguf_blocks.npz"), **frozen)


if __name__ == "__main__":
    main(sys.argv[1])
