"""`quantcore imatrix`: measure on a text how much each column of a model's weights counts, or show it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from quantcore.atomic import refuse_overwriting
from quantcore.calibrate import importance, promised
from quantcore.cli._imatrixstats import show_statistics
from quantcore.cli._options import add_device, add_source, whole_number
from quantcore.cli._terminal import add_json, human_seconds, note_context, progress_bar
from quantcore.cli._text import read_text
from quantcore.errors import ShortText
from quantcore.imatrix import open_imatrix
from quantcore.imatrixfiles import Sums, require_same_model
from quantcore.models import open_model


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "imatrix", help="measure the importance matrix of a model on a text, or show what one holds"
    )
    # Wanted for measuring only.
    add_source(parser, nargs="?")
    parser.add_argument("text", metavar="TEXT", type=Path, nargs="?", help="UTF-8 text file")
    parser.add_argument(
        "destination",
        metavar="OUT",
        type=Path,
        nargs="?",
        help="the file to make: GGUF, or the older kind for *.dat",
    )
    parser.add_argument(
        "--show-statistics", metavar="FILE", help="measure nothing, and show what an importance matrix holds"
    )
    parser.add_argument("--ctx", type=whole_number, metavar="N", default=512, help="tokens in a chunk (512)")
    parser.add_argument("--chunks", type=whole_number, metavar="N", help="chunks to measure; all if left out")
    parser.add_argument(
        "--merge",
        action="append",
        default=[],
        metavar="FILE",
        help="add what an importance matrix of the same model holds; may be repeated",
    )
    parser.add_argument(
        "--threads", type=whole_number, metavar="N", help="threads to use; one for each core if left out"
    )
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run, refuse=parser.error)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.show_statistics is not None:
        if arguments.source is not None:
            arguments.refuse("--show-statistics takes no model, text or file to make")
        return show_statistics(arguments.show_statistics, quiet=arguments.json)
    if arguments.destination is None:
        arguments.refuse("the following arguments are required: SRC, TEXT, OUT (or --show-statistics FILE)")
    return _measure(arguments)


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    source, text = open_model(arguments.source), read_text(arguments.text)
    others = [open_imatrix(path) for path in arguments.merge]
    # All that can go wrong is looked at before the long work. A matrix may be merged into its own file.
    inputs = {"a file of the model": source.files, "the text": (text.path,)}
    refuse_overwriting(arguments.destination, inputs)
    expected = promised(source, str(arguments.destination), str(text.path))
    for other in others:
        require_same_model(other, expected)
    note_context(source, arguments.ctx)
    try:
        with progress_bar() as report:
            sums = importance(
                source,
                text.content,
                str(text.path),
                digest=text.sha256,
                n_ctx=arguments.ctx,
                n_chunks=arguments.chunks,
                threads=arguments.threads,
                device=arguments.device,
                report=report,
            )
    except ShortText as exc:
        raise ShortText(f"{text.path}: {exc}") from exc
    measured = sums.n_chunks
    for other in others:
        sums.merge(other)
    sums.save(arguments.destination)
    document = _document(sums, measured, time.monotonic() - began)
    if not arguments.json:
        rate = f"{human_seconds(document['seconds'])}, {document['tokens_per_second']:.0f} tokens/s"
        merged = f", merged with {len(others)} more" if others else ""
        print(f"{len(sums.values)} entries of {measured} chunks of {sums.chunk_size} tokens ({rate}){merged}")
    return document


def _document(sums: Sums, measured: int, seconds: float) -> dict[str, Any]:
    tokens = measured * sums.chunk_size
    return {
        "entries": len(sums.values),
        "n_ctx": sums.chunk_size,
        "chunks": measured,
        "tokens": tokens,
        "datasets": sums.datasets,
        "sha256": sums.hashes[-1],
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
    }
