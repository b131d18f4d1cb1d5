"""quanthub worker"""

from __future__ import annotations

import argparse
from typing import Any

from hub.cli._errors import Failed


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("worker", help="run a worker that takes jobs from the queue")
    parser.set_defaults(run=run)


def run(_arguments: argparse.Namespace) -> None:
    from hub.cli._django import set_up

    set_up(new_hub=False)
    from django.conf import settings

    if not settings.BROKER_URL:
        raise Failed("REDIS_URL is not set: say which broker to listen to, or use `quanthub up`")
    from hub.celery import app

    # Gossip and mingling let workers chat with one another; ours meet in the database.
    app.worker_main(["worker", "--loglevel=INFO", "--without-gossip", "--without-mingle"])
