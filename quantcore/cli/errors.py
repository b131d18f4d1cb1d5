"""`quantcore errors`: how far each tensor of a quant is from its source's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantcore.cli._options import add_source, whole_number
from quantcore.cli._terminal import add_json, progress_bar, visible
from quantcore.evaluate.tensorerrors import TensorError, TensorErrors, tensor_errors
from quantcore.identity import build
from quantcore.imatrix import ImportanceMatrix, open_imatrix
from quantcore.models import open_model

SHOWN = 20  # tensors that people see without --all; all stand in the document


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("errors", help="measure the error of each tensor of a quant against its source")
    add_source(parser)
    parser.add_argument("quant", metavar="QUANT", type=Path, help="what was made of it, the same")
    parser.add_argument(
        "--imatrix", metavar="FILE", help="importance matrix: also weigh the error of columns by it"
    )
    parser.add_argument("--all", action="store_true", help=f"show all tensors, not only the worst {SHOWN}")
    parser.add_argument(
        "--threads", type=whole_number, metavar="N", help="threads to use; one for each core if left out"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    source, quant = open_model(arguments.source), open_model(arguments.quant)
    imatrix = open_imatrix(arguments.imatrix) if arguments.imatrix else None
    with progress_bar() as report:
        found = tensor_errors(source, quant, imatrix=imatrix, threads=arguments.threads, report=report)
    if not arguments.json:
        _print(found, None if arguments.all else SHOWN)
    return document(found, imatrix)


def document(found: TensorErrors, imatrix: ImportanceMatrix | None) -> dict[str, Any]:
    """Return the document of `--json`; shapes in GGUF order, row length first."""
    return {
        "rmse": found.rmse,
        "relative": found.relative,
        "cosine": found.cosine,
        "max_abs": found.max_abs,
        "imatrix": None if imatrix is None else _weighted_by(imatrix),
        "build": build(),
        "tensors": [_tensor(error) for error in found.tensors],
    }


def _weighted_by(imatrix: ImportanceMatrix) -> dict[str, Any]:
    return {"file": imatrix.given, "datasets": list(imatrix.datasets), "chunks": imatrix.n_chunks}


def _tensor(error: TensorError) -> dict[str, Any]:
    return {
        "name": error.name,
        "shape": list(reversed(error.shape)),
        "source_type": error.source_type,
        "type": error.type,
        "nbytes": error.nbytes,
        "bpw": error.bpw,
        "rmse": error.rmse,
        "relative": error.relative,
        "weighted": error.weighted,
        "cosine": error.cosine,
        "max_abs": error.max_abs,
    }


def _print(found: TensorErrors, most: int | None) -> None:
    worst = found.worst_first
    print(
        f"all weights: relative error {_number(found.relative)}, rmse {found.rmse:.3g}, "
        f"cosine {_number(found.cosine, '.6f')}, largest {found.max_abs:.3g}"
    )
    row = "{:<34} {:>8} {:>6} {:>9} {:>9} {:>9} {:>10} {:>9}"
    print(row.format("tensor", "type", "bpw", "relative", "weighted", "rmse", "cosine", "largest"))
    for error in worst[:most]:
        print(
            row.format(
                visible(error.name),
                error.type,
                f"{error.bpw:.2f}",
                _number(error.relative),
                _number(error.weighted),
                f"{error.rmse:.3g}",
                _number(error.cosine, ".6f"),
                f"{error.max_abs:.3g}",
            )
        )
    if most is not None and len(worst) > most:
        print(f"and {len(worst) - most} more, with smaller errors; --all shows them")


def _number(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)
