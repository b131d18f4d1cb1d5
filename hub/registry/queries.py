"""Which file stands behind an address of the registry. Only rows are looked at, never the file system."""

from __future__ import annotations

from dataclasses import dataclass

from hub.catalog.models import Blob, Model, QuantFile, Revision, RevisionFile

MAIN = "main"


@dataclass(frozen=True)
class Found:
    """A file, its name, and the commit of the revision it belongs to."""

    path: str
    blob: Blob
    commit: str


def resolve(owner: str, name: str, rev: str, path: str) -> Found | None:
    """Return a file of a revision or of its quants; `main` is the newest, with the quants of older ones."""
    model = Model.objects.filter(owner=owner, name=name).first()
    if model is None:
        return None
    if rev != MAIN:
        revision = model.revisions.filter(commit=rev).first()
        return _in_revision(revision, path) if revision else None
    latest = model.latest_revision
    return (_in_revision(latest, path) if latest else None) or _in_older_quants(model, path)


def _in_revision(revision: Revision, path: str) -> Found | None:
    file: RevisionFile | QuantFile | None = (
        RevisionFile.objects.filter(revision=revision, path=path).select_related("blob").first()
        or QuantFile.objects.filter(quant__revision=revision, path=path).select_related("blob").first()
    )
    return Found(file.path, file.blob, revision.commit) if file else None


def _in_older_quants(model: Model, path: str) -> Found | None:
    file = (
        QuantFile.objects.filter(quant__revision__model=model, path=path)
        .select_related("blob", "quant__revision")
        .order_by("-quant__created")
        .first()
    )
    return Found(file.path, file.blob, file.quant.revision.commit) if file else None
