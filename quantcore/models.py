"""Open a model, whatever it is kept in."""

from __future__ import annotations

from pathlib import Path

from quantcore.sources.base import Source
from quantcore.sources.gguf import open_gguf


def open_model(path: Path) -> Source:
    """Open a GGUF file or a Hugging Face directory, reading headers only."""
    path = Path(path)
    if not path.is_dir():
        return open_gguf(path)
    # What knows model families needs half as long to load as quantizing a small model takes.
    from quantcore.convert import open_huggingface

    return open_huggingface(path)
