"""Freeze every statistic that llama-perplexity gives of how far a model is from its base.

    python -m tests.golden.make_divergence PATH_TO_LLAMA_PERPLEXITY

Writes divergence.json beside this script: the lines of the tool's last tables for the demo model without one
of its layers, against the whole one, both in F16. Of weights in F16 it calculates much as we do; inputs of
quantized ones it rounds to 8 bits, which makes other figures.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from quantcore.models import open_model
from quantcore.pipeline import quantize
from quantcore.plan import make_plan
from quantcore.sources.views import pruned

GOLDEN = Path(__file__).parent
DEMO = GOLDEN.parents[1] / "hub/demo"
CHUNKS, CUT = 4, 3
LINE = re.compile(r"^(.+?)\s*: +(-?[\d.]+)%?(?: ± +([\d.]+))?", re.MULTILINE)


def models(folder: Path) -> tuple[Path, Path]:
    """Write the demo model and the same without a layer, and return both."""
    source = open_model(DEMO / "tiny-novels-7m")
    whole, less = folder / "whole.gguf", folder / "less.gguf"
    for path, seen in ((whole, source), (less, pruned(source, {CUT}))):
        quantize(seen, make_plan(seen, "F16"), path)
    return whole, less


def main(tool: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole, less = models(Path(folder))
        base = Path(folder) / "base"
        common = ["-f", DEMO / "evaluation.txt", "-c", "512", "--chunks", str(CHUNKS), "-t", "1"]
        common += ["--kl-divergence-base", base]
        subprocess.run([tool, "-m", whole, *common], check=True, capture_output=True)
        command = [tool, "-m", less, *common, "--kl-divergence"]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
    tables = (told.stdout + told.stderr).partition("====== Perplexity statistics ======")[2]
    found = {" ".join(name.split()): [value, error] for name, value, error in LINE.findall(tables)}
    found = {name: figures for name, figures in found.items() if " I " not in name}  # its clock
    (GOLDEN / "divergence.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
