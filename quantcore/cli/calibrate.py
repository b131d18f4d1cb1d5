"""`quantcore calibrate`: collect what goes into every matrix of a model, for formats fitted to it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from quantcore.atomic import AtomicFolder, refuse_overwriting
from quantcore.calibrate import collect
from quantcore.cli._options import add_source, whole_number
from quantcore.cli._terminal import add_json, human_bytes, human_seconds, note_context, progress_bar
from quantcore.cli._text import read_text
from quantcore.errors import InputError, ShortText
from quantcore.models import open_model
from quantcore.statistics.collection import Collection, open_collection
from quantcore.statistics.tally import Collect


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "calibrate", help="collect Hessians, activation scales and importance of a model on a text"
    )
    add_source(parser)
    parser.add_argument("text", metavar="TEXT", type=Path, help="UTF-8 text file")
    parser.add_argument("destination", metavar="OUT_DIR", type=Path, help="the folder to make")
    parser.add_argument("--ctx", type=whole_number, metavar="N", default=512, help="tokens in a chunk (512)")
    parser.add_argument("--chunks", type=whole_number, metavar="N", help="chunks to measure; all if left out")
    parser.add_argument("--hessians", action="store_true", help="sums of products of inputs, X'X")
    parser.add_argument("--activations", action="store_true", help="mean and largest magnitudes by channel")
    parser.add_argument(
        "--samples", type=whole_number, metavar="N", default=0, help="inputs to keep as they are"
    )
    parser.add_argument("--imatrix", type=Path, metavar="FILE", help="also write the importance matrix")
    parser.add_argument(
        "--merge",
        action="append",
        default=[],
        metavar="DIR",
        help="add what was collected of the same model before; may be repeated",
    )
    parser.add_argument(
        "--threads", type=whole_number, metavar="N", help="threads to use; one for each core if left out"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    source, text = open_model(arguments.source), read_text(arguments.text)
    others = [open_collection(Path(path)) for path in arguments.merge]
    # All that can go wrong is looked at before the long work.
    AtomicFolder(arguments.destination).require_free()
    if arguments.imatrix:
        _require_own_place(arguments.imatrix, arguments.destination)
        inputs = {"a file of the model": source.files, "the text": (text.path,)}
        inputs["a file of what is merged"] = tuple(file for other in others for file in other.files)
        refuse_overwriting(arguments.imatrix, inputs)
    note_context(source, arguments.ctx)
    try:
        with progress_bar() as report:
            collection = collect(
                source,
                text.content,
                str(text.path),
                arguments.destination,
                _wanted(arguments),
                digest=text.sha256,
                n_ctx=arguments.ctx,
                n_chunks=arguments.chunks,
                merge=others,
                threads=arguments.threads,
                report=report,
            )
    except ShortText as exc:
        raise ShortText(f"{text.path}: {exc}") from exc
    if arguments.imatrix:
        collection.sums().save(arguments.imatrix)
    document = _document(collection, time.monotonic() - began)
    if not arguments.json:
        merged = f", merged with {len(others)} more" if others else ""
        text_of = f"{document['chunks']} chunks of {document['n_ctx']} tokens"
        print(
            f"{document['path']}: {document['entries']} matrices of {document['layers']} layers, {text_of}, "
            f"{human_bytes(document['file_bytes'])} ({human_seconds(document['seconds'])}){merged}"
        )
    return document


def _require_own_place(imatrix: Path, folder: Path) -> None:
    """Raise `InputError` where the importance matrix would stand in the folder that is made, or for it."""
    if folder.resolve() in (imatrix.resolve(), imatrix.resolve().parent):
        raise InputError(f"{imatrix}: is in the folder to make; give another name")


def _wanted(arguments: argparse.Namespace) -> Collect:
    """Return what to collect: importance always, which costs next to nothing."""
    return Collect(
        importance=True,
        hessians=arguments.hessians,
        activations=arguments.activations,
        samples=arguments.samples,
    )


def _document(collection: Collection, seconds: float) -> dict[str, Any]:
    origin = collection.origin
    measured = origin.texts[-1]
    tokens = measured.n_ctx * measured.chunks
    return {
        "path": str(collection.path),
        "file_bytes": sum(file.stat().st_size for file in collection.path.iterdir()),
        "layers": len(collection.layers),
        "entries": sum(len(each.names) for layer in collection.layers for each in layer),
        "n_ctx": measured.n_ctx,
        "chunks": measured.chunks,
        "tokens": tokens,
        "sha256": measured.sha256,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        **origin.document(),
    }
