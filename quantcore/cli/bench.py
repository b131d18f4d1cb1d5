"""`quantcore bench`: how fast an engine runs a model on this machine, and the memory it takes."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantcore.cli._options import whole_number
from quantcore.cli._terminal import add_json, human_bytes, note, note_trained, progress_bar
from quantcore.evaluate.engines import registry
from quantcore.evaluate.hardware import hardware
from quantcore.evaluate.speed import Memory, Speed, bench, trained_context

QUIET = 0.1  # a share of the processors that needs no mention
PARTS = {"model": "model", "kv": "KV", "state": "state", "compute": "compute", "output": "output"}
# What every model takes; a part that an engine does not tell of is said to be not measured.
ALWAYS = ("model", "kv", "compute")


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("bench", help="measure speed and memory with llama.cpp or another engine")
    parser.add_argument("model", metavar="MODEL", type=Path, help="GGUF file or Hugging Face model directory")
    parser.add_argument("--pp", type=whole_number, metavar="N", default=512, help="tokens of a prompt (512)")
    parser.add_argument("--tg", type=whole_number, metavar="N", default=128, help="tokens to generate (128)")
    parser.add_argument(
        "--depth",
        type=_depth,
        nargs="+",
        metavar="N",
        default=[0],
        help="tokens in the cache before a test; several give each test at each depth (0)",
    )
    parser.add_argument("--runs", type=whole_number, metavar="N", default=5, help="runs of each test (5)")
    parser.add_argument(
        "--threads", type=whole_number, metavar="N", help="threads to use; one for each core if left out"
    )
    parser.add_argument(
        "--engine",
        type=_engine,
        metavar="NAME",
        help=f"{', '.join(sorted(registry()))}; the first that can run the model here if left out",
    )
    parser.add_argument(
        "--limit",
        type=whole_number,
        metavar="SECONDS",
        help="stop the engine after so long; no limit if left out",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def _depth(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _engine(text: str) -> str:
    """Return an engine's name given in any case."""
    known = {name.lower(): name for name in registry()}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(sorted(registry()))}")
    return known[text.lower()]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    note_trained(trained_context(arguments.model), max(arguments.pp, arguments.tg))
    with progress_bar() as report:
        speed = bench(
            arguments.model,
            pp=arguments.pp,
            tg=arguments.tg,
            depths=tuple(arguments.depth),
            runs=arguments.runs,
            threads=arguments.threads,
            engine=arguments.engine,
            limit=arguments.limit,
            report=report,
        )
    for missed in speed.not_measured:
        if missed.engine == speed.engine:
            note(f"{missed.test}: {missed.why}")
    if not arguments.json:
        _print(speed)
    return asdict(speed) | {"hardware": asdict(hardware())}


def _print(speed: Speed) -> None:
    print(f"{speed.engine} ({speed.engine_version}) on {speed.backend}, {speed.threads} threads")
    for result in speed.results:
        print(f"{result.test:>14}  {result.mean:10.2f} +/- {result.stdev:.2f} tokens/s  ({result.runs} runs)")
    others = speed.others or 0.0
    if others > QUIET:
        print(f"{'note':>14}  other programs used {100 * others:.0f} % of the processors meanwhile")
    print(f"{'memory':>14}  {_told(speed.memory)}")
    for missed in speed.not_measured:
        if missed.engine != speed.engine:
            print(f"{'not measured':>14}  {missed.why}")


def _told(memory: Memory) -> str:
    """Return the parts of memory; those that every model takes even where nobody measured them."""
    sizes = {name: getattr(memory, part) for part, name in PARTS.items()}
    told = [
        f"{name} {'not measured' if size is None else human_bytes(size)}"
        + (f" at n_ctx {memory.n_ctx}" if name == PARTS["kv"] and memory.n_ctx else "")
        for part, (name, size) in zip(PARTS, sizes.items(), strict=True)
        if size is not None or part in ALWAYS
    ]
    return ", ".join(told)
