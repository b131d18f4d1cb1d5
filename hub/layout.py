"""A revision's files on the disk as the engine wants to open them."""

from __future__ import annotations

from pathlib import Path

from hub import blobs
from hub.catalog.models import Revision


def lay_out(revision: Revision, folder: Path) -> Path:
    """Give a revision's blobs their names in a folder called as the model; return the path to open.

    The folder's name matters: what a Hugging Face directory does not say of itself is read from it.
    """
    place = folder / revision.model.name
    place.mkdir()
    names = list(revision.files.values_list("path", "blob_id"))
    blobs.lay_out(names, place)
    if revision.source_format == revision.SourceFormat.GGUF:
        return place / min(name for name, _ in names if name.endswith(".gguf"))
    return place


def without_folder(text: str, folder: Path) -> str:
    """Name files as the model names them: where the hub keeps them is nobody's business."""
    return text.replace(f"{folder}/", "").replace(str(folder), "the disk")
