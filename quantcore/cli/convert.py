"""`quantcore convert`: make a GGUF file of a Hugging Face directory, without quantizing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantcore.cli._options import threads
from quantcore.cli._terminal import add_json, finish, human_bytes, human_seconds, reporter
from quantcore.convert import native_level, open_huggingface
from quantcore.pipeline import quantize
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
    parser.add_argument(
        "--threads", type=threads, metavar="N", help="threads to use; one for each core if left out"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    source = open_huggingface(arguments.source)
    level = LEVELS.get(arguments.outtype) or native_level(source)
    plan = make_plan(source, level)
    report = reporter()
    try:
        result = quantize(source, plan, arguments.destination, threads=arguments.threads, report=report)
    finally:
        finish(report)
    if not arguments.json:
        size, seconds = human_bytes(result.file_bytes), human_seconds(result.seconds)
        print(f"{result.path}: {source.architecture}, {plan.level}, {size}, {seconds}")
        print(f"sha256 {result.sha256}")
    return {**plan.to_json(), "seconds": result.seconds, "sha256": result.sha256}
