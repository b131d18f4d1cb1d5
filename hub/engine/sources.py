"""Models as their headers describe them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import quantcore
from hub.engine.exchanged import Inspection, translated

if TYPE_CHECKING:
    from hub.engine.exchanged import Source

# What the hub stores of metadata: long lists are vocabularies and of no use on a page.
LONGEST_LIST = 16


def is_quantized(tensor_type: str) -> bool:
    """Return whether a type of tensors is one that quantizing made."""
    return quantcore.is_quantized(tensor_type)


def open_source(path: Path) -> Source:
    """Open a Hugging Face directory or a GGUF file; reads headers only."""
    with translated():
        return quantcore.open_model(path)


def inspect(path: Path) -> Inspection:
    """Return what a model's headers say, refusing what cannot be quantized."""
    source = open_source(path)
    sizes = Counter[str]()
    for info in source.infos:
        sizes[info.type] += info.nbytes
    parameters = sum(info.n_elements for info in source.infos)
    return Inspection(
        source_format=source.format,
        architecture=source.architecture,
        name=str(source.get("general.name", "")),
        parameters=parameters,
        n_ctx_train=_context(source),
        file_bytes=sum(file.stat().st_size for file in source.files),
        bpw=8 * sizes.total() / parameters if parameters else 0.0,
        tensor_type=sizes.most_common(1)[0][0] if sizes else "",
        metadata={key: _shown(source.get(key)) for key in source.metadata},
    )


def _context(source: Source) -> int:
    with translated():
        return source.count("context_length", 0)


def _shown(value: Any) -> Any:
    if isinstance(value, list | tuple):
        if len(value) > LONGEST_LIST:
            return f"({len(value):,} items)"
        return [_shown(item) for item in value]
    if isinstance(value, str):
        # Letters that a database's JSON cannot hold.
        return value.replace("\0", "\ufffd").encode(errors="replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool | int | float) or value is None:
        return value
    return _shown(value.item()) if hasattr(value, "item") else str(value)
