"""Choose the type of every tensor of one model at one level: the mixture, what the user asked, and what fits.

The order of the rules is llama.cpp's `llama_tensor_get_type` (release 0.5.0-dev).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from quantcore.errors import InputError, NeedsCalibration, UnsupportedTensor
from quantcore.formats import formats as all_formats
from quantcore.formats import get_format
from quantcore.ggmltypes import INTEGER_TYPES, block_and_bytes, is_quantized, storage_nbytes
from quantcore.imatrix import ImportanceMatrix
from quantcore.mixtures import Place, counts_by_name, mixture
from quantcore.recipes import Recipe
from quantcore.sources.base import Source
from quantcore.tensorrules import (
    FALLBACK,
    Role,
    layer,
    needs_imatrix,
    role,
    wants_eight_bits,
    why_kept,
)
from quantcore.tensors import TensorInfo


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
class Options:
    """What a user may change about a level.

    `overrides` are pairs of a regular expression (in lower case, searched in the tensor name) and a type; the
    first that matches wins. `pure` gives every tensor the base type, `leave_output` keeps output.weight as it
    is. `dry_run` plans what cannot be made for want of an importance matrix, with a warning. `assigned` are
    types by tensor name, chosen elsewhere in place of the level's mixture: see `quantcore.budget`.
    """

    pure: bool = False
    overrides: tuple[tuple[str, str], ...] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    leave_output: bool = False
    allow_requantize: bool = False
    imatrix: ImportanceMatrix | None = None
    dry_run: bool = False
    assigned: Mapping[str, str] = field(default_factory=dict)


class Planner:
    """Apply one level to the tensors of one model, in file order."""

    def __init__(self, source: Source, recipe: Recipe, options: Options) -> None:
        self.recipe = recipe
        self.options = options
        self.path = source.path
        # One without entries is none to llama-quantize.
        self.imatrix = options.imatrix or None
        self.former_names = source.former_names
        roles = Counter(role(info.name) for info in source.infos)
        self.tied = not roles["output"]
        self.n_values = roles["attn_v"]
        self.place = _model_place(source, has_imatrix=self.imatrix is not None)
        self.from_huggingface = source.format == "huggingface"
        self.seen: Counter[Role] = Counter()
        self.patterns = [(_compile(pattern), kind) for pattern, kind in options.overrides]
        self.lacking: list[str] = []

    def plan(self, info: TensorInfo) -> TensorPlan:
        """Choose the type of one tensor and see that it can be made; must be called in file order."""
        kind, reason = self.choose(info)
        self._check_imatrix(info, kind, reason)
        if kind != info.type:
            self._check_possible(info, kind)
        return TensorPlan(info.name, info.shape, info.type, kind, storage_nbytes(kind, info.shape), reason)

    def choose(self, info: TensorInfo) -> tuple[str, str]:
        """Return the type of one tensor and the reason; must be called in file order."""
        if self.recipe.copies:
            return info.type, "copied"
        given = self.given(info)
        if given:
            return given
        tensor_role = role(info.name)
        if not is_quantized(self.recipe.base):
            if self.from_huggingface and is_quantized(info.type):
                return info.type, "as it was published"
            return self.recipe.base, "base type of the level"
        kind, reason = self._override(info.name) or self._mixture(info, tensor_role)
        return self._fallback(info, kind, reason)

    def given(self, info: TensorInfo) -> tuple[str, str] | None:
        """Return the type that a tensor has at any level, and the reason; None where the level decides."""
        kept = self._why_kept(info)
        if kept:
            # A Hugging Face directory has no GGUF storage yet: what is never quantized is written as F32.
            return ("F32" if self.from_huggingface else info.type), kept
        asked = self._asked(info.name, role(info.name))
        if asked:
            return asked
        # A pattern of the user goes before what was assigned, as it does before the mixture.
        kind = self.options.assigned.get(info.name)
        return None if kind is None else (self._override(info.name) or (kind, "chosen for the size"))

    def fixed(self, info: TensorInfo) -> tuple[str, str] | None:
        """Return the type that rules or the user give a tensor, and the reason; None where it is free."""
        return self.given(info) or self._override(info.name)

    def idle_patterns(self, tensors: Sequence[TensorPlan]) -> list[str]:
        """Return the patterns, as they were given, that no tensor's name matches."""
        return [
            text
            for (text, _), (pattern, _) in zip(self.options.overrides, self.patterns, strict=True)
            if not any(pattern.search(tensor.name) for tensor in tensors)
        ]

    def _why_kept(self, info: TensorInfo) -> str:
        if self.options.leave_output and info.name == "output.weight":
            return "asked for: output left as it is"
        return why_kept(info.name, info.shape, self.place.architecture)

    def _asked(self, name: str, tensor_role: Role) -> tuple[str, str] | None:
        """Return the type asked for by role; it does not have to fit."""
        options = self.options
        # The embedding per layer is a large table of its own, which a pattern may name.
        named = name == "per_layer_token_embd.weight" and self._override(name)
        if options.embedding_type and tensor_role == "token_embd" and not named:
            return options.embedding_type, "asked for: token embedding type"
        if options.output_type and tensor_role == "output":
            return options.output_type, "asked for: output type"
        return None

    def _override(self, name: str) -> tuple[str, str] | None:
        for pattern, kind in self.patterns:
            if pattern.search(name):
                return kind, f"asked for: {pattern.pattern}"
        return None

    def _mixture(self, info: TensorInfo, tensor_role: Role) -> tuple[str, str]:
        base = self.recipe.base
        if self.options.pure:
            return base, "pure: base type of the level"
        if wants_eight_bits(info.name, self.place.architecture):
            return "Q8_0", "takes 8 bits in this architecture"
        if tensor_role == "output" or (self.tied and tensor_role == "token_embd"):
            return self._output(info)
        return mixture(self.recipe.name, base, tensor_role, self._next_place(info, tensor_role))

    def _output(self, info: TensorInfo) -> tuple[str, str]:
        what = "token embedding, also the output" if info.name != "output.weight" else "output"
        if self.options.output_type:
            return self.options.output_type, "asked for: output type"
        if self.place.architecture == "falcon" or info.row_length % block_and_bytes(self.recipe.base)[0]:
            return "Q8_0", f"{what}: row of {info.row_length}"
        return self.recipe.output, what

    def _next_place(self, info: TensorInfo, tensor_role: Role) -> Place:
        nth = self.seen[tensor_role]
        self.seen[tensor_role] += 1
        count = self.n_values if tensor_role == "attn_v" else self.place.count
        index = nth
        # Experts do not come in layer order, so their layer is read from the name.
        if self.place.experts > 1 and tensor_role.startswith("ffn_") and counts_by_name(self.recipe.name):
            index = layer(info.name)
            if not 0 <= index < count:
                raise UnsupportedTensor(f"{self.path}: {info.name} is in none of the {count} layers")
        stacked = len(info.shape) > 2 and info.shape[-3] > 1
        return replace(self.place, index=index, nth=nth, count=count, stacked=stacked)

    def _fallback(self, info: TensorInfo, kind: str, reason: str) -> tuple[str, str]:
        block = block_and_bytes(kind)[0]
        if info.row_length % block == 0:
            return kind, reason
        why = f"row of {info.row_length} is not a multiple of {block}, the block of {kind}"
        if kind not in FALLBACK and block > 32:
            raise UnsupportedTensor(
                f"{self.path}: {info.name}: {why}, and no other type stands in for it; ask for another type"
            )
        other = FALLBACK.get(kind, kind)
        if info.row_length % block_and_bytes(other)[0]:
            other = "F16"
        return other, why

    def _check_imatrix(self, info: TensorInfo, kind: str, reason: str) -> None:
        """Refuse what llama-quantize refuses: noise for want of importance, or that of another model."""
        found = False
        if self.imatrix and kind != info.type:
            found = self.imatrix.covers(self.former_names.get(info.name, info.name), info.shape)
        # Without any matrix, llama-quantize asks for one even where the tensor has its type already.
        needed = needs_imatrix(info.name, kind, self.recipe.name) and (kind != info.type or not self.imatrix)
        if not needed or found or self.recipe.copies or self._why_kept(info):
            return
        if self.options.dry_run:
            self.lacking.append(info.name)
            return
        if self.imatrix:
            raise NeedsCalibration(
                f"{self.path}: {info.name} as {kind} ({reason}) is noise without importance, and "
                f"{self.imatrix.path} has no entry for it; give it another type with --tensor-type"
            )
        raise NeedsCalibration(
            f"{self.path}: {info.name} as {kind} ({reason}) is noise without an importance matrix; give one "
            f"that llama-imatrix made of this model (--imatrix), or take a level that needs none"
        )

    def _check_possible(self, info: TensorInfo, kind: str) -> None:
        if kind not in all_formats() or not get_format(kind).can_quantize:
            raise UnsupportedTensor(f"{self.path}: {info.name}: this version cannot make {kind}")
        block = block_and_bytes(kind)[0]
        if info.type in INTEGER_TYPES:
            raise UnsupportedTensor(f"{self.path}: {info.name} holds {info.type}, which cannot become {kind}")
        if info.row_length % block:
            raise UnsupportedTensor(
                f"{self.path}: {info.name}: row of {info.row_length} is not a multiple of {block}, "
                f"the block of {kind}; ask for another type"
            )
        if is_quantized(info.type) and is_quantized(kind) and not self.options.allow_requantize:
            way = "start from the full-precision model"
            if info.type == "MXFP4":  # of which some models are published, and nothing fuller
                way = "MXFP4_MOE keeps it, as does --tensor-type exps=mxfp4 at any level"
            raise InputError(
                f"{self.path}: {info.name} is {info.type} already; quantizing it again loses quality: {way} "
                "(or see `quantcore quantize --allow-requantize`)"
            )


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern.lower())
    except re.error as exc:
        raise InputError(f"tensor type pattern {pattern!r}: {exc}") from None


def _model_place(source: Source, *, has_imatrix: bool) -> Place:
    heads = source.count("attention.head_count", 0)
    kv_heads = source.count("attention.head_count_kv", heads)
    layers = source.count("block_count", 0)
    arch = source.architecture
    big = layers == 80 and (
        arch in {"qwen2", "deci", "olmo"} or (arch in {"llama", "llama-embed"} and heads != kv_heads)
    )
    return Place(
        count=_layers(source, layers),
        gqa=heads // kv_heads if kv_heads else 0,
        experts=source.count("expert_count", 0),
        big=big or (arch == "jais2" and layers == 68),
        architecture=arch,
        has_imatrix=has_imatrix,
    )


def _layers(source: Source, layers: int) -> int:
    """Return how many layers llama.cpp counts, which for two architectures are not those in the file."""
    if source.architecture == "nanbeige":
        return layers * max(1, source.count("num_loops", 1))
    if source.architecture == "graniteswitch":
        return layers - source.count("nextn_predict_layers", 0) + 1
    return layers
