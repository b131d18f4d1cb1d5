"""What convert and quantize share: make the planned file, show how far it is, say what came of it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from quantcore.backends import NUMPY, Backend
from quantcore.cli._options import whole_number
from quantcore.cli._terminal import add_json, human_bytes, human_seconds, note, progress_bar
from quantcore.pipeline import quantize
from quantcore.plan import Plan
from quantcore.sources.base import Source


def add_making(parser: argparse.ArgumentParser) -> None:
    """Add `--threads` and `--json`."""
    parser.add_argument(
        "--threads", type=whole_number, metavar="N", help="threads to use; one for each core if left out"
    )
    add_json(parser)


def make(
    source: Source, plan: Plan, arguments: argparse.Namespace, backend: Backend = NUMPY, **given: Any
) -> dict[str, Any]:
    """Write the planned file at `arguments.destination` and return the document of `--json`.

    `given` goes on to `quantcore.pipeline.quantize`.
    """
    for warning in plan.warnings:
        note(warning)
    with progress_bar() as report:
        result = quantize(
            source,
            plan,
            arguments.destination,
            threads=arguments.threads,
            report=report,
            kernels=backend.kernels,
            **given,
        )
    if backend.hint:
        note(backend.hint)
    if not arguments.json:
        print(
            f"{result.path}: {plan.level}, {human_bytes(result.file_bytes)}, {plan.bpw:.2f} bits per weight, "
            f"{human_seconds(result.seconds)}"
        )
        if len(result.files) == 1:
            print(f"sha256 {result.sha256}")
        else:
            for file in result.files:
                print(f"sha256 {file.sha256}  {file.path.name}")
    files = [{**asdict(file), "path": str(file.path)} for file in result.files]
    made = {
        "seconds": result.seconds,
        "sha256": result.sha256,
        "backend": backend.name,
        "path": str(result.path),
        "files": files,
    }
    return {**plan.to_json(), **made}
