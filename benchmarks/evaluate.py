"""Perplexity, KL divergence and importance beside llama.cpp's tools: are the figures the same, and how soon?

    python benchmarks/evaluate.py --llama-bin FOLDER --text TEXT SOURCE.gguf QUANT.gguf [...]

Both measure the same chunks of the same text with the same threads, in turn, A B A B; FOLDER has
llama-perplexity and llama-imatrix. Times are of whole processes, start included; ratios are llama.cpp's
median over ours, so more than 1 means that we are sooner. The first model is the source of the others.
Writes results/evaluate.json and evaluate.md beside this script.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf_speed import median, processor, run

from quantcore.imatrix import open_imatrix

HERE = Path(__file__).parent
N_CTX = 512


def told(command):
    """Run a program and return all that it says."""
    done = subprocess.run(command, capture_output=True, text=True, check=True, errors="replace")
    return done.stdout + done.stderr


def figure(pattern, text):
    return float(re.search(pattern, text)[1])


def quantcore(*arguments):
    return [sys.executable, "-m", "quantcore", *map(str, arguments)]


def times(ours, theirs, runs):
    """Return median costs of both, run in turn, and the ratios."""
    costs = [(run(ours), run(theirs)) for _ in range(runs)]
    mine, peer = (median([pair[i] for pair in costs]) for i in (0, 1))
    return {
        "ours_s": mine.wall,
        "theirs_s": peer.wall,
        "wall_ratio": peer.wall / mine.wall,
        "cpu_ratio": peer.cpu / mine.cpu,
        "ours_peak": mine.peak,
        "theirs_peak": peer.peak,
    }


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.rows = []

    def tool(self, name, model, *arguments):
        options = self.options
        common = [
            "-f",
            options.text,
            "-c",
            N_CTX,
            "-b",
            N_CTX,
            "-t",
            options.threads,
            "--chunks",
            options.chunks,
        ]
        return [str(part) for part in (options.llama_bin / name, "-m", model, *common, *arguments)]

    def ours(self, verb, model, *arguments):
        options = self.options
        limits = ["--ctx", N_CTX, "--chunks", options.chunks, "--threads", options.threads]
        return quantcore(verb, model, options.text, *arguments, *limits)

    def note(self, what, model, ours, theirs, deviation, costs):
        row = {"what": what, "model": model.stem, "ours": ours, "theirs": theirs, "deviation": deviation}
        self.rows.append(row | (costs or {}))
        print(self.rows[-1], flush=True)

    def perplexity(self, model):
        mine, peer = self.ours("perplexity", model, "--json"), self.tool("llama-perplexity", model)
        found = json.loads(subprocess.run(mine, capture_output=True, check=True).stdout)["ppl"]
        theirs = figure(r"Final estimate: PPL = ([\d.]+)", told(peer))
        costs = times(mine, peer, self.options.runs)
        self.note("perplexity", model, found, theirs, abs(found / theirs - 1), costs)

    def divergence(self, source, quant):
        mine, peer = self.folder / "ours.base", self.folder / "theirs.base"
        told(self.ours("perplexity", source, "--save-base", mine))
        told(self.tool("llama-perplexity", source, "--kl-divergence-base", peer))
        document = json.loads(
            subprocess.run(
                self.ours("perplexity", quant, "--kl-base", mine, "--json"), capture_output=True, check=True
            ).stdout
        )
        text = told(self.tool("llama-perplexity", quant, "--kl-divergence-base", peer, "--kl-divergence"))
        wanted = {
            "mean": r"Mean\s+KLD:\s+([\d.]+)",
            "median": r"Median\s+KLD:\s+([\d.]+)",
            "p99": r"99.0%\s+KLD:\s+([\d.]+)",
        }
        for name, pattern in wanted.items():
            ours, theirs = document["kld"][name], figure(pattern, text)
            self.note(f"KL divergence, {name}", quant, ours, theirs, abs(ours / theirs - 1), None)
        ours, theirs = 100 * document["same_top"], figure(r"Same top p:\s+([\d.]+)", text)
        self.note("same likeliest token, %", quant, ours, theirs, abs(ours / theirs - 1), None)

    def importance(self, model):
        mine, peer = self.folder / "ours.imatrix.gguf", self.folder / "theirs.imatrix.gguf"
        ours = self.ours("imatrix", model, mine)
        theirs = self.tool("llama-imatrix", model, "-ub", N_CTX, "--no-ppl", "-o", peer)
        costs = times(ours, theirs, self.options.runs)
        a, b = open_imatrix(mine), open_imatrix(peer)
        assert a.entries.keys() == b.entries.keys()
        worst = 0.0
        for name in b.entries:
            (x, counts), (y, wanted) = a.sums(name, N_CTX), b.sums(name, N_CTX)
            assert (counts == wanted).all()
            worst = max(worst, float(np.linalg.norm(x - y) / np.linalg.norm(y)))
        self.note("importance, entries; worst deviation", model, len(a), len(b), worst, costs)


def line(row):
    shown = [
        row["what"],
        row["model"],
        f"{row['ours']:.6g}",
        f"{row['theirs']:.6g}",
        f"{row['deviation']:.2e}",
    ]
    if "wall_ratio" in row:
        shown += [f"{row['ours_s']:.2f}", f"{row['theirs_s']:.2f}"]
        shown += [f"**{row['wall_ratio']:.2f}**", f"{row['cpu_ratio']:.2f}"]
        shown += [f"{row['ours_peak'] / 1e6:.0f} / {row['theirs_peak'] / 1e6:.0f}"]
    else:
        shown += ["-"] * 5
    return f"| {' | '.join(shown)} |"


def save(rows, options):
    machine = {"processor": processor(), "cores": os.cpu_count(), "runs": options.runs}
    machine |= {"threads": options.threads, "chunks": options.chunks, "n_ctx": N_CTX}
    document = {"machine": machine, "rows": rows}
    (HERE / "results" / "evaluate.json").write_text(json.dumps(document, indent=1) + "\n")
    head = (
        "| figure | model | ours | llama.cpp | deviation "
        "| ours, s | llama.cpp, s | wall ratio | CPU ratio | peak MB |\n"
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    )
    (HERE / "evaluate.md").write_text(
        "# Figures beside llama.cpp's\n\n"
        f"Made by `evaluate.py` on {machine['processor']}, {options.threads} threads:\n"
        f"{options.chunks} chunks of {N_CTX} tokens, median of {options.runs} runs each, in turn, of whole\n"
        "processes. Ratios are llama.cpp's time over ours; the deviation of importance is that of a whole\n"
        "tensor's sums.\n\n" + head + "\n".join(map(line, rows)) + "\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--llama-bin", required=True, type=Path)
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        for model in options.models:
            bench.perplexity(model)
        for quant in options.models[1:]:
            bench.divergence(options.models[0], quant)
        for model in options.models:
            bench.importance(model)
    save(bench.rows, options)


if __name__ == "__main__":
    main()
