"""`quantcore bench`: how fast llama.cpp runs a GGUF file on this machine."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantcore.cli._options import whole_number
from quantcore.cli._terminal import add_json, human_bytes, note_context, progress_bar
from quantcore.evaluate.hardware import hardware
from quantcore.evaluate.speed import Speed, bench
from quantcore.sources.gguf import open_gguf

QUIET = 0.1  # a share of the processors that needs no mention


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("bench", help="measure speed with llama.cpp")
    parser.add_argument("model", metavar="MODEL", type=Path, help="GGUF file")
    parser.add_argument("--pp", type=whole_number, metavar="N", default=512, help="tokens of a prompt (512)")
    parser.add_argument("--tg", type=whole_number, metavar="N", default=128, help="tokens to generate (128)")
    parser.add_argument("--runs", type=whole_number, metavar="N", default=5, help="runs of each test (5)")
    parser.add_argument(
        "--threads", type=whole_number, metavar="N", help="threads to use; one for each core if left out"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.model.is_file():  # `bench` says what is wrong with anything else
        note_context(open_gguf(arguments.model), max(arguments.pp, arguments.tg))
    with progress_bar() as report:
        speed = bench(
            arguments.model,
            pp=arguments.pp,
            tg=arguments.tg,
            runs=arguments.runs,
            threads=arguments.threads,
            report=report,
        )
    if not arguments.json:
        _print(speed)
    return asdict(speed) | {"hardware": asdict(hardware())}


def _print(speed: Speed) -> None:
    print(f"{speed.engine} ({speed.engine_version}) on {speed.backend}, {speed.threads} threads")
    for result in speed.results:
        print(f"{result.test:>8}  {result.mean:10.2f} +/- {result.stdev:.2f} tokens/s  ({result.runs} runs)")
    others = speed.others or 0.0
    if others > QUIET:
        print(f"    note  other programs used {100 * others:.0f} % of the processors meanwhile")
    parts = asdict(speed.memory).items()
    print("  memory  " + ", ".join(f"{part} {human_bytes(size)}" for part, size in parts if size is not None))
