"""Speed and memory beside llama-bench: does `quantcore bench` tell the same of llama.cpp?

    python benchmarks/engine_speed.py --llama-bench PATH [--depths 0,1024] [--rounds 3] MODEL.gguf

Both run each test in turn, A B A B, on one thread. What a run costs is CPU time, which a busy machine
disturbs less than the clock: that of a process with five runs less that of one with one, a quarter of it.
Loading, filling the cache and warming up fall out. llama-bench should be built for the instruction set that
the wheel xllamacpp was built for, or another program is timed. Memory is what llama-bench prints of the same
context. Writes results/engine_speed.json and engine_speed.md beside this script, where rows of other models
and depths are kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median

from gguf_speed import processor, run

from quantcore.evaluate.memory import memory_in
from quantcore.evaluate.speed import bench

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "engine_speed.json"
FEW, MANY = 1, 5
TESTS = {"pp512": (512, 0), "tg128": (0, 128)}
PARTS = ("model", "kv")  # llama-bench asks for all logits of a batch, so that its scratch space is another


def theirs(options, model, test, depth, runs):
    pp, tg = TESTS[test]
    shape = ["-p", pp, "-n", tg, "-d", depth, "-r", runs, "-t", 1]
    return [options.llama_bench, "-m", model, *shape]


def ours(_options, model, test, depth, runs):
    pp, tg = (str(count or 1) for count in TESTS[test])  # the other test is one token long
    command = [sys.executable, "-m", "quantcore", "bench", model, "--pp", pp, "--tg", tg]
    return [*command, "--depth", depth, "--runs", runs, "--threads", 1, "--json"]


def rate(side, *what):
    """Return tokens per CPU second of a test."""
    few, many = (run([*map(str, side(*what, runs))]).cpu for runs in (FEW, MANY))
    return sum(TESTS[what[2]]) * (MANY - FEW) / (many - few)


def speeds(options):
    rows = []
    for depth in options.depths:
        for test in TESTS:
            what = (options, options.model, test, depth)
            pairs = [(rate(ours, *what), rate(theirs, *what)) for _ in range(options.rounds)]
            mine, peer = (median(pair[side] for pair in pairs) for side in (0, 1))
            ratios = [a / b for a, b in pairs]
            row = {"model": options.model.stem, "test": test, "depth": depth, "ours": mine, "theirs": peer}
            rows.append(row | {"ratio": median(ratios), "ratios": ratios})
            print(rows[-1], flush=True)
    return rows


def merged(rows):
    """Return these rows and those of earlier runs that were not measured anew."""
    kept = json.loads(RESULTS.read_text())["speed"] if RESULTS.exists() else []
    known = {(row["model"], row["depth"], row["test"]): row for row in [*kept, *rows]}
    return [known[key] for key in sorted(known)]


def memory(options):
    """Return bytes that both tell of in a context of as many cells."""
    mine = bench(options.model, pp=16, tg=1, depths=(max(options.depths),), runs=1, threads=1).memory
    shape = ["-p", "16", "-n", "0", "-d", str(mine.n_ctx - 16), "-r", "1", "-t", "1", "-v"]
    command = [options.llama_bench, "-m", str(options.model), *shape]
    log = subprocess.run(command, capture_output=True, text=True, check=True, errors="replace").stderr
    peer = memory_in(log)
    return {"n_ctx": mine.n_ctx, "their_n_ctx": peer.n_ctx, "ours": asdict(mine), "theirs": asdict(peer)}


def page(rows, told):
    lines = [
        "# Speed and memory beside llama-bench's",
        "",
        f"Made by `engine_speed.py` on {processor()}, one thread: tokens per CPU second, the median of",
        "rounds in turn, and the ratio of ours to llama-bench's in each; 1 is the same.",
        "",
        "| model | test | depth | ours | llama-bench | ratio | all ratios |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        shown = ", ".join(f"{ratio:.2f}" for ratio in row["ratios"])
        figures = f"{row['ours']:.1f} | {row['theirs']:.1f} | **{row['ratio']:.2f}** | {shown}"
        lines.append(f"| {row['model']} | {row['test']} | {row['depth']} | {figures} |")
    lines += ["", f"Bytes in a context of {told['n_ctx']} cells, as both programs say:", ""]
    lines += ["| part | ours | llama-bench |", "|---|--:|--:|"]
    lines += [f"| {part} | {told['ours'][part]} | {told['theirs'][part]} |" for part in PARTS]
    return "\n".join([*lines, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument(
        "--depths", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1024]
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    told = memory(options)
    rows = merged(speeds(options))
    result = {"machine": processor(), "speed": rows, "memory": told}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "engine_speed.md").write_text(page(rows, told))


if __name__ == "__main__":
    main()
