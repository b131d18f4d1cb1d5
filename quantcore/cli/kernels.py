"""`quantcore kernels`: show whether the compiled kernels are there, and compile them."""

from __future__ import annotations

import argparse
import time
from typing import Any

from quantcore.backends import compile_kernels
from quantcore.cli._terminal import add_json, human_seconds, note
from quantcore.kernels import library


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("kernels", help="show or compile the kernels for this processor")
    parser.add_argument(
        "--build", action="store_true", help="compile them, unless that was done; takes a minute or two"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    kernels = compile_kernels(note) if arguments.build else library.load()
    seconds = time.monotonic() - began
    document = {
        "built": kernels is not None,
        "building": library.is_building(),
        "folder": str(library.folder()),
        "kernels": list(kernels.names) if kernels else [],
    }
    if not arguments.json:
        if kernels is None and document["building"]:
            print("being compiled at this moment, which takes a minute or two")
        elif kernels is None:
            print(f"not compiled yet: `quantcore kernels --build` would put them into {document['folder']}")
        else:
            after = f", compiled in {human_seconds(seconds)}" if arguments.build and seconds > 1 else ""
            print(f"{len(kernels.names)} kernels in {document['folder']}{after}")
    return document
