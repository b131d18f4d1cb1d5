"""quanthub up"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("up", help="start the whole hub on this machine: web, worker and broker")
    parser.add_argument("--port", type=int, help="port of the web server (default: PORT, or 8000)")
    parser.add_argument("--data", type=Path, help="data folder (default: QUANTHUB_DATA)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    # The rest of the hub, and every process started, reads the environment.
    if arguments.port is not None:
        os.environ["PORT"] = str(arguments.port)
    if arguments.data is not None:
        os.environ["QUANTHUB_DATA"] = str(arguments.data)
    from hub.cli._django import set_up

    set_up()
    from hub.up import up

    up()
