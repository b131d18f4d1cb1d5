"""Hidden states on the disk, so that a walk through a large model can be taken up where it was stopped.

The file's name and header tell what it belongs to by a hash of all that its contents depend on: the model,
the tokens, and what whoever walks says of his own settings. Of another model or text it is never taken up.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from quantcore.containers.safetensors import SafetensorsSink, stored
from quantcore.errors import UnreadableFile
from quantcore.evaluate.forward import Tokens
from quantcore.sources.base import Source
from quantcore.sources.digest import source_digest
from quantcore.sources.safetensors import read_header, read_metadata
from quantcore.states import States

_PIECE = 1 << 26  # bytes read or written in one go


class Checkpoint:
    """The states after some layers of a walk, in a file of `folder`.

    `settings` must name all that decides what the visitor returns, such as the method and its options: the
    states hold what came of it. Whatever a visit did for a layer is taken as done once the next one begins.
    """

    def __init__(self, folder: Path, source: Source, tokens: Tokens, settings: str) -> None:
        whole = hashlib.sha256(source_digest(source).encode())
        whole.update(repr(tokens.shape).encode() + tokens.astype("<i4").tobytes() + settings.encode())
        self.key = whole.hexdigest()
        self.path = folder / f"walk-{self.key[:24]}.safetensors"

    def load(self, states: States) -> int:
        """Fill `states`; return the number of layers that they have passed, 0 if there is no file.

        Raises `UnreadableFile` naming a file that is damaged.
        """
        if not self.path.exists():
            return 0
        found = read_header(self.path).get("states")
        metadata = read_metadata(self.path)
        layers = metadata.get("layers", "")
        if metadata.get("key") != self.key or not layers.isdecimal() or found is None:
            raise UnreadableFile(f"{self.path}: not a checkpoint of this walk; remove it")
        if found.shape != states.shape or found.dtype != "F32":
            raise UnreadableFile(f"{self.path}: {found.dtype} {list(found.shape)}, not {list(states.shape)}")
        rows = states.shape[1]
        for chunks in self._pieces(states):
            values = found.read_rows(chunks.start * rows, chunks.stop * rows)
            states.write(chunks, values.reshape(-1, *states.shape[1:]))  # (chunks, n_ctx, embedding)
        return int(layers)

    def store(self, states: States, layers: int) -> None:
        """Write the states that have passed so many layers, in place of an older file."""
        infos = [stored("states", states.shape, "F32")]
        with SafetensorsSink(self.path, {"key": self.key, "layers": str(layers)}, infos) as sink:
            for chunks in self._pieces(states):
                sink.write(states.read(chunks).astype("<f4", copy=False).tobytes())
            sink.commit()

    def remove(self) -> None:
        """Remove the file of a walk that has come to its end."""
        self.path.unlink(missing_ok=True)

    @staticmethod
    def _pieces(states: States) -> list[slice]:
        chunks = states.shape[0]
        step = max(1, _PIECE * chunks // max(1, states.nbytes))
        return [slice(first, min(first + step, chunks)) for first in range(0, chunks, step)]
