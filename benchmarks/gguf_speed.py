"""Whole files beside llama-quantize: are the bytes the same, and how much sooner are they there?

    python benchmarks/gguf_speed.py --llama-quantize PATH [--runs 5] [--threads 1 2] [MODEL.gguf ...]

Both programs make each level from the same F16 file in turn, A B A B, with the file in the page cache: ours
with compiled kernels, theirs, and ours by numpy alone. Times are of whole processes, start included, and CPU
is user + system; ratios are llama-quantize's median over ours, so more than 1 means that we are sooner.
Levels that need an importance matrix get one. F16 of an F16 file is a copy; what making it takes is measured
from the same weights in F32. Without models given, those of `models.py` are used: the large one, and the
small one for the levels over which llama-quantize takes minutes. Writes results/gguf_speed.json and
gguf_speed.md beside this script.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from models import LARGE, SMALL, prepare

from quantcore.recipes import recipes

HERE = Path(__file__).parent
SLOW = ("IQ",)  # levels that are timed on the small model


@dataclass(frozen=True)
class Cost:
    """What one run took: seconds of wall and CPU time, and the peak resident memory in bytes."""

    wall: float
    cpu: float
    peak: int


# A program's peak memory begins with that of the process it is started from: this one is small.
LAUNCHER = """
import os, sys, time
began = time.perf_counter()
child = os.fork()
if not child:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    os.execvp(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
print(status, time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
"""


def run(command):
    """Run a program to its end and return what it took; its output is thrown away."""
    launch = [sys.executable, "-I", "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(launch, capture_output=True, text=True, check=True)
    status, wall, cpu, peak = done.stdout.split()
    if status != "0":
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return Cost(float(wall), float(cpu), int(peak))


def median(costs):
    """Return the median of each figure."""
    return Cost(
        statistics.median(cost.wall for cost in costs),
        statistics.median(cost.cpu for cost in costs),
        int(statistics.median(cost.peak for cost in costs)),
    )


def measure(tool, model, imatrix, level, threads, runs, numpy_runs):
    """Make one level by both programs and return the row of the table."""
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        ours, theirs = Path(folder) / "ours.gguf", Path(folder) / "theirs.gguf"
        given = ["--imatrix", str(imatrix)] if recipes()[level].needs_imatrix else []
        command = [
            *(sys.executable, "-m", "quantcore", "quantize", str(model), str(ours)),
            *("--to", level, "--threads", str(threads), *given),
        ]
        peer = [tool, *given, str(model), str(theirs), level, str(threads)]
        costs = {"jit": [], "llama_quantize": [], "numpy": []}
        for i in range(runs):
            costs["jit"].append(run([*command, "--backend", "jit"]))
            costs["llama_quantize"].append(run(peer))
            if i == 0:
                same = filecmp.cmp(ours, theirs, shallow=False)
            if i < numpy_runs:
                costs["numpy"].append(run([*command, "--backend", "numpy"]))
                same = same and filecmp.cmp(ours, theirs, shallow=False)
        size = ours.stat().st_size
    figures = {name: median(found) for name, found in costs.items() if found}
    peer_cost = figures["llama_quantize"]
    row = {"model": model.stem, "level": level, "threads": threads, "imatrix": bool(given), "identical": same}
    row |= {"file_bytes": size, **{name: asdict(cost) for name, cost in figures.items()}}
    for name in ("jit", "numpy"):
        if name in figures:
            row[f"{name}_wall_ratio"] = peer_cost.wall / figures[name].wall
            row[f"{name}_cpu_ratio"] = peer_cost.cpu / figures[name].cpu
    return row


def widened(model):
    """Return the model with the same weights in F32, making it where it is missing."""
    path = model.with_name(f"{model.stem}-F32.gguf")
    if not path.exists():
        command = [sys.executable, "-m", "quantcore", "quantize", str(model), str(path), "--to", "F32"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def line(row):
    mine, peer = row["jit"], row["llama_quantize"]
    numpy = f"{row['numpy_wall_ratio']:.2f} / {row['numpy_cpu_ratio']:.2f}" if "numpy" in row else "-"
    return (
        f"| {row['level']} | {row['threads']} | {'identical' if row['identical'] else '**differ**'} "
        f"| {mine['wall']:.2f} | {peer['wall']:.2f} "
        f"| **{row['jit_wall_ratio']:.2f}** | {row['jit_cpu_ratio']:.2f} "
        f"| {numpy} | {mine['peak'] / 1e6:.0f} / {peer['peak'] / 1e6:.0f} | {row['model']} |"
    )


def table(rows):
    """Return the rows as Markdown."""
    names = ["level", "threads", "bytes", "ours, s", "llama-quantize, s", "wall ratio", "CPU ratio"]
    names += ["numpy alone: wall / CPU ratio", "peak MB, ours / theirs", "model"]
    head = f"| {' | '.join(names)} |\n|---|--:|---|--:|--:|--:|--:|--:|--:|---|\n"
    return head + "\n".join(map(line, rows)) + "\n"


def save(rows, runs):
    machine = {"processor": processor(), "cores": os.cpu_count(), "runs": runs}
    (HERE / "results" / "gguf_speed.json").write_text(
        json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n"
    )
    (HERE / "gguf_speed.md").write_text(
        "# Whole files beside llama-quantize\n\n"
        f"Made by `gguf_speed.py` on {machine['processor']} ({machine['cores']} cores): median of\n"
        f"{runs} runs each, in turn, of whole processes, their start included; ratios are llama-quantize's\n"
        "time over ours. The models are those of `models.py`.\n\n" + table(rows)
    )


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(text.partition(":")[2].strip() for text in lines if text.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--llama-quantize", required=True)
    parser.add_argument("--imatrix", type=Path, help="importance matrix of the models given")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "build" / "benchmarks")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--numpy-runs", type=int, default=1)
    parser.add_argument("--levels", nargs="+", default=[n for n in recipes() if n not in {"F32", "COPY"}])
    options = parser.parse_args()
    rows = []
    for level in options.levels:
        models = [(model, options.imatrix) for model in options.models]
        models = models or [prepare(SMALL if level.startswith(SLOW) else LARGE, options.folder)]
        if level == "F16":
            models = [
                pair for model, imatrix in models for pair in ((model, imatrix), (widened(model), imatrix))
            ]
        for model, imatrix in models:
            for threads in options.threads:
                row = measure(
                    options.llama_quantize, model, imatrix, level, threads, options.runs, options.numpy_runs
                )
                rows.append(row)
                print(line(row), flush=True)
                save(rows, options.runs)


if __name__ == "__main__":
    main()
