"""Options of a quant made for a size, which stand in the place of a level."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from quantcore.backends import Backend
from quantcore.cli._files import in_parts, size
from quantcore.cli._options import tensor_type
from quantcore.cli._terminal import note
from quantcore.errors import InputError
from quantcore.plan import Options, Plan, make_plan
from quantcore.sources.base import Source

FAST = "fast"


@dataclass(frozen=True)
class Planned:
    """A plan, and what `--json` says beside it of what to expect."""

    plan: Plan
    expected: Mapping[str, Any] = field(default_factory=dict)


def bits(text: str) -> float:
    """Return a number of bits per weight."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not isfinite(found) or found <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bits such as 4.25")
    return found


def types(text: str) -> tuple[str, ...]:
    """Return the types in a list set apart by commas, or the word `fast`."""
    return (FAST,) if text.lower() == FAST else tuple(tensor_type(name) for name in text.split(","))


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add the options of a size."""
    group = parser.add_argument_group(
        "instead of a level", "choose every tensor's type so that a file of this size loses least"
    )
    target = group.add_mutually_exclusive_group()
    target.add_argument("--target-size", type=size, metavar="SIZE", help="of the whole file, such as 5.2GB")
    target.add_argument("--target-bpw", type=bits, metavar="X", help="bits per weight on average")
    known = group.add_mutually_exclusive_group()
    known.add_argument(
        "--sensitivity", type=Path, metavar="FILE", help="what `quantcore sensitivity` measured of this model"
    )
    known.add_argument(
        "--calibration",
        type=Path,
        metavar="TEXT",
        help="text to measure it on now, where there is no such file",
    )
    group.add_argument(
        "--types",
        type=types,
        metavar="LIST",
        help=f"choose from these only, such as Q4_K,Q6_K; {FAST} leaves out the grids, slow on processors",
    )
    for option, what in (
        ("output", "output.weight, or of embeddings that are the output too"),
        ("embedding", "token_embd.weight"),
    ):
        group.add_argument(
            f"--{option}-at-least", type=tensor_type, metavar="TYPE", help=f"fewest bits of {what}"
        )


def planned(source: Source, options: Options, backend: Backend, arguments: argparse.Namespace) -> Planned:
    """Return the plan for the level or the size that was asked for, in the parts that were."""
    threads = getattr(arguments, "threads", None)
    if arguments.target_size is None and arguments.target_bpw is None:
        plan = make_plan(source, arguments.to, options, threads=threads, backend=backend.name)
        return Planned(in_parts(plan, source, arguments))
    if arguments.to is not None:
        note(f"the size decides; {arguments.to} has no say in it")
    # The forward pass that measuring needs is not loaded for a level.
    from quantcore.budget import Target, plan_for

    found, limits = _sensitivities(source, options, backend, arguments), _limits(arguments)

    def budgeted(nbytes: int | None) -> Planned:
        target = Target(nbytes, arguments.target_bpw)
        made = plan_for(source, target, found, options, limits, threads=threads, backend=backend.name)
        expected = {"expected_kld": made.divergence, "expected_kld_bound": made.bound}
        return Planned(in_parts(made.plan, source, arguments), expected)

    made = budgeted(arguments.target_size)
    excess = made.plan.file_bytes - arguments.target_size if arguments.target_size else 0
    # Each part has a head of its own, whose size is known only once the parts are.
    return made if excess <= 0 else budgeted(arguments.target_size - excess)


def require_aim(arguments: argparse.Namespace) -> None:
    """Tell bad usage: neither level nor size, or options of a size without one."""
    if arguments.target_size is not None or arguments.target_bpw is not None:
        return
    if arguments.to is None:
        arguments.bad_usage("one of --to, --target-size and --target-bpw is required")
    for option in ("sensitivity", "calibration", "types", "output_at_least", "embedding_at_least"):
        if getattr(arguments, option) is not None:
            arguments.bad_usage(f"--{option.replace('_', '-')} needs --target-size or --target-bpw")


def _limits(arguments: argparse.Namespace) -> Any:
    from quantcore.budget import GRIDS, Limits
    from quantcore.formats import formats

    allowed = arguments.types
    if allowed == (FAST,):
        allowed = frozenset(formats()) - GRIDS
    least = {"output": arguments.output_at_least, "token_embd": arguments.embedding_at_least}
    return Limits(allowed, {role: kind for role, kind in least.items() if kind is not None})


def _sensitivities(source: Source, options: Options, backend: Backend, arguments: argparse.Namespace) -> Any:
    from quantcore.cli.sensitivity import measured
    from quantcore.sensitivity import load

    if arguments.sensitivity is not None:
        return load(arguments.sensitivity, source)
    if arguments.calibration is None:
        raise InputError(
            "choosing types for a size takes what each does to the model's predictions: give what "
            "`quantcore sensitivity` measured (--sensitivity FILE), or a text for it (--calibration TEXT)"
        )
    if options.imatrix is None:
        note("without an importance matrix the smallest types cannot be made, and the others lose more")
    return measured(
        source, arguments.calibration, options.imatrix, backend, getattr(arguments, "threads", None)
    )
