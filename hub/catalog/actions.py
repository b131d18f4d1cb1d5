"""Every write to the catalog that is not the end of a job."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction

from hub import blobs, engine, previews
from hub.catalog.models import Model, Revision, RevisionFile

DEMO_ID = "quanthub/tiny-novels-7m"
DEMO_SUMMARY = (
    "A small Llama of 6.8 million parameters, trained from scratch on ten public-domain novels; "
    "it makes every step of the hub quick to try."
)
# Files that say nothing about the model and would change its commit: editors' and downloaders' own.
LEFT_OUT = frozenset({".git", ".cache", ".gitattributes", ".DS_Store"})


class Refused(Exception):
    """The catalog cannot take this; the message says what to change."""


@dataclass(frozen=True)
class Taken:
    """What an import did: the revision, whether it is new, and the one that was the newest before."""

    revision: Revision
    is_new: bool
    before: Revision | None

    @property
    def is_quantized(self) -> bool:
        return engine.is_quantized(self.revision.tensor_type)


@dataclass(frozen=True)
class _Found:
    """A file to import: where it is and what it is called in the revision."""

    path: Path
    name: str


def import_path(path: Path, model_id: str | None = None, *, summary: str = "", licence: str = "") -> Taken:
    """Take a model folder or a GGUF file into the catalog. Doing it again changes nothing.

    Bytes are stored first, all rows in one transaction after them: a crash between leaves bytes that nothing
    refers to, which `blobs.sweep` removes, and never a revision without its bytes.
    """
    path = path.expanduser()
    if not path.exists():
        raise Refused(f"{path}: there is no such file or folder")
    inspection = engine.inspect(path)
    owner, name = _model_id(model_id or f"local/{path.stem if path.is_file() else path.resolve().name}")
    stored = [(found.name, blobs.put(found.path)) for found in _files(path)]
    taken = _record(owner, name, inspection, stored, summary=summary, licence=licence)
    # The request page shows sizes at once, as they are worked out here already.
    with suppress(engine.EngineError):
        previews.preview(taken.revision, engine.levels()[0].name)
    return taken


def import_demo() -> Revision:
    """Take the demo model into the catalog."""
    folder = settings.DEMO_DIR / "tiny-novels-7m"
    return import_path(folder, DEMO_ID, summary=DEMO_SUMMARY, licence="CC0-1.0").revision


def _model_id(text: str) -> tuple[str, str]:
    owner, slash, name = text.partition("/")
    model = Model(owner=owner, name=name)
    try:
        model.clean_fields(exclude=["summary", "licence", "architecture", "parameters", "n_ctx_train"])
    except ValidationError as exc:
        raise Refused(
            f"{text!r} is no model id. Use OWNER/NAME of letters, digits, '.', '_' and '-'."
        ) from exc
    if not slash:
        raise Refused(f"{text!r} is no model id. Use OWNER/NAME.")
    return owner, name


def _files(path: Path) -> list[_Found]:
    if path.is_file():
        return [_Found(path, path.name)]
    found = [
        _Found(file, file.relative_to(path).as_posix())
        for file in sorted(path.rglob("*"))
        if file.is_file() and not LEFT_OUT.intersection(file.relative_to(path).parts)
    ]
    long = next((file.name for file in found if len(file.name) > 255), None)
    if long:
        raise Refused(f"{long}: the path is longer than 255 characters")
    return found


def _commit(files: list[tuple[str, blobs.Stored]]) -> str:
    """Return 40 hex digits over the sorted paths and hashes: equal files, equal commit."""
    listing = "".join(f"{file.sha256}  {name}\n" for name, file in sorted(files, key=lambda pair: pair[0]))
    return hashlib.sha256(listing.encode()).hexdigest()[:40]


@transaction.atomic
def _record(
    owner: str,
    name: str,
    inspection: engine.Inspection,
    stored: list[tuple[str, blobs.Stored]],
    *,
    summary: str,
    licence: str,
) -> Taken:
    model, _ = Model.objects.get_or_create(owner=owner, name=name)
    before = model.latest_revision
    _describe(model, inspection, summary=summary, licence=licence)
    revision, is_new = Revision.objects.get_or_create(
        model=model,
        commit=_commit(stored),
        defaults={
            "source_format": inspection.source_format,
            "file_bytes": inspection.file_bytes,
            "bpw": inspection.bpw,
            "tensor_type": inspection.tensor_type,
            "metadata": inspection.metadata,
        },
    )
    if revision.bpw is None:
        # It came before this was kept.
        revision.bpw = inspection.bpw
        revision.save(update_fields=["bpw"])
    if is_new:
        RevisionFile.objects.bulk_create(
            RevisionFile(revision=revision, path=path, blob=blobs.record(file)) for path, file in stored
        )
    return Taken(revision, is_new, before)


def _describe(model: Model, inspection: engine.Inspection, *, summary: str, licence: str) -> None:
    """Fill in what the headers say; what people wrote stays unless they write it anew."""
    wanted = {
        "architecture": inspection.architecture,
        "parameters": inspection.parameters,
        "n_ctx_train": inspection.n_ctx_train,
        "summary": summary or model.summary,
        "licence": licence or model.licence,
    }
    changed = {field: value for field, value in wanted.items() if getattr(model, field) != value}
    if changed:
        for field, value in changed.items():
            setattr(model, field, value)
        model.save(update_fields=[*changed, "updated"])
