"""`quantcore quantize`: make a GGUF file of a level, or the best one of a size."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantcore.backends import BACKENDS, choose
from quantcore.cli._files import add_files, seen
from quantcore.cli._making import add_making, make
from quantcore.cli._options import add_level, add_source, options
from quantcore.cli._target import add_target, planned, require_aim
from quantcore.cli._terminal import human_bytes, note
from quantcore.models import open_model
from quantcore.plan import Plan


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("quantize", help="make a GGUF file of a level, or the best of a size")
    add_source(parser)
    parser.add_argument("destination", metavar="DST", type=Path, nargs="?", help="the GGUF file to make")
    add_level(parser)
    add_target(parser)
    add_files(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say how large the file would be, write nothing (DST may be left out)",
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="what does the arithmetic; auto takes the compiled kernels where they are built",
    )
    add_making(parser)
    parser.set_defaults(run=run, bad_usage=parser.error)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    require_aim(arguments)
    if arguments.destination is None and not arguments.dry_run:
        arguments.bad_usage("the following arguments are required: DST (only --dry-run does without)")
    backend = choose(arguments.backend, note)
    source = seen(open_model(arguments.source), arguments)
    chosen = options(arguments)
    made = planned(source, chosen, backend, arguments)
    if arguments.dry_run:
        return {**tell(made.plan, json=arguments.json), **made.expected}
    return {**make(source, made.plan, arguments, backend, imatrix=chosen.imatrix), **made.expected}


def tell(plan: Plan, *, json: bool) -> dict[str, Any]:
    """Say what would be made and return the document of `--json`."""
    for warning in plan.warnings:
        note(warning)
    if not json:
        parts = f" in {len(plan.parts)} files" if plan.parts else ""
        size = f"{human_bytes(plan.file_bytes)} ({plan.file_bytes:,} bytes){parts}"
        print(f"{plan.level}: {size}, {plan.bpw:.2f} bits per weight; nothing was written")
    return plan.to_json()
