"""The command line `quantcore`: one module per verb, found by scanning this folder.

A verb module has `add_parser(verbs)`, which sets `run=` to a function of the parsed arguments. It returns the
JSON document that `--json` prints; without `--json` it has printed what people read. Exit status: 0 done,
1 failed (one line on standard error says what and where), 2 bad usage. A verb whose answer may be no sets
`status=` to 1 then.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from math import isfinite
from pkgutil import iter_modules
from typing import Any

from quantcore.cli._terminal import visible
from quantcore.errors import QuantcoreError

# Verbs that multiply no matrices: the threads that numpy starts for that would cost them a tenth of a second.
_WITHOUT_BLAS = frozenset({"convert", "errors", "inspect", "kernels", "plan", "quantize", "verify"})


class _ShowVersion(argparse.Action):
    """Like argparse's own, but finds out the version only when asked, which takes a while."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"quantcore {_version()}")
        parser.exit()


def build_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """Return the parser with every verb, or with `verb` alone if there is one of that name."""
    parser = argparse.ArgumentParser(
        prog="quantcore", description="Inspect, convert, quantize and measure language models."
    )
    parser.add_argument(
        "--version", action=_ShowVersion, nargs=0, help="show program's version number and exit"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    names = [module.name for module in iter_modules(__path__) if not module.name.startswith("_")]
    for name in [verb] if verb in names else names:
        import_module(f"{__name__}.{name}").add_parser(verbs)
    return parser


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("quanthub")  # the distribution that quantcore is part of
    except PackageNotFoundError:
        return "(not installed)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    given = sys.argv[1:] if argv is None else argv
    verb = given[0] if given else None
    if verb in _WITHOUT_BLAS and "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    arguments = build_parser(verb).parse_args(given)
    try:
        document = arguments.run(arguments)
        if arguments.json:
            json.dump(_strict(document), sys.stdout, indent=2, allow_nan=False)
            print()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("quantcore: stopped", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read our output has had enough (`| head`); Python would complain again while closing it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (QuantcoreError, OSError, MemoryError) as exc:
        message = _told(exc)
        print(f"quantcore {arguments.verb}: {visible(' '.join(message.split()))}", file=sys.stderr)
        return 1
    return int(getattr(arguments, "status", 0))


def _told(exc: Exception) -> str:
    """Return an error in words; the system's own without their number, and the file first as in ours."""
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.filename}: {exc.strerror}" if exc.filename is not None else exc.strerror
    return str(exc) or type(exc).__name__


def _strict(document: Any) -> Any:
    """Return a document with null for NaN and infinities, which files may hold and JSON may not."""
    if isinstance(document, float):
        return document if isfinite(document) else None
    if isinstance(document, Mapping):
        return {key: _strict(value) for key, value in document.items()}
    return [_strict(value) for value in document] if isinstance(document, list | tuple) else document
