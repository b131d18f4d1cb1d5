"""quanthub password"""

from __future__ import annotations

import argparse
from typing import Any

from hub.cli._errors import Failed


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("password", help="print a new password for someone who lost theirs")
    parser.add_argument("--user", default="admin", help="whose password (default: admin)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from hub.cli._django import set_up

    set_up(new_hub=False)
    from django.db import DatabaseError

    from hub.accounts import actions
    from hub.accounts.models import User

    try:
        user = User.objects.filter(username=arguments.user).first()
        if user is None:
            raise Failed(f"no user is called {arguments.user!r}")
        password = actions.reset_password(user)
    except DatabaseError as exc:
        raise Failed(f"the database cannot be used: {exc}. Has the hub been started once?") from exc
    print(password)
