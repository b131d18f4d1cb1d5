"""Freeze what llama-imatrix says of importance matrices.

    python -m tests.golden.make_statistics PATH_TO_LLAMA_IMATRIX

Writes statistics.json beside this script: for each file the lines of the tool's two tables, as printed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from quantcore.imatrixfiles import Sums

GOLDEN = Path(__file__).parent
EXPERTS = "experts"
FILES = ("novels.imatrix.gguf", "novels.imatrix.dat", EXPERTS)
# The tool's log is written by a thread that its end overtakes: this waits for it.
LINGER = """
unsigned sleep(unsigned);
__attribute__((destructor)) static void linger(void) { sleep(1); }
"""


def experts(path: Path) -> Path:
    """Write a matrix of stacked experts, some of which no token reached, and of columns without any input."""
    draw = np.random.default_rng(6)
    sums = Sums(8, datasets=["none"], hashes=[""])
    for layer in range(3):
        values = draw.gamma(0.3, size=(4, 32)) * draw.gamma(1.0, size=(4, 1)) * 20
        values[:, 5 : 8 + layer] = 0
        values[layer] = 0
        counts = np.where(np.arange(4) == layer, 0, draw.integers(1, 9, 4)).astype(np.float64)
        sums.add(f"blk.{layer}.ffn_up_exps.weight", values, counts)
        sums.add(f"blk.{layer}.attn_q.weight", draw.gamma(0.5, size=(1, 16)), np.array([8.0]))
    sums.add("output.weight", draw.gamma(0.5, size=(1, 16)), np.array([8.0]))
    sums.save(path)
    return path


def lines(tool: str, lingering: Path, path: Path) -> dict[str, list[list[str]]]:
    """Return the cells of the tool's lines: `tensors` have 13, `layers` 4."""
    # It wants the name of a model, which it does not open.
    command = [tool, "-m", "none", "--in-file", str(path), "--show-statistics"]
    told = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "LD_PRELOAD": str(lingering)}
    ).stderr
    cells = [
        [cell.strip() for cell in line.split(" I ", 1)[1].split("\t")]
        for line in told.splitlines()
        if " I " in line and "\t" in line
    ]
    if not cells:
        raise RuntimeError(f"{tool} told nothing of {path}: {told}")
    return {"tensors": [c for c in cells if len(c) == 13], "layers": [c for c in cells if len(c) == 4]}


def main(tool: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        places = {name: GOLDEN / name for name in FILES if name != EXPERTS}
        places[EXPERTS] = experts(Path(folder) / "experts.gguf")
        lingering = Path(folder) / "linger.so"
        subprocess.run(
            ["cc", "-shared", "-x", "c", "-", "-o", lingering], input=LINGER, text=True, check=True
        )
        found = {name: lines(tool, lingering, places[name]) for name in FILES}
    text = json.dumps(found, ensure_ascii=False).replace("]]}, ", "]]},\n ").replace("], [", "],\n  [")
    (GOLDEN / "statistics.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
