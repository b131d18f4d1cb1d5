"""The best file of a given size: each tensor's type chosen by what it costs and what it saves.

What a type costs is the divergence that `quantcore.sensitivity` expects of it; the types of all tensors are
chosen together (`quantcore.knapsack`), so that the whole expected divergence is least and the file not larger
than asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from quantcore.containers.gguf import alignment_of, padding
from quantcore.errors import InputError
from quantcore.formats import get_format
from quantcore.ggmltypes import is_quantized, storage_nbytes
from quantcore.knapsack import Choice, Group, choose, smallest
from quantcore.plan import Options, Plan, make_plan
from quantcore.planner import Planner
from quantcore.recipes import Recipe, file_type_of
from quantcore.sensitivity import Sensitivities, Sensitivity, candidates
from quantcore.sources.base import Source
from quantcore.tensorrules import role
from quantcore.tensors import TensorInfo

# What a file should come within of the size asked for; less means that there is nothing left to improve.
TOLERANCE = 0.005
# Types whose blocks are looked up in a grid: small for their quality, slow on processors.
GRIDS = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"})


@dataclass(frozen=True)
class Target:
    """How large the file may be: `nbytes` for the whole file, or `bpw` for its tensors on average."""

    nbytes: int | None = None
    bpw: float | None = None


@dataclass(frozen=True)
class Limits:
    """What types may be chosen: only `types` if given, and for tensors of a role none of fewer bits.

    Embeddings that are the output too are held to what is asked of the output as well.
    """

    types: Collection[str] | None = None
    least: Mapping[str, str] = field(default_factory=dict)

    def allow(self, name: str, kind: str, *, tied: bool = False) -> bool:
        """Say whether the tensor of that name may have type `kind`; `tied` embeddings are the output too."""
        own = role(name)
        roles = {own, "output"} if tied and own == "token_embd" else {own}
        least = [self.least[one] for one in roles if one in self.least]
        enough = all(get_format(kind).bits >= get_format(one).bits for one in least)
        return enough and (self.types is None or kind in self.types)


@dataclass(frozen=True)
class Budgeted:
    """A plan for a size. `divergence` is the mean KL divergence to expect in nats per token: no other choice
    of types would be expected to have less than `bound`.
    """

    plan: Plan
    divergence: float
    bound: float


def plan_for(
    source: Source,
    target: Target,
    found: Sensitivities,
    options: Options | None = None,
    limits: Limits | None = None,
    *,
    threads: int | None = None,
    backend: str = "numpy",
) -> Budgeted:
    """Plan the file of `source` that is expected to diverge least and is no larger than `target`.

    What `options` fix stays so. Raises `InputError` where the target is below the smallest file there can be,
    naming it, or where a tensor was not measured, and what `make_plan` raises.
    """
    options = options or Options()
    free = _Free(source, found, options, limits or Limits())
    least = free.planned(free.smallest(), threads, backend)
    room = free.room(target, least)
    if room < smallest(free.groups):
        raise InputError(
            f"{source.path}: no types make a file that small: the smallest has {least.file_bytes} bytes, "
            f"{least.bpw:.2f} bits per weight"
        )
    choice = choose(free.groups, room)
    plan = free.planned(choice, threads, backend)
    return Budgeted(_with_warning(plan, target), choice.cost, choice.bound)


class _Free:
    """The tensors of a model whose types are free, and what they may become."""

    def __init__(self, source: Source, found: Sensitivities, options: Options, limits: Limits) -> None:
        self.source, self.options = source, options
        self.alignment = alignment_of(source.metadata)
        planner = Planner(source, _recipe("F16"), options)
        measured = found.by_name()
        self.infos = [info for info in source.infos if planner.fixed(info) is None]
        self.kinds = [_kinds(info, measured, options, limits, source) for info in self.infos]
        self.groups = [
            _group(info, measured[info.name], kinds, self.alignment)
            for info, kinds in zip(self.infos, self.kinds, strict=True)
        ]

    def smallest(self) -> Choice:
        """Return the choice of the smallest types."""
        return Choice(tuple(int(group.sizes.argmin()) for group in self.groups), 0, 0.0, 0.0)

    def room(self, target: Target, least: Plan) -> int:
        """Return the bytes that the free tensors may take."""
        if target.nbytes is not None:
            return target.nbytes - least.file_bytes + smallest(self.groups)
        names = {info.name for info in self.infos}
        weights = sum(tensor.n_elements for tensor in least.tensors)
        fixed = sum(tensor.nbytes for tensor in least.tensors if tensor.name not in names)
        return int((target.bpw or 0.0) * weights / 8) - fixed

    def planned(self, choice: Choice, threads: int | None, backend: str) -> Plan:
        """Return the plan with the types of a choice."""
        picked = {
            info.name: kinds[pick]
            for info, kinds, pick in zip(self.infos, self.kinds, choice.picks, strict=True)
        }
        options = replace(self.options, assigned=picked)
        weights: Counter[str] = Counter()
        for info in self.infos:
            weights[picked[info.name]] += info.n_elements
        commonest = weights.most_common(1)[0][0] if weights else "F16"
        plan = make_plan(self.source, _recipe(commonest), options, threads=threads, backend=backend)
        return replace(plan, level=f"{plan.bpw:.2f}bpw")


def _kinds(
    info: TensorInfo,
    measured: Mapping[str, Sensitivity],
    options: Options,
    limits: Limits,
    source: Source,
) -> list[str]:
    """Return the types that a tensor may have, of those that were measured."""
    tensor = measured.get(info.name)
    if tensor is None:
        raise InputError(f"{source.path}: {info.name} was not measured; measure the model again")
    former = source.former_names.get(info.name, info.name)
    weighted = options.imatrix is not None and options.imatrix.covers(former, info.shape)
    possible = set(candidates(info, weighted=weighted))
    if is_quantized(info.type) and not options.allow_requantize:
        possible = {info.type}
    tied = source.tensor("output.weight") is None
    allowed = [kind for kind in tensor.errors if limits.allow(info.name, kind, tied=tied)]
    kinds = [kind for kind in allowed if kind in possible]
    if not kinds:
        raise InputError(f"{source.path}: {info.name}: {_why_none(info, allowed)}")
    return kinds


def _why_none(info: TensorInfo, allowed: list[str]) -> str:
    """Return why a tensor can have none of the types that were measured and are `allowed`."""
    if not allowed:
        return (
            "none of the types allowed was measured: they do not fit its rows, or take an importance matrix"
        )
    if is_quantized(info.type):
        return f"is {info.type} already, and may be no other type unless requantizing is allowed"
    return f"cannot be {', '.join(allowed)} without an importance matrix"


def _group(info: TensorInfo, measured: Sensitivity, kinds: list[str], alignment: int) -> Group:
    sizes = [storage_nbytes(kind, info.shape) for kind in kinds]
    return Group(
        np.array([size + padding(size, alignment) for size in sizes], dtype=np.int64),
        np.array([measured.cost(kind) for kind in kinds], dtype=np.float64),
    )


def _recipe(commonest: str) -> Recipe:
    """Return the level of a file of mixed types, most of whose weights are of type `commonest`."""
    return Recipe(
        "mixed",
        "Mixed",
        "Each tensor's type chosen for a size.",
        file_type_of(commonest),
        commonest,
        commonest,
    )


def _with_warning(plan: Plan, target: Target) -> Plan:
    reached = plan.file_bytes / target.nbytes if target.nbytes else plan.bpw / (target.bpw or plan.bpw)
    if reached >= 1 - TOLERANCE:
        return plan
    warning = f"the file is {1 - reached:.1%} smaller than it might be: nothing was left to improve"
    return replace(plan, warnings=(*plan.warnings, warning))
