"""Measure how many weights a second each type takes, and write the table that plans estimate their time by.

    python benchmarks/speeds.py [--types Q4_K,Q6_K]

Without types all are measured anew, otherwise the others are kept. CPU seconds of one thread, so that a busy
machine tells the same; the best of three runs over normal weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from quantcore.estimate import SPEEDS
from quantcore.formats import Format, formats, get_format
from quantcore.ggmltypes import is_quantized
from quantcore.kernels import Kernels, library

ROW = 2048
TABLE = Path(__file__).parents[1] / "quantcore" / "speeds.py"
HEAD = '''"""Millions of weights per CPU second by backend and type: without importance, and with it.

Made by `benchmarks/speeds.py`; the basis of `quantcore.estimate`.
"""

from __future__ import annotations

SPEEDS: dict[str, dict[str, tuple[float, float]]] = {
'''


def speed(fmt: Format, kernels: Kernels | None, *, weighted: bool) -> float:
    """Return million weights per CPU second."""
    draw = np.random.default_rng(5)
    importance = draw.random(ROW, dtype=np.float32) + np.float32(0.1) if weighted else None
    rows, best = 16, 0.0
    while True:
        values = draw.standard_normal((rows, ROW), dtype=np.float32)
        fmt.quantize(values[:8], importance, kernels=kernels)  # tables are built once
        took = []
        for _ in range(3):
            began = time.process_time()
            fmt.quantize(values, importance, kernels=kernels)
            took.append(time.process_time() - began)
        best = values.size / 1e6 / max(min(took), 1e-9)
        if min(took) > 0.1 or rows >= 2048:
            return best
        rows *= 4


def measured(name: str, kernels: Kernels | None) -> tuple[float, float] | None:
    """Return both speeds of a type, or None where these kernels have none of it."""
    fmt = get_format(name)
    if kernels and not kernels.find(name, weighted=False) and not kernels.find(name, weighted=True):
        return None
    weighted = speed(fmt, kernels, weighted=True)
    return (weighted if fmt.needs_calibration else speed(fmt, kernels, weighted=False)), weighted


def table(speeds: dict[str, dict[str, tuple[float, float]]]) -> str:
    """Return the table as Python, three figures each."""
    lines = [HEAD.rstrip("\n")]
    for backend, of_types in speeds.items():
        lines.append(f'    "{backend}": {{')
        lines += [
            f'        "{name}": ({_round(plain):g}, {_round(weighted):g}),'
            for name, (plain, weighted) in sorted(of_types.items())
        ]
        lines.append("    },")
    return "\n".join([*lines, "}", ""])


def _round(figure: float) -> float:
    return float(f"{figure:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", default="")
    wanted = [name for name in parser.parse_args().types.split(",") if name]
    makeable = [name for name, fmt in formats().items() if fmt.can_quantize and is_quantized(name)]
    speeds = {name: dict(of_types) if wanted else {} for name, of_types in SPEEDS.items()}
    for backend, kernels in (("numpy", None), ("jit", library.load())):
        if backend == "jit" and kernels is None:
            print("the compiled kernels are not built; their figures stay")
            speeds[backend] = dict(SPEEDS[backend])
            continue
        for name in wanted or makeable:
            found = measured(name, kernels)
            if found:
                speeds[backend][name] = found
                print(f"{backend} {name}: {found[0]:.3g} / {found[1]:.3g} Mw/s", flush=True)
    TABLE.write_text(table(speeds))


if __name__ == "__main__":
    main()
