"""Hold compiled kernels to numpy's bytes, or numbers: `python -m quantcore.proving FOLDER NAME...`.

Done in a process of its own, since a kernel that goes wrong on some processor may take its process along:
for each kernel its name is told before it runs and the verdict afterwards.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.errors import MissingEngine, UnsupportedTensor
from quantcore.evaluate.proof import differs
from quantcore.formats import get_format
from quantcore.formats.floats import bfloat_to_float, half_to_float
from quantcore.kernels.library import Library

FINE, ERRS = "fine", "errs"
SECONDS = 120  # for all of them; a second or two are usual
_WIDEN = {"F16": (np.float16, half_to_float), "BF16": (np.uint16, bfloat_to_float)}
_LARGEST = {"F16": 0x7C00, "BF16": 0x7F80}  # the pattern of infinity


def errs(kernels: Library, name: str) -> bool:
    """Say whether what a kernel makes of a few thousand numbers is not what numpy makes of them."""
    if name.startswith("from "):
        return _reader_errs(kernels, name.removeprefix("from "))
    if name.startswith("step "):
        return differs(kernels, name.removeprefix("step "))
    rng = np.random.default_rng(0)
    fmt, weighted = get_format(name.removesuffix("+")), name.endswith("+")
    # Whole batches of kernels, and what is left over of one.
    for rows, row in ((8, 1024), (7, 768), (1, 256)):
        x = (rng.standard_t(4, size=(rows, row)) * 0.02).astype(np.float32)
        x[rows // 2, :256:3] = 0
        importance = rng.gamma(0.5, size=row).astype(np.float32) if weighted else None
        ours = fmt.quantize(x, importance, kernels=kernels).parts["blocks"]
        if (ours != fmt.quantize(x, importance).parts["blocks"]).any():
            return True
    return False


def _reader_errs(kernels: Library, kind: str) -> bool:
    read = kernels.reader(kind)
    if read is None:
        return True
    stored = np.linspace(-1, 1, 4099, dtype=np.float32)
    if kind in _WIDEN:
        patterns = np.arange(1 << 16, dtype=np.uint16)
        stored = patterns[(patterns & 0x7FFF) < _LARGEST[kind]].view(_WIDEN[kind][0])
    if _widens_wrongly(read, kind, stored):
        return True
    infinite = np.array([np.inf], np.float32) if kind == "F32" else np.array([_LARGEST[kind]], np.uint16)
    for length in range(1, 34):
        part = stored[-length:].copy()
        if _widens_wrongly(read, kind, part):
            return True
        part[length // 2] = infinite.view(stored.dtype)[0]
        try:
            read(part.reshape(1, -1), None, None, np.empty((1, length), np.float32))
        except UnsupportedTensor:
            continue
        return True
    return False


def _widens_wrongly(read: Any, kind: str, stored: npt.NDArray[Any]) -> bool:
    rows = np.ascontiguousarray(stored).reshape(1, -1)
    made = np.full(rows.shape, np.nan, np.float32)
    read(rows, None, None, made)
    if kind == "F32":  # only looked at
        return not bool(np.isnan(made).all())
    dtype, widen = _WIDEN[kind]
    return bool(made.tobytes() != widen(rows.view(dtype), xp=np).tobytes())


def unfit(kernels: Library) -> list[str]:
    """Return the kernels and readers that err, or crash."""
    found: list[str] = []
    left = kernels.entries
    while left:
        command = [sys.executable, "-m", "quantcore.proving", str(kernels.path), *left]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
            output, status = done.stdout, done.returncode
        except subprocess.TimeoutExpired as exc:
            output, status = (exc.stdout or b"").decode(), -1
        told = [line.split("\t") for line in output.splitlines()]
        if not told:
            raise MissingEngine(f"compiled kernels could not be tried (exit status {status})")
        found += [words[0] for words in told if words[1:] != [FINE]]
        left = left[len(told) :]
    return found


def main(folder: str, *names: str) -> None:
    kernels = Library(Path(folder))
    for name in names:
        sys.stdout.write(f"{name}\t")
        sys.stdout.flush()
        sys.stdout.write(f"{ERRS if errs(kernels, name) else FINE}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
