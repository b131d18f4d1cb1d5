"""Time the CUDA kernels of every GGUF type, and whole files, on the card at hand.

    python benchmarks/gguf_gpu.py [--types Q4_K,Q6_K] [--weights 67108864] [--file-gb 2]

For every type, without and with importance: whether the bytes are numpy's, million weights per second of the
kernel alone (float32 on the card to blocks on the card, best of several runs), which share that is of what
the card reaches when it copies as many bytes, and million weights per second of rows that come as F16 from
memory and go back as blocks, with three threads. Then a model of the given size is quantized by `quantcore
quantize` with each backend there is. Writes results/gguf_gpu.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from models import LARGE, write_model

from quantcore.errors import MissingEngine
from quantcore.formats import get_format
from quantcore.kernels.cuda import CudaKernels, entries
from quantcore.kernels.cuda.stream import LANES
from quantcore.slabs import SLAB_WEIGHTS
from quantcore.tensors import TensorInfo

HERE = Path(__file__).parent
ROW = 4096
CHECKED = 48  # rows that numpy makes too
RUNS = 5
LEVELS = ("Q8_0", "Q4_K_M", "IQ4_XS", "IQ3_S")


def best_seconds(xp, call):
    """Return the seconds of one call, best of several, the first being left out."""
    taken = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        call()
        xp.cuda.get_current_stream().synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def copy_bandwidth(xp, nbytes):
    """Return bytes per second, read and written, of a copy on the card."""
    source, target = xp.zeros(nbytes, dtype=xp.uint8), xp.zeros(nbytes, dtype=xp.uint8)
    return 2 * nbytes / best_seconds(xp, lambda: xp.copyto(target, source))


def test_rows(weights):
    """Heavy-tailed float32 rows, the same few thousand again and again."""
    rng = np.random.default_rng(7)
    some = (rng.standard_t(5, size=(1024, ROW)) * 0.02).astype(np.float32)
    return np.resize(some, (max(CHECKED, weights // ROW), ROW))


def measure(kernels, name, weighted, rows, bandwidth):
    xp, fmt = kernels.xp, get_format(name)
    importance = np.random.default_rng(8).gamma(0.5, size=ROW).astype(np.float32) if weighted else None
    on_card = None if importance is None else xp.asarray(importance)
    values, tables = xp.asarray(rows), fmt.tables(xp=xp)
    out = xp.empty((len(rows), ROW // fmt.block * fmt.block_bytes), dtype=xp.uint8)
    status = xp.zeros(1, dtype=xp.int32)
    kernel = kernels.find(name, weighted=weighted)
    seconds = best_seconds(xp, lambda: kernel.launch(values, on_card, tables, out, status))
    expected = fmt.quantize(rows[:CHECKED], importance).parts["blocks"]
    got = out[:CHECKED].get() if hasattr(out, "get") else out[:CHECKED]
    return {
        "type": name,
        "importance": weighted,
        "same_bytes": bool((got == expected).all()),
        "kernel_mw_s": rows.size / seconds / 1e6,
        "share_of_copy": rows.size * (4 + fmt.bits / 8) / seconds / bandwidth,
        "streamed_mw_s": streamed(kernels, fmt, rows, importance),
    }


def streamed(kernels, fmt, rows, importance):
    """Return million weights per second from F16 in memory to blocks in memory."""
    stored = rows.astype(np.float16)
    info = TensorInfo("x", stored.shape, "F16", stored.nbytes)
    step = max(1, SLAB_WEIGHTS // ROW)
    slabs = [stored[start : start + step] for start in range(0, len(stored), step)]

    def all_of_them():
        list(pool.map(lambda slab: kernels.convert_rows(fmt, slab, info, importance), slabs))

    with ThreadPoolExecutor(LANES) as pool:
        all_of_them()
        start = time.perf_counter()
        all_of_them()
        return stored.size / (time.perf_counter() - start) / 1e6


def file_seconds(gigabytes):
    """Return wall seconds by level and backend for a model of so many GB; None where a backend fails."""
    per_layer = 2 * sum(n * row for name, n, row in LARGE.tensors() if name.startswith("blk.0."))
    shape = replace(LARGE, name="large", n_layers=max(1, round(gigabytes * 1e9 / per_layer)))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model, target = Path(folder) / "model.gguf", Path(folder) / "out.gguf"
        write_model(shape, model)
        for level in LEVELS:
            for backend in ("cuda", "jit", "numpy"):
                command = [sys.executable, "-m", "quantcore", "quantize", model, target]
                command += ["--to", level, "--backend", backend]
                start = time.perf_counter()
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                taken = time.perf_counter() - start
                found[f"{level} {backend}"] = taken if done.returncode == 0 else None
                print(level, backend, f"{taken:.2f} s" if done.returncode == 0 else done.stderr.strip())
                target.unlink(missing_ok=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--types", default="")
    parser.add_argument("--weights", type=int, default=1 << 26)
    parser.add_argument("--file-gb", type=float, default=2.0, help="0 leaves whole files out")
    parser.add_argument("--out", type=Path, default=HERE / "results/gguf_gpu.json")
    options = parser.parse_args()
    try:
        kernels = CudaKernels()
    except MissingEngine as exc:
        sys.exit(str(exc))
    wanted = set(filter(None, options.types.split(",")))
    rows = test_rows(options.weights)
    bandwidth = copy_bandwidth(kernels.xp, rows.nbytes)
    print(f"copy {bandwidth / 1e9:.0f} GB/s")
    results = []
    for name, weighted in sorted(entries()):
        if (wanted and name not in wanted) or (get_format(name).needs_calibration and not weighted):
            continue
        result = measure(kernels, name, weighted, rows, bandwidth)
        results.append(result)
        print(
            f"{name + ('+' if weighted else ''):9} {'same' if result['same_bytes'] else 'DIFFERENT'} bytes"
            f" {result['kernel_mw_s']:10.0f} Mw/s {result['share_of_copy']:6.1%} of a copy"
            f" {result['streamed_mw_s']:8.0f} Mw/s streamed"
        )
    files = file_seconds(options.file_gb) if options.file_gb else {}
    report = {"copy_bytes_s": bandwidth, "row": ROW, "types": results, "file_seconds": files}
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    if not all(result["same_bytes"] for result in results):
        sys.exit("some bytes differ from numpy's")


if __name__ == "__main__":
    main()
