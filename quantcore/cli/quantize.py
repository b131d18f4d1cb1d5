"""`quantcore quantize`: make a GGUF file of a level."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantcore.cli._making import add_making, make
from quantcore.cli._options import add_level, add_source, options
from quantcore.convert import open_model
from quantcore.errors import MissingEngine
from quantcore.plan import make_plan

BACKENDS = ("auto", "numpy", "jit", "cuda")


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("quantize", help="make a GGUF file of a level")
    add_source(parser)
    parser.add_argument("destination", metavar="DST", type=Path, help="the GGUF file to make")
    add_level(parser)
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="what does the arithmetic; this version has numpy only, which auto takes",
    )
    add_making(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.backend not in ("auto", "numpy"):
        raise MissingEngine(f"--backend {arguments.backend} is not in this version; use numpy or auto")
    source = open_model(arguments.source)
    plan = make_plan(source, arguments.to, options(arguments))
    return make(source, plan, arguments) | {"backend": "numpy"}
