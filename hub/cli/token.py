"""quanthub token"""

from __future__ import annotations

import argparse
from typing import Any

from hub.cli._errors import Failed


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("token", help="issue tokens for tools")
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    create = what.add_parser("create", help="print a new token, alone")
    create.add_argument("--user", required=True, help="the person whom the token acts for")
    create.add_argument("--name", required=True, help="what the token is for")
    create.add_argument("--scope", choices=("read", "write", "admin"), default="write")
    create.set_defaults(run=run_create)


def run_create(arguments: argparse.Namespace) -> None:
    from hub.cli._django import set_up

    set_up(new_hub=False)
    from django.db import DatabaseError

    from hub.accounts import actions
    from hub.accounts.models import User

    try:
        user = User.objects.filter(username=arguments.user).first()
        if user is None:
            raise Failed(f"no user is called {arguments.user!r}")
        _token, secret = actions.issue_token(user, arguments.name, arguments.scope)
    except actions.Refused as exc:
        raise Failed(str(exc)) from exc
    except DatabaseError as exc:
        raise Failed(f"the database cannot be used: {exc}. Has the hub been started once?") from exc
    print(secret)
