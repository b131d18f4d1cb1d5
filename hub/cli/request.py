"""quanthub request"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from typing import Any

from hub.cli._client import Client, Unreachable
from hub.cli._errors import Failed

POLL_SECONDS = 1.0
ENDED = frozenset({"done", "failed", "cancelled"})

# The names of the API's metrics in words, in the order of the pages.
METRICS = {
    "ppl": "Perplexity",
    "bits_per_byte": "Bits per byte",
    "ppl_increase": "Perplexity increase over the source",
    "kl_divergence": "KL divergence from the source",
    "same_top": "Same likeliest token",
    "rms_delta_p": "RMS change of token probability",
    "pp_tps": "Prompt speed",
    "tg_tps": "Generation speed",
    "pp_deep_tps": "Prompt speed deep in the context",
    "tg_deep_tps": "Generation speed deep in the context",
}


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("request", help="ask a hub for quants of a model")
    parser.add_argument("model", metavar="MODEL", help="OWNER/NAME")
    parser.add_argument("levels", metavar="LEVEL", nargs="+", help="such as Q4_K_M")
    parser.add_argument(
        "--server",
        default=_default_server(),
        help="the hub's address (default: QUANTHUB_SERVER, or this machine and PORT)",
    )
    parser.add_argument(
        "--token",
        default=os.environ.get("QUANTHUB_TOKEN", ""),
        help="an API token (default: QUANTHUB_TOKEN, which other users of this machine cannot see)",
    )
    parser.add_argument("--wait", action="store_true", help="stay until every quant is made")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def _default_server() -> str:
    """Return where the hub is: the server named in the environment, or the one that `quanthub up` starts."""
    return os.environ.get("QUANTHUB_SERVER") or f"http://127.0.0.1:{os.environ.get('PORT') or 8000}"


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    client = Client(arguments.server, arguments.token)
    document = client.post("requests", {"model": arguments.model, "levels": arguments.levels})
    if arguments.wait:
        document = _wait(client, document)
    if not arguments.json:
        _print(document, arguments.wait)
    if arguments.wait:
        _require_done(document)
    return document


def _wait(client: Client, document: dict[str, Any]) -> dict[str, Any]:
    line = _Line()
    while document["state"] not in ENDED:
        line.show("; ".join(_how_far(job) for job in document["jobs"] if job["state"] not in ENDED))
        time.sleep(POLL_SECONDS)
        try:
            document = client.get(f"requests/{document['id']}", line.note)
        except Unreachable as exc:
            jobs = ", ".join(f"{client.server}/jobs/{job['id']}/" for job in document["jobs"])
            raise Failed(f"{exc} The request goes on without this command: see {jobs}", document) from exc
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

    def note(self, text: str) -> None:
        """Print a line that stays, terminal or not."""
        self.clear()
        print(f"quanthub request: {text}", file=sys.stderr, flush=True)

    def clear(self) -> None:
        self.show("")


def _print(document: dict[str, Any], waited: bool) -> None:
    print(f"Request {document['id']}: {document['state']}")
    for job in document["jobs"]:
        # Whoever waited hears why as the last word.
        if job["state"] != "done":
            print(f"  {job['level']}: {job['state'] if waited else _state(job)}")
    for quant in document["quants"]:
        print(f"  {quant['level']}: {quant['file_bytes']:,} bytes, SHA-256 {quant['sha256']}")
        print(f"    {quant['url']}")
        for figure in sorted(quant["measurements"], key=_place):
            print(f"    {_figure(figure)}")


def _state(job: dict[str, Any]) -> str:
    return f"{job['state']}: {job['error']}" if job["error"] else str(job["state"])


def _place(figure: dict[str, Any]) -> int:
    known = list(METRICS)
    return known.index(figure["metric"]) if figure["metric"] in known else len(known)


def _figure(figure: dict[str, Any]) -> str:
    name = METRICS.get(figure["metric"], figure["metric"])
    deviation = "" if figure["deviation"] is None else f" ± {figure['deviation']:.4g}"
    return f"{name} {figure['value']:.6g}{deviation} {figure['unit']}".rstrip()


def _require_done(document: dict[str, Any]) -> None:
    bad = [job for job in document["jobs"] if job["state"] != "done"]
    if bad:
        raise Failed("; ".join(f"{job['level']} {_state(job)}" for job in bad), document)
