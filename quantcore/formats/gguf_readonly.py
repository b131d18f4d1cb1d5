"""GGUF types that can be read but not made here yet: decoded by the `gguf` package, on the host.

They make any GGUF file a possible source. A type moves out of this table when its own module appears.
"""

from __future__ import annotations

from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from quantcore.arrays import to_host
from quantcore.formats.base import BlockFormat, register

TYPES = {
    "IQ1_S": "About 1.6 bits, ternary codes from a grid.",
    "IQ1_M": "About 1.75 bits, ternary codes from a grid with finer scales.",
    "IQ2_XXS": "About 2.1 bits from a grid of 256 points.",
    "IQ2_XS": "About 2.3 bits from a grid of 512 points.",
    "IQ2_S": "About 2.6 bits from a grid of 1024 points.",
    "IQ3_XXS": "About 3.1 bits from a grid of 256 points.",
    "IQ3_S": "About 3.4 bits from a grid of 512 points.",
    "IQ4_NL": "Four bits on an uneven scale, blocks of 32.",
    "IQ4_XS": "Four bits on an uneven scale, blocks of 256.",
    "TQ1_0": "Ternary, 1.7 bits: for models trained with three levels.",
    "TQ2_0": "Ternary, 2.1 bits: for models trained with three levels.",
    "MXFP4": "Four-bit floats with a shared power of two per 32.",
    "NVFP4": "Four-bit floats with a shared 8-bit float per 16.",
}


class ReadOnly(BlockFormat):
    """A type that `gguf.quants` decodes."""

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        return xp.asarray(dequantize(to_host(blocks), GGMLQuantizationType[self.name]))  # (n, block)


for _name, _summary in TYPES.items():
    _block, _bytes = GGML_QUANT_SIZES[GGMLQuantizationType[_name]]
    register(ReadOnly(_name, _name, _summary, _block, _bytes, can_quantize=False))
