"""`quantcore plan`: the type and size of every tensor before any work is done."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from quantcore.cli._options import add_level, add_source, options
from quantcore.cli._terminal import add_json, human_bytes, note, visible
from quantcore.convert import open_model
from quantcore.plan import Plan, make_plan


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("plan", help="show what a level makes of a model, reading headers only")
    add_source(parser)
    add_level(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    plan = make_plan(open_model(arguments.source), arguments.to, options(arguments))
    if not arguments.json:
        print_plan(plan)
    return plan.to_json()


def print_plan(plan: Plan) -> None:
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
    print(f"{plan.level}: {size}, {plan.bpw:.2f} bits per weight")
