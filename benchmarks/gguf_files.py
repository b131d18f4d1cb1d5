"""Whole files beside llama-quantize: are the bytes the same, and what does each cost?

    python benchmarks/gguf_files.py --llama-quantize PATH --runs 3 MODEL.gguf [MODEL.gguf ...]

Both programs make each level from the same F16 file in turn, A B A B, with the file in the page cache. CPU
seconds are user + system of the whole process; the ratio is llama-quantize's median over ours, so more than 1
means that we are quicker. Writes results/gguf_files.json and gguf_files.md beside this script.
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
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from quantcore.recipes import recipes

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Cost:
    """What one run took: seconds of wall and CPU time, and the peak resident memory in bytes."""

    wall: float
    cpu: float
    peak: int


def run(command: list[str]) -> Cost:
    """Run a program to its end and return what it took; its output is thrown away."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def median(costs: list[Cost]) -> Cost:
    """Return the median of each figure."""
    return Cost(
        statistics.median(cost.wall for cost in costs),
        statistics.median(cost.cpu for cost in costs),
        int(statistics.median(cost.peak for cost in costs)),
    )


def measure(tool: str, model: Path, level: str, threads: int, runs: int) -> dict[str, object]:
    """Make one level by both programs and return the row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours.gguf", Path(folder) / "theirs.gguf"
        our_command = [
            *(sys.executable, "-m", "quantcore", "quantize", str(model), str(ours)),
            *("--to", level, "--threads", str(threads)),
        ]
        their_command = [tool, str(model), str(theirs), level, str(threads)]
        pairs = [(run(our_command), run(their_command)) for _ in range(runs)]
        same = filecmp.cmp(ours, theirs, shallow=False)
        size = ours.stat().st_size
    mine, other = median([a for a, _ in pairs]), median([b for _, b in pairs])
    return {
        "model": model.name,
        "level": level,
        "identical": same,
        "file_bytes": size,
        "threads": threads,
        "ours": asdict(mine),
        "llama_quantize": asdict(other),
        "cpu_ratio": other.cpu / mine.cpu,
        "wall_ratio": other.wall / mine.wall,
    }


def table(rows: list[dict[str, object]]) -> str:
    """Return the rows as Markdown."""
    names = ["model", "level", "bytes", "ours, CPU s", "llama-quantize, CPU s", "CPU ratio", "wall ratio"]
    head = f"| {' | '.join(names)} | peak MB, ours / theirs |\n|---|---|---|--:|--:|--:|--:|--:|\n"
    lines = []
    for row in rows:
        mine, other = row["ours"], row["llama_quantize"]
        assert isinstance(mine, dict)
        assert isinstance(other, dict)
        lines.append(
            f"| {row['model']} | {row['level']} | {'identical' if row['identical'] else '**differ**'} "
            f"| {mine['cpu']:.2f} | {other['cpu']:.2f} | {row['cpu_ratio']:.2f} | {row['wall_ratio']:.2f} "
            f"| {mine['peak'] / 1e6:.0f} / {other['peak'] / 1e6:.0f} |"
        )
    return head + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare whole files with llama-quantize's.")
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--llama-quantize", required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--levels", nargs="+", default=[n for n in recipes() if n not in {"F32", "F16", "BF16"}]
    )
    options = parser.parse_args()
    rows = []
    for model in options.models:
        for level in options.levels:
            row = measure(options.llama_quantize, model, level, options.threads, options.runs)
            rows.append(row)
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    machine = {"processor": platform.machine(), "threads": options.threads, "runs": options.runs}
    document = {"machine": machine, "rows": rows}
    (HERE / "results" / "gguf_files.json").write_text(json.dumps(document, indent=1) + "\n")
    (HERE / "gguf_files.md").write_text(
        "# Whole files beside llama-quantize\n\n"
        "Made by `gguf_files.py`; medians; ratios are llama-quantize's time over ours. Small models measure\n"
        "the start of the program more than its work: Python and numpy take a quarter second to load.\n\n"
        + table(rows)
    )


if __name__ == "__main__":
    main()
