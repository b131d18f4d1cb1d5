"""`quantcore convert`: make a GGUF file of a Hugging Face directory, without quantizing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantcore.cli._making import add_making, make
from quantcore.convert import native_level, open_huggingface
from quantcore.errors import InputError
from quantcore.plan import make_plan

LEVELS = {"f16": "F16", "bf16": "BF16", "f32": "F32"}


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("convert", help="make a GGUF file of a Hugging Face model directory")
    parser.add_argument(
        "source", metavar="HF_DIR", type=Path, help="directory with config.json and safetensors"
    )
    parser.add_argument("destination", metavar="OUT.gguf", type=Path, help="the GGUF file to make")
    parser.add_argument(
        "--outtype",
        choices=[*LEVELS, "auto"],
        default="auto",
        help="type of the weights; auto keeps 16-bit weights as they are and makes F16 of others",
    )
    add_making(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.source.is_file():
        raise InputError(
            f"{arguments.source}: is a file; convert takes a Hugging Face model directory, "
            "`quantcore quantize` takes GGUF files"
        )
    source = open_huggingface(arguments.source)
    level = LEVELS.get(arguments.outtype) or native_level(source)
    return make(source, make_plan(source, level), arguments)
