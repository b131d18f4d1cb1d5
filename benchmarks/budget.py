"""Quants made for a size beside the levels of that size: which diverge less from the source, and by how much?

    python benchmarks/budget.py --imatrix FILE --calibration TEXT --evaluation TEXT SOURCE.gguf

For each level a file of at most its size is made from the same source with the same importance matrix, its
types chosen by what they do to the predictions on the calibration text; both are measured on another text.
`--without` leaves types out (a source that was itself unpacked from Q4_1 loses nothing in Q4_1, which no
trained model can hope for). The curve is of files from 2.5 to 8 bits per weight. Adds the model to
results/budget.json and writes budget.md and budget.svg beside this script.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

from quantcore.backends import choose
from quantcore.budget import Limits, Target, plan_for
from quantcore.errors import InputError
from quantcore.evaluate.divergence import divergence, save_base
from quantcore.formats import formats
from quantcore.imatrix import open_imatrix
from quantcore.models import open_model
from quantcore.pipeline import quantize
from quantcore.plan import Options, make_plan
from quantcore.sensitivity import measure

HERE = Path(__file__).parent
LEVELS = ("Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_M", "IQ3_M", "Q3_K_S", "Q2_K", "IQ2_M")
CURVE = (2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0, 4.25, 4.5, 4.75, 5.0, 5.5, 6.0, 7.0, 8.0)
N_CTX = 512
HEAD = """# Quants made for a size beside levels of that size

Made by `budget.py`: the same source, importance matrix and (but for what the table shows) size; the mean KL
divergence from the source in nats per token on a text that nothing was chosen by. Expected is what the choice
of types predicted, bound what no other choice could be expected to go below.

SmolLM2 is only to be had in Q4_1 here: its source is that, unpacked, so Q4_1 and Q5_1 lose nothing of it,
which no trained model can hope for. One table leaves both out of what may be chosen; levels that fall back on
Q5_1 (Q5_K_M does) keep it, and are as near to that source as no choice without it can be.

![Divergence against bits per weight](budget.svg)

"""


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.source, self.backend = open_model(options.source), choose("jit")
        self.chosen = Options(imatrix=open_imatrix(options.imatrix))
        self.limits = Limits(types=frozenset(formats()) - set(options.without))
        self.text = options.evaluation.read_text().removesuffix("\n")
        self.base = folder / "base"

    def prepare(self):
        """Measure the sensitivities and the source's predictions; return the seconds the first took."""
        options, began = self.options, time.monotonic()
        text = options.calibration.read_text().removesuffix("\n")
        self.found = measure(
            self.source,
            text,
            options.calibration.name,
            "",
            imatrix=self.chosen.imatrix,
            kernels=self.backend.kernels,
        )
        seconds = time.monotonic() - began
        save_base(self.source, self.text, self.base, n_ctx=N_CTX, n_chunks=options.chunks)
        return seconds

    def measured(self, plan):
        """Make a planned file and return its figures."""
        path = self.folder / "quant.gguf"
        quantize(self.source, plan, path, kernels=self.backend.kernels, imatrix=self.chosen.imatrix)
        ppl, found = divergence(open_model(path), self.text, self.base)
        types = Counter(tensor.type for tensor in plan.tensors if len(tensor.shape) > 1)
        return {
            "file_bytes": path.stat().st_size,
            "bpw": plan.bpw,
            "kld": found.kld.mean,
            "kld_stderr": found.kld.stderr,
            "p99": found.kld.p99,
            "same_top": found.same_top,
            "ppl": ppl.ppl,
            "types": dict(types.most_common()),
        }

    def made(self, target):
        made = plan_for(self.source, target, self.found, self.chosen, self.limits)
        return {**self.measured(made.plan), "expected": made.divergence, "bound": made.bound}

    def levels(self):
        for level in self.options.levels:
            plan = make_plan(self.source, level, self.chosen)
            row = {"level": level, "theirs": self.measured(plan)}
            row["ours"] = self.made(Target(nbytes=plan.file_bytes))
            print(line(row), flush=True)
            yield row

    def curve(self):
        for bpw in CURVE:
            try:
                yield self.made(Target(bpw=bpw))
            except InputError as exc:
                print(f"{bpw}: {exc}", flush=True)


def line(row):
    ours, theirs = row["ours"], row["theirs"]
    types = ", ".join(f"{count} {name}" for name, count in ours["types"].items())
    return (
        f"| {row['level']} | {theirs['file_bytes']:,} | {ours['file_bytes']:,} "
        f"| {ours['file_bytes'] / theirs['file_bytes'] - 1:+.3%} "
        f"| {theirs['kld']:.5f} ± {theirs['kld_stderr']:.5f} | {ours['kld']:.5f} ± {ours['kld_stderr']:.5f} "
        f"| **{ours['kld'] / theirs['kld']:.3f}** | {ours['expected']:.5f} | {ours['bound']:.5f} "
        f"| {theirs['ppl']:.3f} / {ours['ppl']:.3f} | {theirs['same_top']:.2%} / {ours['same_top']:.2%} "
        f"| {types} |"
    )


def section(name, model):
    names = ["level", "its bytes", "bytes", "size", "its KL divergence", "KL divergence", "ratio", "expected"]
    names += ["bound", "perplexity, its / ours", "same top token", "types"]
    left = f" Without {', '.join(model['without'])}." if model["without"] else ""
    text = (
        f"## {name}\n\n{model['chunks']} chunks of {N_CTX} tokens of {model['evaluation']}; sensitivities on "
        f"{model['sensitivity_chunks']} of {model['calibration']}, "
        f"measured in {model['seconds']:.0f} s.{left}\n\n"
        f"| {' | '.join(names)} |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n"
    )
    text += "\n".join(map(line, model["levels"])) + "\n\n"
    text += "| bpw | bytes | KL divergence | expected |\n|--:|--:|--:|--:|\n"
    for point in model["curve"]:
        text += (
            f"| {point['bpw']:.2f} | {point['file_bytes']:,} "
            f"| {point['kld']:.5f} ± {point['kld_stderr']:.5f} | {point['expected']:.5f} |\n"
        )
    return text


def picture(models):
    """Return an SVG of divergence against bits per weight, both of levels and of files made for a size."""
    from math import log10

    width, height, out = 420, 320, []
    for place, (name, model) in enumerate(models.items()):
        left = 60 + place * (width + 60)
        dots = [(row["theirs"]["bpw"], row["theirs"]["kld"], row["level"]) for row in model["levels"]]
        line = [(point["bpw"], point["kld"]) for point in model["curve"] if point["kld"] > 1e-5]
        low, high = min(k for _, k, *_ in [*dots, *line]), max(k for _, k, *_ in [*dots, *line])
        ends = min(b for b, *_ in [*dots, *line]), max(b for b, *_ in [*dots, *line])

        def at(bpw, kld, left=left, low=low, high=high, ends=ends):
            x = left + (bpw - ends[0]) / (ends[1] - ends[0]) * width
            return x, 40 + height * (log10(high) - log10(kld)) / (log10(high) - log10(low))

        out.append(f'<text x="{left}" y="24" font-weight="bold">{name}</text>')
        out.append(f'<rect x="{left}" y="40" width="{width}" height="{height}" fill="none" stroke="#888"/>')
        for bpw in range(int(ends[0]) + 1, int(ends[1]) + 1):
            x = at(bpw, low)[0]
            out.append(f'<text x="{x:.0f}" y="{58 + height}" text-anchor="middle">{bpw}</text>')
        for power in range(-5, 2):
            if low <= 10**power <= high:
                y = at(ends[0], 10**power)[1]
                out.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
                out.append(f'<text x="{left - 4}" y="{y + 4:.0f}" text-anchor="end">{10**power:g}</text>')
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line))
        out.append(f'<polyline points="{points}" fill="none" stroke="#0a7" stroke-width="2"/>')
        for bpw, kld, level in dots:
            x, y = at(bpw, kld)
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="#c40"/>')
            out.append(f'<text x="{x + 6:.1f}" y="{y + 4:.1f}">{level}</text>')
    total = 60 + len(models) * (width + 60)
    note = "mean KL divergence, nats per token, against bits per weight: dots levels, line made for a size"
    out.append(f'<text x="60" y="{80 + height}">{note}</text>')
    body = "\n".join(out)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{height + 96}" '
        f'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="#fff"/>\n{body}\n'
        "</svg>\n"
    )


def save(name, model):
    path = HERE / "results" / "budget.json"
    models = json.loads(path.read_text()) if path.exists() else {}
    models[name] = model
    path.write_text(json.dumps(models, indent=1) + "\n")
    (HERE / "budget.svg").write_text(picture(models))
    (HERE / "budget.md").write_text(HEAD + "\n".join(section(*item) for item in models.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--name", help="what to call it; the file's name if left out")
    parser.add_argument("--imatrix", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--levels", nargs="+", default=LEVELS)
    parser.add_argument("--without", nargs="+", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        seconds = bench.prepare()
        model = {
            "calibration": options.calibration.name,
            "evaluation": options.evaluation.name,
            "chunks": options.chunks,
            "sensitivity_chunks": bench.found.chunks,
            "seconds": seconds,
            "without": options.without,
            "levels": list(bench.levels()),
            "curve": list(bench.curve()),
        }
    save(options.name or options.source.stem, model)


if __name__ == "__main__":
    main()
