"""Rotary position embedding: angles by llama.cpp's rules, and the rotation itself, in place.

References: Su et al. 2021, https://arxiv.org/abs/2104.09864; YaRN, Peng et al. 2023,
https://arxiv.org/abs/2309.00071.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.architectures.base import RopeKind
from quantcore.architectures.windows import Windows
from quantcore.errors import InputError
from quantcore.formats import to_float
from quantcore.sources.base import Source
from quantcore.tensors import Tensor

Floats = npt.NDArray[np.float32]

YARN_FAST, YARN_SLOW = 32.0, 1.0  # turns within the original context, between which frequencies are blended
CONTEXT_STEP = 256  # llama.cpp rounds the length of a context up to a multiple of it


@dataclass(frozen=True)
class Rope:
    """Hold cosines and sines, float32 `(positions, size / 2)`, and which elements rotate together."""

    kind: RopeKind
    cos: Floats
    sin: Floats

    @property
    def size(self) -> int:
        return 2 * int(self.cos.shape[1])

    def rotate(self, heads: Floats, start: int = 0, *, xp: Any = np) -> None:
        """Rotate `heads` `(chunks, rows, n_heads, head_size)` in place, row 0 being position `start`."""
        stop = start + heads.shape[1]
        # (rows, 1, size / 2)
        cos, sin = (xp.asarray(part[start:stop, None]) for part in (self.cos, self.sin))
        half = self.size // 2
        if self.kind == "normal":
            # Neighbours are one complex number each: a single pass over memory.
            pairs = heads.view(np.complex64)[..., :half]  # (chunks, rows, n_heads, size / 2)
            pairs *= cos + np.complex64(1j) * sin
            return
        first, second = heads[..., :half].copy(), heads[..., half : self.size].copy()
        heads[..., :half] = first * cos - second * sin
        heads[..., half : self.size] = second * cos + first * sin


def make_rope(
    source: Source, kind: RopeKind, head_size: int, positions: int, *, windows: Windows | None = None
) -> Rope:
    """Return the rotation for positions 0 to `positions` from the metadata of `source`.

    With `windows`, that of layers which have a sliding window.
    """
    size = source.count("rope.dimension_count", head_size)
    if size % 2 or not 0 < size <= head_size:
        raise InputError(f"{source.path}: rope cannot turn {size} of {head_size} elements of a head")
    base = source.number("rope.freq_base", 10000.0, positive=True)
    if windows is not None:
        base = source.number("rope.freq_base_swa", windows.base or base, positive=True)
    exponents = np.arange(0, size, 2, dtype=np.float64) / size
    frequencies = base**-exponents
    factors = _factors(source, positions)
    if factors is not None:
        if factors.info.shape != frequencies.shape:
            raise InputError(f"{source.path}: {factors.name} must have {size // 2} numbers")
        divisors = to_float(factors.info, factors.read()).reshape(-1).astype(np.float64)  # (size / 2,)
        if not (divisors > 0).all():
            raise InputError(f"{source.path}: {factors.name} must hold positive numbers")
        frequencies = frequencies / divisors
    magnitude = source.number("rope.scaling.attn_factor", 1.0)
    if windows is None or windows.base is None:
        frequencies, strength = _scaled(source, frequencies, size, base)
        magnitude *= strength
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies  # (positions, size / 2)
    cos, sin = np.cos(angles) * magnitude, np.sin(angles) * magnitude
    return Rope(kind, cos.astype(np.float32), sin.astype(np.float32))


def _factors(source: Source, positions: int) -> Tensor | None:
    """Return the tensor whose numbers divide the frequencies: for longrope by the length of the context."""
    fixed = source.tensor("rope_freqs.weight")
    if fixed is not None:
        return fixed
    context = -(-positions // CONTEXT_STEP) * CONTEXT_STEP
    length = "long" if context > _original_context(source) else "short"
    return source.tensor(f"rope_factors_{length}.weight")


def _original_context(source: Source) -> int:
    """Return how many positions a model had before its rope was scaled."""
    return source.count("rope.scaling.original_context_length", source.count("context_length", 0))


def _scaled(
    source: Source, frequencies: npt.NDArray[np.float64], size: int, base: float
) -> tuple[npt.NDArray[np.float64], float]:
    """Return frequencies after rope scaling, and how much stronger it makes cosines and sines."""
    # A factor of 0 stands for none, as in old files.
    factor = source.number("rope.scaling.factor", source.number("rope.scale_linear", 0.0)) or 1.0
    kind = source.hparam("rope.scaling.type", "linear")
    if kind == "none" or factor == 1.0:
        return frequencies, 1.0
    if factor < 0:
        raise source.bad_hparam("rope.scaling.factor", factor, "a positive number")
    if kind in ("linear", "longrope"):
        return frequencies / factor, 1.0
    if kind != "yarn":
        raise InputError(
            f"{source.path}: rope scaling {kind!r} is not known; there are none, linear, longrope, yarn"
        )
    mix = _yarn_mix(source, size, base)
    scaled = frequencies / factor * (1 - mix) + frequencies * mix
    return scaled, 1 + 0.1 * math.log(factor)


def _yarn_mix(source: Source, size: int, base: float) -> npt.NDArray[np.float64]:
    """Return how much of each frequency stays as it is: 1 for fast ones, 0 for slow ones, a ramp between.

    The keys `yarn_beta_fast`, `yarn_beta_slow` and `yarn_ext_factor` are not read: llama.cpp reads them for
    two families that are not known here, and takes the usual ones for all others.
    """
    original = _original_context(source)
    if original == 0 or base == 1.0:
        raise InputError(f"{source.path}: yarn needs an original context length, and a base other than 1")

    def dimension(rotations: float) -> float:
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(0, math.floor(dimension(YARN_FAST)))
    high = min(size - 1, math.ceil(dimension(YARN_SLOW)))
    ramp = (np.arange(size // 2) - low) / max(0.001, high - low)
    kept: npt.NDArray[np.float64] = 1 - np.clip(ramp, 0, 1)
    return kept
