"""Plan a quant from headers alone: the type and exact bytes of every tensor, and why.

The rules are llama.cpp's; `recipes` holds those of the levels, `tensorrules` those of tensor names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from quantcore.containers.gguf import alignment_of, encode_header, file_nbytes
from quantcore.errors import InputError, UnsupportedTensor
from quantcore.formats import get_format
from quantcore.ggmltypes import INTEGER_TYPES, block_and_bytes, is_quantized, storage_nbytes
from quantcore.ggufkv import QUANTIZATION_VERSION, Value, u32
from quantcore.recipes import Place, Recipe, get_recipe
from quantcore.sources.base import Source
from quantcore.tensorrules import FALLBACK, file_order, layer, role, why_kept
from quantcore.tensors import TensorInfo

_SPLIT_KEYS = frozenset({"split.no", "split.count", "split.tensors.count"})
_OWN_KEYS = frozenset({"general.quantization_version", "general.file_type"})


@dataclass(frozen=True)
class TensorPlan:
    """What becomes of one tensor. `shape` is in numpy order; `nbytes` is the size in the new file."""

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    nbytes: int
    reason: str

    @property
    def info(self) -> TensorInfo:
        """Return the tensor as it will stand in the new file."""
        return TensorInfo(self.name, self.shape, self.type, self.nbytes)

    @property
    def n_elements(self) -> int:
        return self.info.n_elements


@dataclass(frozen=True)
class Plan:
    """A whole file before it is made. `file_bytes` is exact; `bpw` counts all tensors, scales included."""

    level: str
    file_type: int
    file_bytes: int
    bpw: float
    tensors: tuple[TensorPlan, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON document; shapes turn to GGUF order, row length first."""
        document = asdict(self)
        for tensor in document["tensors"]:
            tensor["shape"] = list(reversed(tensor["shape"]))
        return {**document, "tensors": list(document["tensors"]), "warnings": list(self.warnings)}

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
        )


@dataclass(frozen=True)
class Options:
    """What a user may change about a level.

    `overrides` are pairs of a regular expression (searched in the tensor name) and a type; the first that
    matches wins. `pure` gives every tensor the base type.
    """

    pure: bool = False
    overrides: tuple[tuple[str, str], ...] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    allow_requantize: bool = False
    has_imatrix: bool = False


class Planner:
    """Apply one level to the tensors of one model, in file order."""

    def __init__(self, source: Source, recipe: Recipe, options: Options) -> None:
        self.recipe = recipe
        self.options = options
        self.path = source.path
        names = [info.name for info in source.infos]
        self.tied = "output.weight" not in names
        self.n_values = sum(role(name) == "attn_v" for name in names)
        self.n_layers = source.count("block_count", 0)
        self.place = _model_place(source, has_imatrix=options.has_imatrix)
        self.from_huggingface = source.format == "huggingface"
        self.seen: Counter[str] = Counter()
        self.patterns = [(_compile(pattern), kind) for pattern, kind in options.overrides]

    def plan(self, info: TensorInfo) -> TensorPlan:
        """Choose the type of one tensor; must be called in file order."""
        kind, reason = self._choose(info)
        if kind != info.type:
            self._check_possible(info, kind)
        return TensorPlan(info.name, info.shape, info.type, kind, storage_nbytes(kind, info.shape), reason)

    def _choose(self, info: TensorInfo) -> tuple[str, str]:
        kept = why_kept(info.name, len(info.shape))
        if kept:
            # A Hugging Face directory has no GGUF storage yet: what is never quantized is written as F32.
            return ("F32" if self.from_huggingface else info.type), kept
        tensor_role = role(info.name)
        if self.options.embedding_type and tensor_role == "token_embd":
            return self.options.embedding_type, "asked for: token embedding type"
        if self.options.output_type and tensor_role == "output":
            return self.options.output_type, "asked for: output type"
        if not is_quantized(self.recipe.base):
            return self.recipe.base, "base type of the level"
        kind, reason = self._override(info.name) or self._mixture(info, tensor_role)
        return self._fallback(info, kind, reason)

    def _override(self, name: str) -> tuple[str, str] | None:
        for pattern, kind in self.patterns:
            if pattern.search(name):
                return kind, f"asked for: {pattern.pattern}"
        return None

    def _mixture(self, info: TensorInfo, tensor_role: str) -> tuple[str, str]:
        base = self.recipe.base
        if self.options.pure:
            return base, "pure: base type of the level"
        if tensor_role == "output" or (self.tied and tensor_role == "token_embd"):
            return self._output(info)
        place = self._next_place(info.name, tensor_role)
        kind, reason = base, "base type of the level"
        for pick in self.recipe.picks.get(tensor_role, ()):
            if pick.when(place):
                kind, reason = pick.type, pick.why
                break
        if tensor_role == "attn_v":
            return _bump_value(place, kind, reason)
        if tensor_role == "attn_k" and place.experts == 8:
            return "Q8_0", "eight experts share the attention"
        return kind, reason

    def _output(self, info: TensorInfo) -> tuple[str, str]:
        base = self.recipe.base
        what = "token embedding, also the output" if info.name != "output.weight" else "output"
        if self.options.output_type:
            return self.options.output_type, "asked for: output type"
        if self.place.architecture == "falcon" or info.row_length % block_and_bytes(base)[0]:
            return "Q8_0", f"{what}: row of {info.row_length}"
        return ("Q8_0", what) if base == "Q8_0" else ("Q6_K", what)

    def _next_place(self, name: str, tensor_role: str) -> Place:
        index = self.seen[tensor_role]
        self.seen[tensor_role] += 1
        if tensor_role == "attn_v":
            return replace(self.place, index=index, count=self.n_values)
        # Experts do not come in layer order, so their layer is read from the name.
        if self.place.experts > 1 and tensor_role.startswith("ffn_"):
            index = layer(name)
        return replace(self.place, index=index, count=self.n_layers)

    def _fallback(self, info: TensorInfo, kind: str, reason: str) -> tuple[str, str]:
        block = block_and_bytes(kind)[0]
        if info.row_length % block == 0:
            return kind, reason
        why = f"row of {info.row_length} is not a multiple of {block}, the block of {kind}"
        other = FALLBACK.get(kind, kind)
        if info.row_length % block_and_bytes(other)[0]:
            other = "F16"
        return other, why

    def _check_possible(self, info: TensorInfo, kind: str) -> None:
        fmt = get_format(kind)
        if not fmt.can_quantize:
            raise UnsupportedTensor(f"{self.path}: {info.name}: this version cannot make {kind}")
        if info.type in INTEGER_TYPES:
            raise UnsupportedTensor(f"{self.path}: {info.name} holds {info.type}, which cannot become {kind}")
        if info.row_length % fmt.block:
            raise UnsupportedTensor(
                f"{self.path}: {info.name}: row of {info.row_length} is not a multiple of {fmt.block}, "
                f"the block of {kind}; ask for another type"
            )
        if is_quantized(info.type) and is_quantized(kind) and not self.options.allow_requantize:
            raise InputError(
                f"{self.path}: {info.name} is {info.type} already; quantizing it again loses quality: "
                "start from the full-precision model, or allow requantizing"
            )


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern.lower())
    except re.error as exc:
        raise InputError(f"tensor type pattern {pattern!r}: {exc}") from None


def _bump_value(place: Place, kind: str, reason: str) -> tuple[str, str]:
    if place.experts == 8:
        return "Q8_0", "eight experts share the attention"
    if place.big and kind in {"Q3_K", "Q4_K"}:
        return "Q5_K", "value projection shared by eight heads of a 70B model"
    return kind, reason


def _model_place(source: Source, *, has_imatrix: bool) -> Place:
    heads = source.count("attention.head_count", 0)
    kv_heads = source.count("attention.head_count_kv", heads)
    layers = source.count("block_count", 0)
    arch = source.architecture
    big = layers == 80 and (arch in {"qwen2", "deci", "olmo"} or (arch == "llama" and heads != kv_heads))
    return Place(
        index=0,
        count=0,
        gqa=heads // kv_heads if kv_heads else 0,
        experts=source.count("expert_count", 0),
        big=big or (arch == "jais2" and layers == 68),
        architecture=arch,
        has_imatrix=has_imatrix,
    )


def output_metadata(source: Source, file_type: int) -> dict[str, Value]:
    """Return the metadata of the new file: the source's, with the keys that llama.cpp sets."""
    kept = {
        key: value
        for key, value in source.metadata.items()
        if key not in _SPLIT_KEYS and key not in _OWN_KEYS
    }
    kept["general.quantization_version"] = u32(QUANTIZATION_VERSION)
    kept["general.file_type"] = u32(file_type)
    return kept


def _idle(planner: Planner, tensors: Sequence[TensorPlan]) -> list[str]:
    """Return the patterns, as they were given, that no tensor's name matches."""
    given = [pattern for pattern, _ in planner.options.overrides]
    compiled = [pattern for pattern, _ in planner.patterns]
    return [
        text
        for text, pattern in zip(given, compiled, strict=True)
        if not any(pattern.search(tensor.name) for tensor in tensors)
    ]


def _warnings(tensors: Sequence[TensorPlan], idle: Sequence[str]) -> tuple[str, ...]:
    fallen = [tensor for tensor in tensors if "is not a multiple of" in tensor.reason]
    again = [
        t for t in tensors if is_quantized(t.source_type) and is_quantized(t.type) and t.type != t.source_type
    ]
    found = [f"the pattern {pattern!r} matches no tensor and changes nothing" for pattern in idle]
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


def make_plan(source: Source, level: str, options: Options | None = None) -> Plan:
    """Plan `level` for `source` without reading any tensor.

    Raises `UnknownFormat` for a level or type that does not exist, `UnsupportedTensor` for a tensor that its
    type cannot hold, `InputError` for a source that is quantized already.
    """
    recipe = get_recipe(level)
    planner = Planner(source, recipe, options or Options())
    ordered = sorted(source.infos, key=lambda info: file_order(info.name))
    tensors = tuple(planner.plan(info) for info in ordered)
    metadata = output_metadata(source, recipe.file_type)
    infos = [tensor.info for tensor in tensors]
    weights = sum(info.n_elements for info in infos)
    return Plan(
        level=recipe.name,
        file_type=recipe.file_type,
        file_bytes=file_nbytes(len(encode_header(metadata, infos)), infos, alignment_of(metadata)),
        bpw=sum(info.nbytes for info in infos) * 8 / weights if weights else 0.0,
        tensors=tensors,
        warnings=_warnings(tensors, _idle(planner, tensors)),
    )
