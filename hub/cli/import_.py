"""quanthub import"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.cli._errors import Failed

if TYPE_CHECKING:
    from hub.catalog.actions import Taken


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("import", help="take a model folder or a GGUF file into the catalog")
    parser.add_argument("path", type=Path, help="a Hugging Face folder or a GGUF file")
    parser.add_argument("--id", help="OWNER/NAME in the catalog (default: local/ and the file's name)")
    parser.add_argument("--licence", "--license", default="", help="such as Apache-2.0")
    parser.add_argument("--summary", default="", help="a sentence for the model's page")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from hub.cli._django import set_up

    set_up()
    from django.core.management import call_command
    from django.db import DatabaseError

    from hub import blobs, engine
    from hub.catalog import actions

    try:
        # The hub may never have been started on this data folder.
        call_command("migrate", interactive=False, verbosity=0)
        taken = actions.import_path(
            arguments.path, arguments.id, summary=arguments.summary, licence=arguments.licence
        )
    except (actions.Refused, engine.EngineError, blobs.BlobError) as exc:
        raise Failed(str(exc)) from exc
    except DatabaseError as exc:
        raise Failed(f"the database cannot be used: {exc}") from exc
    if warning := _warning(taken):
        print(f"quanthub import: warning: {warning}", file=sys.stderr)
    if not arguments.json:
        print(_said(taken))
    revision = taken.revision
    return {
        "id": str(revision.model),
        "commit": revision.commit,
        "file_bytes": revision.file_bytes,
        "tensor_type": revision.tensor_type,
        "is_new": taken.is_new,
    }


def _said(taken: Taken) -> str:
    model, commit = taken.revision.model, taken.revision.commit
    if not taken.is_new:
        return f"{model} has these files already, commit {commit}; no new revision is needed"
    if taken.before is None:
        return f"{model} is in the catalog, commit {commit}"
    quants = taken.before.quants.count()
    return (
        f"{model} has a new revision, commit {commit}; "
        f"the previous one has {quants} quant{'s' * (quants != 1)}"
    )


def _warning(taken: Taken) -> str:
    if not taken.is_quantized:
        return ""
    return (
        f"the tensors are quantized already ({taken.revision.tensor_type}). The hub makes full-precision "
        "forms of them, which win nothing back, and copies: for other levels import the original."
    )
