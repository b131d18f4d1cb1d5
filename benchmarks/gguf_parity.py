"""Are our bytes llama.cpp's? Every type over many kinds of rows, and whole files of every level.

    python benchmarks/gguf_parity.py --ggml-lib LIB [--ggml-lib LIB ...] [--llama-quantize PATH --imatrix F] \
        [MODEL.gguf ...]

Types: the same float32 rows go through `ggml_quantize_chunk` of each library, through our numpy arithmetic
and through our compiled kernels, without and with importance; a block counts as identical when all its bytes
are. Where blocks differ, the worst ratio of the weighted squared errors is given. Rows come from the demo
model, from the models given, and from generators: bells, heavy tails, sparse rows, lattices, zeros,
constants, denormals, outliers.

Levels: llama-quantize and `quantcore quantize` make every level of the models given; compared are the files
and, where those differ, types, sizes and metadata. Writes results/gguf_parity.json and gguf_parity.md.
"""

from __future__ import annotations

import argparse
import ctypes
import filecmp
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf_kernels import Ggml, demo_weights

from quantcore.formats import Packed, formats, to_float
from quantcore.ggmltypes import type_number
from quantcore.kernels import library
from quantcore.recipes import recipes
from quantcore.sources.gguf import open_gguf

HERE = Path(__file__).parent
ROW = 1024
MOST_ROWS = 1024  # of each kind of data


def generated(rng, n=96):
    """Return the generated kinds of rows, each float32 (n, 1024)."""
    bell, heavy = rng.normal(size=(n, ROW)) * 0.02, np.clip(rng.standard_t(2, size=(n, ROW)), -1e4, 1e4)
    kinds = {
        "bell": bell,
        "heavy tails": heavy,
        "sparse": np.where(rng.random((n, ROW)) < 0.8, 0.0, bell),
        "lattice": np.round(bell * 250) / rng.integers(1, 9, (n, 1)),
        "groups of unlike size": bell * np.repeat(10.0 ** rng.uniform(-12, 2, (n, ROW // 16)), 16, axis=1),
        "zeros": np.zeros((n, ROW)),
        "constants": np.repeat(rng.normal(size=(n, 1)), ROW, axis=1),
        "two values": np.where(rng.random((n, ROW)) < 0.5, 0.02, -0.02),
        "denormals": bell * 1e-38,
        "outliers": np.where(rng.random((n, ROW)) < 0.01, 50.0, 0.001) * rng.normal(size=(n, ROW)),
    }
    return {name: x.astype(np.float32) for name, x in kinds.items()}


def of_model(path):
    """Return rows of 1024 from all matrices of a GGUF file, evenly spread."""
    parts = []
    for tensor in open_gguf(path).tensors:
        if len(tensor.info.shape) > 1:
            values = to_float(tensor.info, tensor.read_rows(0, tensor.info.n_rows)).reshape(-1)
            parts.append(values[: values.size // ROW * ROW].reshape(-1, ROW))
    rows = np.concatenate(parts)
    return rows[:: max(1, len(rows) // MOST_ROWS)][:MOST_ROWS].copy()


def knows(path, name):
    """Say whether a library has a type, by asking for its name."""
    ask = ctypes.CDLL(str(path)).ggml_type_name
    ask.argtypes, ask.restype = [ctypes.c_int], ctypes.c_char_p
    found = ask(type_number(name))
    return bool(found) and found.decode().upper() == name


def error(fmt, x, packed, weights):
    """Return the weighted squared error of each block."""
    decoded = fmt.dequantize(Packed(fmt.name, x.shape, {"blocks": packed}))
    squares = (decoded.astype(np.float64) - x) ** 2 * (1.0 if weights is None else weights)
    return squares.reshape(-1, fmt.block).sum(axis=1)


def compare(ggml, fmt, x, importance, kernels):
    """Return counts of blocks and of differing ones, and the worst ratio of errors among these."""
    theirs = np.empty((x.shape[0], x.shape[1] // fmt.block * fmt.block_bytes), np.uint8)
    ggml.quantize(fmt.name, x, importance, theirs)
    ours = fmt.quantize(x, importance, kernels=kernels).parts["blocks"]
    same = (ours == theirs).reshape(-1, fmt.block_bytes).all(axis=1)
    worst = 1.0
    if not same.all():
        mine, peer = (error(fmt, x, packed, importance)[~same] for packed in (ours, theirs))
        worst = float((mine / np.maximum(peer, 1e-300)).max())
    return {"blocks": int(same.size), "different": int((~same).sum()), "worst_error_ratio": worst}


def types(libraries, models, kernels):
    data = {"demo model": demo_weights()[:: 6800 // MOST_ROWS][:MOST_ROWS].copy()}
    data |= {path.stem: of_model(path) for path in models} | generated(np.random.default_rng(11))
    rng = np.random.default_rng(12)
    rows = []
    for fmt in formats().values():
        if fmt.container != "gguf" or not fmt.can_quantize or fmt.block == 1:
            continue
        for path in libraries:
            if not knows(path, fmt.name):
                print(f"{fmt.name}: not in {path.parent.name}/{path.name}", flush=True)
                continue
            ggml = Ggml(path)
            for weighted in (True,) if fmt.needs_calibration else (False, True):
                for backend, found in (("numpy", None), ("jit", kernels)):
                    if found and not found.find(fmt.name, weighted=weighted):
                        continue
                    total = {"blocks": 0, "different": 0, "worst_error_ratio": 1.0, "where": []}
                    for kind, x in data.items():
                        importance = rng.gamma(0.5, size=ROW).astype(np.float32) if weighted else None
                        result = compare(ggml, fmt, x, importance, found)
                        total["blocks"] += result["blocks"]
                        total["different"] += result["different"]
                        total["worst_error_ratio"] = max(
                            total["worst_error_ratio"], result["worst_error_ratio"]
                        )
                        if result["different"]:
                            total["where"].append(kind)
                    row = {"type": fmt.name, "library": path.name.split(".")[0], "backend": backend}
                    rows.append(row | {"importance": weighted} | total)
                    print(rows[-1], flush=True)
    return rows


def levels(tool, model, imatrix):
    """Make every level by both programs, without and with importance, and say how far the files agree."""
    rows = []
    for level in recipes():
        if level == "COPY":
            continue
        for given in ([], ["--imatrix", str(imatrix)]) if imatrix else ([],):
            with tempfile.TemporaryDirectory() as folder:
                row = make_both(tool, model, level, given, Path(folder))
            rows.append({"model": model.stem, "level": level, "imatrix": bool(given), **row})
            print(rows[-1], flush=True)
    return rows


def make_both(tool, model, level, given, folder):
    """Return what came of a level: `identical`, `refused` by both, or what differs."""
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    peer = subprocess.run([tool, *given, model, theirs, level], capture_output=True, check=False)
    command = [sys.executable, "-m", "quantcore", "quantize", model, ours, "--to", level, *given]
    mine = subprocess.run(command, capture_output=True, text=True, check=False)
    if peer.returncode and mine.returncode:
        return {"outcome": "both refuse", "note": mine.stderr.strip().rpartition(f"{model}: ")[2]}
    if peer.returncode or mine.returncode:
        who = "llama-quantize" if peer.returncode else "quantcore"
        return {"outcome": f"{who} refuses", "note": mine.stderr.strip()}
    if filecmp.cmp(ours, theirs, shallow=False):
        return {"outcome": "identical", "note": ""}
    return {"outcome": "differs", "note": differences(ours, theirs)}


def differences(ours, theirs):
    """Return in words how two files differ that should not."""
    mine, peer = open_gguf(ours), open_gguf(theirs)
    found = []
    if [info.type for info in mine.infos] != [info.type for info in peer.infos]:
        found.append("types")
    if ours.stat().st_size != theirs.stat().st_size:
        found.append("size")
    found += [
        key for key in {*mine.metadata, *peer.metadata} if mine.metadata.get(key) != peer.metadata.get(key)
    ]
    return ", ".join(found) or "tensor data"


def share(different, blocks):
    return f"{1 - different / blocks:.4%}" if different else "100 %"


def page(type_rows, level_rows):
    libraries = sorted({row["library"] for row in type_rows})
    text = (
        "# Bytes beside llama.cpp\n\n"
        "Made by `gguf_parity.py`: blocks whose bytes are ggml's, over rows of the demo model, of\n"
        "SmolLM2-135M and of generators (bells, heavy tails, sparse, lattices, unlike groups, zeros,\n"
        f"constants, two values, denormals, outliers). Libraries: {' and '.join(libraries)}.\n"
        "Blocks are counted once for each library and backend.\n\n"
        "| type | importance | backends | blocks | identical | worst error ratio | where |\n"
        "|---|---|---|--:|--:|--:|---|\n"
    )
    for key in dict.fromkeys((row["type"], row["importance"]) for row in type_rows):
        rows = [row for row in type_rows if (row["type"], row["importance"]) == key]
        backends = ", ".join(dict.fromkeys(row["backend"] for row in rows))
        blocks, different = (sum(row[name] for row in rows) for name in ("blocks", "different"))
        where = ", ".join(dict.fromkeys(kind for row in rows for kind in row["where"]))
        text += (
            f"| {key[0]} | {'yes' if key[1] else 'no'} | {backends} | {blocks} | {share(different, blocks)} "
            f"| {max(row['worst_error_ratio'] for row in rows):.6f} | {where} |\n"
        )
    return text + (level_page(level_rows) if level_rows else "")


def level_page(rows):
    """Return the table of whole files: a line for each level, a column for each model and matrix."""
    columns = list(dict.fromkeys((row["model"], row["imatrix"]) for row in rows))
    names = [f"{model}{', importance matrix' if imatrix else ''}" for model, imatrix in columns]
    text = (
        "\n# Whole files beside llama-quantize\n\n"
        "Compared byte for byte, metadata and all.\n\n"
        f"| level | {' | '.join(names)} |\n|---|{'---|' * len(names)}\n"
    )
    found = {(row["level"], row["model"], row["imatrix"]): row for row in rows}
    for level in dict.fromkeys(row["level"] for row in rows):
        cells = [found[level, *column]["outcome"] for column in columns]
        text += f"| {level} | {' | '.join(cells)} |\n"
    notes = [row for row in rows if row["note"]]
    for row in notes:
        matrix = " with a matrix" if row["imatrix"] else ""
        text += f"\n- {row['level']} of {row['model']}{matrix}: {row['note']}"
    return text + ("\n" if notes else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--ggml-lib", action="append", default=[], type=Path)
    parser.add_argument("--llama-quantize")
    parser.add_argument("--imatrix", action="append", default=[], type=Path, help="one for each model")
    options = parser.parse_args()
    kernels = library.build(print)
    type_rows = types(options.ggml_lib, options.models, kernels)
    level_rows = []
    if options.llama_quantize:
        matrices = options.imatrix or [None] * len(options.models)
        for model, imatrix in zip(options.models, matrices, strict=True):
            level_rows += levels(options.llama_quantize, model, imatrix)
    document = {"types": type_rows, "levels": level_rows}
    (HERE / "results" / "gguf_parity.json").write_text(json.dumps(document, indent=1) + "\n")
    (HERE / "gguf_parity.md").write_text(page(type_rows, level_rows))


if __name__ == "__main__":
    main()
