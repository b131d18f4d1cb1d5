"""The shape of a model that can be read, whatever file it comes from."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from quantcore.errors import UnreadableFile
from quantcore.ggufkv import Value
from quantcore.tensors import Tensor, TensorInfo

SourceFormat = Literal["gguf", "huggingface"]


@dataclass(frozen=True)
class Source:
    """A model seen as GGUF: typed metadata and lazily read tensors, both under GGUF names.

    A Hugging Face directory takes this shape through `quantcore.convert`; a GGUF file has it already.
    `files` are the paths that were opened, the first being the one to name in messages. `parts` says how many
    tensors each file of a split model holds, in the order of `tensors`.

    The rest is what `quantcore.sources.views` changed, and what a file made of this source must know of it:
    `overrides` are metadata (in `metadata` too) that stand last in the new file, `layers_left` is its number
    of layers after some were cut (levels go by the old number, which stays in `metadata`), `former_names` are
    the names that tensors had before that. `keeps_parts` asks for the same parts in the new model.
    """

    path: Path
    format: SourceFormat
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    files: tuple[Path, ...] = field(default=())
    parts: tuple[int, ...] = ()
    overrides: Mapping[str, Value] = field(default_factory=dict)
    layers_left: int | None = None
    former_names: Mapping[str, str] = field(default_factory=dict)
    keeps_parts: bool = False

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        return tuple(tensor.info for tensor in self.tensors)

    @property
    def architecture(self) -> str:
        return str(self.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """Return the plain Python value of a metadata key."""
        value = self.metadata.get(key)
        return default if value is None else value.value

    def hparam(self, key: str, default: Any = None) -> Any:
        """Return `<architecture>.<key>`, such as `block_count`."""
        return self.get(f"{self.architecture}.{key}", default)

    def count(self, key: str, default: int) -> int:
        """Return `<architecture>.<key>` as a whole number, the first of a list by layer.

        Raises `UnreadableFile` naming the key where it is something else or negative.
        """
        value = self.hparam(key, default)
        value = value[0] if isinstance(value, list) and value else value
        if not isinstance(value, int) or value < 0:
            raise self.bad_hparam(key, value, "a whole number")
        return value

    def number(self, key: str, default: float, *, positive: bool = False) -> float:
        """Return `<architecture>.<key>` as a finite number; raises `UnreadableFile` where it is none."""
        value = self.hparam(key, default)
        if not isinstance(value, int | float) or not isfinite(value) or (positive and value <= 0):
            raise self.bad_hparam(key, value, "a positive number" if positive else "a number")
        return float(value)

    def bad_hparam(self, key: str, value: Any, wanted: str) -> UnreadableFile:
        """Return the error that says what is wrong with `<architecture>.<key>`."""
        return UnreadableFile(
            f"{self.path}: {self.architecture}.{key} is {reprlib.repr(value)}, not {wanted}"
        )

    def tensor(self, name: str) -> Tensor | None:
        """Return the tensor of that name, or None."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}
