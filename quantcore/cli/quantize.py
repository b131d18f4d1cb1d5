"""`quantcore quantize`: make a GGUF file of a level."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from quantcore.cli._options import add_level, add_source, options, threads
from quantcore.cli._terminal import add_json, finish, human_bytes, human_seconds, reporter
from quantcore.convert import open_model
from quantcore.errors import InputError
from quantcore.pipeline import quantize
from quantcore.plan import make_plan
from quantcore.sources.base import Source


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("quantize", help="make a GGUF file of a level")
    add_source(parser)
    parser.add_argument("destination", metavar="DST", type=Path, help="the GGUF file to make")
    add_level(parser)
    parser.add_argument(
        "--threads", type=threads, metavar="N", help="threads to use; one for each core if left out"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def refuse_overwriting(source: Source, destination: Path) -> None:
    """Refuse to write over a file that is being read."""
    if destination.exists() and any(file.samefile(destination) for file in source.files):
        raise InputError(f"{destination}: is the source itself; give another name")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    source = open_model(arguments.source)
    refuse_overwriting(source, arguments.destination)
    plan = make_plan(source, arguments.to, options(arguments))
    for warning in plan.warnings:
        print(f"note: {warning}", file=sys.stderr)
    report = reporter()
    try:
        result = quantize(source, plan, arguments.destination, threads=arguments.threads, report=report)
    finally:
        finish(report)
    if not arguments.json:
        print(
            f"{result.path}: {plan.level}, {human_bytes(result.file_bytes)}, {plan.bpw:.2f} bits per weight, "
            f"{human_seconds(result.seconds)}"
        )
        print(f"sha256 {result.sha256}")
    document = plan.to_json()
    return {**document, "seconds": result.seconds, "sha256": result.sha256}
