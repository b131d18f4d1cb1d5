"""`quantcore sensitivity`: measure how much each tensor of a model suffers from each type."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from quantcore.atomic import refuse_overwriting
from quantcore.backends import Backend, choose
from quantcore.cli._options import add_imatrix, add_source, imatrix, whole_number
from quantcore.cli._terminal import add_json, human_seconds, note, note_context, progress_bar, visible
from quantcore.cli._text import read_text
from quantcore.errors import ShortText
from quantcore.imatrix import ImportanceMatrix
from quantcore.models import open_model
from quantcore.sensitivity import N_CHUNKS, Sensitivities, measure
from quantcore.sources.base import Source

SHOWN = 10  # tensors that are listed


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("sensitivity", help="measure how much each tensor suffers from each type")
    add_source(parser)
    parser.add_argument("text", metavar="TEXT", type=Path, help="UTF-8 text file")
    parser.add_argument("destination", metavar="OUT", type=Path, help="the JSON file to make")
    add_imatrix(parser)
    parser.add_argument("--ctx", type=whole_number, metavar="N", default=512, help="tokens in a chunk (512)")
    parser.add_argument(
        "--chunks", type=whole_number, metavar="N", default=N_CHUNKS, help=f"chunks to measure ({N_CHUNKS})"
    )
    parser.add_argument(
        "--threads", type=whole_number, metavar="N", help="threads to use; one for each core if left out"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    source = open_model(arguments.source)
    inputs = {"a file of the model": source.files, "the text": (arguments.text,)}
    refuse_overwriting(arguments.destination, inputs)
    found = measured(
        source,
        arguments.text,
        imatrix(arguments),
        choose("auto", note),
        arguments.threads,
        n_ctx=arguments.ctx,
        n_chunks=arguments.chunks,
    )
    found.save(arguments.destination)
    seconds = time.monotonic() - began
    if not arguments.json:
        _print(found, seconds)
    return {**found.to_json(), "seconds": seconds}


def measured(
    source: Source,
    text_path: Path,
    weights: ImportanceMatrix | None,
    backend: Backend,
    threads: int | None,
    **chunks: int,
) -> Sensitivities:
    """Measure a model on the text of a file, with a progress bar."""
    text = read_text(text_path)
    note_context(source, chunks.get("n_ctx", 512))
    try:
        with progress_bar() as report:
            return measure(
                source,
                text.content,
                str(text.path),
                text.sha256,
                imatrix=weights,
                kernels=backend.kernels,
                threads=threads,
                report=report,
                **chunks,
            )
    except ShortText as exc:
        raise ShortText(f"{text.path}: {exc}") from exc


def _print(found: Sensitivities, seconds: float) -> None:
    worst = sorted(found.tensors, key=lambda tensor: -tensor.divergence)
    for tensor in worst[:SHOWN]:
        print(f"{visible(tensor.name):<34} {tensor.divergence:.6f} nats per token as {tensor.probe}")
    print(
        f"{len(found.tensors)} tensors on {found.chunks} chunks of {found.n_ctx} tokens "
        f"({human_seconds(seconds)})"
    )
