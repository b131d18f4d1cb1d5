"""Perplexity, KL divergence and importance beside llama.cpp's tools: are the figures the same, and how soon?

    python benchmarks/evaluate.py --llama-bin FOLDER --text TEXT SOURCE.gguf QUANT.gguf [...]
        [--threads 1 2] [--chunks 6 30] [--runs 5] [--big MODEL.gguf] [--numpy]

Both measure the same chunks of the same text with the same threads, in turn, A B A B; FOLDER has
llama-perplexity and llama-imatrix. Times are of whole processes, start included; ratios are llama.cpp's
median over ours, so more than 1 means that we are sooner. The first model is the source of the others;
divergence is compared over the largest number of chunks. `--numpy` adds rows of ours without kernels.
`--big` adds the peak memory of one run of a large model, as `big_model.py` makes it, with two chunks.
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
from itertools import product
from pathlib import Path

import numpy as np
from gguf_speed import median, processor, run

from quantcore.imatrix import open_imatrix
from quantcore.kernels import library

HERE = Path(__file__).parent
N_CTX = 512
SHARED = " Other programs ran meanwhile: compare CPU time, not wall time."


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


# Name, what llama-perplexity calls it, and where it stands in our document.
STATISTICS = (
    ("KL divergence, mean", r"Mean\s+KLD:\s+([\d.]+)", lambda found: found["kld"]["mean"]),
    ("KL divergence, median", r"Median\s+KLD:\s+([\d.]+)", lambda found: found["kld"]["median"]),
    ("KL divergence, 90 %", r"90.0%\s+KLD:\s+([\d.]+)", lambda found: found["kld"]["p90"]),
    ("KL divergence, 99 %", r"99.0%\s+KLD:\s+([\d.]+)", lambda found: found["kld"]["p99"]),
    ("RMS change of probability, %", r"RMS Δp\s+:\s+([\d.]+)", lambda found: 100 * found["rms_dp"]),
    ("same likeliest token, %", r"Same top p:\s+([\d.]+)", lambda found: 100 * found["same_top"]),
)


class Bench:
    """Both programs with the same threads and chunks."""

    def __init__(self, options, folder, threads, chunks, rows):
        self.options, self.folder, self.rows = options, folder, rows
        self.threads, self.chunks = threads, chunks

    def tool(self, name, model, *arguments):
        limits = ["-c", N_CTX, "-b", N_CTX, "-t", self.threads, "--chunks", self.chunks]
        command = [self.options.llama_bin / name, "-m", model, "-f", self.options.text, *limits]
        return [str(part) for part in (*command, *arguments)]

    def ours(self, verb, model, *arguments):
        limits = ["--ctx", N_CTX, "--chunks", self.chunks, "--threads", self.threads]
        return quantcore(verb, model, self.options.text, *arguments, *limits)

    def without_kernels(self, command):
        """Return the command where no kernels are found."""
        return ["env", f"QUANTCORE_CACHE={self.folder / 'no kernels'}", *command]

    def note(self, what, model, ours, theirs, deviation, costs):
        row = {"what": what, "model": model.stem, "threads": self.threads, "chunks": self.chunks}
        row |= {"ours": ours, "theirs": theirs, "deviation": deviation}
        self.rows.append(row | (costs or {}))
        print(self.rows[-1], flush=True)

    def perplexity(self, model):
        mine = self.ours("perplexity", model, "--json")
        self.compare("perplexity", model, mine, self.options.runs)
        if self.options.numpy:
            self.compare("perplexity, numpy alone", model, self.without_kernels(mine), self.options.runs)

    def compare(self, what, model, mine, runs):
        peer = self.tool("llama-perplexity", model)
        found = json.loads(subprocess.run(mine, capture_output=True, check=True).stdout)["ppl"]
        theirs = figure(r"Final estimate: PPL = ([\d.]+)", told(peer))
        self.note(what, model, found, theirs, abs(found / theirs - 1), times(mine, peer, runs))

    def memory(self, model):
        """Note the perplexity and the peak memory of one run of each."""
        self.compare("peak memory", model, self.ours("perplexity", model, "--json"), 1)

    def divergence(self, source, quant):
        """Note statistics of divergence: of the weights alone, of which llama.cpp's figures are those of the
        same weights unpacked to F32, and with inputs rounded as it rounds them for quantized weights.
        """
        unpacked = self.folder / "unpacked.gguf"
        told(quantcore("quantize", quant, unpacked, "--to", "F32"))
        base = self.folder / "theirs.base"
        told(self.tool("llama-perplexity", source, "--kl-divergence-base", base))
        given = ("--kl-divergence-base", base, "--kl-divergence")
        exact, rounded = (told(self.tool("llama-perplexity", model, *given)) for model in (unpacked, quant))
        base.unlink()
        for activations, text, what in (
            ("float32", exact, "as they are; theirs unpacked to F32"),
            ("llama.cpp", rounded, "as llama.cpp rounds them"),
            ("float32", rounded, "as they are; theirs rounded"),
        ):
            found = self.diverging(source, quant, activations)
            for name, pattern, value in STATISTICS:
                ours, theirs = value(found), figure(pattern, text)
                self.note(f"{name}; inputs {what}", quant, ours, theirs, abs(ours / theirs - 1), None)

    def diverging(self, source, quant, activations):
        """Return our document of one comparison."""
        mine, rounding = self.folder / "ours.base", ("--activations", activations)
        told(self.ours("perplexity", source, "--save-base", mine, *rounding))
        compare = self.ours("perplexity", quant, "--kl-base", mine, "--json", *rounding)
        found = json.loads(subprocess.run(compare, capture_output=True, check=True).stdout)
        mine.unlink()
        return found

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
        f"{row['threads']}",
        f"{row['chunks']}",
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


def kernels():
    """Return in words whether compiled kernels were used."""
    return "with compiled kernels" if library.load() is not None else "without compiled kernels"


def blas(machine):
    """Return in words which processor's code OpenBLAS was told to use."""
    kind = machine["openblas_coretype"]
    return f"told by OPENBLAS_CORETYPE to use {kind}'s code" if kind else "left to choose its code"


def save(rows, options):
    machine = {"processor": processor(), "cores": os.cpu_count(), "runs": options.runs}
    machine |= {
        "n_ctx": N_CTX,
        "kernels": kernels(),
        "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE"),
    }
    document = {"machine": machine, "rows": rows}
    (HERE / "results" / "evaluate.json").write_text(json.dumps(document, indent=1) + "\n")
    head = (
        "| figure | model | threads | chunks | ours | llama.cpp | deviation "
        "| ours, s | llama.cpp, s | wall ratio | CPU ratio | peak MB |\n"
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    )
    (HERE / "evaluate.md").write_text(
        "# Figures beside llama.cpp's\n\n"
        f"Made by `evaluate.py` on {machine['processor']}, {machine['kernels']}: chunks of {N_CTX}\n"
        f"tokens, median of {options.runs} runs each, in turn, of whole processes. Ratios are llama.cpp's\n"
        "time over ours, so more than 1 means that we are sooner; the deviation of importance is that of a\n"
        "whole tensor's sums; peaks are ours / llama.cpp's, with what the latter has mapped of the file.\n"
        "OpenBLAS, which does products where compiled kernels do not, was\n"
        f"{blas(machine)}.{SHARED if options.shared else ''}\n\n" + head + "\n".join(map(line, rows)) + "\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--llama-bin", required=True, type=Path)
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count()])
    parser.add_argument("--chunks", type=int, nargs="+", default=[6, 30])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--shared", action="store_true", help="say that other programs ran meanwhile")
    parser.add_argument("--numpy", action="store_true")
    parser.add_argument("--big", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for chunks, threads in product(options.chunks, options.threads):
            bench = Bench(options, Path(folder), threads, chunks, rows)
            for model in options.models:
                bench.perplexity(model)
                bench.importance(model)
        bench = Bench(options, Path(folder), max(options.threads), max(options.chunks), rows)
        for quant in options.models[1:]:
            bench.divergence(options.models[0], quant)
        if options.big:
            Bench(options, Path(folder), max(options.threads), 2, rows).memory(options.big)
    save(rows, options)


if __name__ == "__main__":
    main()
