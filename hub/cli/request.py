"""quanthub request"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from typing import Any

from hub.cli._client import Client
from hub.cli._errors import Failed

POLL_SECONDS = 1.0
ENDED = frozenset({"done", "failed", "cancelled"})


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("request", help="ask a hub for quants of a model")
    parser.add_argument("model", metavar="MODEL", help="OWNER/NAME")
    parser.add_argument("levels", metavar="LEVEL", nargs="+", help="such as Q4_K_M")
    parser.add_argument(
        "--server",
        default=os.environ.get("QUANTHUB_SERVER", "http://127.0.0.1:8000"),
        help="the hub's address (default: QUANTHUB_SERVER, or this machine)",
    )
    parser.add_argument(
        "--token",
        default=os.environ.get("QUANTHUB_TOKEN", ""),
        help="an API token (default: QUANTHUB_TOKEN, which other users of this machine cannot see)",
    )
    parser.add_argument("--wait", action="store_true", help="stay until every quant is made")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    client = Client(arguments.server, arguments.token)
    document = client.post("requests", {"model": arguments.model, "levels": arguments.levels})
    if arguments.wait:
        document = _wait(client, document)
    if not arguments.json:
        _print(document)
    if arguments.wait:
        _require_done(document)
    return document


def _wait(client: Client, document: dict[str, Any]) -> dict[str, Any]:
    line = _Line()
    while document["state"] not in ENDED:
        line.show("; ".join(_how_far(job) for job in document["jobs"] if job["state"] not in ENDED))
        time.sleep(POLL_SECONDS)
        document = client.get(f"requests/{document['id']}")
    line.clear()
    return document


def _how_far(job: dict[str, Any]) -> str:
    progress = job["progress"]
    if not progress.get("total"):
        return f"{job['level']}: {job['stage'] or job['state']}"
    text = f"{job['level']}: {job['stage']} {100 * progress['done'] / progress['total']:.0f} %"
    left = progress.get("seconds_left")
    return text if left is None else f"{text}, {left:.0f} s left"


class _Line:
    """One line of a terminal that is written over and over; nothing at all where there is no terminal."""

    def __init__(self) -> None:
        self.is_terminal = sys.stderr.isatty()

    def show(self, text: str) -> None:
        if self.is_terminal:
            columns = shutil.get_terminal_size().columns
            print(f"\r\x1b[K{text[: columns - 1]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        self.show("")


def _print(document: dict[str, Any]) -> None:
    print(f"Request {document['id']}: {document['state']}")
    for job in document["jobs"]:
        if job["state"] != "done":
            print(f"  {job['level']}: {job['state']}{': ' + job['error'] if job['error'] else ''}")
    for quant in document["quants"]:
        print(f"  {quant['level']}: {quant['file_bytes']:,} bytes, SHA-256 {quant['sha256']}")
        print(f"    {quant['url']}")
        for figure in quant["measurements"]:
            print(f"    {_figure(figure)}")


def _figure(figure: dict[str, Any]) -> str:
    deviation = "" if figure["deviation"] is None else f" ± {figure['deviation']:.4g}"
    return f"{figure['metric']} {figure['value']:.6g}{deviation} {figure['unit']}".rstrip()


def _require_done(document: dict[str, Any]) -> None:
    bad = [job for job in document["jobs"] if job["state"] != "done"]
    if bad:
        whys = [f"{job['level']} {job['state']}{': ' + job['error'] if job['error'] else ''}" for job in bad]
        raise Failed("; ".join(whys), document)
