"""Compare the GGUF quantizers with ggml's, byte for byte and second for second.

    python benchmarks/gguf_kernels.py --ggml-lib .../libggml-base.so [--backend jit] [--types Q4_K,Q6_K]

Both quantize the same float32 arrays on one thread of the same process; times are CPU seconds, best of
several interleaved repetitions. A block counts as identical when all its bytes are. Writes
results/gguf_kernels.json.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import struct
import time
from pathlib import Path

import numpy as np

from quantcore.formats import formats, get_format
from quantcore.ggmltypes import block_and_bytes, type_number
from quantcore.kernels import library

HERE = Path(__file__).parent
DEMO = HERE.parent / "hub/demo/tiny-novels-7m/model.safetensors"
FLOATS = ctypes.POINTER(ctypes.c_float)


class Ggml:
    """`ggml_quantize_chunk` of a given library."""

    def __init__(self, path):
        self.chunk = ctypes.CDLL(str(path)).ggml_quantize_chunk
        self.chunk.restype = ctypes.c_size_t
        self.chunk.argtypes = [ctypes.c_int, FLOATS, ctypes.c_void_p, *[ctypes.c_int64] * 3, FLOATS]

    def quantize(self, name, x, importance, out):
        weights = None if importance is None else importance.ctypes.data_as(FLOATS)
        kind = type_number(name)
        self.chunk(kind, x.ctypes.data_as(FLOATS), out.ctypes.data, 0, *x.shape, weights)


def demo_weights(row=1024):
    """All matrices of the demo model whose rows are whole super-blocks, as float32 rows of `row` weights."""
    data = DEMO.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    parts = []
    for info in header.values():
        start, stop = (8 + size + at for at in info["data_offsets"])
        if len(info["shape"]) == 2 and info["shape"][1] % 256 == 0:
            parts.append(np.frombuffer(data[start:stop], dtype=np.float16).astype(np.float32))
    flat = np.concatenate(parts)
    return flat[: flat.size // row * row].reshape(-1, row)


def synthetic(rows=4096, row=1024):
    """Half normal, half heavy-tailed, each row with its own size."""
    rng = np.random.default_rng(20240501)
    x = np.concatenate([rng.normal(size=(rows // 2, row)), rng.standard_t(4, size=(rows // 2, row))])
    return (x * rng.uniform(0.005, 0.05, size=(rows, 1))).astype(np.float32)


def cpu_seconds(call):
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(ggml, name, x, importance, repeats, kernels):
    """Return the share of identical blocks and both speeds in million weights per CPU second."""
    block, block_bytes = block_and_bytes(name)
    fmt = get_format(name)
    theirs = np.empty((x.shape[0], x.shape[1] // block * block_bytes), np.uint8)
    ours = fmt.quantize(x, importance, kernels=kernels).parts["blocks"]
    ggml.quantize(name, x, importance, theirs)
    same = (ours.reshape(-1, block_bytes) == theirs.reshape(-1, block_bytes)).all(axis=1)
    times = [
        (
            cpu_seconds(lambda: fmt.quantize(x, importance, kernels=kernels)),
            cpu_seconds(lambda: ggml.quantize(name, x, importance, theirs)),
        )
        for _ in range(repeats)
    ]
    mine, peer = (min(column) for column in zip(*times, strict=True))
    return {
        "blocks": int(same.size),
        "different_blocks": int((~same).sum()),
        "identical": float(same.mean()),
        "mw_per_cpu_s": round(x.size / mine / 1e6, 1),
        "ggml_mw_per_cpu_s": round(x.size / peer / 1e6, 1),
        "speed_ratio": round(peer / mine, 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ggml-lib", required=True, type=Path)
    makeable = [fmt.name for fmt in formats().values() if fmt.can_quantize and fmt.name != "F32"]
    parser.add_argument("--types", default=",".join(makeable))
    parser.add_argument("--backend", choices=("numpy", "jit"), default="numpy")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results/gguf_kernels.json")
    args = parser.parse_args()
    ggml = Ggml(args.ggml_lib)
    kernels = library.build(print) if args.backend == "jit" else None
    results = []
    for data, x in (("demo", demo_weights()), ("synthetic", synthetic())):
        importance = np.random.default_rng(7).gamma(1.0, size=x.shape[1]).astype(np.float32)
        for name in args.types.split(","):
            cases = (importance,) if get_format(name).needs_calibration else (None, importance)
            for weights in cases if get_format(name).block > 1 else (None,):
                row = {"data": data, "type": name, "backend": args.backend, "importance": weights is not None}
                row |= compare(ggml, name, x, weights, args.repeats, kernels)
                results.append(row)
                print(
                    f"{data:9} {name:5} {'importance' if weights is not None else '-':10}"
                    f" identical {row['identical']:8.4%} of {row['blocks']:7}"
                    f"  {row['mw_per_cpu_s']:7.1f} Mw/s  ggml {row['ggml_mw_per_cpu_s']:7.1f}"
                    f"  x{row['speed_ratio']}",
                    flush=True,
                )
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps({"numpy": np.__version__, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
