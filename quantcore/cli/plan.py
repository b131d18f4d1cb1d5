"""`quantcore plan`: the type and size of every tensor before any work is done."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from quantcore.backends import choose
from quantcore.cli._files import add_files, seen
from quantcore.cli._options import add_level, add_source, options
from quantcore.cli._target import add_target, planned, require_aim
from quantcore.cli._terminal import add_json, human_bytes, human_seconds, note, visible
from quantcore.models import open_model
from quantcore.plan import Plan


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "plan", help="show what a level or a size makes of a model; for a level headers are read only"
    )
    add_source(parser)
    add_level(parser)
    add_target(parser)
    add_files(parser)
    add_json(parser)
    parser.set_defaults(run=run, bad_usage=parser.error)


def run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    require_aim(arguments)
    source = seen(open_model(arguments.source), arguments)
    backend = choose("auto")
    made = planned(source, options(arguments), backend, arguments)
    if not arguments.json:
        print_plan(made.plan, backend.name)
    return {**made.plan.to_json(), **made.expected}


def print_plan(plan: Plan, backend: str) -> None:
    """Print a plan as a table."""
    for tensor in plan.tensors:
        shape = " x ".join(str(n) for n in reversed(tensor.shape))
        print(
            f"{visible(tensor.name):<34} {shape:>16} {tensor.source_type:>5} -> {tensor.type:<5} "
            f"{human_bytes(tensor.nbytes):>8}  {tensor.reason}"
        )
    for warning in plan.warnings:
        note(warning)
    size = f"{human_bytes(plan.file_bytes)} ({plan.file_bytes:,} bytes)"
    parts = f" in {len(plan.parts)} files" if plan.parts else ""
    print(f"{plan.level}: {size}{parts}, {plan.bpw:.2f} bits per weight")
    took = f"at most {human_bytes(plan.peak_memory_bytes)} of memory, about {human_seconds(plan.seconds)}"
    print(f"making it with {backend} takes {took}")
