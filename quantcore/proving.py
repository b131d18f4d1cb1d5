"""Hold compiled kernels to numpy's bytes: `python -m quantcore.proving FOLDER NAME...`.

Done in a process of its own, since a kernel that goes wrong on some processor may take its process along:
for each kernel its name is told before it runs and the verdict afterwards.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from quantcore.errors import MissingEngine
from quantcore.formats import get_format
from quantcore.kernels.library import Library

FINE, ERRS = "fine", "errs"


def errs(kernels: Library, name: str) -> bool:
    """Say whether a kernel's bytes for a few thousand weights are not numpy's."""
    rng = np.random.default_rng(0)
    x = (rng.standard_t(4, size=(8, 1024)) * 0.02).astype(np.float32)
    x[3, 256:512] = 0
    importance = rng.gamma(0.5, size=1024).astype(np.float32)
    fmt, weights = get_format(name.removesuffix("+")), importance if name.endswith("+") else None
    ours = fmt.quantize(x, weights, kernels=kernels).parts["blocks"]
    return bool((ours != fmt.quantize(x, weights).parts["blocks"]).any())


def unfit(kernels: Library) -> list[str]:
    """Return the kernels that err, or crash."""
    found: list[str] = []
    left = kernels.names
    while left:
        command = [sys.executable, "-m", "quantcore.proving", str(kernels.path), *left]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told = [line.split() for line in done.stdout.splitlines()]
        if not told:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise MissingEngine(f"compiled kernels could not be tried: {last[0]}")
        found += [words[0] for words in told if words[1:] != [FINE]]
        left = left[len(told) :]
    return found


def main(folder: str, *names: str) -> None:
    kernels = Library(Path(folder))
    for name in names:
        sys.stdout.write(f"{name} ")
        sys.stdout.flush()
        sys.stdout.write(f"{ERRS if errs(kernels, name) else FINE}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
