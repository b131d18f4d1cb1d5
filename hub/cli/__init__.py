"""The command line `quanthub`: one module per verb, found by scanning this folder.

A verb module has `add_parser(verbs)`, which sets `run=` to a function of the parsed arguments. It returns the
JSON document that `--json` prints, where the verb has it, and raises `Failed` with one sentence. Exit status:
0 done, 1 failed, 2 bad usage. Verbs load Django late: what talks to a server far away needs none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pkgutil import iter_modules

from hub.cli._errors import Failed


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every verb."""
    parser = argparse.ArgumentParser(
        prog="quanthub", description="Run a hub of quantized models, and ask one for quants."
    )
    parser.add_argument("--version", action="version", version=f"quanthub {_version()}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for module in iter_modules(__path__):
        if not module.name.startswith("_"):  # verbs are public names
            import_module(f"{__name__}.{module.name}").add_parser(verbs)
    return parser


def _version() -> str:
    try:
        return version("quanthub")
    except PackageNotFoundError:
        return "(not installed)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        document, status = arguments.run(arguments), 0
    except KeyboardInterrupt:
        print("quanthub: stopped", file=sys.stderr)
        return 1
    except (Failed, OSError) as exc:
        print(f"quanthub {arguments.verb}: {' '.join(str(exc).split())}", file=sys.stderr)
        document, status = getattr(exc, "document", None), 1
    if document is not None and getattr(arguments, "json", False):
        json.dump(document, sys.stdout, indent=2)
        print()
    return status
