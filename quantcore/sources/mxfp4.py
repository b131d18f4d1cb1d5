"""Experts in MXFP4 as checkpoints store them, seen as GGUF stores them: the same bits in another order.

A checkpoint has for a stack of matrices NAME two tensors of bytes: `NAME_scales` `(experts, rows, groups)`,
a biased exponent for each group of 32, and `NAME_blocks` `(experts, rows, groups, 16)`, in each byte the
codes of two neighbours, the first in the low half. GGUF's block is the exponent and 16 bytes, byte `i` with
code `i` in the low half and `i + 16` in the high one.

1. OCP Microscaling Formats (MX) Specification 1.0.
2. ggml, `block_mxfp4`. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.errors import UnreadableFile
from quantcore.sources.safetensors import StoredTensor

METHOD = "mxfp4"  # by which config.json says that weights are so
PACKED = "MXFP4"  # the type of what they become
BLOCKS, SCALES = "_blocks", "_scales"
GROUP, CODE_BYTES = 32, 16
NO_NUMBER = 255  # of exponents


@dataclass(frozen=True)
class PackedTensor:
    """A stack `(experts, rows, row_length)` in MXFP4; `name` is what the names of its tensors begin with."""

    name: str
    blocks: StoredTensor
    scales: StoredTensor

    @property
    def path(self) -> Path:
        return self.blocks.path

    @property
    def dtype(self) -> str:
        return PACKED

    @property
    def shape(self) -> tuple[int, ...]:
        *rows, groups = self.scales.shape
        return (*rows, groups * GROUP)

    @property
    def nbytes(self) -> int:
        return prod(self.scales.shape) * (1 + CODE_BYTES)

    def read_rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows `start:stop` as GGUF has them, uint8 `(rows, bytes_per_row)`.

        Raises `UnreadableFile` for a scale that stands for no number.
        """
        groups = self.scales.shape[-1]
        scales = self.scales.read_rows(start, stop)  # (rows, groups)
        if (scales == NO_NUMBER).any():
            raise UnreadableFile(
                f"{self.scales.path}: tensor {self.scales.name} has scales that are no numbers"
            )
        codes = self.blocks.read_rows(start * groups, stop * groups).reshape(stop - start, groups, CODE_BYTES)
        first, second = codes[..., : CODE_BYTES // 2], codes[..., CODE_BYTES // 2 :]  # (rows, groups, 8)
        out = np.empty((stop - start, groups, 1 + CODE_BYTES), dtype=np.uint8)
        out[..., 0] = scales
        out[..., 1::2] = first & 15 | second << 4  # elements of even number
        out[..., 2::2] = first >> 4 | second & 240
        return out.reshape(stop - start, groups * (1 + CODE_BYTES))  # (rows, bytes_per_row)


def pack(stored: Mapping[str, StoredTensor]) -> tuple[dict[str, PackedTensor], dict[str, StoredTensor]]:
    """Return the tensors that two of `stored` make by their common names, and all others.

    Raises `UnreadableFile` for one of the two without the other, or of another type or shape.
    """
    ends = (SCALES, BLOCKS)
    # In the order of their scales, which is that of llama.cpp's converter.
    names = {name.removesuffix(end): None for end in ends for name in stored if name.endswith(end)}
    packed = {name: _packed(name, stored) for name in names}
    taken = {name + end for name in names for end in ends}
    return packed, {name: tensor for name, tensor in stored.items() if name not in taken}


def _packed(name: str, stored: Mapping[str, StoredTensor]) -> PackedTensor:
    blocks, scales = stored.get(name + BLOCKS), stored.get(name + SCALES)
    if blocks is None or scales is None:
        there, lost = (scales, BLOCKS) if blocks is None else (blocks, SCALES)
        path = there.path if there is not None else ""
        raise UnreadableFile(f"{path}: tensor {name}{lost} is missing")
    for tensor, meant in ((scales, scales.shape), (blocks, (*scales.shape, CODE_BYTES))):
        if tensor.dtype != "U8" or len(scales.shape) != 3 or tensor.shape != meant:
            raise UnreadableFile(
                f"{tensor.path}: tensor {tensor.name} is {tensor.dtype} {list(tensor.shape)}; in MXFP4 "
                f"scales are U8 [experts, rows, groups], and blocks have {CODE_BYTES} bytes for each"
            )
    return PackedTensor(name, blocks, scales)
