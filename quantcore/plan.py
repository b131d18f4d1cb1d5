"""Plan a quant from headers alone: the type and exact bytes of every tensor, and why.

The rules are llama.cpp's: `recipes` and `mixtures` hold those of the levels, `tensorrules` those of tensor
names, and `planner` applies them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Self

from quantcore.containers.shards import lay_out
from quantcore.estimate import peak_memory_bytes, seconds
from quantcore.ggmltypes import is_quantized
from quantcore.ggufkv import QUANTIZATION_VERSION, SPLIT_KEYS, Value, string, u32
from quantcore.planner import Options, Planner, TensorPlan
from quantcore.recipes import Recipe, get_recipe, guessed_file_type
from quantcore.sources.base import Source
from quantcore.tensorrules import file_order
from quantcore.tensors import TensorInfo

__all__ = ["Options", "Plan", "TensorPlan", "make_plan", "output_metadata", "set_last"]


@dataclass(frozen=True)
class Plan:
    """A whole file before it is made. `file_bytes` is exact; `bpw` counts all tensors, scales included.

    `parts` says how many tensors go into each file, in order, if it is to be more than one; `added` is
    metadata that says how the file was made.
    `peak_memory_bytes` is what making it takes at most, `seconds` about how long (see `quantcore.estimate`);
    0 in plans that were kept before these were known.
    `converted` files have the order of llama.cpp's converter, all others that of llama-quantize.
    """

    level: str
    file_type: int
    file_bytes: int
    bpw: float
    tensors: tuple[TensorPlan, ...]
    warnings: tuple[str, ...] = ()
    parts: tuple[int, ...] = ()
    added: Mapping[str, str | int] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    seconds: float = 0.0
    converted: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON document; shapes turn to GGUF order, row length first."""
        document = asdict(self)
        for tensor in document["tensors"]:
            tensor["shape"] = list(reversed(tensor["shape"]))
        lists = ("tensors", "warnings", "parts")
        return {**document, **{name: list(document[name]) for name in lists}}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return the plan that `to_json` gave."""
        tensors = tuple(
            TensorPlan(**{**tensor, "shape": tuple(reversed(tensor["shape"]))})
            for tensor in document["tensors"]
        )
        fields = ("level", "file_type", "file_bytes", "bpw")
        return cls(
            **{name: document[name] for name in fields},
            tensors=tensors,
            warnings=tuple(document["warnings"]),
            parts=tuple(document.get("parts", ())),
            added=document.get("added", {}),
            peak_memory_bytes=document.get("peak_memory_bytes", 0),
            seconds=document.get("seconds", 0.0),
            converted=document.get("converted", False),
        )


def output_metadata(
    source: Source,
    file_type: int,
    added: Mapping[str, str | int] = MappingProxyType({}),
    *,
    converted: bool = False,
) -> dict[str, Value]:
    """Return the metadata of the new file: the source's, and the keys that llama.cpp sets, in its order.

    `added` and `converted` are those of `Plan`.
    """
    made = {key: value for key, value in source.metadata.items() if key not in SPLIT_KEYS}
    known = {
        "general.quantization_version": u32(QUANTIZATION_VERSION),
        "general.file_type": u32(file_type),
    }
    if converted:
        made |= known
    else:
        set_last(made, known)
    set_last(made, source.overrides)
    set_last(made, {key: string(it) if isinstance(it, str) else u32(it) for key, it in added.items()})
    if source.layers_left is not None:
        set_last(made, {f"{source.architecture}.block_count": u32(source.layers_left)})
    return made


def set_last(metadata: dict[str, Value], values: Mapping[str, Value]) -> None:
    """Put values at the end of the metadata, as llama.cpp does also with keys that are there already."""
    for key, value in values.items():
        metadata.pop(key, None)
        metadata[key] = value


def _warnings(tensors: Sequence[TensorPlan], planner: Planner) -> tuple[str, ...]:
    fallen = [tensor for tensor in tensors if "is not a multiple of" in tensor.reason]
    again = [
        t for t in tensors if is_quantized(t.source_type) and is_quantized(t.type) and t.type != t.source_type
    ]
    idle = planner.idle_patterns(tensors)
    found = [f"the pattern {pattern!r} matches no tensor and changes nothing" for pattern in idle]
    if planner.lacking:
        found.append(f"making this takes an importance matrix, with entries such as {planner.lacking[0]}")
    if fallen:
        found.append(
            f"1 of {len(tensors)} tensors has rows that do not fit its type and takes a larger one"
            if len(fallen) == 1
            else f"{len(fallen)} of {len(tensors)} tensors have rows that do not fit their type "
            "and take a larger one"
        )
    if again:
        found.append(
            "1 tensor is quantized a second time and loses more than it needs to"
            if len(again) == 1
            else f"{len(again)} tensors are quantized a second time and lose more than they need to"
        )
    return tuple(found)


def _file_type(source: Source, recipe: Recipe, ordered: Sequence[TensorInfo], *, converted: bool) -> int:
    if converted and any(is_quantized(info.type) for info in ordered):
        return get_recipe("MXFP4_MOE").file_type  # whatever type the others get
    if not recipe.copies:
        return recipe.file_type
    known = source.get("general.file_type")
    return known if isinstance(known, int) else guessed_file_type(info.type for info in ordered)


def make_plan(
    source: Source,
    level: str | Recipe,
    options: Options | None = None,
    *,
    threads: int | None = None,
    backend: str = "numpy",
) -> Plan:
    """Plan `level`, by its name or as it is, for `source` without reading any tensor.

    `threads` and `backend` (see `quantcore.backends`) are for the estimates of memory and seconds only.

    Raises `UnknownFormat` for a level or type that does not exist, `UnsupportedTensor` for a tensor that its
    type cannot hold, `NeedsCalibration` for one that is noise without an importance matrix, `InputError` for
    a source that is quantized already or an importance matrix of another model.
    """
    recipe = level if isinstance(level, Recipe) else get_recipe(level)
    options = options or Options()
    planner = Planner(source, recipe, options)
    ordered = list(source.infos)
    converted = source.format == "huggingface" and not recipe.copies and not is_quantized(recipe.base)
    if not source.keeps_parts and not converted:
        ordered.sort(key=lambda info: file_order(info.name))
    tensors = tuple(planner.plan(info) for info in ordered)
    file_type = _file_type(source, recipe, ordered, converted=converted)
    added = options.imatrix.metadata() if options.imatrix else {}
    metadata = output_metadata(source, file_type, added, converted=converted)
    infos = [tensor.info for tensor in tensors]
    weights = sum(info.n_elements for info in infos)
    tensor_bytes = sum(info.nbytes for info in infos)
    parts = source.parts if source.keeps_parts else ()
    file_bytes = sum(shard.nbytes for shard in lay_out(metadata, infos, parts, kept=source.keeps_parts))
    return Plan(
        level=recipe.name,
        file_type=file_type,
        file_bytes=file_bytes,
        bpw=tensor_bytes * 8 / weights if weights else 0.0,
        tensors=tensors,
        warnings=_warnings(tensors, planner),
        parts=parts,
        added=added,
        peak_memory_bytes=peak_memory_bytes(
            tensors,
            file_bytes - tensor_bytes,
            backend=backend,
            threads=threads,
            importance_bytes=options.imatrix.largest_nbytes if options.imatrix else 0,
        ),
        seconds=seconds(tensors, backend=backend, threads=threads, weighted=bool(options.imatrix)),
        converted=converted,
    )
